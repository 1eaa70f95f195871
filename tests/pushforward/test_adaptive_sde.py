"""The adaptive SDE solver: no noise is its ODE, its forwards against an instrumented denoiser, what it refuses."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise
from gensamp.pushforward.diffusion import uniform_log_snr, uniform_time, unipc
from gensamp.pushforward.diffusion.adaptive_sde import adaptive_sde
from gensamp.testing import check_sampler

PROCESS = noise.vp_linear()


def gaussian(process, t, x):
    """The exact eps of data from N(0, 1/4)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (0.25 * alpha**2 + sigma**2) * x


DENOISE = gs.bind(gaussian, PROCESS)
TEMPLATE = jax.ShapeDtypeStruct((3,), jnp.float32)


@pytest.mark.slow
def test_without_noise_it_is_the_ode_and_with_it_the_law_costs_more_the_finer_the_tolerance():
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.jit(lambda sampler: jax.vmap(lambda key: gs.draw(key, sampler))(keys))

    def solved(**options):
        return adaptive_sde(DENOISE, PROCESS, jnp.array([1.0, 1e-3]), TEMPLATE, **options)

    want = draws(unipc(DENOISE, PROCESS, uniform_log_snr(PROCESS, 100), TEMPLATE)).position
    np.testing.assert_allclose(draws(solved(eta=0.0, rtol=1e-3, atol=1e-3)).position, want, atol=0.02)
    spent = []
    for tolerance in (0.1, 0.02):
        out = draws(solved(rtol=tolerance, atol=tolerance))
        assert not out.info.diverged.any()
        # Four standard errors.
        assert abs(out.position.var() / 0.25 - 1) < 4 * (2 / 6000) ** 0.5
        spent.append(out.info.forwards.mean())
    assert spent[0] < spent[1]
    # Tolerances and eta are leaves: one program for all of them, and one for UniPC.
    assert draws._cache_size() == 2
    assert draws(solved(max_steps=3)).info.diverged.all()


@pytest.mark.slow
def test_it_counts_every_forward_and_never_calls_the_host():
    sampler = adaptive_sde(DENOISE, PROCESS, jnp.array([1.0, 0.0]), TEMPLATE, rtol=0.5, atol=0.5)
    held = check_sampler(
        sampler, template=TEMPLATE, networks=(gaussian,), contracts=("type", "leaves", "state", "callbacks", "counts")
    )
    assert held["counts"] == "held"


def test_bad_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="adaptive_sde got rtol=0"):
        adaptive_sde(DENOISE, PROCESS, uniform_time(4), TEMPLATE, rtol=0)
    with pytest.raises(ValueError, match="adaptive_sde got eta=-1"):
        adaptive_sde(DENOISE, PROCESS, uniform_time(4), TEMPLATE, eta=-1)
    with pytest.raises(ValueError, match=r"adaptive_sde got the grid .*; expected times that fall"):
        adaptive_sde(DENOISE, PROCESS, jnp.zeros(2), TEMPLATE)
    with pytest.raises(ValueError, match="leaves no signal"):
        adaptive_sde(DENOISE, noise.rectified_flow(), uniform_time(4), TEMPLATE)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match="adaptive_sde needs diffrax"):
        adaptive_sde(DENOISE, PROCESS, uniform_time(4), TEMPLATE)
