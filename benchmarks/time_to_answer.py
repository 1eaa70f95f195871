"""How long from starting Python to draws one may trust, beside numpyro, blackjax and nutpie?

    python -m benchmarks.time_to_answer [--posteriors NAME ...] [--contestants NAME ...] [--repeats 5] [--out FILE]

Each run is a process of its own with cold caches: imports, the model, compilation, warm-up, draws and the diagnostics of every
named quantity are in the time, which runs from the start of the process until the diagnostics are there. An answer has bulk
ESS >= 400 and R-hat < 1.01 in every quantity, and is then checked (outside the time) against the reference draws: |z| <= 4.

gensamp runs `auto` with its defaults, its chains spread over the cores (as numpyro's parallel chains are). The others run their
NUTS with four chains and their defaults, once as documented (1,000 draws after 1,000 of warm-up; nutpie's 1,000 after 300), and
once with the fewest draws, and the shorter of two warm-ups (300 or the documented one), that reached the diagnostics in a
longer run made beforehand, untimed. One process runs at a time, the order alternates from repeat to repeat, and a table of
medians, ratios and their geometric means is printed: losses as well.
Needs GENSAMP_DATA (or the network) for the posteriors, and `pip install nutpie` for that column.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SPARSE = "sparse_logistic"
CONTESTANTS = ("gensamp", "numpyro parallel", "numpyro vectorized", "blackjax", "nutpie")
JAX_PEERS = CONTESTANTS[1:4]
CHAINS = 4
DOCUMENTED = {"nutpie": (300, 1000)}
LADDER = (50, 100, 150, 225, 338, 507, 760, 1140, 1710, 2565, 4000)


def model_of(name):
    """The numpyro model and its arguments."""
    from gensamp import targets

    if name == SPARSE:
        from gensamp.targets.sparse_logistic import model, simulate

        return model, tuple(np.asarray(a, np.float32) for a in simulate(1_000, 24))
    return targets.posteriordb_model(name)


def diagnose(named):
    """The least bulk ESS and the largest R-hat over all quantities {name: [chain, draw, ...]} that vary."""
    from arviz_stats.base import array_stats

    flat = np.concatenate([np.asarray(a, np.float64).reshape(*np.shape(a)[:2], -1) for a in named.values()], axis=2)
    flat = flat[:, :, np.ptp(flat, axis=(0, 1)) > 0]
    ess = array_stats.ess(flat, chain_axis=0, draw_axis=1, method="bulk")
    return float(np.min(ess)), float(np.max(array_stats.rhat(flat, chain_axis=0, draw_axis=1)))


def worst_z(name, named):
    """The largest |z| of a mean against the reference draws; None where there are none."""
    if name == SPARSE:
        return None
    from arviz_stats.base import array_stats

    from gensamp.targets import reference_draws

    worst = 0.0
    for site, reference in reference_draws(name).items():
        ours, theirs = (np.asarray(a, np.float64).reshape(*np.shape(a)[:2], -1) for a in (named[site], reference))
        errors = [a.std((0, 1)) / np.sqrt(array_stats.ess(a, chain_axis=0, draw_axis=1, method="mean")) for a in (ours, theirs)]
        worst = max(worst, float(np.max(np.abs(ours.mean((0, 1)) - theirs.mean((0, 1))) / np.hypot(*errors))))
    return worst


def run_gensamp(name, seed, warmup, draws):
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    from gensamp import Target, parallel
    from gensamp.automatic import auto
    from gensamp.quantities import named

    model, arguments = model_of(name)
    target = Target.from_numpyro(model, *arguments)
    out = auto(jax.random.key(seed), target, mesh=parallel.mesh(), progress=False)
    return named(target, out.position)


def run_numpyro(method):
    def run(name, seed, warmup, draws):
        import numpyro

        if method == "parallel":
            numpyro.set_host_device_count(CHAINS)
        import jax
        from numpyro.infer import MCMC, NUTS, Predictive

        model, arguments = model_of(name)
        mcmc = MCMC(
            NUTS(model), num_warmup=warmup, num_samples=draws, num_chains=CHAINS, chain_method=method, progress_bar=False
        )
        mcmc.run(jax.random.PRNGKey(seed), *arguments)
        del Predictive
        return mcmc.get_samples(group_by_chain=True)

    return run


def run_blackjax(name, seed, warmup, draws):
    import blackjax
    import jax
    from numpyro.infer.util import initialize_model

    model, arguments = model_of(name)
    keys = jax.random.split(jax.random.PRNGKey(seed), CHAINS + 2)
    info = initialize_model(keys[:CHAINS], model, model_args=arguments)
    log_density = lambda z: -info.potential_fn(z)  # noqa: E731

    def one(key, position):
        key_warmup, key_draws = jax.random.split(key)
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        adapted = adaptation.run(key_warmup, position, warmup)[0]  # pyright: ignore[reportCallIssue]
        step = blackjax.nuts(log_density, **adapted.parameters).step

        def body(state, key):
            state, _ = step(key, state)
            return state, state.position

        return jax.lax.scan(body, adapted.state, jax.random.split(key_draws, draws))[1]

    positions = jax.jit(jax.vmap(one))(jax.random.split(keys[-1], CHAINS), info.param_info.z)
    return jax.jit(jax.vmap(jax.vmap(info.postprocess_fn)))(positions)


def run_nutpie(name, seed, warmup, draws):
    import jax
    import nutpie  # pyright: ignore[reportMissingImports]
    from jax.flatten_util import ravel_pytree
    from numpyro.infer.util import initialize_model
    from nutpie.compiled_pyfunc import from_pyfunc  # pyright: ignore[reportMissingImports]

    model, arguments = model_of(name)
    info = initialize_model(jax.random.PRNGKey(seed), model, model_args=arguments)
    start, unravel = ravel_pytree(info.param_info.z)
    gradient = jax.jit(jax.value_and_grad(lambda x: -info.potential_fn(unravel(x))))

    def make_logp():
        def logp(x):
            value, slope = gradient(np.asarray(x, start.dtype))
            return float(value), np.asarray(slope, np.float64)

        return logp

    def make_expand(*_):
        return lambda x: {"x": np.asarray(x)}

    compiled = from_pyfunc(start.size, make_logp, make_expand, [np.dtype(np.float64)], [(start.size,)], ["x"])
    trace = nutpie.sample(compiled, draws=draws, tune=warmup, chains=CHAINS, seed=seed, progress_bar=False, save_warmup=False)
    flat = np.asarray(trace.posterior["x"], start.dtype)
    return jax.jit(jax.vmap(jax.vmap(lambda x: info.postprocess_fn(unravel(x)))))(flat)


RUNS = {
    "gensamp": run_gensamp, "numpyro parallel": run_numpyro("parallel"), "numpyro vectorized": run_numpyro("vectorized"),
    "blackjax": run_blackjax, "nutpie": run_nutpie,
}  # fmt: skip


def child(contestant, name, seed, warmup, draws, calibrate):
    named = RUNS[contestant](name, seed, warmup, draws)
    named = {site: np.asarray(a) for site, a in named.items()}
    ess, rhat = diagnose(named)
    done = time.time()
    result = {"done": done, "ess": ess, "rhat": rhat, "z": worst_z(name, named)}
    if calibrate:
        met = (n for n in LADDER if n <= draws and _answered(*diagnose({s: a[:, :n] for s, a in named.items()})))
        result["fewest"] = next(met, None)
    print("RESULT " + json.dumps(result))


def _answered(ess, rhat):
    return ess >= 400 and rhat < 1.01


def launch(contestant, name, seed, warmup, draws, calibrate=False):
    """Run one process; its result with the seconds from its start to its diagnostics."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.time_to_answer",
        "--child",
        contestant,
        name,
        str(seed),
        str(warmup),
        str(draws),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT"))}
    began = time.time()
    out = subprocess.run(
        command + (["--calibrate"] if calibrate else []), capture_output=True, text=True, env=environment, check=False
    )
    lines = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"seconds": float("nan"), "error": out.stderr.strip().splitlines()[-1:] or ["no result"]}
    result = json.loads(lines[-1].removeprefix("RESULT "))
    return result | {"seconds": result.pop("done") - began, "warmup": warmup, "draws": draws}


def settings_of(contestant, name):
    """(warm-up, draws) of the shortest run that answers and of the documented one."""
    if contestant == "gensamp":
        return {"shortest": (0, 0)}
    documented = DOCUMENTED.get(contestant, (1000, 1000))
    found = []
    for warmup in sorted({300, documented[0]}):
        fewest = launch(contestant, name, 99, warmup, LADDER[-1], calibrate=True).get("fewest")
        if fewest is not None:
            found.append((warmup + fewest, warmup, fewest))
    shortest = min(found)[1:] if found else (documented[0], LADDER[-1])
    return {"shortest": shortest, "documented": documented}


def main():
    parser = argparse.ArgumentParser(description="How long from starting Python to draws one may trust?")
    parser.add_argument("--posteriors", nargs="*")
    parser.add_argument("--contestants", nargs="*", default=list(CONTESTANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--calibrate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        contestant, name, seed, warmup, draws = options.child
        return child(contestant, name, int(seed), int(warmup), int(draws), options.calibrate)

    from gensamp import targets

    names = options.posteriors or [*targets.posteriordb_names(), SPARSE]
    rows = {}
    for name in names:
        plans = {c: settings_of(c, name) for c in options.contestants}
        runs = {(c, kind): [] for c, plan in plans.items() for kind in plan}
        for repeat in range(options.repeats):
            for contestant, kind in list(runs)[:: 1 if repeat % 2 else -1]:
                runs[contestant, kind].append(launch(contestant, name, repeat, *plans[contestant][kind]))
        rows[name] = {f"{c}, {kind}": results for (c, kind), results in runs.items()}
        print(f"\n{name}", flush=True)
        ours = np.median([r["seconds"] for r in rows[name].get("gensamp, shortest", [])] or [np.nan])
        for label, results in rows[name].items():
            seconds = [r["seconds"] for r in results]
            answered = sum("ess" in r and _answered(r["ess"], r["rhat"]) and (r["z"] or 0) <= 4 for r in results)
            ratio = np.median(seconds) / ours
            print(
                f"  {label:<32}{np.median(seconds):>8.2f} s  ({np.min(seconds):.2f} to {np.max(seconds):.2f}){ratio:>8.2f} x"
                f"   answered {answered} of {len(results)}", flush=True,
            )  # fmt: skip
        if options.out:
            options.out.write_text(json.dumps({"rows": rows, "about": about()}, indent=1))
    summarise(rows)
    return None


def about():
    """Date, machine and versions."""
    names = ("gensamp", "jax", "numpyro", "blackjax", "nutpie")
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"] in names}
    return {
        "date": datetime.date.today().isoformat(), "python": platform.python_version(), "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(), "versions": found,
    }  # fmt: skip


def summarise(rows):
    """Geometric means of the others' seconds over ours."""
    print()
    medians = {
        name: {label: np.median([r["seconds"] for r in results]) for label, results in row.items()}
        for name, row in rows.items()
    }
    labels = {label for row in medians.values() for label in row} - {"gensamp, shortest"}
    for label in sorted(labels):
        ratios = [row[label] / row["gensamp, shortest"] for row in medians.values()]
        print(f"{label:<32} geometric mean {np.exp(np.mean(np.log(ratios))):.2f} x, worst {min(ratios):.2f} x")
    peers = [[row[f"{p}, shortest"] for p in JAX_PEERS if f"{p}, shortest" in row] for row in medians.values()]
    if all(peers):
        ratios = [min(row) / ours["gensamp, shortest"] for row, ours in zip(peers, medians.values(), strict=True)]
        mean = np.exp(np.mean(np.log(ratios)))
        print(f"{'fastest JAX peer on each':<32} geometric mean {mean:.2f} x, worst {min(ratios):.2f} x")


if __name__ == "__main__":
    main()
