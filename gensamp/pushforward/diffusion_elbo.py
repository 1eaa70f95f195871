"""The discrete-time ELBO of a diffusion, by signal-to-noise ratios (Kingma, Salimans, Poole and Ho 2021, equations 11-14).

For times t_1 > ... > t_L and SNR = alpha^2 / sigma^2, with x_t = alpha_t x + sigma_t eps drawn afresh at every time,

    -ELBO = KL(q(x_1 | x) || p(x_1)) + 1/2 sum over l > 1 of (SNR(t_l) - SNR(t_{l-1})) E |x - x_hat(x_{l-1})|^2
            - E log p(x | x_L)

The KLs of neighbouring Gaussians have collapsed into differences of the ratio, which makes it a check on the same bound as
`hierarchical_vae` computes it over `diffusion_hierarchy`, group by group along a path. The first and the last term are in
closed form. The frame's volume belongs to the last, so that the bound is on the density in the data's own units.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gensamp.core import Network
from gensamp.nets.event import Event
from gensamp.noise import Noise
from gensamp.pushforward.diffusion_hierarchy import check_grid, guess_clean
from gensamp.pushforward.frame import enter, log_volume

__all__ = ["diffusion_elbo"]


def diffusion_elbo(
    network: Network, noise: Noise, grid: Any, params: Any, key: jax.Array, x: Any, *, prediction: Any = "v"
) -> dict[str, jax.Array]:
    """One estimate of the bound for one event.

    Args:
        network, noise, grid, prediction: as for `diffusion_hierarchy`. params: of a fitted `ddpm`. key: consumed.
        x: one event in the data's units.

    Returns:
        dict of scalars in nats: "prior", "diffusion", "reconstruction" (log p(x | x_L)) and "elbo" = reconstruction - prior -
        diffusion. One forward per time but the last.

    Raises:
        ValueError: as for `diffusion_hierarchy`.
    """
    event = Event.of(x)
    times = check_grid(noise, grid, event)
    frame = {"shift": params["shift"], "scale": params["scale"]}
    clean = event.flatten(enter(frame, x))
    alpha, sigma = jax.vmap(noise.alpha)(times), jax.vmap(noise.sigma)(times)

    def error(given):
        t, alpha, sigma, key = given
        noisy = alpha * clean + sigma * jax.random.normal(key, clean.shape, clean.dtype)
        return jnp.square(clean - guess_clean(network, noise, event, prediction, params, t, noisy)).sum()

    keys = jax.random.split(key, times.size - 1)
    errors = jax.lax.map(error, (times[:-1], alpha[:-1], sigma[:-1], keys))
    ratio = (alpha / sigma) ** 2
    diffusion = (0.5 * _gain(ratio) * errors).sum()

    top = alpha[0] ** 2 + sigma[0] ** 2
    spread = event.size * (sigma[0] ** 2 / top - 1 - jnp.log(sigma[0] ** 2 / top))
    prior = 0.5 * (spread + jnp.square(alpha[0] * clean).sum() / top)
    entropy = 0.5 * event.size * (1 + jnp.log(2 * jnp.pi).astype(event.dtype) - jnp.log(ratio[-1]))
    reconstruction = -entropy - log_volume(frame, event.template)
    elbo = reconstruction - prior - diffusion
    return {"prior": prior, "diffusion": diffusion, "reconstruction": reconstruction, "elbo": elbo}


def _gain(ratio):
    """What each step adds to the signal-to-noise ratio: the weight of its error."""
    return ratio[1:] - ratio[:-1]
