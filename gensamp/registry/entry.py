"""What the registry says of one sampler or model, and of how long it is trained.

Budgets: "small" is a minute or two for a whole comparison on two CPU cores, "full" is meant to be waited for, and "tiny" only
shows that everything runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gensamp.core import Model, Sampler, Target

__all__ = ["BUDGETS", "Entry", "FitOptions"]

BUDGETS = ("tiny", "small", "full")


@dataclass(frozen=True)
class FitOptions:
    """How long to train: `gs.fit(key, model, data, **options.as_keywords())`.

    optimizer: () -> optax.GradientTransformation, for models that need one of their own.
    """

    num_steps: int
    batch_size: int
    ema: float | None = None
    optimizer: Callable[[], Any] | None = field(default=None, repr=False)

    def as_keywords(self) -> dict[str, Any]:
        """The keyword arguments of `fit`."""
        own = {} if self.optimizer is None else {"optimizer": self.optimizer()}
        return {"num_steps": self.num_steps, "batch_size": self.batch_size, "ema": self.ema, **own}


@dataclass(frozen=True)
class Entry:
    """One sampler or model.

    name: as on the command line. title: for tables and plots. half: whose it is. makes: what `make` returns.
    needs: fields of the target it cannot do without; "events" is data or exact draws to learn from. kernel: for samplers whose
    step size and metric are tuned, the factory (target, step_size, *, inverse_mass_matrix) -> Sampler that `tune` takes, and
    target_acceptance what it is tuned to. default: whether `compare` takes it when no names are given: the families' best
    known, so that a first comparison takes minutes. compile_budget: what compiling a step may cost, in compilations of MALA's.
    """

    name: str
    title: str
    half: Literal["mcmc", "pushforward", "hybrid"]
    makes: Literal["sampler", "model"]
    build: Callable[[Target, str], Sampler | Model] = field(repr=False)
    needs: tuple[str, ...] = ("log_density",)
    kernel: Callable[..., Sampler] | None = field(default=None, repr=False)
    target_acceptance: float = 0.8
    default: bool = False
    compile_budget: float | int = 3
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
