"""NUTS on eight schools against reference draws nobody here made (posteriordb), in the user's own quantities."""

import os

import jax
import numpy as np
import pytest
from arviz_stats.base import array_stats

import gensamp as gs

NAME = "eight_schools-eight_schools_noncentered"


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("GENSAMP_DATA", ""), "posteriordb", "draws", f"{NAME}.json.zip")),
    reason="the reference draws of eight schools are not in GENSAMP_DATA",
)
def test_nuts_agrees_with_the_reference_draws():
    """ESS of every mean at least 5,000; bias at most 0.05 posterior sd; |z| at most 4, errors of both sides propagated."""
    target = gs.targets.eight_schools()
    tuned = gs.tune(jax.random.key(0), gs.mcmc.nuts, target)
    draws = gs.sample(jax.random.key(1), tuned.sampler, 4_000, initial=tuned.initial)
    assert draws.nonfinite == 0
    assert np.mean(draws.info.diverged) < 0.01
    named = jax.jit(jax.vmap(jax.vmap(target.constrain)))(draws.position)
    for name, reference in gs.targets.reference_draws(NAME).items():
        if name not in named:
            continue
        ours = np.asarray(named[name], np.float64).reshape(4, 4_000, -1)
        reference = reference.reshape(*reference.shape[:2], -1)
        ess = array_stats.ess(ours, chain_axis=0, draw_axis=1, method="mean")
        theirs = array_stats.ess(reference, chain_axis=0, draw_axis=1, method="mean")
        sd = reference.std((0, 1))
        bias = np.abs(ours.mean((0, 1)) - reference.mean((0, 1))) / sd
        z = bias / np.sqrt(1 / ess + 1 / theirs)
        assert ess.min() >= 5_000, f"{name}: ESS {ess.min():.0f}"
        assert bias.max() <= 0.05, f"{name}: bias {bias.max():.3f} sd"
        assert z.max() <= 4, f"{name}: z {z.max():.2f}"
        print(f"{name}: ESS {ess.min():.0f} and more, bias {bias.max():.3f} sd and less, |z| {z.max():.2f} and less")
    assert {"mu", "tau", "theta"} <= set(named)


def test_mala_sits_in_few_of_forty_modes():
    """From one start per chain, a tuned MALA finds few of GMM40's modes; exact draws of the same number find them all."""
    target = gs.targets.gmm40()
    tuned = gs.tune(jax.random.key(0), gs.mcmc.mala, target, target_acceptance=0.574)
    draws = gs.sample(jax.random.key(1), tuned.sampler, 2_000, initial=tuned.initial)
    report = gs.evaluate(draws, target)
    assert report.coverage is not None and report.energy is not None
    assert report.coverage.found <= 8
    assert report.energy.verdict == "distinguishable"
