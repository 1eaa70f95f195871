"""Every way to draw a sample, as pure JAX functions of one shape.

The nouns (`Target`, `Path`, `Sampler`, `Model`, `Network`) and the verbs (`sample`, `tune`, `fit`, `evaluate`, `compare`, and
the traceable `draw` and `chain`) stand here; samplers and targets live in `mcmc`, `pushforward`, `hybrid` and `targets`.
Everything but the nouns loads when it is first named, so `import gensamp` costs little more than `import jax`.
"""

from importlib import import_module

from gensamp.core import (
    Bill,
    Draw,
    Info,
    Ledger,
    Model,
    Network,
    Path,
    Sampler,
    Static,
    Target,
    Traits,
    Truth,
    bind,
    chain,
    draw,
)

__version__ = "0.1.0"

_VERBS = {
    "sample": "runner", "Until": "runner", "Draws": "runner", "tune": "adapt", "Tuned": "adapt", "auto": "automatic",
    "named": "quantities", "fit": "training", "Fitted": "training", "compare": "evaluate.compare", "check_sampler": "testing",
    "to_arviz": "export", "recipe": "saved", "save": "saved", "load": "saved", "Recipe": "saved", "Saved": "saved",
}  # fmt: skip
_MODULES = (
    "augment", "evaluate", "hybrid", "mcmc", "nets", "noise", "parallel", "paths", "plot", "pushforward", "registry", "store",
    "targets", "testing", "weights",
)  # fmt: skip

__all__ = [
    "Bill", "Draw", "Info", "Ledger", "Model", "Network", "Path", "Sampler", "Static", "Target", "Traits", "Truth", "bind",
    "chain", "draw", *_VERBS, *_MODULES,
]  # fmt: skip


def __getattr__(name: str):
    if name in _VERBS:
        return getattr(import_module(f"gensamp.{_VERBS[name]}"), name)
    if name in _MODULES:
        return import_module(f"gensamp.{name}")
    raise AttributeError(f"module 'gensamp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
