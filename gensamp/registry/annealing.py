"""The statistician's samplers along a path, from a wide normal law to the target.

A registry cannot know where the target lies: the base is a normal of standard deviation BASE_SCALE around 0, wide for a
target of unit scale, as step sizes and levels here are fixed for one. What adapts (adaptive SMC) serves other scales as well.
"""

from gensamp.registry.entry import Entry

__all__ = ["ENTRIES"]

BASE_SCALE = 4.0


def _path(target):
    from gensamp.mcmc import normal_base
    from gensamp.paths import geometric

    return geometric(normal_base(target.template, scale=BASE_SCALE), target)


def _levels(number):
    """Levels that begin slowly, where a wide base changes fastest."""
    import jax.numpy as jnp

    return jnp.linspace(0, 1, number + 1)[1:] ** 2


def _scales(levels):
    """The scale of the law at each level, on the way from the base's to a target of unit scale."""
    return ((1 - levels) / BASE_SCALE**2 + levels) ** -0.5


def _build_ais(target, budget):
    from gensamp.mcmc import ais, mala

    levels = _levels({"tiny": 4, "small": 100, "full": 1000}[budget])
    return ais(_path(target), levels=levels, step_sizes=0.3 * _scales(levels) ** 2, kernel=mala)


def _build_smc(target, budget):
    from gensamp.mcmc import smc

    number, particles = {"tiny": (3, 4), "small": (30, 256), "full": (100, 1024)}[budget]
    levels, options = _levels(number), {"num_integration_steps": 2 if budget == "tiny" else 5}
    return smc(
        _path(target), num_particles=particles, levels=levels, step_sizes=0.3 * _scales(levels), kernel_options=options
    )  # fmt: skip


def _build_waste_free_smc(target, budget):
    from gensamp.mcmc import mala, waste_free_smc

    number, particles, ancestors = {"tiny": (3, 6, 2), "small": (30, 1024, 64), "full": (100, 8192, 128)}[budget]
    levels, counts = _levels(number), {"num_particles": particles, "num_ancestors": ancestors}
    return waste_free_smc(_path(target), levels=levels, step_sizes=0.3 * _scales(levels) ** 2, kernel=mala, **counts)


def _build_parallel_tempering(target, budget):
    import jax.numpy as jnp

    from gensamp.mcmc import parallel_tempering

    number, steps = {"tiny": (3, 2), "small": (8, 10), "full": (8, 10)}[budget]
    levels = jnp.concatenate([jnp.zeros(1), _levels(number - 1)])
    options = {"num_integration_steps": steps}
    return parallel_tempering(_path(target), levels=levels, step_sizes=0.3 * _scales(levels), kernel_options=options)


def _build_adaptive_smc(target, budget):
    from gensamp.mcmc import adaptive_smc

    particles = {"tiny": 4, "small": 1024, "full": 8192}[budget]
    few = {"target_ess": 0.5, "kernel_options": {"num_integration_steps": 2}} if budget == "tiny" else {"num_moves": 3}
    return adaptive_smc(_path(target), num_particles=particles, **few)


def _build_nested(target, budget):
    from gensamp.mcmc import nested, normal_base

    live, points, options = {
        "tiny": (8, 40, {"num_delete": 1, "num_inner_steps": 2}), "small": (256, 8192, {}), "full": (2048, 65536, {})
    }[budget]  # fmt: skip
    prior = normal_base(target.template, scale=BASE_SCALE)
    return nested(target, prior, num_live=live, max_points=points, **options)


ENTRIES: tuple[Entry, ...] = (
    Entry("ais", "Annealed importance sampling", "mcmc", "sampler", _build_ais),
    Entry("smc", "Sequential Monte Carlo", "mcmc", "sampler", _build_smc, compile_budget=6),
    Entry("adaptive_smc", "Adaptive SMC", "mcmc", "sampler", _build_adaptive_smc, compile_budget=9),
    Entry("waste_free_smc", "Waste-free SMC", "mcmc", "sampler", _build_waste_free_smc, compile_budget=9),
    Entry("parallel_tempering", "Parallel tempering", "mcmc", "sampler", _build_parallel_tempering, compile_budget=6),
    Entry("nested", "Nested sampling", "mcmc", "sampler", _build_nested, compile_budget=12),
)
