"""How many gradients until a chain knows the second moments of its target?

    python -m benchmarks.gradients_to_accuracy [--targets NAME ...] [--samplers NAME ...] [--chains 128] [--seeds 3]
                                               [--out FILE]

For every chain the running average of x_i^2 over its draws has the error

    b_i^2 = (E_hat x_i^2 - E x_i^2)^2 / Var x_i^2,

of which the worst coordinate's is taken, and of that the median over chains, draw by draw. What counts is the number of
gradients per chain after which this median stays below 0.01, and its spread over seeds. Tuning is excluded, as in the figures
published with MAMS (Robnik, Cohn-Gordon and Seljak 2025, benchmark repository), which stand beside. Step size and metric come
from `tune` with its defaults; nothing is set for a target. Gradients are those of Info, which a short run with an instrumented
density is held against. The harder reading, the median of the chains' own last times above 0.01, is printed as well.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

import jax
import numpy as np

from gensamp import registry, targets
from gensamp.adapt import tune
from gensamp.runner import sample
from gensamp.testing.counting import Tally, instrument

PUBLISHED = {
    "banana": {"nuts": "112k-134k", "mams": "14k", "mclmc": "7k"},
    "rosenbrock": {"nuts": "157k", "mams": "96k", "mclmc": "60k"},
    "brownian": {"nuts": "29k-33k", "mams": "14k", "mclmc": "9k"},
}
GOOD = 0.01
MOST_DRAWS = 2**17


def counted(key, sampler, target):
    """Gradients of a short run by an instrumented density, over those its Info reports."""
    tally = Tally()
    observed, _ = instrument(sampler, tally, log_density=target.log_density)
    state = observed.init(key, sampler.start(key))
    tally.take()
    reported = 0
    step = jax.jit(lambda key, state, index: observed.step(key, state, index))
    for index in range(20):
        state, info = step(jax.random.fold_in(key, index), state, np.int32(index))
        reported += int(info.gradients)
    return tally.take()["gradients"] / max(reported, 1)


def gradients_needed(key, name, target, num_chains):
    """Gradients per chain after which the median of b^2 stays below GOOD; the same of each chain, [chain]; and `counted`."""
    entry = registry.find(name)
    key_tune, key_run = jax.random.split(key)
    tuned = tune(key_tune, entry.kernel, target, target_acceptance=entry.target_acceptance, num_chains=8, progress=False)
    rows = np.arange(num_chains) % 8
    initial = jax.tree.map(lambda a: a[rows], tuned.initial)
    value, variance = (np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]) for tree in target.truth.second_moment)
    draws = 2_000
    while True:
        out = sample(key_run, tuned.sampler, draws, initial=initial, progress=False)
        error = np.zeros((num_chains, draws))
        for i, squares in enumerate(_columns(out.position)):
            running = np.cumsum(np.square(squares, dtype=np.float64), axis=1) / np.arange(1, draws + 1)
            error = np.maximum(error, (running - value[i]) ** 2 / variance[i])
        whole = _last_above(np.median(error, axis=0)[None])[0]
        if whole < draws // 2 or 4 * draws > MOST_DRAWS:
            break
        draws *= 4
    per_draw = out.info.gradients / (num_chains * draws)
    spent = [np.where(last < draws, last * per_draw, np.inf) for last in (whole, _last_above(error))]
    return float(spent[0]), spent[1], counted(key, tuned.sampler, target)


def _columns(position):
    """Each coordinate of a tree of positions, [chain, draw]."""
    for leaf in jax.tree.leaves(position):
        yield from np.moveaxis(leaf.reshape(*leaf.shape[:2], -1), 2, 0)


def _last_above(error):
    """Draws after which each row of errors stays below GOOD; its length where it does not."""
    bad = error > GOOD
    return np.where(bad.any(1), bad.shape[1] - bad[:, ::-1].argmax(1), 1)


def main():
    parser = argparse.ArgumentParser(description="How many gradients until a chain knows the second moments?")
    parser.add_argument("--targets", nargs="*", default=list(PUBLISHED))
    parser.add_argument("--samplers", nargs="*", default=["nuts", "mams", "dynamic_hmc", "malt"])
    parser.add_argument("--chains", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {}
    for target_name in options.targets:
        target = targets.make(target_name)
        print(f"\n{target_name}: gradients until b^2 stays below {GOOD}, median over {options.chains} chains", flush=True)
        for name in options.samplers:
            runs = [gradients_needed(jax.random.key(seed), name, target, options.chains) for seed in range(options.seeds)]
            spent = [one for one, _, _ in runs]
            each = float(np.median(np.concatenate([chains for _, chains, _ in runs])))
            published = PUBLISHED.get(target_name, {}).get(name, "-")
            results[f"{target_name}, {name}"] = {
                "gradients": spent, "median of single chains": each, "published": published,
                "instrumented over reported": [ratio for _, _, ratio in runs],
            }  # fmt: skip
            print(
                f"  {name:<14}{np.median(spent):>10,.0f}   seeds {min(spent):,.0f} to {max(spent):,.0f}   "
                f"published {published}   single chains {each:,.0f}   counted / reported {runs[0][2]:.3f}", flush=True,
            )  # fmt: skip
    if options.out:
        about = {"date": datetime.date.today().isoformat(), "python": platform.python_version(), "jax": jax.__version__}
        about["device"] = jax.devices()[0].device_kind
        options.out.write_text(json.dumps(results | {"about": about}, indent=1))


if __name__ == "__main__":
    main()
