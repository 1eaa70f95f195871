"""A 3 x 3 convolution in two forms, and the halving and doubling of an image: what the image networks are built from.

    xla        the compiler's own convolution, with gradients that it can compute quickly on a CPU
    patches    nine shifted copies side by side and one matrix product; holds nine copies of the activations

Why the gradients are written down. On a CPU, XLA hands a convolution to a fast library only where its axes stand in one order,
and turns others into that order only outside of loops. JAX's gradients of a convolution, towards the image and towards the
kernel, stand in another order, so in a training loop they ran as naive loops, 60 times slower than the same program outside.
`convolve` gives those two gradients as convolutions in the one order, equal to JAX's to the bit. Measured on one core, jax
0.10.1, float32, gradient step inside a loop, milliseconds:

    two layers, 64 events of 8 x 8 x 32        convolve 5.2      patches 11.2     JAX's gradients 314 (5.2 outside)
    U-Net of .13 M at 8 x 8, batch 128         convolve 50       patches 147      JAX's gradients 1009    torch 53 to 65
    U-Net of .23 M at 28 x 28, batch 64        convolve 557                                               torch 414 to 483
    U-Net of .44 M at 28 x 28, batch 128       convolve 1357                                              torch 962 to 1139

and of one layer's value and both gradients, 64 events: at 28 x 28 x 32 convolve 23, patches 116; at 14 x 14 x 64, 23 and 65;
at 7 x 7 x 64, 6 and 9. Single layers are as fast as torch's (forward 9.7 against 9.6 at 28 x 28 x 32, 28 against 27 from 96
channels to 32): what a large image leaves to torch lies between the convolutions.

The gradient of a gradient (the slope penalty of a critic) is again JAX's: there "patches", all matrix products, is ten times
faster, and for anything else "xla". Images are [height, width, channels], without a batch axis.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Convolution", "check_form", "convolve", "double", "group_norm", "halve"]

_ORDER = ("NHWC", "HWIO", "NHWC")


class Convolution(nn.Module):
    """A 3 x 3 convolution with zero padding of one image [height, width, channels].

    zero: whether the kernel starts at zero. param_dtype: of the parameters; the arithmetic has the dtype of the input.
    """

    features: int
    form: Literal["patches", "xla"] = "patches"
    zero: bool = False
    param_dtype: Any = None

    @nn.compact
    def __call__(self, x):
        initial = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        options = {"dtype": x.dtype, "param_dtype": self.param_dtype or x.dtype, "kernel_init": initial}
        if self.form == "xla":
            return nn.Conv(self.features, (3, 3), conv_general_dilated=_as_flax_asks, **options)(x)
        height, width, _ = x.shape
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        patches = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return nn.Dense(self.features, **options)(jnp.concatenate(patches, axis=-1))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int] = (1, 1), padding: Any = "SAME") -> jax.Array:
    """A convolution whose gradients are quick on a CPU, inside of loops too.

    Args:
        x: [events, height, width, channels]. kernel: [height, width, channels, features].
        strides, padding: as `jax.lax.conv_general_dilated` takes them.

    Returns:
        [events, height, width, features].
    """
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_ORDER)


@convolve.defjvp
def _convolve_jvp(strides, padding, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents

    def tangent(x, kernel, order):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=order)

    # Each is linear in one tangent, with the axes so arranged that its transpose is a convolution in _ORDER.
    along_x = tangent(dx, kernel.transpose(0, 1, 3, 2), ("NHWC", "HWOI", "NHWC"))
    along_kernel = tangent(x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3), ("CHWN", "IHWO", "HWNC"))
    return convolve(x, kernel, strides, padding), along_x + along_kernel.transpose(2, 0, 1, 3)


def check_form(form: str, by: str) -> None:
    """Raises ValueError unless `form` is one of the two."""
    if form not in ("patches", "xla"):
        raise ValueError(f"{by} got convolution={form!r}; expected 'patches' or 'xla'")


def group_norm(x, param_dtype, most: int = 8):
    """Group normalisation over at most `most` groups of channels (Wu and He 2018); call it inside a compact module."""
    groups = next(g for g in (8, 4, 2, 1) if x.shape[-1] % g == 0 and g <= most)
    # A leading axis of one event, because the layer takes its first axis for the batch.
    return nn.GroupNorm(num_groups=groups, dtype=x.dtype, param_dtype=param_dtype)(x[None])[0]


def halve(x):
    """Averages of 2 x 2 pixels."""
    height, width, channels = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def double(x):
    """Each pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)


def _as_flax_asks(x, kernel, strides, padding, **others):
    del others
    return convolve(x, kernel, tuple(strides), padding if isinstance(padding, str) else tuple(map(tuple, padding)))
