"""Every sampler and model of the package, as one explicit list: what the contract tests iterate and `compare` chooses from.

To add a sampler, write its file and add one `Entry` here; it is then tested and compared. Nothing registers itself on import,
and what an entry makes is imported when it is made. A sampler of your own needs no entry: `sample`, `fit` and `compare` take
Samplers and Models as they are.

Budgets: "small" is a minute or two for a whole comparison on two CPU cores, "full" is meant to be waited for, and "tiny" only
shows that everything runs.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from gensamp.core import Model, Sampler, Target, Truth

__all__ = ["BUDGETS", "Entry", "FitOptions", "entries", "find"]

BUDGETS = ("tiny", "small", "full")


@dataclass(frozen=True)
class FitOptions:
    """How long to train: `gs.fit(key, model, data, **options.as_keywords())`."""

    num_steps: int
    batch_size: int
    ema: float | None = None

    def as_keywords(self) -> dict[str, Any]:
        """The keyword arguments of `fit`."""
        return {"num_steps": self.num_steps, "batch_size": self.batch_size, "ema": self.ema}


@dataclass(frozen=True)
class Entry:
    """One sampler or model.

    name: as on the command line. title: for tables and plots. half: whose it is. makes: what `make` returns.
    needs: fields of the target it cannot do without; "events" is data or exact draws to learn from. kernel: for samplers whose
    step size and metric are tuned, the factory (target, step_size, *, inverse_mass_matrix) -> Sampler that `tune` takes, and
    target_acceptance what it is tuned to.
    """

    name: str
    title: str
    half: Literal["mcmc", "pushforward", "hybrid"]
    makes: Literal["sampler", "model"]
    build: Callable[[Target, str], Sampler | Model] = field(repr=False)
    needs: tuple[str, ...] = ("log_density",)
    kernel: Callable[..., Sampler] | None = field(default=None, repr=False)
    target_acceptance: float = 0.8
    training: Mapping[str, FitOptions] | None = field(default=None, repr=False, compare=False)

    @property
    def tuned(self) -> bool:
        """Whether `tune` chooses its step size and metric."""
        return self.kernel is not None

    def reason(self, target: Target) -> str:
        """Why this cannot be used on the target, in one clause; "" when it can."""
        for need in self.needs:
            if need == "events":
                if target.data is None and target.exact is None:
                    return f"target '{target.name}' has neither data nor exact draws to learn from"
            elif need == "quantile":
                if target.truth is None or target.truth.quantile is None:
                    return f"target '{target.name}' has no quantile function in closed form"
            elif getattr(target, need) is None:
                return f"target '{target.name}' has no {need}"
        return ""

    def applicable(self, target: Target) -> bool:
        """Whether this can be used on the target; `reason` says why not."""
        return self.reason(target) == ""

    def make(self, target: Target, budget: str = "small") -> Sampler | Model:
        """The Sampler, or the untrained Model, for a target.

        Raises:
            ValueError: it does not apply to this target, or the budget is unknown.
        """
        if budget not in BUDGETS:
            raise ValueError(f"budget is {budget!r}; expected one of {', '.join(BUDGETS)}")
        if reason := self.reason(target):
            raise ValueError(f"{self.name} cannot be made: {reason}; choose a target that has it, or another sampler")
        return self.build(target, budget)

    def fit_options(self, budget: str = "small") -> FitOptions:
        """How long `fit` should train the model within a budget.

        Raises:
            ValueError: this is no model, or the budget is unknown.
        """
        if self.training is None:
            raise ValueError(f"{self.name} is a sampler and is not fitted; pass it to sample (or tune) as it is")
        if budget not in self.training:
            raise ValueError(f"budget is {budget!r}; expected one of {', '.join(self.training)}")
        return self.training[budget]


def entries() -> tuple[Entry, ...]:
    """All samplers and models, the statistician's first."""
    return _ENTRIES


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: there is none; the message names the nearest one.
    """
    names = [entry.name for entry in _ENTRIES]
    if name in names:
        return _ENTRIES[names.index(name)]
    nearest = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.3)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise ValueError(f"no sampler is called '{name}'; {hint}there are {', '.join(names)}")


def _mala(target, step_size=0.3, **options):
    from gensamp.mcmc import mala

    return mala(target, step_size, **options)


def _hmc(target, step_size=0.3, **options):
    from gensamp.mcmc import hmc

    return hmc(target, step_size, **options)


def _nuts(target, step_size=0.3, **options):
    from gensamp.mcmc import nuts

    return nuts(target, step_size, **options)


def _build_ula(target, budget):
    # It accepts everything, so there is no acceptance to tune a step by: a fixed one, small for a target of unit scale.
    from gensamp.mcmc import ula

    return ula(target, 0.05)


def _build_mala(target, budget):
    return _mala(target)


def _build_hmc(target, budget):
    return _hmc(target, **({"num_integration_steps": 3} if budget == "tiny" else {}))


def _build_nuts(target, budget):
    return _nuts(target, **({"max_tree_depth": 3} if budget == "tiny" else {}))


def _build_inverse_transform(target, budget):
    from gensamp.pushforward import inverse_transform

    assert isinstance(target.truth, Truth)
    return inverse_transform(target.truth.quantile, target.template)


def _build_realnvp(target, budget):
    from gensamp.pushforward import realnvp

    return realnvp(target.template, dequantise=_cell(target), **_FLOW[budget])


def _build_realnvp_reverse_kl(target, budget):
    from gensamp.pushforward import realnvp

    return realnvp(target.template, target=target, anneal=_LIKELIHOOD[budget].num_steps // 2, **_FLOW[budget])


def _build_vae(target, budget):
    from gensamp.nets import Event
    from gensamp.pushforward import vae

    latent_dim = max(2, min(Event.of(target.template).size, 16))
    return vae(target.template, latent_dim=latent_dim, dequantise=_cell(target), **({"width": 16} if budget == "tiny" else {}))


def _build_ddpm(target, budget):
    from gensamp import noise
    from gensamp.pushforward import ddpm

    steps = {"tiny": 8, "small": 100, "full": 1000}[budget]
    return ddpm(_denoiser(target, budget), noise.cosine(), template=target.template, num_steps=steps)


def _build_ddim(target, budget):
    from gensamp import noise
    from gensamp.pushforward import ddim

    steps = {"tiny": 4, "small": 50, "full": 100}[budget]
    return ddim(_denoiser(target, budget), noise.cosine(), template=target.template, num_steps=steps)


def _build_score_langevin(target, budget):
    from gensamp import noise
    from gensamp.hybrid import score_langevin

    levels = {"num_levels": 4, "steps_per_level": 2} if budget == "tiny" else {}
    return score_langevin(_denoiser(target, budget), noise.cosine(), template=target.template, **levels)


def _denoiser(target, budget):
    """A residual perceptron; for images a U-Net, unless they are so small that a perceptron learns them better in the time."""
    from gensamp import nets

    shapes = [leaf.shape for leaf in jax.tree.leaves(target.template)]
    halves = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] % 2 == 0 and shapes[0][1] % 2 == 0
    size = sum(math.prod(shape) for shape in shapes)
    if halves and (budget != "small" or size > 256):
        return nets.unet(target.template, width={"tiny": 8, "small": 24, "full": 48}[budget])
    depth, width = {"tiny": (1, 16), "small": (3, 128 if size <= 16 else 256), "full": (4, 256)}[budget]
    return nets.mlp(target.template, width=width, depth=depth)


def _cell(target) -> float:
    """The width of a cell of data on a lattice (grey levels); 0 for data that are on none."""
    values = _lattice(target)
    return 0.0 if values is None else float(np.diff(values).min())


def _lattice(target) -> np.ndarray | None:
    leaves = jax.tree.leaves(target.data)
    if len(leaves) != 1:
        return None
    values = np.unique(np.asarray(leaves[0]))
    return values if 2 <= len(values) <= 256 < np.size(leaves[0]) else None


_FLOW = {
    "tiny": {"num_layers": 2, "width": 16},
    "small": {"num_layers": 8, "width": 64},
    "full": {"num_layers": 16, "width": 128},
}
_LIKELIHOOD = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(3_000, 128),
    "full": FitOptions(20_000, 256, ema=0.999),
}
_DENOISING = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(3_000, 128, ema=0.995),
    "full": FitOptions(30_000, 256, ema=0.999),
}

_ENTRIES = (
    Entry("ula", "Langevin, unadjusted", "mcmc", "sampler", _build_ula),
    Entry("mala", "Langevin, adjusted", "mcmc", "sampler", _build_mala, kernel=_mala, target_acceptance=0.574),
    Entry("hmc", "Hamiltonian", "mcmc", "sampler", _build_hmc, kernel=_hmc),
    Entry("nuts", "No-U-turn", "mcmc", "sampler", _build_nuts, kernel=_nuts),
    Entry(
        "score_langevin", "Annealed Langevin, learned scores", "hybrid", "model", _build_score_langevin,
        needs=("events",), training=_DENOISING,
    ),
    Entry("inverse_transform", "Inverse transform", "pushforward", "sampler", _build_inverse_transform, needs=("quantile",)),
    Entry(
        "realnvp", "RealNVP, likelihood", "pushforward", "model", _build_realnvp, needs=("events",), training=_LIKELIHOOD,
    ),
    Entry("realnvp_reverse_kl", "RealNVP, reverse KL", "pushforward", "model", _build_realnvp_reverse_kl, training=_LIKELIHOOD),
    Entry("vae", "Gaussian VAE", "pushforward", "model", _build_vae, needs=("events",), training=_LIKELIHOOD),
    Entry("ddpm", "Diffusion, ancestral", "pushforward", "model", _build_ddpm, needs=("events",), training=_DENOISING),
    Entry("ddim", "Diffusion, DDIM", "pushforward", "model", _build_ddim, needs=("events",), training=_DENOISING),
)  # fmt: skip
