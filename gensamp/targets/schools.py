"""Eight schools: the effects of coaching in eight schools, estimated together (Rubin 1981).

    mu ~ N(0, 5),  tau ~ HalfCauchy(5),  theta_i = mu + tau theta_trans_i,  theta_trans_i ~ N(0, 1),  y_i ~ N(theta_i, sigma_i).

A hierarchical posterior of ten parameters, non-centred, as posteriordb's eight_schools_noncentered has it; the events are
{mu, tau, theta_trans} on unconstrained coordinates (tau as log tau).

Given tau everything is normal, which leaves one integral over s = log tau:

    p(s | y) ~ HalfCauchy(e^s; 5) e^s N(y; 0, diag(sigma^2 + tau^2) + 25),
    mu | tau, y ~ N(m, V),  1/V = 1/25 + sum 1/(sigma_i^2 + tau^2),  m = V sum y_i / (sigma_i^2 + tau^2),
    theta_trans_i | mu, tau, y ~ N(p_i tau (y_i - mu) / sigma_i^2, p_i),  1/p_i = 1 + tau^2 / sigma_i^2

(Gelman et al., Bayesian Data Analysis, third edition, section 5.4). So the log normaliser, moments and marginal quantiles are
quadratures, and exact draws take one table: s as a function of a normal score, linear between 4,097 knots, off by less than
1e-5 standard deviations. Posteriordb's reference draws, an independent computation, are `truth.reference` where GENSAMP_DATA
has them.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Target, Truth, bind
from gensamp.targets.mixture import PROBABILITIES, float_dtype, marginal_quantiles
from gensamp.targets.posteriordb import reference_draws
from gensamp.targets.posteriors import from_numpyro

__all__ = ["EFFECTS", "STANDARD_ERRORS", "eight_schools", "model"]

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
"""Estimated effect of coaching on the test score in each school (Rubin 1981, table 1)."""

STANDARD_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
"""Their standard errors."""

_PRIOR_MU, _PRIOR_TAU = 5.0, 5.0


def model(y: jax.Array, sigma: jax.Array) -> None:
    """The numpyro model; y, sigma: [schools]."""
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, _PRIOR_MU))
    tau = numpyro.sample("tau", dist.HalfCauchy(_PRIOR_TAU))
    with numpyro.plate("schools", y.shape[0]):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools(*, dtype: Any = None) -> Target:
    """The eight-schools posterior, non-centred, with exact draws and truth; see the module's docstring.

    Args:
        dtype: of events; jax's default float if None.

    Returns:
        Target: events {"mu": [], "tau": [], "theta_trans": [8]} unconstrained; `constrain` gives these and theta.

    Source: Rubin 1981, "Estimation in parallel randomized experiments"; posteriordb (BSD-3) for the non-centred form.
    """
    dtype = float_dtype(dtype)
    y, sigma = np.asarray(EFFECTS), np.asarray(STANDARD_ERRORS)
    posterior = from_numpyro(model, jnp.asarray(y, dtype), jnp.asarray(sigma, dtype))
    template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), posterior.template)
    truth, knots = _solve(y, sigma, dtype)
    arrays = [jnp.asarray(a, dtype) for a in (y, sigma, *knots)]
    return dataclasses.replace(
        posterior,
        template=template,
        name="eight_schools",
        exact=bind(_exact, *arrays),
        truth=dataclasses.replace(truth, quantile=bind(_quantile, *arrays), reference=_reference(dtype)),
    )


def _reference(dtype: Any) -> Any:
    """Posteriordb's draws as events [10000, ...], or None."""
    try:
        named = reference_draws("eight_schools-eight_schools_noncentered", download=False)
    except FileNotFoundError:
        return None
    flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in named.items()}
    tau = flat["tau"]
    theta_trans = (flat["theta"] - flat["mu"][:, None]) / tau[:, None]
    return {name: jnp.asarray(a, dtype) for name, a in (("mu", flat["mu"]), ("tau", np.log(tau)), ("theta_trans", theta_trans))}


def _solve(y: np.ndarray, sigma: np.ndarray, dtype: Any) -> tuple[Truth, tuple[np.ndarray, np.ndarray]]:
    """Truth by quadrature over s = log tau, and the table normal score -> s."""
    from scipy.special import ndtri

    s = np.linspace(-30.0, 8.0, 20_001)
    tau = np.exp(s)[:, None]
    spread = sigma**2 + tau**2
    precision = 1 / _PRIOR_MU**2 + (1 / spread).sum(1)
    m, v = (y / spread).sum(1) / precision, 1 / precision
    exponent = -0.5 * ((y**2 / spread).sum(1) - m**2 / v + np.log(2 * np.pi * spread).sum(1) - np.log(v / _PRIOR_MU**2))
    joint = exponent + np.log(2 / (np.pi * _PRIOR_TAU)) - np.log1p((tau[:, 0] / _PRIOR_TAU) ** 2) + s
    weights = np.exp(joint - joint.max())
    log_normaliser = float(joint.max()) + math.log(weights.sum() * (s[1] - s[0]))
    weights = weights / weights.sum()

    gain = tau / sigma**2 / (1 + tau**2 / sigma**2)
    means = np.column_stack([m, gain * (y - m[:, None])])
    variances = np.column_stack([v, 1 / (1 + tau**2 / sigma**2) + gain**2 * v[:, None]])
    mean = weights @ means
    variance = weights @ (variances + (means - mean) ** 2)
    quantiles = marginal_quantiles(weights, means, np.sqrt(variances), PROBABILITIES)

    # Each tail is summed from its own end, or the upper one would be lost to rounding near one.
    lower, upper = np.cumsum(weights) - weights / 2, np.cumsum(weights[::-1])[::-1] - weights / 2
    score = np.where(lower < 0.5, ndtri(np.clip(lower, 1e-300, 0.5)), -ndtri(np.clip(upper, 1e-300, 0.5)))
    knots = np.linspace(-6.0, 6.0, 4097)
    table = np.interp(knots, score, s)
    mean_s = weights @ s

    def event(mu, log_tau, theta_trans):
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), {"mu": mu, "tau": log_tau, "theta_trans": theta_trans})

    truth = Truth(
        log_normaliser=(log_normaliser, 0.0),
        mean=(event(mean[0], mean_s, mean[1:]), 0.0),
        variance=(event(variance[0], weights @ (s - mean_s) ** 2, variance[1:]), 0.0),
        quantiles={
            p: (event(q[0], np.interp(ndtri(p), score, s), q[1:]), 0.0) for p, q in zip(PROBABILITIES, quantiles, strict=True)
        },
        source="quadrature over log tau; reference draws, where present, from posteriordb",
    )
    return truth, (knots, table)


def _map(y: jax.Array, sigma: jax.Array, knots: jax.Array, table: jax.Array, z: jax.Array) -> dict[str, jax.Array]:
    """One event from ten independent standard normals."""
    s = jnp.interp(z[0], knots, table)
    tau = jnp.exp(s)
    spread = sigma**2 + tau**2
    v = 1 / (1 / _PRIOR_MU**2 + jnp.sum(1 / spread))
    mu = v * jnp.sum(y / spread) + jnp.sqrt(v) * z[1]
    p = 1 / (1 + tau**2 / sigma**2)
    return {"mu": mu, "tau": s, "theta_trans": p * tau * (y - mu) / sigma**2 + jnp.sqrt(p) * z[2:]}


def _exact(y, sigma, knots, table, key):
    return _map(y, sigma, knots, table, jax.random.normal(key, (y.shape[0] + 2,), y.dtype))


def _quantile(y, sigma, knots, table, u):
    return _map(y, sigma, knots, table, jax.scipy.special.ndtri(u))
