"""How good are one, two, four and eight steps, of a teacher and of the models made to need no more?

    python -m benchmarks.few_steps [--targets two_moons digits] [--budget small|full] [--draws 2000] [--seed 0] [--out FOLDER]

All have one network, one process (cosine) where they have a process, and as many events per step; what each was trained with
and what it cost is in the JSON, the teacher's bill and the pairs' included. On one axis, the forwards of a draw:

    teacher, DDIM              the diffusion model, with as many steps of DDIM
    teacher, UniPC             the same with a second-order solver
    flow, Euler                flow matching, with as many steps of Euler's method
    reflow                     the flow fitted to pairs that the flow has made
    consistency training       from data, multistep sampling for more than one forward
    consistency distillation   from the teacher, likewise
    progressive distillation   the teacher halved to 8, 4, 2 and 1 steps, each with its own student

The distance is the energy distance to exact draws (digits: to events no model has seen) beside its floor, the same between two
sets of exact draws; "=" marks draws that cannot be told from exact ones. What the teacher reaches in 100 steps stands below.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

import jax
import numpy as np

import gensamp as gs
from gensamp import noise
from gensamp.evaluate import Judge
from gensamp.pushforward import diffusion_model, flow_matching
from gensamp.pushforward.diffusion import ddim_sampler, euler, uniform_time, unipc
from gensamp.pushforward.diffusion.consistency import consistency
from gensamp.pushforward.diffusion.losses import denoiser
from gensamp.pushforward.diffusion.progressive import progressive
from gensamp.pushforward.reflow import coupled_draws, reflow
from gensamp.registry import parts
from gensamp.training import fit

FORWARDS = (1, 2, 4, 8)
MANY = 100
# Steps of the teacher and the flow, of one student, of one halving; pairs for reflow; levels; steps of the first teacher.
BUDGETS = {
    "tiny": {"teacher": 60, "student": 60, "halving": 20, "pairs": 256, "levels": (4, 16), "halved": 16},
    "small": {"teacher": 3_000, "student": 3_000, "halving": 600, "pairs": 10_000, "levels": (10, 160), "halved": 32},
    "full": {"teacher": 30_000, "student": 40_000, "halving": 10_000, "pairs": 100_000, "levels": (10, 1280), "halved": 256},
}
BATCH = {"tiny": 64, "small": 128, "full": 256}


@jax.jit
def drawn(keys, sampler):
    """Finite draws side by side."""
    return jax.vmap(lambda key: gs.draw(key, sampler))(keys)


class Study:
    """One target, its teacher, and every model's draws."""

    def __init__(self, target, budget: str, num_draws: int, key) -> None:
        self.target, self.plan, self.batch, self.key = target, BUDGETS[budget], BATCH[budget], key
        self.network, self.process = parts.denoiser(target, budget), noise.cosine()
        self.judge = Judge.of(jax.random.fold_in(key, 1), target, num_draws=num_draws)
        self.num_draws = min(num_draws, self.judge.num_draws)  # fewer where there are few events to hold out
        self.rows: dict[str, dict] = {}

    def fit(self, model, data=None, *, steps: str = "student"):
        """Params (averaged) and the bill."""
        data = self.target.data if data is None else data
        fitted = fit(self.key, model, data, num_steps=self.plan[steps], batch_size=self.batch, ema=0.995, progress=False)
        return fitted.ema, fitted.ledger.fit

    def judged(self, name: str, forwards: int, sampler, bill) -> None:
        """Draw, and write down the distance."""
        draws = drawn(jax.random.split(jax.random.fold_in(self.key, 2), self.num_draws), sampler)
        spent = np.unique(draws.info.forwards).tolist()
        assert spent == [forwards], f"{name} spent {spent} forwards for {forwards}"
        scaled = self.judge.scaled(self.judge.coordinates(draws.position))
        finite = np.isfinite(scaled).all(1)
        distance = self.judge.energy(scaled[finite])
        self.rows.setdefault(name, {})[str(forwards)] = {
            "energy": distance.value, "floor": distance.floor.mean, "threshold": distance.floor.threshold,
            "verdict": distance.verdict, "not finite": int((~finite).sum()), "fit forwards": bill.forwards,
            "fit seconds": round(bill.wall_seconds, 1),
        }  # fmt: skip
        print(f"  {name:<26}{forwards:>4} forwards  {distance.value:.5f}  ({distance.verdict})", flush=True)

    def run(self) -> None:
        """Everything, the teacher first."""
        template, process, network = self.target.template, self.process, self.network
        model = diffusion_model(network, process, template=template, solver=unipc, order=2)
        teacher, bill = self.fit(model, steps="teacher")
        guess = denoiser(network, process, teacher, (), "v", "x0")
        frame = {"shift": teacher["shift"], "scale": teacher["scale"]}
        given = {"prediction": "x0", "data_variance": 1.0, "frame": frame}
        for steps in (*FORWARDS, MANY):
            grid = uniform_time(steps)
            self.judged("teacher, DDIM", steps, ddim_sampler(guess, process, grid, template, **given), bill)
        for steps in FORWARDS:
            few = diffusion_model(network, process, template=template, solver=unipc, order=2, num_steps=steps)
            self.judged("teacher, UniPC", steps, few.sampler(teacher), bill)

        flow, flow_bill = self.fit(flow_matching(network, template=template), steps="teacher")
        for steps in (*FORWARDS, MANY):
            few = flow_matching(network, template=template, solver=euler, num_steps=steps)
            self.judged("flow, Euler", steps, few.sampler(flow), flow_bill)
        many = flow_matching(network, template=template, solver=euler, num_steps=MANY).sampler(flow)
        pairs, spent = coupled_draws(jax.random.fold_in(self.key, 3), many, self.plan["pairs"], progress=False)
        straight, own = self.fit(reflow(network, template=template, teacher=flow), pairs)
        for steps in FORWARDS:
            few = reflow(network, template=template, num_steps=steps)
            self.judged("reflow", steps, few.sampler(straight), flow_bill + spent.sample + own)

        for name, options, before in (
            ("consistency training", {}, None), ("consistency distillation", {"teacher": teacher}, bill),
        ):  # fmt: skip
            shape = {"template": template, "levels": self.plan["levels"], "train_steps": self.plan["student"]}
            params, own = self.fit(consistency(network, process, **shape, **options))
            for steps in FORWARDS:
                few = consistency(network, process, **shape, num_steps=steps)
                self.judged(name, steps, few.sampler(params), own if before is None else before + own)

        student, own, steps = teacher, bill, self.plan["halved"] // 2
        while steps >= 1:
            halved = progressive(
                network, process, template=template, num_steps=steps, teacher_steps=2 * steps, teacher=student,
                stage_steps=self.plan["halving"],
            )  # fmt: skip
            student, more = self.fit(halved, steps="halving")
            own = own + more
            if steps in FORWARDS:
                self.judged("progressive distillation", steps, halved.sampler(student), own)
            steps //= 2


def table(name: str, rows: dict[str, dict]) -> str:
    """Distances by model and forwards."""
    first = next(iter(rows.values()))["1"]
    lines = [f"\n{name}: energy distance (floor {first['floor']:.5f}, indistinguishable below {first['threshold']:.5f})"]
    lines.append(f"  {'':<26}" + "".join(f"{steps:>12}" for steps in FORWARDS) + f"{'fit forwards':>16}")
    for model, found in rows.items():
        cells = [
            f"{found[str(k)]['energy']:.5f}{'=' if found[str(k)]['verdict'] == 'indistinguishable' else ' '}" for k in FORWARDS
        ]
        bill = max(cell["fit forwards"] for cell in found.values())
        lines.append(f"  {model:<26}" + "".join(f"{cell:>12}" for cell in cells) + f"{bill:>16.3g}")
    for model, found in rows.items():
        if str(MANY) in found:
            lines.append(f"  {model} at {MANY}: {found[str(MANY)]['energy']:.5f}")
    return "\n".join(lines)


def picture(results: dict[str, dict], path: Path) -> None:
    """One panel per target: distance against forwards, floor below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 4.2), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, (name, rows) in zip(panels, results.items(), strict=True):
        for (model, found), marker in zip(rows.items(), "osD^vPX", strict=False):
            axis.plot(FORWARDS, [found[str(k)]["energy"] for k in FORWARDS], marker=marker, label=model, markersize=5)
        first = next(iter(rows.values()))["1"]
        axis.axhspan(0, first["threshold"], color="0.85", zorder=0)
        axis.axhline(first["floor"], color="0.5", lw=1, ls="--", label="floor of exact draws")
        axis.set(xscale="log", yscale="log", xlabel="forwards per draw", title=name, xticks=FORWARDS)
        axis.set_xticklabels([str(k) for k in FORWARDS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("energy distance to exact draws")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description="One to eight forwards: a teacher and the models made to need no more.")
    parser.add_argument("--targets", nargs="*", default=["two_moons", "digits"])
    parser.add_argument("--budget", choices=list(BUDGETS), default="small")
    parser.add_argument("--draws", type=int, default=2_000, help="at most, to judge; fewer for a small data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for few_steps.json and few_steps.png")
    options = parser.parse_args()
    about = {"date": datetime.date.today().isoformat(), "python": platform.python_version(), "jax": jax.__version__}
    about |= {"device": jax.devices()[0].device_kind, "budget": options.budget, "seed": options.seed, "draws": options.draws}
    about["plan"] = BUDGETS[options.budget]
    results = {}
    for name in options.targets:
        print(f"\n{name}", flush=True)
        study = Study(gs.targets.make(name), options.budget, options.draws, jax.random.key(options.seed))
        study.run()
        results[name] = study.rows
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "few_steps.json").write_text(json.dumps(results | {"about": about}, indent=1))
            picture(results, options.out / "few_steps.png")
    print(*(table(name, rows) for name, rows in results.items()), sep="\n")


if __name__ == "__main__":
    main()
