"""Do the solvers of a reversed diffusion have the order they are named for, and do they ever give NaN?

    python -m benchmarks.solver_orders [--starts 256] [--sets 8] [--solvers NAME ...] [--no-sweep] [--out FILE]

The score is exact: an equal-weight mixture of three Gaussians in the plane (means (2, 0), (-1.5, 1.5), (-1, -2), standard
deviations .5, .4, .6) under noise, float64. The truth is each start's own end on the probability-flow ODE, by diffrax's Dopri8
at tolerances of 1e-12. Three problems:

    whole     VP-linear from t = 1 to 1e-3, equal steps of log-SNR, starts N(0, sigma_1^2)
    middle    the same from t = 0.3, starts x_t of exact draws: here a poor start-up of a multistep method shows
    karras    EDM's process from sigma = 20 to 0.02, Karras's grid

The last two start with signal (alpha / sigma is 0.8 and 0.05, on the whole path 0.007), so there multistep methods get a grid
whose first step is divided (`grids.graded`), at one forward or two.

The error is the root mean square over a set of starts, and the order the slope of its logarithm against that of the forwards
spent, fitted at 24, 48, 96 and 192 of them, those of a divided first step included. A start near the
watershed between two modes amplifies every error, so one set of starts differs from another: the order is the median over sets,
and its range stands beside. The median error of all starts, which no watershed reaches, has an order of its own.

The sweep draws with every solver on every grid and process, last steps to a time without noise, repeated times and grids that
stand still included, and counts the draws that are not finite. Pairs that a solver refuses are listed with its reason.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gensamp as gs
from gensamp import noise, paths
from gensamp.pushforward import diffusion
from gensamp.pushforward.diffusion.grids import graded
from gensamp.targets.mixture import mixture

NFE = (24, 48, 96, 192)
# name: (solver, options, forwards per step, past values it goes through, what the literature's own code measured on another
# mixture).
SOLVERS = {
    "DDIM": (diffusion.ddim_sampler, {}, 1, 1, 1.00),
    "Euler": (diffusion.euler, {}, 1, 1, 1.00),
    "Heun": (diffusion.heun, {}, 2, 1, 2.01),
    "LMS-4": (diffusion.lms, {"order": 4}, 1, 4, 3.82),
    "DEIS-3": (diffusion.deis, {"order": 3}, 1, 3, None),
    "DEIS-3, time": (diffusion.deis, {"order": 3, "variable": "time"}, 1, 3, None),
    "DPM-Solver-2": (diffusion.dpm_solver, {"order": 2}, 2, 1, None),
    "DPM-Solver-3": (diffusion.dpm_solver, {"order": 3}, 3, 1, 2.69),
    "DPM-Solver++ 2S": (diffusion.dpm_solver, {"order": 2, "integrates": "x0"}, 2, 1, None),
    "DPM-Solver++ 2M": (diffusion.dpm_solver_pp, {"order": 2}, 1, 2, 1.97),
    "DPM-Solver++ 3M": (diffusion.dpm_solver_pp, {"order": 3}, 1, 3, 2.16),
    "UniPC-2": (diffusion.unipc, {"order": 2}, 1, 2, 2.96),
    "UniPC-3": (diffusion.unipc, {"order": 3}, 1, 3, 3.80),
}
STOCHASTIC = {
    "ancestral": (diffusion.ancestral, {}),
    "DPM-Solver++ 2M SDE": (diffusion.dpm_solver_pp, {"order": 2, "eta": 1.0}),
    "exponential SDE": (diffusion.exponential_sde, {}),
    "Heun, churn": (diffusion.heun, {"churn": 5.0}),
}
PROCESSES = {
    "vp_linear": noise.vp_linear, "cosine": noise.cosine, "ve": noise.ve, "sub_vp": noise.sub_vp, "edm": noise.edm,
    "rectified_flow": noise.rectified_flow,
}  # fmt: skip


def three_gaussians():
    """The mixture, in float64."""
    variances = np.square([[0.5, 0.5], [0.4, 0.4], [0.6, 0.6]])
    return mixture(np.ones(3), [[2.0, 0.0], [-1.5, 1.5], [-1.0, -2.0]], variances, dtype=jnp.float64)


def predicted_eps(score, process, t, x):
    return -process.sigma(t) * score(1 - t, x)


def predicted_x0(score, process, t, x):
    """The mean of x_0 given x: finite where no signal is left."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return (x + sigma**2 * score(1 - t, x)) / jnp.maximum(alpha, noise.FLOOR)


def problem(name, num_starts, seed=0):
    """(process, denoiser, grid, starts [num_starts, 2], first and last time).

    grid: (n, values) -> times [n + 1], for a method through that many past values.
    """
    target = three_gaussians()
    process = noise.edm(0.02, 20.0) if name == "karras" else noise.vp_linear()
    denoise = gs.bind(predicted_eps, paths.noised(target, process).score, process)
    first, last = (1.0, process.t_min) if name == "karras" else (0.3 if name == "middle" else 1.0, 1e-3)
    key_data, key_noise = jax.random.split(jax.random.key(seed))
    starts = process.sigma(first) * jax.random.normal(key_noise, (num_starts, 2), jnp.float64)
    if name == "middle":
        data = jax.vmap(target.exact)(jax.random.split(key_data, num_starts))
        starts = process.alpha(first) * data + starts

    def grid(steps, values):
        if name == "whole":
            return diffusion.uniform_log_snr(process, steps, start=first, end=last)
        steps -= max(values - 2, 0)
        if name == "karras":
            return graded(diffusion.karras(process, steps, clean=False), values)
        return graded(diffusion.uniform_log_snr(process, steps, start=first, end=last), values)

    return process, denoise, grid, starts, (first, last)


def reference(process, denoise, starts, times, tolerance=1e-12):
    """Where the probability-flow ODE takes each start, by diffrax."""
    import diffrax

    def field(t, x, _):
        # dx/dt = (alpha' / alpha) x + (sigma' - alpha' sigma / alpha) eps, of its own accord and not the package's.
        (alpha, alpha_rate), (sigma, sigma_rate) = (
            jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (process.alpha, process.sigma)
        )
        return alpha_rate / alpha * x + (sigma_rate - alpha_rate * sigma / alpha) * denoise(t, x)

    def end(x):
        control = diffrax.PIDController(tolerance, tolerance)
        term, solver = diffrax.ODETerm(field), diffrax.Dopri8()
        first, last = times
        out = diffrax.diffeqsolve(
            term, solver, t0=first, t1=last, dt0=-1e-3, y0=x, stepsize_controller=control, max_steps=100_000
        )
        return jnp.asarray(out.ys)[0]

    return jax.jit(jax.vmap(end))(starts)


@jax.jit
def ends(sampler, num_steps, starts):
    """Where the first steps of a sampler take the starts, [starts, 2], and the forwards that Info counts."""

    def end(x):
        def body(index, carry):
            state, spent = carry
            state, info = sampler.step(jax.random.key(1), state, index)
            return state, spent + info.forwards

        state, spent = jax.lax.fori_loop(0, num_steps, body, (sampler.init(jax.random.key(0), x), jnp.int32(0)))
        return sampler.position(state), spent

    position, spent = jax.vmap(end)(starts)
    return position, spent[0]


def solve(name, process, denoise, times, starts):
    """Ends by one of `SOLVERS` and the forwards spent; grids of all lengths run in one program, which stops where they end."""
    solver, options, *_ = SOLVERS[name]
    padded = jnp.pad(times, (0, max(NFE) + 1 - times.size), mode="edge")
    sampler = solver(denoise, process, padded, jax.ShapeDtypeStruct((2,), jnp.float64), **options)
    return ends(sampler, jnp.int32(times.size - 1), starts)


def slope(errors):
    """The order: minus the slope of log error against log forwards, by least squares; errors [len(NFE), ...]."""
    return -np.polyfit(np.log(NFE), np.log(errors), 1)[0]


def measure(name, given, truth, num_sets):
    """The orders of one solver on one problem, and its errors at each number of forwards."""
    process, denoise, grid, starts, _ = given
    _, _, per_step, values, _ = SOLVERS[name]
    squares = []
    for forwards in NFE:
        position, spent = solve(name, process, denoise, grid(forwards // per_step, values), starts)
        assert int(spent) == forwards, f"{name} spent {spent} forwards for {forwards}"
        squares.append(np.sum(np.square(np.asarray(position - truth)), axis=-1))
    sets = np.sqrt(np.reshape(squares, (len(NFE), num_sets, -1)).mean(-1))
    orders = [float(slope(sets[:, i])) for i in range(num_sets)]
    middle = np.sqrt(np.median(squares, axis=1))
    return {
        "order": float(np.median(orders)), "orders of the sets": orders, "order of the median error": float(slope(middle)),
        "rms": dict(zip(map(str, NFE), np.sqrt(np.mean(squares, axis=1)).tolist(), strict=True)),
        "median": dict(zip(map(str, NFE), middle.tolist(), strict=True)),
    }  # fmt: skip


def sweep(steps=8, draws=16):
    """Draws that are not finite, by solver, grid and process, and the pairs that are refused."""
    target, bad, refused, tried = three_gaussians(), [], [], 0
    solvers = {name: (solver, options) for name, (solver, options, *_) in SOLVERS.items()} | STOCHASTIC
    keys = jax.random.split(jax.random.key(0), draws)
    template = jax.ShapeDtypeStruct((2,), jnp.float64)
    for process_name, make in PROCESSES.items():
        process = make()
        denoise = gs.bind(predicted_x0, paths.noised(target, process).score, process)
        grids = {
            "time": diffusion.uniform_time(steps), "trailing": diffusion.trailing(steps),
            "log-SNR": diffusion.uniform_log_snr(process, steps), "karras": diffusion.karras(process, steps),
            "repeated": jnp.array([1.0, 1.0, 0.6, 0.6, 0.3, 0.3, 0.0, 0.0, 0.0]), "standing": jnp.zeros(steps + 1),
        }  # fmt: skip
        for solver_name, (solver, options) in solvers.items():
            run = jax.jit(lambda sampler: jax.vmap(lambda key: gs.draw(key, sampler).position)(keys))
            for grid_name, grid in grids.items():
                label = f"{solver_name}, {grid_name}, {process_name}"
                try:
                    sampler = solver(denoise, process, grid, template, prediction="x0", **options)
                except ValueError as error:
                    refused.append(f"{label}: {error}")
                    sampler = solver(denoise, process, jnp.minimum(grid, 0.999), template, prediction="x0", **options)
                tried += 1
                if not np.isfinite(run(sampler)).all():
                    bad.append(label)
    return {"tried": tried, "not finite": bad, "refused, and tried from t = 0.999 instead": refused}


def main():
    parser = argparse.ArgumentParser(description="The orders of the diffusion solvers, measured.")
    parser.add_argument("--starts", type=int, default=256, help="in a set")
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    results = {}
    for name in ("whole", "middle", "karras"):
        given = problem(name, options.starts * options.sets)
        process, denoise, _, starts, times = given
        truth = reference(process, denoise, starts, times)
        results[name] = {}
        print(f"\n{name}: error against diffrax, {options.sets} sets of {options.starts} starts", flush=True)
        print(f"  {'solver':<18}{'24 NFE':>10}{'96 NFE':>10}{'order':>8}  {'(range of sets)':<18}{'of median error':>16}")
        for solver in options.solvers:
            found = results[name][solver] = measure(solver, given, truth, options.sets)
            orders = found["orders of the sets"]
            print(
                f"  {solver:<18}{found['rms']['24']:>10.1e}{found['rms']['96']:>10.1e}{found['order']:>8.2f}"
                f"  ({min(orders):.2f} to {max(orders):.2f})    {found['order of the median error']:>13.2f}", flush=True,
            )  # fmt: skip
    if not options.no_sweep:
        swept = results["sweep"] = sweep()
        print(f"\n{swept['tried']} combinations of solver, grid and process: {len(swept['not finite'])} not finite")
        print(*swept["not finite"], *swept["refused, and tried from t = 0.999 instead"], sep="\n")
    if options.out:
        about = {"date": datetime.date.today().isoformat(), "python": platform.python_version(), "jax": jax.__version__}
        about["device"] = jax.devices()[0].device_kind
        options.out.write_text(json.dumps(results | {"about": about}, indent=1))


if __name__ == "__main__":
    main()
