"""Posteriors of numpyro models as targets.

A model with data becomes one function of the unconstrained parameters z, a dict with one entry per latent site:

    log_density(z) = log p(data, x(z)) + log |dx/dz|,    constrain(z) = {site: x(z)} with the deterministic sites.

The function is module-level over `Static(model)`, and the arrays among the model's arguments are leaves: new data of the same
shapes run the program that is already compiled. (numpyro's own `potential_fn` closes over the data and retraces.) Nothing runs
when a target is made: one abstract trace of the model finds its sites and their shapes, and the density is traced when used.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import PyTree, Static, Target, Truth, bind
from gensamp.targets import constraints
from gensamp.targets.bound_models import arguments, arguments_of, constrain, has_model, is_latent, sites_of, split
from gensamp.targets.mixture import float_dtype

__all__ = ["from_numpyro", "model_complaint", "posterior", "prior_of", "unconstrain"]

_TRACED = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError,
)  # fmt: skip


def from_numpyro(model: Any, *args: Any, **kwargs: Any) -> Target:
    """The posterior of a numpyro model, on unconstrained coordinates.

    Args:
        model: a numpyro model; reparameterised and otherwise handled models are fine.
        args, kwargs: what the model is called with. Arrays and Python floats are data: they become leaves, and replacing them
            by others of the same shape recompiles nothing. Integers, booleans, strings and None are structure (sizes of plates,
            options): they are static, and a size that follows from data, such as a total of counts, is computed outside the
            model and passed as one. Give the observations, or their sites are taken for parameters.

    Returns:
        Target: events are dicts {site: array} of unconstrained values; `constrain` returns the model's own quantities,
        deterministic sites included. One log density costs one run of the model.

    Raises:
        ValueError: the model has no latent site, or a discrete one, which has no gradient; or its posterior cannot be a
            probability, because a site has a flat prior and nothing is observed.
        TypeError: the model is no function, cannot be run on its arguments, or one of them is neither an array nor hashable.

    Source: Kucukelbir et al. 2017 (ADVI), section 2.3, for the change of variables; numpyro's bijections.
    """
    return posterior(model, args, kwargs)


def posterior(model: Any, args: tuple = (), kwargs: Any = None, *, name: str = "", dtype: Any = None) -> Target:
    """As `from_numpyro`, with the model's arguments packed, a name and the dtype of events (jax's default float if None)."""
    if not callable(model):
        raise TypeError(f"from_numpyro got {type(model).__name__} as its model; expected a function, then its arguments")
    leaves, structure = split(args, kwargs or {})
    if any(_has_nan(a) for a in leaves):
        warnings.warn(
            "the model's arguments hold NaN, which makes the density NaN wherever the model does not mask it; drop or impute "
            "what is missing",
            stacklevel=3,
        )
    try:
        shapes = jax.eval_shape(_unconstrained, Static(model), structure, *leaves)
    except _TRACED as error:
        raise TypeError(
            "the model takes a Python or NumPy value from an array, and its arguments' arrays are traced, so that other data "
            "recompile nothing; compute what sets a size outside the model and pass it as a Python int, and use jax.numpy for "
            "the rest"
        ) from error
    except (TypeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TypeError(f"the model cannot be run on the arguments it was given: {reason}") from error
    template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, float_dtype(dtype)), shapes)
    log_density = bind(_log_density, Static(model), structure, *leaves)
    return Target.from_log_density(
        log_density,
        template,
        name=name or getattr(model, "__name__", "posterior"),
        constrain=bind(constrain, Static(model), structure, *leaves),
    )


def prior_of(model: Callable | Target, *args: Any, **kwargs: Any) -> Target:
    """The prior of a numpyro model, on the coordinates of its posterior: normalised, with exact draws.

    The two ends of an evidence: from this target to `from_numpyro(model, ...)` of the same arguments. Everything observed is
    left out of the density, `numpyro.factor` sites too.

    Args:
        model: a numpyro model, or the Target that `from_numpyro` made of it.
        args, kwargs: what the model is called with, observations included; nothing beside a Target.

    Returns:
        Target: events like the posterior's; `exact` draws them, and the truth's log normaliser is 0.

    Raises:
        ValueError: a site has an improper prior, from which nothing can be drawn.
    """
    target = model if isinstance(model, Target) else posterior(model, args, kwargs)
    bound = arguments_of(target, "prior_of")
    improper: list[str] = []
    jax.eval_shape(lambda *leaves: improper.extend(_improper(sites_of(*bound[:2], *leaves))), *bound[2:])
    if improper:
        raise ValueError(
            f"the prior of '{target.name}' has no draws: its sites {improper} have improper priors; give them proper ones"
        )
    dtypes = Static(tuple(sorted((site, a.dtype) for site, a in target.template.items())))
    return Target.from_log_density(
        bind(_log_prior, *bound),
        target.template,
        name=f"prior of {target.name}",
        exact=bind(_prior_draw, dtypes, *bound),
        constrain=target.constrain,
        truth=Truth(log_normaliser=(0.0, 0.0), source="a normalised prior"),
    )


def unconstrain(target: Target, named: Mapping[str, Any]) -> PyTree:
    """Events from named values in the user's space: the inverse of `constrain`.

    Args:
        target: made by `from_numpyro`, or by `from_log_density` with constraints.
        named: {name: [draws, ...]} within the supports; names that are no coordinates of the event are ignored.

    Returns:
        events with a leading axis of draws, on unconstrained coordinates, in the dtype of the target.

    Raises:
        ValueError: a name is missing, or the target was made otherwise.
    """
    made_by = getattr(target.constrain, "func", None)
    if made_by is constrain:
        inverse, names = _unconstrain, set(target.template)
    elif made_by is constraints.by_name:
        inverse, names = constraints.from_names, set(jax.eval_shape(target.constrain, target.template))
    else:
        raise ValueError(f"unconstrain got the target '{target.name}'; expected one made by from_numpyro or with constraints=")
    missing = sorted(names - set(named))
    if missing:
        raise ValueError(f"unconstrain got no values of {missing}; expected all of {sorted(names)}")
    dtype = jnp.result_type(*(a.dtype for a in jax.tree.leaves(target.template)))
    values = jax.tree.map(lambda a: jnp.asarray(a, dtype), {name: named[name] for name in names})
    # Compiled, so that what the coordinates do not need (a solve, a likelihood) is left out.
    return jax.jit(jax.vmap(bind(inverse, *target.constrain.args)))(values)


def model_complaint(target: Target, position: PyTree) -> str:
    """What numpyro says of a posterior's model and its data at one position, which compiled code does not ask; or ""."""
    import numpyro
    from numpyro import handlers
    from numpyro.infer.util import constrain_fn

    if not has_model(target):
        return ""
    model, structure, *leaves = target.constrain.args
    args, kwargs = arguments(structure, tuple(leaves))
    try:
        with numpyro.validation_enabled():
            values = constrain_fn(model.value, args, kwargs, position)
    except ValueError as error:
        return str(error)
    told = handlers.substitute(handlers.seed(model.value, jax.random.key(0)), values)
    sites = handlers.trace(told).get_trace(*args, **kwargs)
    observed = {name: site for name, site in sites.items() if site["type"] == "sample" and site["is_observed"]}
    outside = [name for name, site in observed.items() if not np.all(site["fn"].support(site["value"]))]
    return f"observed values lie outside of the support of {', '.join(outside)}" if outside else ""


def _has_nan(data: jax.Array) -> bool:
    known = not isinstance(data, jax.core.Tracer) and jnp.issubdtype(data.dtype, jnp.floating)
    return known and bool(np.isnan(np.asarray(data)).any())


def _unconstrained(model: Static, structure: Static, *leaves: jax.Array) -> PyTree:
    """One event of zeros: traced for its shapes, never run."""
    from numpyro.distributions import biject_to

    sites = sites_of(model, structure, *leaves)
    latent = {name: site for name, site in sites.items() if is_latent(site)}
    discrete = [name for name, site in latent.items() if site["fn"].support.is_discrete]
    if discrete:
        raise ValueError(f"model has discrete latent sites {discrete}, which have no gradient; sum them out in the model first")
    if not latent:
        raise ValueError("model has no latent site, so there is nothing to draw; leave at least one `sample` site without obs")
    improper = _improper(sites)
    if improper and all(is_latent(site) for site in sites.values() if site["type"] == "sample"):
        raise ValueError(
            f"the posterior is improper: sites {improper} have flat priors and nothing is observed; give the observations, or "
            "proper priors"
        )
    shapes = {name: biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"])) for name, site in latent.items()}
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def _improper(sites: dict[str, dict]) -> list[str]:
    """The latent sites with an improper prior, from which nothing can be drawn."""
    from numpyro.distributions import ImproperUniform

    found = []
    for name, site in sites.items():
        law: Any = site.get("fn")
        while hasattr(law, "base_dist"):
            law = law.base_dist
        if is_latent(site) and isinstance(law, ImproperUniform):
            found.append(name)
    return found


def _log_density(model: Static, structure: Static, *leaves_and_position: Any) -> jax.Array:
    import numpyro
    from numpyro.infer.util import potential_energy

    *leaves, position = leaves_and_position
    args, kwargs = arguments(structure, tuple(leaves))
    # Validation would run small programs of its own while this one is traced.
    with numpyro.validation_enabled(False):
        energy = potential_energy(model.value, args, kwargs, position)
    return -jnp.asarray(energy, jnp.result_type(*jax.tree.leaves(position)))


def _unconstrain(model: Static, structure: Static, *leaves_and_named: Any) -> PyTree:
    import numpyro
    from numpyro.infer.util import unconstrain_fn

    *leaves, named = leaves_and_named
    args, kwargs = arguments(structure, tuple(leaves))
    with numpyro.validation_enabled(False):
        return unconstrain_fn(model.value, args, kwargs, named)


def _log_prior(model: Static, structure: Static, *leaves_and_position: Any) -> jax.Array:
    return _log_density(Static(_Unobserved(model.value)), structure, *leaves_and_position)


@dataclass(frozen=True)
class _Unobserved:
    """The model with everything observed masked; hashable by the model."""

    model: Callable

    def __call__(self, *args, **kwargs):
        from numpyro.primitives import Messenger

        class Mask(Messenger):
            def process_message(self, message):
                # The volume factors of the change of variables are observed sites too, and belong to the prior.
                if message["type"] == "sample" and message["is_observed"] and not message["name"].endswith("_log_det"):
                    message["fn"] = message["fn"].mask(False)

        return Mask(self.model)(*args, **kwargs)


def _prior_draw(dtypes: Static, model: Static, structure: Static, *leaves_and_key: Any) -> PyTree:
    import numpyro
    from numpyro import handlers
    from numpyro.distributions import biject_to

    *leaves, key = leaves_and_key
    args, kwargs = arguments(structure, tuple(leaves))
    with numpyro.validation_enabled(False):
        sites = handlers.trace(handlers.seed(model.value, key)).get_trace(*args, **kwargs)
        return {
            site: jnp.asarray(biject_to(sites[site]["fn"].support).inv(sites[site]["value"]), dtype)
            for site, dtype in dtypes.value
        }
