"""The statistician's chains without end."""

from gensamp.registry.entry import Entry

__all__ = ["ENTRIES"]


def _mala(target, step_size=0.3, **options):
    from gensamp.mcmc import mala

    return mala(target, step_size, **options)


def _hmc(target, step_size=0.3, **options):
    from gensamp.mcmc import hmc

    return hmc(target, step_size, **options)


def _nuts(target, step_size=0.3, **options):
    from gensamp.mcmc import nuts

    return nuts(target, step_size, **options)


def _build_ula(target, budget):
    # It accepts everything, so there is no acceptance to tune a step by: a fixed one, small for a target of unit scale.
    from gensamp.mcmc import ula

    return ula(target, 0.05)


def _build_mala(target, budget):
    return _mala(target)


def _build_hmc(target, budget):
    return _hmc(target, **({"num_integration_steps": 3} if budget == "tiny" else {}))


def _build_nuts(target, budget):
    return _nuts(target, **({"max_tree_depth": 3} if budget == "tiny" else {}))


ENTRIES = (
    Entry("ula", "Langevin, unadjusted", "mcmc", "sampler", _build_ula, default=True),
    Entry("mala", "Langevin, adjusted", "mcmc", "sampler", _build_mala, kernel=_mala, target_acceptance=0.574, default=True),
    Entry("hmc", "Hamiltonian", "mcmc", "sampler", _build_hmc, kernel=_hmc, default=True),
    Entry("nuts", "No-U-turn", "mcmc", "sampler", _build_nuts, kernel=_nuts, default=True, compile_budget=5),
)
