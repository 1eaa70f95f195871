"""The project's own files agree with each other."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import gensamp

ROOT = Path(gensamp.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in requirements}  # type: ignore[index]


def test_the_version_is_one():
    assert PROJECT["version"] == gensamp.__version__
    assert f"version: {gensamp.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert gensamp.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned_for_each_python():
    wanted = names([*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]) - {"gensamp"}
    for python in ("<", ">="):
        pinned = {normal(line.split("==")[0]) for line in PINS if ";" not in line or f"python_version {python} " in line}
        assert wanted <= pinned, f"not in constraints.txt: {sorted(wanted - pinned)}"


def test_pins_are_exact():
    exact = re.compile(r'[a-z0-9-]+==[0-9a-z.]+( ; python_version (<|>=) "3\.12")?')
    assert [line for line in PINS if not exact.fullmatch(line)] == []


def test_the_miscompiling_jax_is_excluded():
    assert any(line.startswith("jax>=") and "!=0.10.2" in line for line in PROJECT["dependencies"])
    assert not any(line.startswith("jax==0.10.2") for line in PINS)
