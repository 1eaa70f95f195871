"""What does a sampling run cost over its network, and how does it stand beside the diffusers library?

    python -m benchmarks.solver_overhead [--threads 1] [--steps 20] [--rounds 7] [--case NAME ...] [--no-diffusers] [--out FILE]

First table: a whole call of `gensamp.sample`, its host loop included, over as many calls of the jitted network alone as the run
makes, on the same batch (dispatched one after another, each on what the one before returned, and awaited at the end).
Compilation is timed apart. Three things to know when reading it:

    The network alone is dispatched by the host once for each forward, the run once for all of its steps. That is what calling a
    network costs, but for the smallest networks a third of it: their ratio may be below one. "one scan" is the other yardstick,
    the same solver compiled whole and never stopped at, without recording, counting or a stop for Ctrl-C.
    A run starts from noise that it draws itself, and its result is a NumPy array; the network alone does neither.
    The run is the second or a later one of the same sampler. "sampler made anew" is the first one of a sampler that is only
    like it: nothing is compiled, and JAX is asked again for shapes and placement, which takes a time for each of its arrays.

    unet      28 x 28, 16 draws side by side
    mlp       perceptron over 784 numbers, 64 draws
    digits    8 x 8, ONE draw: here the host's share is largest

Second table: draws per second beside diffusers. A `UNet2DModel` with random weights is saved and read here, so that both sides
have the same network, solver, number of steps, batch and threads; theirs runs eagerly under inference_mode. Needs torch and
diffusers, which this package's oracles install.

Sides alternate within a round and ratios are taken round by round; printed are medians with quartiles, of seconds by the clock
and of processor seconds, which other programs on the machine disturb less. --threads confines the process to so many cores.
"""

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gensamp as gs
from gensamp import nets, noise
from gensamp.clock import compile_clock
from gensamp.pushforward import diffusion
from gensamp.runner import sample

# name: (ours, its options, the other library's scheduler, its options)
SOLVERS = {
    "DDIM": (diffusion.ddim_sampler, {}, "DDIMScheduler", {}),
    "DPM-Solver++ 2M": (diffusion.dpm_solver_pp, {"order": 2}, "DPMSolverMultistepScheduler", {"solver_order": 2}),
    "UniPC-2": (diffusion.unipc, {"order": 2}, "UniPCMultistepScheduler", {"solver_order": 2}),
}
LAYOUT = {
    "sample_size": 28, "in_channels": 1, "out_channels": 1, "block_out_channels": (32, 64), "layers_per_block": 1,
    "norm_num_groups": 8, "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def cases():
    """name: (network, template, draws)."""
    image, small = jnp.zeros((28, 28, 1)), jnp.zeros((8, 8, 1))
    return {
        "unet": (nets.unet(image, width=32, convolution="xla"), image, 16),
        "mlp": (nets.mlp(image, width=256, depth=3), image, 64),
        "digits": (nets.unet(small, width=24, convolution="xla"), small, 1),
    }


def quartiles(values):
    """(median, lower and upper quartile)."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "quartiles": [float(low), float(high)]}


def interleaved(sides, rounds):
    """Seconds of each side by the clock and of the processor, {name: [rounds, 2]}, after one call each that is not timed."""
    for side in sides.values():
        side()
    seconds = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter(), time.process_time()
            sides[name]()
            seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {name: np.asarray(values) for name, values in seconds.items()}


def ratio(above, below):
    """Of one side's seconds over another's, round by round."""
    return {"wall": quartiles(above[:, 0] / below[:, 0]), "processor": quartiles(above[:, 1] / below[:, 1])}


@jax.jit
def network_alone(apply, params, x, t):
    return jax.vmap(apply, in_axes=(None, 0, None))(params, x, t)


@partial(jax.jit, static_argnames="draws")
def bare(key, sampler, draws):
    """The same sampler in one scan, without the runner: what is left over the network is the solver's own arithmetic."""
    return jax.vmap(lambda key: gs.draw(key, sampler).position)(jax.random.split(key, draws))


def overhead(case, solver, steps, rounds):
    """One row of the first table."""
    network, template, draws = cases()[case]
    make, options, *_ = SOLVERS[solver]
    model = gs.pushforward.diffusion_model(
        network, noise.cosine(), template=template, solver=make, grid=diffusion.uniform_time(steps, start=0.999), **options
    )
    params = jax.jit(model.init)(jax.random.key(0), jax.random.normal(jax.random.key(1), (8, *template.shape)))[0]
    sampler, key = model.sampler(params), jax.random.key(2)
    x, t = jax.random.normal(key, (draws, *template.shape)), jnp.float32(0.5)
    with compile_clock() as clock:
        made = sample(key, sampler, draws, progress=False)
    forwards = int(np.asarray(made.info.forwards)[0, 0])

    def alone():
        out = x
        for _ in range(forwards):
            out = network_alone(network.apply, params["network"], out, t)
        jax.block_until_ready(out)

    seconds = interleaved({
        "sample": lambda: sample(key, sampler, draws, progress=False),
        "anew": lambda: sample(key, jax.tree.map(lambda leaf: leaf, sampler), draws, progress=False),
        "scan": lambda: jax.block_until_ready(bare(key, sampler, draws)),
        "network": alone,
    }, rounds)  # fmt: skip
    return {
        "draws": draws, "forwards": forwards, "compile seconds": clock.seconds,
        "milliseconds": 1e3 * float(np.median(seconds["sample"][:, 0])),
        "over the network": ratio(seconds["sample"], seconds["network"]),
        "over one scan": ratio(seconds["sample"], seconds["scan"]),
        "sampler made anew, over the network": ratio(seconds["anew"], seconds["network"]),
    }  # fmt: skip


def beside_diffusers(solver, steps, rounds, draws, threads):
    """One row of the second table."""
    import diffusers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    from gensamp.weights import read_diffusers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**LAYOUT).eval()
    make, options, name, their_options = SOLVERS[solver]
    scheduler = (
        getattr(diffusers, name)(clip_sample=False) if name == "DDIMScheduler" else getattr(diffusers, name)(**their_options)
    )
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / "unet")
        diffusers.DDPMScheduler(clip_sample=False).save_pretrained(Path(folder) / "scheduler")
        read = read_diffusers(folder, convolution="xla")
    sampler = make(read.denoiser(), read.noise, diffusion.trailing(steps), read.template, prediction=read.prediction, **options)
    key, start = jax.random.key(0), torch.randn(draws, 1, 28, 28)

    def diffused():
        with torch.inference_mode():
            scheduler.set_timesteps(steps)
            x = start
            for t in scheduler.timesteps:
                x = scheduler.step(theirs(x, t).sample, t, x).prev_sample

    with compile_clock() as clock:
        sample(key, sampler, draws, progress=False)
    seconds = interleaved({"ours": lambda: sample(key, sampler, draws, progress=False), "theirs": diffused}, rounds)
    return {
        "draws": draws, "steps": steps, "compile seconds": clock.seconds,
        "draws per second": {side: float(draws / np.median(s[:, 0])) for side, s in seconds.items()},
        "ours over theirs": ratio(seconds["theirs"], seconds["ours"]),
    }  # fmt: skip


def confine(threads):
    """Keep this process on so many cores; XLA makes as many threads, when it first computes."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise SystemExit(f"--threads {threads}, and this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])


def shown(value):
    """A ratio for people."""
    return " ".join(
        f"{value[k]['median']:>7.3f} ({value[k]['quartiles'][0]:.2f}-{value[k]['quartiles'][1]:.2f})" for k in value
    )


def main():
    parser = argparse.ArgumentParser(description="What a sampling run costs over its network.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", nargs="*", default=["unet", "mlp", "digits"], choices=["unet", "mlp", "digits"])
    parser.add_argument("--solver", nargs="*", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--draws", type=int, default=16, help="beside diffusers")
    parser.add_argument("--no-diffusers", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    confine(given.threads)
    key = f"{given.threads} threads"
    results = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    found = results.setdefault(key, {"overhead": {}, "beside diffusers": {}})
    print(f"{key}; time of a run over its network alone: by the clock and of the processor, median (quartiles)")
    for case in given.case:
        for solver in given.solver:
            row = found["overhead"][f"{case}, {solver}"] = overhead(case, solver, given.steps, given.rounds)
            print(f"  {case:<7} {solver:<16} {row['milliseconds']:>9.1f} ms  {shown(row['over the network'])}", flush=True)
            print(f"  {'':<24} {'one scan':>12}  {shown(row['over one scan'])}", flush=True)
            print(f"  {'':<24} {'made anew':>12}  {shown(row['sampler made anew, over the network'])}", flush=True)
    if not given.no_diffusers:
        print("draws per second over those of diffusers, same weights")
        for solver in given.solver:
            row = beside_diffusers(solver, given.steps, given.rounds, given.draws, given.threads)
            found["beside diffusers"][solver] = row
            both = row["draws per second"]
            print(f"  {solver:<16} {both['ours']:.1f} / {both['theirs']:.1f}  {shown(row['ours over theirs'])}", flush=True)
    found["about"] = {
        "date": datetime.date.today().isoformat(), "python": platform.python_version(), "jax": jax.__version__,
        "device": jax.devices()[0].device_kind, "rounds": given.rounds, "steps": given.steps,
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
