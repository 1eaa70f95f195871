"""What does `gensamp.sample` cost over a bare jitted scan of the same kernel?

    python -m benchmarks.runner_overhead [--chains 4] [--draws 100000] [--dim 10] [--rounds 9] [--out FILE]

Both sides run MALA on a standard Gaussian with the same kernel and hand back the draws as a NumPy array [chain, draw, dim];
host work is included, compilation is timed apart. Sides alternate within a round and the ratio is taken round by round, because
machines are noisy; printed are its median and quartiles, the bytes each side hands back, and the compilations of each side.
"""

import argparse
import datetime
import json
import platform
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gensamp as gs
from gensamp.clock import compile_clock
from gensamp.runner import sample


def log_density(x):
    return -0.5 * jnp.sum(x**2)


@partial(jax.jit, static_argnames=("chains", "draws"))
def bare(key, sampler, chains, draws):
    """The scan somebody would write by hand: one split key per step, positions stacked."""

    def one(key):
        key_start, key_steps = jax.random.split(key)
        state = sampler.init(key_start, sampler.start(key_start))

        def body(state, key):
            state, _ = sampler.step(key, state, 0)
            return state, sampler.position(state)

        return jax.lax.scan(body, state, jax.random.split(key_steps, draws))[1]

    return jax.vmap(one)(jax.random.split(key, chains))


def main() -> None:
    parser = argparse.ArgumentParser(description="What does `gensamp.sample` cost over a bare jitted scan?")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    target = gs.Target.from_log_density(log_density, jnp.zeros(options.dim))
    sampler = gs.mcmc.mala(target, step_size=0.3)
    sides = {
        "bare scan": lambda key: np.asarray(bare(key, sampler, options.chains, options.draws)),
        "gensamp.sample": lambda key: sample(key, sampler, options.draws, num_chains=options.chains, progress=False).position,
    }
    rows = {}
    for name, side in sides.items():
        with compile_clock() as clock:
            out = side(jax.random.key(0))
        rows[name] = {"bytes": out.nbytes, "compilations": clock.count, "compile_seconds": clock.seconds, "seconds": []}
    for number in range(options.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            sides[name](jax.random.key(number + 1))
            rows[name]["seconds"].append(time.perf_counter() - began)
    ratios = np.divide(rows["gensamp.sample"]["seconds"], rows["bare scan"]["seconds"])
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])

    print(f"MALA, {options.chains} chains x {options.draws:,} draws, {options.dim} dimensions, {jax.devices()[0].device_kind}")
    print(f"{'':<16}{'seconds (median)':>18}{'megabytes':>12}{'compilations':>14}{'compile seconds':>17}")
    for name, row in rows.items():
        seconds = np.median(row["seconds"])
        print(f"{name:<16}{seconds:>18.3f}{row['bytes'] / 1e6:>12.1f}{row['compilations']:>14}{row['compile_seconds']:>17.2f}")
    print(f"ratio gensamp / bare: median {median:.3f}, quartiles {low:.3f} to {high:.3f}, over {options.rounds} rounds")
    if options.out:
        result = {
            "ratio": {"median": median, "quartiles": [low, high]}, "sides": rows, "options": vars(options) | {"out": None},
            "device": jax.devices()[0].device_kind, "python": platform.python_version(), "jax": jax.__version__,
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
