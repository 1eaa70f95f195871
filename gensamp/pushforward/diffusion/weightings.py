"""Which noise levels a denoising loss cares about: one name for the density of times and the weight of the error there.

Every weighting is stated on the guess of the clean event, |x0_hat - x_0|^2, whatever the network predicts: the errors of eps,
v, x_0 and the velocity at one noise level are multiples of each other, and `Weighting.factor` knows them. With SNR =
alpha^2 / sigma^2 and lambda = log SNR,

    uniform       1 on what is predicted, not on x_0        Ho, Jain and Abbeel 2020 (with eps), Lipman et al. 2023 (velocity)
    elbo          -SNR'(t) / 2                              Kingma, Salimans, Poole and Ho 2021, equation 17
    sigmoid       -SNR'(t) / 2 sigmoid(bias - lambda)       Kingma and Gao 2023; Hoogeboom et al. 2024
    min_snr       min(SNR, gamma)                           Hang et al. 2023: min(SNR, gamma) / (SNR + 1) on v
    edm           SNR + 1, log(sigma / alpha) normal        Karras et al. 2022, table 1 with its last two columns
    levels        1 on what is predicted, at L levels only  Song and Ermon 2019, with their sigma^2

and but for the last two the times are uniform. With "elbo" the loss is the diffusion's part of the negative ELBO between
t_min and 1, in nats per coordinate of the frame; for a weight that falls with lambda, as the sigmoid does, it is a mixture of
such bounds on noised data (Kingma and Gao, theorem 1). The data have unit variance in the frame of a fitted model: that is
sigma_data = 1 where Karras et al. have 0.5, and their noise levels are twice as high here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gensamp.noise import FLOOR, Noise
from gensamp.predictions import rates
from gensamp.pushforward.diffusion.grids import times_of_log_snr

__all__ = ["Weighting", "edm", "elbo", "levels", "log_normal_levels", "min_snr", "sigmoid", "uniform", "weighting_of"]


@dataclass(frozen=True)
class Weighting:
    """A density of times and a weight; hashable, so it is static wherever it goes.

    weight: (noise, t, *parameters) -> weight of |x0_hat - x_0|^2, or None for weight 1 of the prediction's own error.
    times: (noise, u, *parameters) -> times [n], from numbers u [n] spread over [0, 1). Both are functions at the top level of a
    module; parameters are Python numbers.
    """

    weight: Callable[..., Any] | None
    times: Callable[..., Any]
    parameters: tuple[float | int, ...] = ()

    def factor(self, noise: Noise, t: Float[Array, ""], prediction: str) -> Float[Array, ""]:
        """The weight of the squared error of what is predicted at time t.

        Args:
            prediction: "eps", "x0", "velocity", or "v", which networks predict divided by sqrt(alpha^2 + sigma^2).
        """
        if self.weight is None:
            return jnp.ones_like(t)
        alpha, sigma = noise.alpha(t), noise.sigma(t)
        # |x0_hat - x_0| for an error of one in what is predicted.
        share = {
            "x0": lambda: jnp.ones_like(t),
            "eps": lambda: sigma / jnp.maximum(alpha, FLOOR),
            "v": lambda: sigma * jax.lax.rsqrt(alpha**2 + sigma**2),
            "velocity": lambda: sigma / _determinant(noise, t),
        }[prediction]()
        return self.weight(noise, t, *self.parameters) * share**2


def uniform() -> Weighting:
    """Equal weight of the prediction's own error at every time."""
    return Weighting(None, _uniform_times)


def elbo() -> Weighting:
    """The weight that makes the loss a bound on the likelihood (Kingma et al. 2021, equation 17)."""
    return Weighting(_elbo_weight, _uniform_times)


def sigmoid(bias: float | int = 2.0) -> Weighting:
    """The ELBO's weight times sigmoid(bias - log SNR): noise levels below the eye's threshold count less.

    Args:
        bias: the log-SNR at which half the weight is left. Larger images, whose neighbouring pixels say the same, want less.

    Source: Kingma and Gao 2023, "Understanding diffusion objectives as the ELBO with simple data augmentation".
    """
    return Weighting(_sigmoid_weight, _uniform_times, (float(bias),))


def min_snr(gamma: float | int = 5.0) -> Weighting:
    """min(SNR, gamma): no noise level outweighs the others by its signal alone.

    Raises:
        ValueError: gamma is not positive.

    Source: Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy", equation 5.
    """
    if not gamma > 0:
        raise ValueError(f"min_snr got gamma={gamma}; expected a positive signal-to-noise ratio, such as 5")
    return Weighting(_min_snr_weight, _uniform_times, (float(gamma),))


def edm(mean: float | int = -1.2 + math.log(2.0), scale: float | int = 1.2) -> Weighting:
    """Log-normal noise levels, and there equal weight of the error of v: what Karras et al. train with.

    Args:
        mean, scale: of log(sigma / alpha), which is cut off at the process's ends. The paper's mean of -1.2 is meant for data
            of standard deviation 0.5, and log 2 more for the frame's 1.

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"edm got scale={scale}; expected a positive standard deviation of log(sigma / alpha), such as 1.2")
    return Weighting(_edm_weight, _log_normal_times, (float(mean), float(scale)))


def levels(num_levels: int) -> Weighting:
    """Equal weight of the prediction's own error at `num_levels` times, equally spaced from t_min to 1.

    For `noise.ve` and a network that predicts eps these are the geometric noise levels and the weight sigma^2 of the score that
    Song and Ermon (2019, section 4.2) train with.

    Raises:
        ValueError: there are fewer than two levels.
    """
    if num_levels < 2:
        raise ValueError(f"levels got num_levels={num_levels}; expected at least 2")
    return Weighting(None, _level_times, (int(num_levels),))


def log_normal_levels(noise: Noise, u: Float[Array, " n"], mean: float, scale: float) -> Float[Array, " n"]:
    """log(sigma / alpha) with a normal law, cut off at the process's ends, from numbers u spread over [0, 1)."""
    low, high = (-noise.log_snr(jnp.asarray(t, u.dtype)) / 2 for t in (noise.t_min, 1.0))
    below, above = (jax.scipy.special.ndtr((end - mean) / scale) for end in (low, high))
    tiny = jnp.finfo(u.dtype).eps
    normal = jax.scipy.special.ndtri(jnp.clip(below + (above - below) * u, tiny, 1 - tiny))
    return jnp.clip(mean + scale * normal, low, high)


def weighting_of(value: Weighting | str) -> Weighting:
    """A weighting, or the one of that name with its usual parameters.

    Raises:
        ValueError: nothing has that name.
    """
    if isinstance(value, Weighting):
        return value
    if value not in _NAMED:
        raise ValueError(
            f"weighting is {value!r}; expected one of {', '.join(_NAMED)}, or a Weighting such as min_snr(gamma=5)"
        )
    return _NAMED[value]()


_NAMED = {"uniform": uniform, "elbo": elbo, "sigmoid": sigmoid, "min_snr": min_snr, "edm": edm}


def _elbo_weight(noise, t, *parameters):
    del parameters
    return (1 - noise.t_min) * noise.alpha(t) * _determinant(noise, t) / noise.sigma(t) ** 3


def _sigmoid_weight(noise, t, bias):
    return _elbo_weight(noise, t) * jax.nn.sigmoid(bias - noise.log_snr(t))


def _min_snr_weight(noise, t, gamma):
    return jnp.minimum(jnp.exp(noise.log_snr(t)), gamma)


def _edm_weight(noise, t, *parameters):
    del parameters
    return jnp.exp(noise.log_snr(t)) + 1


def _uniform_times(noise, u, *parameters):
    del parameters
    return noise.t_min + (1 - noise.t_min) * u


def _level_times(noise, u, num_levels):
    return noise.t_min + (1 - noise.t_min) * jnp.floor(num_levels * u) / (num_levels - 1)


def _log_normal_times(noise, u, mean, scale):
    return times_of_log_snr(noise, -2 * log_normal_levels(noise, u, mean, scale), 1.0, noise.t_min)


def _determinant(noise, t):
    """alpha sigma' - alpha' sigma, positive since the log-SNR falls."""
    alpha_rate, sigma_rate = rates(noise, t)
    return jnp.maximum(noise.alpha(t) * sigma_rate - alpha_rate * noise.sigma(t), FLOOR)
