"""Diffusion samplers on a Gaussian mixture under noise, whose score is known at every level: orders of convergence.

The reference is Heun's method on the probability-flow ODE in log-SNR time, in float64 and at steps so small that its own error
is nothing. DDIM is a first-order method: its error should halve with the step.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs
from gensamp import noise, paths
from gensamp.pushforward import ddim_sampler, uniform_log_snr
from gensamp.targets.mixture import mixture

WEIGHTS = [0.5, 0.3, 0.2]
MEANS = [[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]]
VARIANCES = [[0.1, 0.2], [0.3, 0.05], [0.1, 0.1]]


def predicted_noise(score, process, t, x):
    return -process.sigma(t) * score(1 - t, x)


def heun(denoise, process, grid, x):
    """x' = alpha x0 + sigma eps along the flow: in y = x / alpha and r = sigma / alpha the ODE is dy/dr = eps."""
    ratio = jax.vmap(process.sigma)(grid) / jax.vmap(process.alpha)(grid)

    def step(y, at):
        t, s, r, q = at
        first = denoise(t, process.alpha(t) * y)
        second = denoise(s, process.alpha(s) * (y + (q - r) * first))
        return y + (q - r) * (first + second) / 2, None

    y, _ = jax.lax.scan(step, x / process.alpha(grid[0]), (grid[:-1], grid[1:], ratio[:-1], ratio[1:]))
    return y * process.alpha(grid[-1])


@pytest.mark.parametrize("name", ["vp_linear", "ve"])
def test_ddim_converges_at_first_order(name):
    with jax.enable_x64(True):
        process = {"vp_linear": noise.vp_linear(), "ve": noise.ve()}[name]
        target = mixture(WEIGHTS, MEANS, VARIANCES, dtype=jnp.float64)
        denoise = gs.bind(predicted_noise, paths.noised(target, process).score, process)

        def ends(sampler):
            return lambda key: gs.draw(key, sampler).position

        keys = jax.random.split(jax.random.key(0), 64)
        fine = uniform_log_snr(process, 4000)
        errors = {}
        for num_steps in (24, 48, 96, 192):
            sampler = ddim_sampler(denoise, process, uniform_log_snr(process, num_steps), target.template)
            start = jax.vmap(lambda key, s=sampler: gs.core.begin(key, s))(keys)
            if not errors:
                want = jax.jit(jax.vmap(lambda x: heun(denoise, process, fine, x)))(start)
            got = jax.jit(jax.vmap(ends(sampler)))(keys)
            # The few trajectories that start on a watershed between modes amplify any error; the median does not see them.
            errors[num_steps] = float(jnp.median(jnp.linalg.norm(got - want, axis=-1)))
        order = np.log2(errors[24] / errors[192]) / 3
        assert 0.9 < order < 1.15, errors
        assert errors[96] < 0.05, errors
