"""The statistician's chains that take no gradient of the whole density: proposals, slices, ensembles and minibatches."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from gensamp.core import bind, scalar
from gensamp.registry.entry import Entry

__all__ = ["ENTRIES"]

# Standard deviation of the Gaussians that the independence chain proposes from and the elliptical slice divides out: both must
# cover the target, whose scale is not known.
WIDE = 5.0
# Rows in a batch. Step sizes are for a posterior whose variance is about one over the number of rows.
BATCH = 32


def _random_walk(target, step_size=0.5, **options):
    from gensamp.mcmc import random_walk

    return random_walk(target, step_size, **options)


def _build_random_walk(target, budget):
    return _random_walk(target)


def _build_independence(target, budget):
    from gensamp.mcmc import independence
    from gensamp.pushforward import inverse_transform

    origin = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), target.template)
    scale = scalar(WIDE, target.template)
    wide = inverse_transform(bind(_gaussian_quantile, origin, scale), target.template, bind(_log_gaussian, scale))
    return independence(target, wide)


def _build_slice(target, budget):
    from gensamp.mcmc import slice_sampling

    return slice_sampling(target)


def _build_hit_and_run(target, budget):
    from gensamp.mcmc import hit_and_run

    return hit_and_run(target)


def _build_elliptical_slice(target, budget):
    from gensamp.mcmc import elliptical_slice
    from gensamp.mcmc.arguments import dimension

    return elliptical_slice(target, 0.0, jnp.full((dimension(target.template),), WIDE**2))


def _build_stretch(target, budget):
    from gensamp.mcmc import stretch
    from gensamp.mcmc.arguments import dimension

    return stretch(target, max(2 * dimension(target.template), 4 if budget == "tiny" else 16))


def _build_sgld(target, budget):
    from gensamp.mcmc import sgld

    rows = len(jax.tree.leaves(target.data)[0])
    return sgld(target, 0.1 / rows, batch_size=min(rows, BATCH))


def _build_sghmc(target, budget):
    from gensamp.mcmc import sghmc

    rows = len(jax.tree.leaves(target.data)[0])
    return sghmc(target, 0.3 / rows**0.5, friction=rows**0.5, batch_size=min(rows, BATCH))


def _gaussian_quantile(origin, scale, u):
    return ravel_pytree(origin)[1](scale * jax.scipy.special.ndtri(u))


def _log_gaussian(scale, x):
    return -0.5 * jnp.square(ravel_pytree(x)[0] / scale).sum()


ENTRIES = (
    Entry(
        "random_walk", "Random walk", "mcmc", "sampler", _build_random_walk, kernel=_random_walk, target_acceptance=0.234,
    ),
    Entry("independence", "Independence chain, wide Gaussian", "mcmc", "sampler", _build_independence),
    Entry("slice", "Slice, along the axes", "mcmc", "sampler", _build_slice, compile_budget=4),
    Entry("hit_and_run", "Slice, random directions", "mcmc", "sampler", _build_hit_and_run),
    Entry("elliptical_slice", "Elliptical slice, wide Gaussian", "mcmc", "sampler", _build_elliptical_slice),
    Entry("stretch", "Ensemble, stretch move", "mcmc", "sampler", _build_stretch, compile_budget=4),
    Entry("sgld", "Langevin on minibatches", "mcmc", "sampler", _build_sgld, needs=("minibatch_log_density", "data")),
    Entry("sghmc", "Hamiltonian on minibatches", "mcmc", "sampler", _build_sghmc, needs=("minibatch_log_density", "data")),
)  # fmt: skip
