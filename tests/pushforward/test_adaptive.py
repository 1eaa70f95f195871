"""The adaptive solver: its end against a fine grid, its forwards against an instrumented denoiser, what it refuses."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise
from gensamp.pushforward.diffusion import adaptive, uniform_log_snr, uniform_time, unipc
from gensamp.testing import check_sampler

PROCESS = noise.vp_linear()


def gaussian(process, t, x):
    """The exact eps of data from N(0, 1/4)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (0.25 * alpha**2 + sigma**2) * x


DENOISE = gs.bind(gaussian, PROCESS)


def test_it_reaches_the_tolerance_and_spends_more_for_less():
    with jax.enable_x64(True):
        process = noise.vp_linear()
        denoise, template = gs.bind(gaussian, process), jax.ShapeDtypeStruct((3,), jnp.float64)
        draws = jax.jit(lambda sampler: jax.vmap(lambda key: gs.draw(key, sampler))(jax.random.split(jax.random.key(0), 8)))
        want = draws(unipc(denoise, process, uniform_log_snr(process, 400), template)).position
        errors, spent = [], []
        for tolerance in (1e-3, 1e-5, 1e-7):
            sampler = adaptive(denoise, process, jnp.array([1.0, 1e-3]), template, rtol=tolerance, atol=tolerance)
            out = draws(sampler)
            assert not out.info.diverged.any()
            errors.append(np.abs(out.position - want).max())
            spent.append(out.info.forwards.mean())
        assert errors[0] < 0.1 and errors[2] < 1e-6 and errors[0] > errors[1] > errors[2]
        assert spent[0] < spent[1] < spent[2]
        # Tolerances are leaves: one program for all of them, and one for UniPC.
        assert draws._cache_size() == 2


@pytest.mark.parametrize("last", [pytest.param(1e-3, marks=pytest.mark.slow), 0.0])
def test_it_keeps_the_contracts_and_counts_every_forward(last):
    sampler = adaptive(DENOISE, PROCESS, jnp.array([1.0, last]), jnp.zeros(3))
    held = check_sampler(sampler, template=jnp.zeros(3), networks=(gaussian,), skip=("shard_map", "x64"))
    assert held["counts"] == "held"


def test_it_returns_the_guess_where_no_noise_is_left_and_reports_a_draw_that_is_given_up():
    draw = jax.jit(lambda sampler: gs.draw(jax.random.key(0), sampler))
    short = draw(adaptive(DENOISE, PROCESS, uniform_time(4), jnp.zeros(3), max_steps=3))
    assert short.info.diverged and short.info.forwards == 3 * 6 + 1
    ends = [draw(adaptive(DENOISE, PROCESS, jnp.array([1.0, last]), jnp.zeros(3))).position for last in (0.0, PROCESS.t_min)]
    guess = noise.eps_to_x0(PROCESS, PROCESS.t_min, ends[1], gaussian(PROCESS, jnp.float32(PROCESS.t_min), ends[1]))
    np.testing.assert_allclose(ends[0], guess, rtol=1e-4)


def test_bad_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="adaptive got rtol=0"):
        adaptive(DENOISE, PROCESS, uniform_time(4), jnp.zeros(3), rtol=0)
    with pytest.raises(ValueError, match=r"adaptive got the grid .*; expected times that fall"):
        adaptive(DENOISE, PROCESS, jnp.zeros(2), jnp.zeros(3))
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"adaptive needs diffrax, which is not installed; pip install 'gensamp\[ode\]'"):
        adaptive(DENOISE, PROCESS, uniform_time(4), jnp.zeros(3))
