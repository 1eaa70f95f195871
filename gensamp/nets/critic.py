"""Critics and generators: the two networks of a GAN, over vectors, trees or images.

A critic maps an event to one number, a generator maps a latent vector to an event. Without `multipliers` both are perceptrons
with leaky rectifiers over the flattened event. With them both are convolutional (Radford, Metz and Chintala 2016, without batch
normalisation, which would make an event's value depend on the others): the critic halves the image once per multiplier, the
generator starts from the coarsest level and doubles it, normalised over all of an event's channels and pixels. Spectral
normalisation is left out: the penalties of `pushforward.gan` bound the critic's slope instead.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from gensamp.core import Network, Static, as_template, bind
from gensamp.nets.convolution import Convolution, check_form, double, group_norm, halve
from gensamp.nets.event import Event
from gensamp.nets.sizes import check_sizes

__all__ = ["critic", "generator"]

_LEAK = 0.2


def critic(
    template: Any,
    *,
    width: int = 128,
    depth: int = 3,
    multipliers: tuple[int, ...] = (),
    convolution: Literal["patches", "xla"] = "patches",
    compute: Any = None,
) -> Network:
    """A critic: apply(params, x) -> scalar, unbounded.

    Args:
        template: one event; with multipliers, one image whose sides are divisible by 2 ** len(multipliers).
        width: hidden units, or channels of the finest level. depth: hidden layers of the perceptron.
        multipliers: channels of each level, in units of `width`; the image is halved after each. Empty: a perceptron.
        convolution: see `nets.unet`. compute: dtype of the arithmetic, such as jnp.bfloat16; None: the event's.

    Raises:
        ValueError: a size is no positive integer, or the template is no such image.
    """
    event = _checked("critic", template, width, depth, multipliers, convolution, least=1)
    module = _Critic(width, depth, tuple(multipliers), convolution, event.dtype, compute or event.dtype)
    return Network(bind(_critic_init, Static(module), event), bind(_critic_apply, Static(module), event))


def generator(
    template: Any,
    latent_dim: int,
    *,
    width: int = 128,
    depth: int = 3,
    multipliers: tuple[int, ...] = (),
    convolution: Literal["patches", "xla"] = "patches",
    compute: Any = None,
) -> Network:
    """A generator: apply(params, z [latent_dim]) -> like the template, unbounded.

    Args and errors: as for `critic`; with depth 0 and no multipliers it is one linear map.
    """
    check_sizes("generator", latent_dim=(latent_dim, 1))
    event = _checked("generator", template, width, depth, multipliers, convolution, least=0)
    shape = event.shapes[0] if multipliers else (event.size,)
    module = _Generator(shape, width, depth, tuple(multipliers), convolution, event.dtype, compute or event.dtype)
    return Network(bind(_generator_init, Static(module), Static(latent_dim)), bind(_generator_apply, Static(module), event))


def _checked(name, template, width, depth, multipliers, convolution, *, least) -> Event:
    check_form(convolution, name)
    check_sizes(name, width=(width, 1), depth=(depth, least), multipliers=(multipliers, 1))
    shape, factor = getattr(as_template(template), "shape", None), 2 ** len(multipliers)
    if multipliers and (shape is None or len(shape) != 3 or shape[0] % factor or shape[1] % factor):
        raise ValueError(
            f"{name} got a template of shape {shape}; expected one image [height, width, channels] with sides divisible by "
            f"{factor} (pass fewer multipliers, or none for a perceptron)"
        )
    return Event.of(template)


class _Critic(nn.Module):
    width: int
    depth: int
    multipliers: tuple[int, ...]
    form: str
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, h):
        precision = {"dtype": self.compute, "param_dtype": self.dtype}
        h = h.astype(self.compute)
        if self.multipliers:
            h = Convolution(self.width, self.form, param_dtype=self.dtype)(h)
            for multiplier in self.multipliers:
                h = Convolution(self.width * multiplier, self.form, param_dtype=self.dtype)(nn.leaky_relu(h, _LEAK))
                h = halve(h)
            h = nn.leaky_relu(h, _LEAK).reshape(-1)
        else:
            for _ in range(self.depth):
                h = nn.leaky_relu(nn.Dense(self.width, **precision)(h), _LEAK)
        return nn.Dense(1, **precision)(h)[0].astype(self.dtype)


class _Generator(nn.Module):
    shape: tuple[int, ...]
    width: int
    depth: int
    multipliers: tuple[int, ...]
    form: str
    dtype: Any
    compute: Any

    @nn.compact
    def __call__(self, h):
        precision = {"dtype": self.compute, "param_dtype": self.dtype}
        h = h.astype(self.compute)
        if not self.multipliers:
            for _ in range(self.depth):
                h = nn.leaky_relu(nn.Dense(self.width, **precision)(h), _LEAK)
            return nn.Dense(self.shape[0], **precision)(h).astype(self.dtype)
        height, width, channels = self.shape
        factor, top = 2 ** len(self.multipliers), self.width * self.multipliers[-1]
        h = nn.Dense(height // factor * (width // factor) * top, **precision)(h)
        h = h.reshape(height // factor, width // factor, top)
        for multiplier in reversed(self.multipliers):
            h = nn.leaky_relu(_normalised(double(h), self.dtype), _LEAK)
            h = Convolution(self.width * multiplier, self.form, param_dtype=self.dtype)(h)
        h = nn.leaky_relu(_normalised(h, self.dtype), _LEAK)
        return Convolution(channels, self.form, param_dtype=self.dtype)(h).astype(self.dtype).reshape(-1)


def _normalised(h, dtype):
    # One group: with several, a coarsest level of one pixel would leave nothing of the latents but their signs, or nothing.
    return group_norm(h, dtype, most=1)


def _critic_init(module, event, key):
    return module.value.init(key, _seen(module, event, event.zeros()))["params"]


def _critic_apply(module, event, params, x):
    return module.value.apply({"params": params}, _seen(module, event, x))


def _seen(module, event, x):
    """What the module takes: an image as it is, anything else flat."""
    return x if module.value.multipliers else event.flatten(x)


def _generator_init(module, latent_dim, key):
    return module.value.init(key, jnp.zeros(latent_dim.value, module.value.dtype))["params"]


def _generator_apply(module, event, params, z):
    return event.unflatten(module.value.apply({"params": params}, z))
