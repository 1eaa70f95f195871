"""Fitted models in one file: written in one process, loaded in another, this year or next.

    unet, process = gs.recipe(gs.nets.unet, template, width=32), gs.recipe(gs.noise.cosine)
    recipe = gs.recipe(gs.pushforward.ddpm, unet, process, template=template, num_steps=100)
    fitted = gs.fit(key, recipe.build(), data, ema=0.999)
    gs.save("digits.npz", fitted, recipe)

    draws = gs.sample(key, gs.load("digits.npz").sampler(), 64)

A `Recipe` is a call of one of gensamp's public functions that is written down before it is made: the function's public name and
its arguments, which are numbers, texts, arrays, templates, other recipes, or public functions by name. Defaults are written
down too, so that a later version with other defaults makes the same model.

The file is an ordinary .npz: arrays without pickle, and the entry "configuration", JSON in UTF-8, with the format's version.
Loading looks names up in a fixed list of modules (`MODULES`), calls what it finds there, and executes nothing that the file
brings. A checkpoint of `fit(store=...)` is another thing: it holds the optimizer as well and goes on with that same fit.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Bill, Ledger, Model, PyTree, Sampler
from gensamp.nets.condition import MissingCondition
from gensamp.training import Fitted

__all__ = ["Recipe", "Saved", "load", "recipe", "save"]

FORMAT, VERSION = "gensamp fitted model", 1
MODULES = (
    "nets", "noise", "pushforward", "hybrid", "pushforward.diffusion", "pushforward.flows", "pushforward.autoregressive",
    "weights.schedulers", "targets.analytic", "targets.multimodal", "targets.physics", "targets.brownian", "targets.mixture",
)  # fmt: skip
"""Where a recipe's functions may come from, by what each lists in its `__all__`: makers of networks, processes and models, and
targets that are formulas. What reads data or calls other people's functions is left out."""

_ON_DEVICE = ("params", "ema", "state")
_DTYPES = (np.dtype, type(jnp.float32))


@dataclass(frozen=True, eq=False)
class Recipe:
    """A call of a public function that is yet to be made; see `recipe`."""

    function: Callable
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def build(self) -> Any:
        """Make the call, and first those of the recipes among its arguments."""
        arguments = [_built(value) for value in self.arguments]
        return self.function(*arguments, **{name: _built(value) for name, value in self.options.items()})


@dataclass(frozen=True, eq=False)
class Saved:
    """What `load` gives back.

    recipe, model: as saved, and what it makes; None where no recipe was saved. fitted: params, ema, state, history, ledger,
    ending and message, as `fit` returned them. version: of the gensamp that wrote the file.
    """

    recipe: Recipe | None
    model: Model | None
    fitted: Fitted
    version: str

    @property
    def params(self) -> PyTree:
        """The averaged parameters where there are any, else the last ones."""
        return self.fitted.params if self.fitted.ema is None else self.fitted.ema

    def sampler(self, *condition: Any) -> Sampler:
        """The model's sampler at `params`; `condition` for a conditional model.

        Raises:
            ValueError: the file holds no recipe and `load` was given no model.
        """
        if self.model is None:
            raise ValueError("the file holds parameters without a recipe; pass their model to load(path, model=...)")
        return self.model.sampler(self.params, *condition)


def recipe(function: Callable, *arguments: Any, **options: Any) -> Recipe:
    """Write a call of one of gensamp's functions down; `recipe(f, a, b=c).build()` is `f(a, b=c)`.

    Args:
        function: a public function of `MODULES`, such as gs.pushforward.ddpm, gs.nets.unet or gs.noise.cosine.
        arguments, options: its arguments: numbers, texts, None, arrays, dtypes, templates, other recipes, public functions of
            those modules, and tuples and dicts of these.

    Returns:
        Recipe, with the function's defaults written out.

    Raises:
        TypeError: the function does not take these arguments, or one of them cannot be written down.
        ValueError: the function is none of gensamp's public ones.
    """
    _public_name(function)
    try:
        bound = inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise TypeError(f"{function.__name__} cannot be called so: {error}") from None
    bound.apply_defaults()
    made = Recipe(function, bound.args, dict(bound.kwargs))
    _encode(made, "recipe", {})
    return made


def save(path: str | Path, fitted: Any, recipe: Any = None) -> None:
    """Write a fitted model into one file, replacing it if it is there; a kill leaves the old one whole.

    Args:
        path: of the file; ".npz" is the usual ending.
        fitted: what `fit` returned, or parameters alone.
        recipe: a `Recipe` of the model. Without it only numbers are saved, and `load` needs the model.

    Raises:
        TypeError: parameters or state hold something else than arrays and numbers in dicts, lists and tuples, or the recipe is
            of no model.
        ValueError: the recipe is of another model than the parameters.
    """
    if not isinstance(fitted, Fitted):
        fitted = Fitted(fitted, None, (), {}, Ledger(), "finished", "")
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is {type(recipe).__name__}; expected what gs.recipe(...) returns, and not what it builds")
    if recipe is not None:
        _check_recipe_of(recipe, fitted)
    from gensamp import __version__

    arrays: dict[str, np.ndarray] = {}
    numbers = {name: jax.tree.map(_on_device, getattr(fitted, name)) for name in _ON_DEVICE} | {"history": fitted.history}
    about = {"ledger": dataclasses.asdict(fitted.ledger), "ending": fitted.ending, "message": fitted.message}
    configuration = {
        "format": FORMAT, "version": VERSION, "gensamp": __version__,
        "recipe": None if recipe is None else _encode(recipe, "recipe", arrays),
        "fitted": {name: _encode(value, name, arrays) for name, value in numbers.items()} | about,
    }  # fmt: skip
    text = np.frombuffer(json.dumps(configuration, indent=1).encode(), np.uint8)
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        np.savez(file, configuration=text, **arrays)
    os.replace(beside, path)


def load(path: str | Path, *, model: Model | None = None) -> Saved:
    """Read what `save` wrote.

    Args:
        path: of the file.
        model: the model, for a file without a recipe; it takes the place of a recipe's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, was written by a newer version, asks for what is not public here or what
            this version cannot make (named), or holds float64 while JAX is set to float32.
    """
    path = Path(path)
    with open(path, "rb") as file:
        # A damaged byte may raise anything: archives, array headers and JSON have errors of their own.
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            configuration = json.loads(arrays["configuration"].tobytes())
            written_as, version, written_by = (configuration[name] for name in ("format", "version", "gensamp"))
        except Exception as error:
            raise ValueError(f"{path} is no file that gs.save wrote, or it is damaged ({_reason(error)})") from None
    if written_as != FORMAT:
        raise ValueError(f"{path} is of the format {written_as!r}; expected {FORMAT!r}")
    if not isinstance(version, int):
        raise ValueError(f"{path} has version {version!r} of its format; expected an integer, or it is damaged")
    if version > VERSION:
        raise ValueError(
            f"{path} has version {version} of its format, written by gensamp {written_by}; this gensamp reads up to {VERSION}: "
            "install a newer one"
        )
    wide = sorted(name for name, value in arrays.items() if value.dtype == np.float64 and name.startswith(_ON_DEVICE))
    if wide and not jax.config.jax_enable_x64:
        raise ValueError(f'{path} holds float64 ({wide[0]}); call jax.config.update("jax_enable_x64", True) first')
    # So may a configuration of another version: a recipe calls what it names with whatever it holds.
    try:
        fitted = _decode_fitted(configuration["fitted"], arrays)
        made = None if configuration["recipe"] is None else _decode(configuration["recipe"], arrays)
        if model is None and made is not None:
            model = made.build()
    except Exception as error:
        raise ValueError(
            f"{path}, written by gensamp {written_by}, is damaged or not for this version: {_reason(error)}"
        ) from error
    return Saved(made, model, fitted, written_by)


def _check_recipe_of(recipe: Recipe, fitted: Fitted) -> None:
    model = recipe.build()
    if not isinstance(model, Model):
        raise TypeError(f"recipe makes a {type(model).__name__}; expected a recipe of the model that was fitted")
    seeds = np.ndim(fitted.history.get("loss", ())) == 2

    def draws(params):
        return model.sampler(jax.tree.map(lambda a: a[0], params) if seeds else params)

    try:
        # A guided model asks for its condition, of which there is none here, after its parameters were found right.
        with suppress(MissingCondition):
            jax.eval_shape(draws, fitted.params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"save got a recipe and parameters that do not belong together: {_reason(error)}") from error


@cache
def _public() -> dict[str, Callable]:
    """Every function that a recipe may name."""
    found = {}
    for name in MODULES:
        module = import_module(f"gensamp.{name}")
        found |= {f"{name}.{member}": getattr(module, member) for member in module.__all__}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


def _public_name(function: Any) -> str:
    for name, member in _public().items():
        if member is function:
            return name
    what = getattr(function, "__name__", type(function).__name__)
    raise ValueError(
        f"a recipe got {what}, which is no public function of {', '.join('gensamp.' + name for name in MODULES)}; for a model "
        "of your own save(path, fitted) and load(path, model=...)"
    )


def _built(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.build()
    if isinstance(value, dict):
        return {name: _built(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_built(part) for part in value)
    return value


def _on_device(value: Any) -> Any:
    """NumPy's arrays of numbers as JAX's, in the precision that JAX is set to."""
    return jnp.asarray(value) if isinstance(value, np.ndarray) and value.dtype.kind != "O" else value


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON, its arrays added to `arrays` under names that begin with `name`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Recipe):
        options = {key: _encode(part, f"{name}/{key}", arrays) for key, part in value.options.items()}
        arguments = [_encode(part, f"{name}/{i}", arrays) for i, part in enumerate(value.arguments)]
        return {"make": _public_name(value.function), "arguments": arguments, "options": options}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encode(part, f"{name}/{i}", arrays) for i, part in enumerate(value)]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(part, f"{name}/{key}", arrays) for key, part in value.items()}}
    if isinstance(value, jax.ShapeDtypeStruct):
        return {"event": [list(value.shape), jnp.dtype(value.dtype).name]}
    if isinstance(value, _DTYPES) or (isinstance(value, type) and issubclass(value, np.generic)):
        kind: Any = value
        return {"dtype": jnp.dtype(kind).name}
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        arrays[name] = np.asarray(jax.random.key_data(value))
        return {"key": name, "impl": str(jax.random.key_impl(value))}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return {"array": name, "dtype": _put(np.asarray(value), name, arrays)}
    if inspect.isfunction(value):
        return {"function": _public_name(value)}
    raise TypeError(
        f"{name} is a {type(value).__name__}, which cannot be written down; expected arrays and numbers in dicts, lists and "
        "tuples, and in a recipe also templates, dtypes, public functions, and recipes of networks, processes and targets "
        "instead of these themselves"
    )


def _put(value: np.ndarray, name: str, arrays: dict[str, np.ndarray]) -> str:
    """Adds an array, as bits where NumPy's files do not know its type; returns the type's name."""
    if value.dtype.kind == "O":
        raise TypeError(f"{name} is an array of Python objects; expected numbers")
    # JAX's own small types, such as bfloat16, are void to NumPy's format.
    arrays[name] = value.view(f"u{value.dtype.itemsize}") if value.dtype.kind == "V" else value
    return value.dtype.name


def _decode_fitted(held: dict, arrays: Mapping[str, np.ndarray]) -> Fitted:
    numbers = {name: _decode(held[name], arrays) for name in (*_ON_DEVICE, "history")}
    numbers |= {name: jax.tree.map(_on_device, numbers[name]) for name in _ON_DEVICE}
    ledger = Ledger(**{phase: Bill(**bill) for phase, bill in held["ledger"].items()})
    return Fitted(**numbers, ledger=ledger, ending=held["ending"], message=held["message"])


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `_encode` wrote; raises KeyError for an array that is not there, ValueError for what it cannot write."""
    if not isinstance(value, dict):
        return value
    match value:
        case {"make": str(name), "arguments": list(arguments), "options": dict(options)}:
            decoded = {key: _decode(part, arrays) for key, part in options.items()}
            return Recipe(_known(name), tuple(_decode(part, arrays) for part in arguments), decoded)
        case {"list": list(parts)}:
            return [_decode(part, arrays) for part in parts]
        case {"tuple": list(parts)}:
            return tuple(_decode(part, arrays) for part in parts)
        case {"dict": dict(parts)}:
            return {key: _decode(part, arrays) for key, part in parts.items()}
        case {"event": [list(shape), str(dtype)]}:
            return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        case {"array": str(name), "dtype": str(dtype)}:
            return arrays[name].view(jnp.dtype(dtype))
        case {"key": str(name), "impl": str(impl)}:
            return jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=impl)
        case {"dtype": str(dtype)}:
            return jnp.dtype(dtype)
        case {"function": str(name)}:
            return _known(name)
    raise ValueError(f"its configuration has an entry {str(value)[:80]}, which this version of gensamp does not know")


def _known(name: str) -> Callable:
    if name not in _public():
        raise ValueError(
            f"it asks for {name!r}, which is no public function of this gensamp; another version or program wrote it"
        )
    return _public()[name]


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    return next(iter(str(error).splitlines()), type(error).__name__)
