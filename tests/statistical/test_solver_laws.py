"""Do the solvers of a reversed diffusion draw from the law, and does one changed line show? Ten keys, as lanes of one program.

The denoiser is exact, so that nothing but the solver is on trial. A deterministic solver never forgets its start, so its twin
starts at twice the prior's scale; a stochastic one does forget it, and its twin draws the wrong noise.
"""

import dataclasses
from importlib import import_module

import pytest
from statistical.test_pushforward_laws import PROCESS, assert_fails, assert_passes, predicted_noise, run

import gensamp as gs
from gensamp import paths
from gensamp.pushforward.diffusion import (
    deis,
    dpm_solver,
    dpm_solver_pp,
    euler,
    exponential_sde,
    heun,
    lms,
    uniform_log_snr,
    unipc,
)
from gensamp.targets.mixture import mixture

TARGET = mixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]], [[0.3, 0.2], [0.3, 0.3], [0.2, 0.3]])
DENOISE = gs.bind(predicted_noise, paths.noised(TARGET, PROCESS).score)
SLOW = pytest.mark.slow
# Solver, its options, steps.
DETERMINISTIC = {
    "unipc": (unipc, {"order": 3}, 30),
    "dpm_solver_pp": (dpm_solver_pp, {"order": 3}, 40),
    "heun": (heun, {}, 60),
    "euler": (euler, {}, 300),
    "lms": (lms, {"order": 4}, 40),
    "deis": (deis, {"order": 3}, 40),
    "dpm_solver": (dpm_solver, {"order": 3}, 20),
}
STOCHASTIC = {
    "dpm_solver_pp": (dpm_solver_pp, {"order": 2, "eta": 1.0}, 80),
    "exponential_sde": (exponential_sde, {}, 600),
    "heun": (heun, {"churn": 20.0, "churn_noise": 1.0}, 60),
}


def solved(solver, options, steps):
    return solver(DENOISE, PROCESS, uniform_log_snr(PROCESS, steps), TARGET.template, **options)


@pytest.mark.parametrize("name", [n if n == "unipc" else pytest.param(n, marks=SLOW) for n in DETERMINISTIC])
def test_deterministic_solvers_have_the_law_and_twice_the_prior_scale_has_not(name):
    sampler = solved(*DETERMINISTIC[name])
    assert_passes(run(sampler, 1000)[0], TARGET)
    assert_fails(run(dataclasses.replace(sampler, start=gs.bind(_doubled, sampler.start)), 1000)[0], TARGET)


@pytest.mark.parametrize("name", [n if n == "dpm_solver_pp" else pytest.param(n, marks=SLOW) for n in STOCHASTIC])
def test_stochastic_solvers_have_the_law_and_the_wrong_noise_variance_has_not(name, monkeypatch):
    sampler = solved(*STOCHASTIC[name])
    assert_passes(run(sampler, 1000)[0], TARGET)
    # The broken line: the variance where its root belongs.
    monkeypatch.setattr(import_module(f"gensamp.pushforward.diffusion.{name}"), "root", lambda variance: variance)
    assert_fails(run(sampler, 1000)[0], TARGET)


def _doubled(start, key):
    return 2 * start(key)
