"""The law of one site given those before it: a mixture whose numbers a network gives.

    p(x) = sum_k pi_k prod_c f((x_c - m_kc(x_<c)) / s_kc) / s_kc,        m_kc(x_<c) = m_kc + sum_{c' < c} a_kcc' x_c'

with f the normal or the logistic density; the channels c of a site (a pixel) hang together through the linear terms a (Salimans
et al. 2017, "PixelCNN++", equation 3). With `levels`, values lie on a lattice of cells of width D = 2 / (levels - 1) from -1 to
1, and a component's mass is what the logistic distribution gives the cell, the first and last reaching to infinity (their
equation 2). The difference of two sigmoids is taken without cancellation, as

    log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)).

Where the raw numbers are zero the components are spread evenly: alike, they would have the same gradient and stay alike.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture:
    """A mixture over sites of `channels` numbers, centred and scaled to about [-1, 1].

    num_components: K. kernel: of the components. levels: values of a lattice from -1 to 1, or None for a density. smallest:
    lower bound of a component's scale; without one, a value that occurs twice drives a likelihood to infinity.

    Raises:
        ValueError: no component or channel, an unknown kernel, fewer than two levels, or levels with a normal kernel.
    """

    num_components: int
    channels: int = 1
    kernel: Literal["gaussian", "logistic"] = "gaussian"
    levels: int | None = None
    smallest: float | int = 1e-2

    def __post_init__(self) -> None:
        if self.num_components < 1 or self.channels < 1 or self.smallest <= 0:
            raise ValueError(
                f"Mixture got num_components={self.num_components}, channels={self.channels}, smallest={self.smallest}; "
                "expected all positive"
            )
        if self.kernel not in ("gaussian", "logistic"):
            raise ValueError(f"Mixture got kernel={self.kernel!r}; expected 'gaussian' or 'logistic'")
        if self.levels is not None and (self.levels < 2 or self.kernel != "logistic"):
            raise ValueError(f"Mixture got levels={self.levels}, kernel={self.kernel!r}; expected 2 or more, and 'logistic'")

    @property
    def num_raw(self) -> int:
        """Raw numbers per site: K logits, means, scales, and the linear terms between channels."""
        return self.num_components * (1 + 2 * self.channels + self.channels * (self.channels - 1) // 2)

    def log_density(self, raw: Float[Array, " raw"], x: Float[Array, " channels"]) -> Float[Array, ""]:
        """Log density of one site; with levels, the log mass of its cell."""
        logits, means, scales, slopes = self._parts(raw)
        centred = (x[None] - self._centres(means, slopes, x)) / scales
        if self.levels is not None:
            terms = self._log_mass(centred, scales, x)
        elif self.kernel == "logistic":
            terms = jax.nn.log_sigmoid(centred) + jax.nn.log_sigmoid(-centred) - jnp.log(scales)
        else:
            terms = -0.5 * jnp.square(centred) - jnp.log(scales) - 0.5 * math.log(2 * math.pi)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + terms.sum(-1))

    def draw(self, key: jax.Array, raw: Float[Array, " raw"]) -> Float[Array, " channels"]:
        """One site from its law; consumes `key`."""
        logits, means, scales, slopes = self._parts(raw)
        key_component, key_noise = jax.random.split(key)
        chosen = jax.random.categorical(key_component, logits)
        sample = jax.random.logistic if self.kernel == "logistic" else jax.random.normal
        noise = sample(key_noise, (self.channels,), raw.dtype)
        x = jnp.zeros(self.channels, raw.dtype)
        for channel in range(self.channels):
            centre = self._centres(means, slopes, x)[chosen, channel]
            x = x.at[channel].set(self._on_lattice(centre + scales[chosen, channel] * noise[channel]))
        return x

    def _parts(self, raw):
        """Logits [K], means [K, C], scales [K, C] and slopes [K, C, C], strictly lower triangular."""
        number, channels = self.num_components, self.channels
        logits, means, scales, slopes = jnp.split(raw, np.cumsum([number, number * channels, number * channels]))
        first, span = (0.6, 1.5) if self.levels is None else (0.3, 0.8)
        spread = jnp.linspace(-span, span, number) if number > 1 else jnp.zeros(1)
        means = means.reshape(number, channels) + spread.astype(raw.dtype)[:, None]
        # softplus(offset) = first, and linear beyond: an exponential overflows in the first steps of a fit.
        scales = self._smallest() + jax.nn.softplus(scales + math.log(math.expm1(first))).reshape(number, channels)
        below = np.tril_indices(channels, -1)
        square = jnp.zeros((number, channels, channels), raw.dtype).at[:, *below].set(jnp.tanh(slopes).reshape(number, -1))
        return logits, means, scales, square

    def _centres(self, means, slopes, x):
        return means + jnp.einsum("kcd,d->kc", slopes, x)

    def _smallest(self):
        return self.smallest if self.levels is None else 0.2 / (self.levels - 1)

    def _log_mass(self, centred, scales, x):
        assert self.levels is not None
        half = 1 / (self.levels - 1)
        above, under = centred + half / scales, centred - half / scales
        low, high = (x < -1 + half)[None], (x > 1 - half)[None]
        log_above = jnp.where(high, 0, jax.nn.log_sigmoid(above))
        log_under = jnp.where(low, 0, jax.nn.log_sigmoid(-under))
        # At either end one of the sigmoids is 0 or 1 and nothing is subtracted.
        gap = jnp.where(low | high, 0, jnp.log(-jnp.expm1(-2 * half / scales)))
        return log_above + log_under + gap

    def _on_lattice(self, value):
        if self.levels is None:
            return value
        step = 2 / (self.levels - 1)
        return jnp.round((jnp.clip(value, -1, 1) + 1) / step) * step - 1
