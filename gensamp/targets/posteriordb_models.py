"""Ten posteriors of posteriordb as numpyro models: the same priors, parameters and likelihoods as their Stan programs.

A site is named as in the Stan program, so that reference draws and `constrain` speak of the same quantities. Four habits of
Stan are easily lost in translation, and each would give another posterior:

- a parameter without a prior has a flat one on its support, here `ImproperUniform`. In garch11 beta1 is flat on
  [0, 1 - alpha1]: a `Uniform` there would divide by 1 - alpha1;
- a prior on a parameter with a lower bound of zero is that prior folded at zero: a constant apart, the half-normal and others;
- the noise of gp_regr is added to the diagonal of the covariance as it is: `sigma` is a variance;
- the first value of garch11 has a given standard deviation, and the first rows of arK are only regressed on.

Each function takes arrays and returns nothing. Models are vectorised, so that they compile fast: one scan over the recursion of
garch11, and one over the steps of the differential equation. This module imports numpyro; `gensamp.targets.posteriordb` imports
it when a posterior is asked for.

Source: the programs of posteriordb (Magnusson, Buerkner and Vehtari; BSD-3).
"""

import math

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float
from numpyro import distributions as dist
from numpyro.distributions import constraints

__all__ = [
    "ark", "blr", "diamonds", "garch11", "gp_regr", "kidscore_interaction", "lotka_volterra", "low_dim_gauss_mix", "nes",
    "solve_lotka_volterra",
]  # fmt: skip


def ark(lagged: Float[Array, "times lags"], y: Float[Array, " times"]) -> None:
    """arK: y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma); lagged[t, k] = y_{t-1-k}."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lagged.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lagged @ beta, sigma), obs=y)


def blr(X: Float[Array, "events features"], y: Float[Array, " events"]) -> None:
    """Linear regression with independent normal priors."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def diamonds(X: Float[Array, "events features"], Y: Float[Array, " events"]) -> None:
    """Linear regression on centred predictors (X without its column of ones), with Student priors on level and noise."""
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    numpyro.sample("Y", dist.Normal(intercept + X @ b, sigma), obs=Y)


def garch11(y: Float[Array, " times"], sigma1: Float[Array, ""]) -> None:
    """sigma_t^2 = alpha0 + alpha1 (y_{t-1} - mu)^2 + beta1 sigma_{t-1}^2, flat on the stationary region."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = numpyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = numpyro.sample("alpha1", dist.ImproperUniform(constraints.unit_interval, (), ()))
    beta1 = numpyro.sample("beta1", dist.ImproperUniform(constraints.interval(0.0, 1 - alpha1), (), ()))

    def recur(variance, shock):
        variance = shock + beta1 * variance
        return variance, variance

    first = jnp.square(sigma1)
    _, later = jax.lax.scan(recur, first, alpha0 + alpha1 * jnp.square(y[:-1] - mu))
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(jnp.concatenate([first[None], later]))), obs=y)


def gp_regr(squares: Float[Array, "events events"], y: Float[Array, " events"]) -> None:
    """A Gaussian process with squared-exponential covariance; squares[i, j] = (x_i - x_j)^2."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = jnp.square(alpha) * jnp.exp(-0.5 * squares / jnp.square(rho)) + sigma * jnp.eye(len(y), dtype=y.dtype)
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros_like(y), scale_tril=jnp.linalg.cholesky(covariance)), obs=y)


def kidscore_interaction(X: Float[Array, "events 4"], kid_score: Float[Array, " events"]) -> None:
    """Linear regression with a flat prior on its coefficients."""
    beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("kid_score", dist.Normal(X @ beta, sigma), obs=kid_score)


def nes(X: Float[Array, "events 9"], partyid7: Float[Array, " events"]) -> None:
    """Linear regression with flat priors."""
    beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (9,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("partyid7", dist.Normal(X @ beta, sigma), obs=partyid7)


def low_dim_gauss_mix(y: Float[Array, " events"]) -> None:
    """Two normals with ordered means; theta is the weight of the lower one."""
    mu = numpyro.sample("mu", _OrderedNormals(2.0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    numpyro.sample("y", _TwoNormals(theta, mu, sigma).expand([len(y)]), obs=y)


def lotka_volterra(y_init: Float[Array, "2"], y: Float[Array, "years 2"]) -> None:
    """Hares and lynxes, [prey, predator], observed with lognormal errors at years 0, 1, 2, ..."""
    rates = dist.TruncatedNormal(jnp.asarray([1.0, 0.05, 1.0, 0.05]), jnp.asarray([0.5, 0.05, 0.5, 0.05]), low=0.0)
    theta = numpyro.sample("theta", rates.to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    z_init = numpyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1))
    log_z = solve_lotka_volterra(theta, jnp.log(z_init), len(y))
    numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma), obs=y_init)
    numpyro.sample("y", dist.LogNormal(log_z, jnp.expand_dims(sigma, 0)), obs=y)


def solve_lotka_volterra(
    theta: Float[Array, "4"], log_z: Float[Array, "2"], years: int, steps: int = 5
) -> Float[Array, "years 2"]:
    """Logarithms of [prey, predator] after 1, 2, ... years.

    In p = log prey, q = log predator the equations are those of a Hamiltonian that separates,

        dp/dt = alpha - beta e^q,    dq/dt = -gamma + delta e^p,    theta = (alpha, beta, gamma, delta),

    so each half is solved exactly with the other held still, and a splitting alternates them. No population turns negative.
    Over the posterior of the Canadian hares and lynxes five steps a year err by 1e-6 in the logarithm; the order is four.

    Source: Blanes and Moan 2002, "Practical symplectic partitioned Runge-Kutta and Runge-Kutta-Nystroem methods", table 2, S6.
    """
    alpha, beta, gamma, delta = theta / steps

    def step(state, _):
        p, q = state
        for i, drift in enumerate(_DRIFTS):
            p = p + drift * (alpha - beta * jnp.exp(q))
            if i < len(_KICKS):
                q = q + _KICKS[i] * (delta * jnp.exp(p) - gamma)
        return (p, q), (p, q)

    _, path = jax.lax.scan(step, (log_z[0], log_z[1]), length=years * steps)
    return jnp.stack(path, axis=1)[steps - 1 :: steps]


_DRIFTS = (0.0792036964311957, 0.353172906049774, -0.0420650803577195)
_DRIFTS = (*_DRIFTS, 1 - 2 * sum(_DRIFTS), *reversed(_DRIFTS))
_KICKS = (0.209515106613362, -0.143851773179818)
_KICKS = (*_KICKS, 0.5 - sum(_KICKS), 0.5 - sum(_KICKS), *reversed(_KICKS))


class _OrderedNormals(dist.Distribution):
    """`size` independent N(0, scale) in ascending order, with the factorial that sorting brings."""

    pytree_aux_fields = ("scale",)

    def __init__(self, scale: float, size: int):
        self.scale = scale
        super().__init__(event_shape=(size,))

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self):
        return constraints.ordered_vector

    def sample(self, key, sample_shape=()):
        return jnp.sort(self.scale * jax.random.normal(key, (*sample_shape, *self.event_shape)), axis=-1)

    def log_prob(self, value):
        return dist.Normal(0.0, self.scale).log_prob(value).sum(-1) + math.lgamma(self.event_shape[0] + 1)


class _TwoNormals(dist.Distribution):
    """N(mu[0], sigma[0]) with probability theta, else N(mu[1], sigma[1]): half the work of the general mixture."""

    pytree_data_fields = ("theta", "mu", "sigma")

    def __init__(self, theta: Array, mu: Array, sigma: Array):
        self.theta, self.mu, self.sigma = theta, mu, sigma
        super().__init__()

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        return constraints.real

    def sample(self, key, sample_shape=()):
        key_which, key_noise = jax.random.split(key)
        which = jnp.where(jax.random.bernoulli(key_which, self.theta, sample_shape), 0, 1)
        return self.mu[which] + self.sigma[which] * jax.random.normal(key_noise, sample_shape, self.mu.dtype)

    def log_prob(self, value):
        first, second = (dist.Normal(self.mu[k], self.sigma[k]).log_prob(value) for k in (0, 1))
        return jnp.logaddexp(jnp.log(self.theta) + first, jnp.log1p(-self.theta) + second)
