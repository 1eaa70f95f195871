"""A 3 x 3 convolution in two forms, and the halving and doubling of an image: what the image networks are built from.

Written as nine shifted copies side by side and one matrix product ("patches"), it trains faster on a CPU, where XLA computes
the gradient of a convolution's kernel slowly and a matrix product's fast; the price is nine copies of the activations.
"xla" is the compiler's own convolution. Images are [height, width, channels], without a batch axis.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

__all__ = ["Convolution", "check_form", "double", "group_norm", "halve"]


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
            return nn.Conv(self.features, (3, 3), **options)(x)
        height, width, _ = x.shape
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        patches = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return nn.Dense(self.features, **options)(jnp.concatenate(patches, axis=-1))


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
