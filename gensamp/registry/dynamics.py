"""The statistician's chains driven by a gradient, beyond Langevin, HMC and NUTS."""

import math

import jax

from gensamp.registry.entry import Entry

__all__ = ["ENTRIES"]


def _barker(target, step_size=0.5, **options):
    from gensamp.mcmc import barker

    return barker(target, step_size, **options)


def _dynamic_hmc(target, step_size=0.3, **options):
    from gensamp.mcmc import dynamic_hmc

    return dynamic_hmc(target, step_size, **options)


def _ghmc(target, step_size=0.3, **options):
    from gensamp.mcmc import ghmc

    return ghmc(target, step_size, **options)


def _malt(target, step_size=0.3, **options):
    from gensamp.mcmc import malt

    return malt(target, step_size, **options)


def _mams(target, step_size=1.0, **options):
    from gensamp.mcmc import mams

    return mams(target, step_size, **options)


def _build_barker(target, budget):
    return _barker(target)


def _build_dynamic_hmc(target, budget):
    return _dynamic_hmc(target, **({"trajectory_length": 1.0} if budget == "tiny" else {}))


def _build_ghmc(target, budget):
    return _ghmc(target)


def _build_malt(target, budget):
    return _malt(target, **({"trajectory_length": 1.0} if budget == "tiny" else {}))


def _build_underdamped(target, budget):
    # Nothing is rejected, so there is no acceptance to tune a step by: a fixed one, for a target of unit scale.
    from gensamp.mcmc import underdamped

    return underdamped(target, 0.3)


def _build_mclmc(target, budget):
    from gensamp.mcmc import mclmc

    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(target.template))
    return mclmc(target, 0.2 * math.sqrt(size))


def _build_mams(target, budget):
    return _mams(target)


ENTRIES = (
    Entry("barker", "Barker's proposal", "mcmc", "sampler", _build_barker, kernel=_barker, target_acceptance=0.57),
    Entry(
        "dynamic_hmc", "Hamiltonian, varying length", "mcmc", "sampler", _build_dynamic_hmc, kernel=_dynamic_hmc,
        target_acceptance=0.65,
    ),
    Entry("ghmc", "Hamiltonian, generalised", "mcmc", "sampler", _build_ghmc, kernel=_ghmc, target_acceptance=0.85),
    Entry("malt", "Langevin trajectories, adjusted", "mcmc", "sampler", _build_malt, kernel=_malt, target_acceptance=0.65),
    Entry("underdamped", "Langevin, underdamped", "mcmc", "sampler", _build_underdamped, needs=("score",)),
    Entry("mclmc", "Microcanonical Langevin", "mcmc", "sampler", _build_mclmc),
    Entry("mams", "Microcanonical, adjusted", "mcmc", "sampler", _build_mams, kernel=_mams, target_acceptance=0.9),
)  # fmt: skip
