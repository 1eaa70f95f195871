"""What a numpyro model says beside its posterior: its data, their likelihood, and data drawn anew.

For a target made by `from_numpyro`, whose model and data are bound to it, each as a function of one draw:

    log_likelihood          z -> log p(y_j | x(z)) of each observation j
    posterior_predictive    z -> y' ~ p(y | x(z))
    prior_predictive        x ~ p(x), y' ~ p(y | x)

The observations are bound to the model and cannot be left out of its arguments, as numpyro's Predictive needs them to be: it
would hand them back as predictions. Here the observed sites are told to draw like the others, whoever gave them their data.

Source: Gelman et al., Bayesian Data Analysis, third edition, sections 6.3 and 7.1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gensamp.core import PyTree, Static, Target, bind
from gensamp.targets.bound_models import arguments, arguments_of, has_model, is_latent, sites_of
from gensamp.targets.posteriors import prior_of

__all__ = ["has_model", "log_likelihood", "observed_data", "plates", "posterior_predictive", "prior_predictive"]


def observed_data(target: Target) -> dict[str, np.ndarray]:
    """{observed site: its data}; `numpyro.factor` sites have none."""
    return jax.tree.map(np.asarray, _read_observed(*arguments_of(target, "observed_data")))


def plates(target: Target) -> dict[str, list[str | None]]:
    """{site: names of its leading dimensions}, a plate's or None; sites that stand in no plate are left out."""
    model, structure, *leaves = arguments_of(target, "plates")
    found: dict[str, list[str | None]] = {}
    jax.eval_shape(lambda *leaves: found.update(_plate_names(sites_of(model, structure, *leaves))), *leaves)
    return found


def log_likelihood(target: Target) -> Partial:
    """(event) -> {observed site: log likelihood of each of its data}, `numpyro.factor` sites included. One run of the model."""
    return bind(_log_likelihood, *arguments_of(target, "log_likelihood"))


def posterior_predictive(key: jax.Array, target: Target) -> Partial:
    """({position: event, chain: [], draw: []}) -> {observed site: data drawn anew}.

    The row has the key fold_in(fold_in(key, chain), draw). A law that is a function of other data (an autoregression) keeps
    those data.
    """
    return bind(_predict, key, *arguments_of(target, "posterior_predictive"))


def prior_predictive(key: jax.Array, target: Target) -> Partial:
    """(index) -> {site: value} of a draw from the prior with its data drawn anew, deterministic sites included.

    The draw has the key fold_in(key, index).

    Raises:
        ValueError: a site has an improper prior, from which nothing can be drawn.
    """
    prior_of(target)
    return bind(_prior, key, *arguments_of(target, "prior_predictive"))


def _plate_names(sites: dict[str, dict]) -> dict[str, list[str | None]]:
    found = {}
    for name, site in sites.items():
        shape = np.shape(site["value"]) if site["type"] in ("sample", "deterministic") else ()
        stack = site.get("cond_indep_stack", [])
        # Plates count from the right of the batch; a deterministic site does not say where its batch ends.
        width = len(site["fn"].batch_shape) if site["type"] == "sample" else max((-frame.dim for frame in stack), default=0)
        axes: list[str | None] = [None] * width
        for frame in stack:
            if -frame.dim <= width <= len(shape) and shape[width + frame.dim] == frame.size:
                axes[frame.dim] = frame.name
        if any(axes):
            found[name] = axes
    return found


def _is_observation(site: dict) -> bool:
    """Whether a site holds data: a factor is called observed too, and has no value."""
    from numpyro.distributions import Unit

    law: Any = site.get("fn")
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return site["type"] == "sample" and site["is_observed"] and not isinstance(law, Unit)


def _observed(model: Static, structure: Static, *leaves: jax.Array) -> dict[str, jax.Array]:
    sites = sites_of(model, structure, *leaves)
    return {name: jnp.asarray(site["value"]) for name, site in sites.items() if _is_observation(site)}


_read_observed = jax.jit(_observed)


def _at(model: Static, structure: Static, leaves: tuple, position: PyTree) -> tuple[tuple, dict, dict]:
    """The model's arguments, and the values of its latent sites at a position."""
    from numpyro.infer.util import constrain_fn

    args, kwargs = arguments(structure, leaves)
    return args, kwargs, constrain_fn(model.value, args, kwargs, position)


def _log_likelihood(model: Static, structure: Static, *leaves_and_position: Any) -> dict[str, jax.Array]:
    import numpyro
    from numpyro.infer.util import log_likelihood as log_likelihood_of

    *leaves, position = leaves_and_position
    with numpyro.validation_enabled(False):
        args, kwargs, values = _at(model, structure, tuple(leaves), position)
        return log_likelihood_of(model.value, values, *args, batch_ndims=0, **kwargs)


def _predict(key: jax.Array, model: Static, structure: Static, *leaves_and_row: Any) -> dict[str, jax.Array]:
    import numpyro
    from numpyro import handlers

    *leaves, row = leaves_and_row
    key = jax.random.fold_in(jax.random.fold_in(key, row["chain"]), row["draw"])
    with numpyro.validation_enabled(False):
        args, kwargs, values = _at(model, structure, tuple(leaves), row["position"])
        anew, seen = _drawing_anew(model.value)
        sites = handlers.trace(handlers.seed(handlers.substitute(anew, data=values), key)).get_trace(*args, **kwargs)
    return {name: jnp.asarray(sites[name]["value"]) for name in seen}


def _prior(key: jax.Array, model: Static, structure: Static, *leaves_and_index: Any) -> dict[str, jax.Array]:
    import numpyro
    from numpyro import handlers

    *leaves, index = leaves_and_index
    args, kwargs = arguments(structure, tuple(leaves))
    with numpyro.validation_enabled(False):
        anew, seen = _drawing_anew(model.value)
        sites = handlers.trace(handlers.seed(anew, jax.random.fold_in(key, index))).get_trace(*args, **kwargs)
    drawn = [name for name, site in sites.items() if name in seen or is_latent(site) or site["type"] == "deterministic"]
    return {name: jnp.asarray(sites[name]["value"]) for name in drawn}


def _drawing_anew(model: Any) -> tuple[Any, list[str]]:
    """The model with its observed sites drawn like the others, and the list that their names go into when it runs."""
    from numpyro.primitives import Messenger

    seen: list[str] = []

    class DrawAnew(Messenger):
        def process_message(self, message):
            if _is_observation(message):
                seen.append(message["name"])
                message["is_observed"], message["value"] = False, None

    return DrawAnew(model), seen
