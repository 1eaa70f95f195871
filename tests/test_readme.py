"""The README's Python runs, block after block in one namespace, with the long trainings and comparisons cut short."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"
SHORTER = [
    (r"num_steps=[\d_]+", "num_steps=8"),
    (r"gs\.mcmc\.nuts, (\w+)\)", r"gs.mcmc.nuts, \1, num_steps=60)"),
    (r'"small"', '"tiny"'),
    (r"1_000_000", "600"),
    (r"num_chains=64", "num_chains=4"),
    (r"gs\.nets\.unet\(digits\.template", "gs.nets.unet(digits.template, width=8"),
    (r"gs\.nets\.unet, digits\.template", "gs.nets.unet, digits.template, width=8"),
]


def test_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    for pattern, shorter in SHORTER:
        assert re.search(pattern, text), f"the README no longer says {pattern}"
        text = re.sub(pattern, shorter, text)
    names: dict = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)):
        exec(compile(block, f"README block {number}", "exec"), names)
        if "sampler = gs.mcmc.mala" in block:
            assert names["draws"].position.shape == (4, 1000, 5)
        if "images =" in block and "ddpm" in block:
            assert names["images"].position.shape == (1, 64, 8, 8, 1)
        if "gs.auto" in block:
            assert names["named"]["mu"].shape[0] == 8 and {"theta", "tau"} <= set(names["named"])
        if "each=step_sizes" in block:
            assert names["sweep"].position.shape == (8, 500, 5)
            assert names["draws"].position.shape == (1, 40, 8, 8, 1)
    assert (tmp_path / "run.zarr").exists() and np.isfinite(names["draws"].position).all()
