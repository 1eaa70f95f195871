"""Sparse logistic regression with 51 parameters: a hierarchical posterior whose scales trade off against its weights.

    y_i ~ Bernoulli(logit = x_i . w),  w_j = u_j l_j g,  u_j ~ N(0, 1),  l_j ~ Gamma(1/2, 1/2),  g ~ Gamma(1/2, 1/2),

with 24 predictors and a column of ones, so that 25 + 25 + 1 unconstrained coordinates are (u, log l, log g). The shape and the
priors are those of the German credit benchmark. **The data are synthetic**: correlated normal predictors, six of the weights
different from zero, and about seven in ten events positive, as among the creditors. They come from a fixed seed of NumPy, not
from the credit records, so figures published for those are no truth here.

Source: Sountsov, Radul and contributors 2020, inference gym, "German credit numeric sparse logistic regression"; Hoffman,
Sountsov, Dillon, Langmore, Tran and Vasudevan 2019, "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo", section 5.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Target
from gensamp.targets.mixture import float_dtype
from gensamp.targets.posteriors import posterior

__all__ = ["model", "simulate", "sparse_logistic"]


def model(X: Float[Array, "events features"], y: Float[Array, " events"]) -> None:
    """The numpyro model; X with its column of ones, y of zeros and ones."""
    import numpyro
    from numpyro import distributions as dist

    features = X.shape[1]
    unscaled = numpyro.sample("unscaled_weights", dist.Normal(0.0, 1.0).expand([features]).to_event(1))
    local = numpyro.sample("local_scales", dist.Gamma(0.5, 0.5).expand([features]).to_event(1))
    overall = numpyro.sample("global_scale", dist.Gamma(0.5, 0.5))
    weights = numpyro.deterministic("weights", unscaled * local * overall)
    numpyro.sample("y", dist.Bernoulli(logits=X @ weights), obs=y)


def sparse_logistic(events: int = 1_000, predictors: int = 24, *, dtype: Any = None) -> Target:
    """The posterior of a sparse logistic regression on synthetic data; see the module's docstring.

    Args:
        events, predictors: size of the data; the parameters number 2 (predictors + 1) + 1.
        dtype: of data and events; jax's default float if None.

    Returns:
        Target: events {"unscaled_weights": [25], "local_scales": [25], "global_scale": []} unconstrained; `constrain` gives
        these and the weights. One gradient costs two products with the data matrix.

    Raises:
        ValueError: fewer than six predictors, of which six have a weight, or no event.
    """
    if predictors < 6 or events < 1:
        raise ValueError(f"sparse_logistic got predictors={predictors}, events={events}; expected at least 6 and at least 1")
    dtype = float_dtype(dtype)
    X, y = (jnp.asarray(a, dtype) for a in simulate(events, predictors))
    return posterior(model, (X, y), name="sparse_logistic", dtype=dtype)


def simulate(events: int, predictors: int) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic data: X [events, predictors + 1] with the ones last, and y [events]."""
    rng = np.random.default_rng(24)
    shared = rng.normal(size=(events, 1))
    X = np.column_stack([np.sqrt(0.8) * rng.normal(size=(events, predictors)) + np.sqrt(0.2) * shared, np.ones(events)])
    weights = np.zeros(predictors + 1)
    weights[:6] = -0.7, 0.4, -0.4, 0.3, 0.25, -0.2
    weights[-1] = 1.1
    return X, (rng.random(events) < 1 / (1 + np.exp(-X @ weights))).astype(np.float64)
