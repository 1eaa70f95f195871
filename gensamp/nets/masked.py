"""Networks whose output t sees only the inputs before t: masked linear layers and masked convolutions.

`masked_mlp` is the masked autoencoder (Germain et al. 2015, "MADE", equations 8-9 and 12-13). Inputs have degrees 1..d, hidden
units degrees m in 1..d-1, and a weight survives where it can do no harm,

    hidden k sees i:  m(k) >= m(i),        output t sees k:  t > m(k),

so one pass gives all d conditionals. `masked_layers` stacks such networks into an invertible map (Papamakarios et al. 2017;
Kingma et al. 2016): each layer moves coordinate t by an increasing map whose parameters see u_1..u_{t-1}, then turns the order
round. `masked_convolution` does the same for images read row by row, in two stacks - one sees the rows above, one the rest of
the row - so that no pixel before t is missed (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders",
figure 2; the shifts of Salimans et al. 2017, "PixelCNN++", section 2.5). No layer reaches further up than one row, so a row can
be computed from what the layers held of the row over it, at the price of a row (cf. Ramachandran et al. 2017, "Fast generation
for convolutional autoregressive models").
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Network, Static, bind
from gensamp.nets.monotone import Monotone
from gensamp.nets.sizes import check_sizes

__all__ = [
    "MaskedConvolution", "MaskedDense", "MaskedLayers", "ShiftedConvolution", "begin", "end", "masked_convolution",
    "masked_layers", "masked_mlp",
]  # fmt: skip


class MaskedLayers(NamedTuple):
    """A stack of autoregressive layers u -> v, whose one direction is a pass and whose other is d passes.

    init: (key) -> params. through: (params, u [d]) -> (v [d], log |dv/du|), one pass through all layers. sweep: (params, carry,
    index) -> carry, one of the d passes of the inverse; `begin` makes its first carry from v, `end` reads (u, log |du/dv|).
    """

    init: Any
    through: Any
    sweep: Any


class MaskedConvolution(NamedTuple):
    """A masked convolution of an image x [h, w, c], whole or row by row.

    init: (key) -> params. apply: (params, x) -> [h, w, outputs]. empty: () -> memory, over the first row. row: (params,
    memory, x, r) -> (row r of what `apply` gives [w, outputs], the memory for row r + 1). The last pixel of a row has no part
    in what is remembered of it.
    """

    init: Any
    apply: Any
    empty: Any
    row: Any


def masked_mlp(size: int, num_outputs: int, *, width: int = 64, depth: int = 2, dtype: Any = None) -> Network:
    """All autoregressive conditionals of a vector in one pass: apply(params, x [size]) -> [num_outputs, size].

    Column t depends on x[:t] only. The last matrix starts at zero, and with it every output.

    Args:
        size: d. num_outputs: numbers per coordinate. width, depth: hidden units and hidden layers.
        dtype: of the parameters; JAX's default float if None.

    Raises:
        ValueError: a number is not positive.
    """
    module = Static(_masked_module("masked_mlp", size, num_outputs, width, depth))
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    return Network(bind(_init, module, Static((size,)), Static(dtype)), bind(_apply, module))


def masked_layers(
    size: int, monotone: Monotone, *, num_layers: int = 4, width: int = 64, depth: int = 2, dtype: Any = None
) -> MaskedLayers:
    """A stack of autoregressive layers over vectors [size], v_t = tau(u_t; net(u_1..u_{t-1})), each followed by a reversal.

    Args:
        size: d. monotone: tau. num_layers: layers. width, depth: of each masked network. dtype: of the parameters.

    Raises:
        ValueError: a number is not positive.
    """
    check_sizes("masked_layers", num_layers=(num_layers, 1))
    module = Static(_masked_module("masked_layers", size, monotone.num_raw, width, depth))
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    layers, monotone_, size_ = Static(num_layers), Static(monotone), Static((size,))
    return MaskedLayers(
        init=bind(_init_stack, module, layers, size_, Static(dtype)),
        through=bind(_through, module, monotone_),
        sweep=bind(_sweep, module, monotone_, layers),
    )


def masked_convolution(
    shape: tuple[int, int, int], num_outputs: int, *, width: int = 32, depth: int = 3, dtype: Any = None
) -> MaskedConvolution:
    """All conditionals of an image, pixel after pixel along the rows: apply(params, x [h, w, c]) -> [h, w, num_outputs].

    The output at a pixel depends on all channels of the pixels before it only. The last matrix starts at zero.

    Args:
        shape: (h, w, c). num_outputs: numbers per pixel. width: channels of either stack. depth: residual blocks.
        dtype: of the parameters; JAX's default float if None.

    Raises:
        ValueError: a number is not positive.
    """
    check_sizes("masked_convolution", shape=(shape, 1), num_outputs=(num_outputs, 1), width=(width, 1), depth=(depth, 1))
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    module, shape_, dtype_ = Static(_TwoStacks(num_outputs, width, depth)), Static(tuple(shape)), Static(dtype)
    return MaskedConvolution(
        init=bind(_init_rows, module, shape_, dtype_),
        apply=bind(_all_rows, module),
        empty=bind(_no_rows, module, shape_, dtype_),
        row=bind(_one_row, module),
    )


def begin(v: Float[Array, " d"]):
    """The carry before the first sweep of an inverse."""
    return v[::-1], jnp.zeros_like(v), jnp.zeros((), v.dtype)


def end(carry: Any):
    """(u [d], log |du/dv|) after the last sweep of an inverse."""
    given, _, total = carry
    return given[::-1], total


class MaskedDense(nn.Module):
    """A linear layer whose kernel [inputs, features] is multiplied by a fixed mask, given by the degrees of both sides.

    strict: whether a feature sees only inputs of smaller degree (an output layer) or also those of its own (a hidden one).
    """

    inputs: tuple[int, ...]
    features: tuple[int, ...]
    strict: bool = False
    zero: bool = False

    @nn.compact
    def __call__(self, x):
        mask = _mask(self.inputs, self.features, self.strict)
        initial = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", initial, mask.shape, x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (mask.shape[1],), x.dtype)
        return x @ (kernel * jnp.asarray(mask, x.dtype)) + bias


class ShiftedConvolution(nn.Module):
    """A convolution of rows x [h, w, c] that sees the pixels at these offsets only (rows down, -1 or 0; columns right).

    Written as shifted copies side by side and one matrix product. `over` [w, c] is the row over the first; beside the image
    there are zeros.
    """

    features: int
    offsets: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x, over):
        height, width, _ = x.shape
        reach = max(abs(j) for _, j in self.offsets)
        padded = jnp.pad(jnp.concatenate([over[None], x]), ((0, 0), (reach, reach), (0, 0)))
        copies = [padded[1 + i : 1 + i + height, reach + j : reach + j + width] for i, j in self.offsets]
        return nn.Dense(self.features, dtype=x.dtype, param_dtype=x.dtype)(jnp.concatenate(copies, axis=-1))


_ROWS_ABOVE = ((-1, -1), (-1, 0), (-1, 1))
_ROWS_SO_FAR = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1))
_LEFT = ((0, -2), (0, -1))
_LEFT_AND_ABOVE = ((-1, -1), (-1, 0), (0, -1), (0, 0))


class _MaskedMLP(nn.Module):
    size: int
    num_outputs: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, x):
        before, h = tuple(range(1, self.size + 1)), x
        for _ in range(self.depth):
            degrees = _degrees(self.size, self.width)
            h = nn.silu(MaskedDense(before, degrees)(h))
            before = degrees
        last = MaskedDense(before, self.num_outputs * tuple(range(1, self.size + 1)), strict=True, zero=True)
        return last(h).reshape(self.num_outputs, self.size)


class _TwoStacks(nn.Module):
    """Rows x [h, w, c + 1], of which the last channel is one within the image, under a row `over` [w, c + 1] and what the two
    stacks held there, `held` [depth, 2, w, width]; returned are the outputs [h, w, outputs] and what they hold in the last row.

    Without that channel the network could not tell the edge of the image from a zero.
    """

    num_outputs: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, x, over, held):
        above = ShiftedConvolution(self.width, _ROWS_ABOVE)(x, over)
        beside = ShiftedConvolution(self.width, _LEFT)(x, over) + ShiftedConvolution(self.width, _ROWS_ABOVE)(x, over)
        holding = []
        for i in range(self.depth):
            holding.append(jnp.stack([above[-1], beside[-1]]))
            above = above + _gated(ShiftedConvolution(2 * self.width, _ROWS_SO_FAR)(nn.silu(above), nn.silu(held[i, 0])))
            skip = nn.Dense(2 * self.width, dtype=x.dtype, param_dtype=x.dtype)(nn.silu(above))
            beyond = ShiftedConvolution(2 * self.width, _LEFT_AND_ABOVE)(nn.silu(beside), nn.silu(held[i, 1]))
            beside = beside + _gated(beyond + skip)
        last = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, dtype=x.dtype, param_dtype=x.dtype)
        return last(nn.silu(beside)), jnp.stack(holding)


def _mask(inputs, features, strict):
    """Which inputs [rows] each feature [columns] sees."""
    sees = np.greater if strict else np.greater_equal
    return sees(np.array(features)[None, :], np.array(inputs)[:, None])


def _degrees(size: int, width: int) -> tuple[int, ...]:
    """Degrees of hidden units, spread over 1..size - 1 with the last among them, so that no input goes unseen."""
    most = max(size - 1, 1)
    return tuple(1 + k % most if width >= most else -(-(k + 1) * most // width) for k in range(width))


def _gated(both):
    value, gate = jnp.split(both, 2, axis=-1)
    return value * jax.nn.sigmoid(gate)


def _masked_module(name, size, num_outputs, width, depth):
    check_sizes(name, size=(size, 1), num_outputs=(num_outputs, 1), width=(width, 1), depth=(depth, 1))
    return _MaskedMLP(size, num_outputs, width, depth)


def _init(module, shape, dtype, key):
    return module.value.init(key, jnp.zeros(shape.value, dtype.value))["params"]


def _apply(module, params, x):
    return module.value.apply({"params": params}, x)


def _init_rows(module, shape, dtype, key):
    x = _marked(jnp.zeros(shape.value, dtype.value))
    return module.value.init(key, x, x[0], _no_rows(module, shape, dtype))["params"]


def _no_rows(module, shape, dtype):
    return jnp.zeros((module.value.depth, 2, shape.value[1], module.value.width), dtype.value)


def _all_rows(module, params, x):
    x = _marked(x)
    held = _no_rows(module, Static(x.shape), Static(x.dtype))
    return module.value.apply({"params": params}, x, jnp.zeros_like(x[0]), held)[0]


def _one_row(module, params, held, x, r):
    x = _marked(x)
    over = jnp.where(r > 0, x[r - 1], 0)
    out, holding = module.value.apply({"params": params}, x[r][None], over, held)
    return out[0], holding


def _marked(x):
    return jnp.concatenate([x, jnp.ones((*x.shape[:2], 1), x.dtype)], axis=-1)


def _init_stack(module, layers, shape, dtype, key):
    return jax.vmap(lambda k: _init(module, shape, dtype, k))(jax.random.split(key, layers.value))


def _through(module, monotone, params, u: Float[Array, " d"]):
    def layer(carry, weights):
        u, total = carry
        v, log_derivative = monotone.value.forward(_apply(module, weights, u), u)
        return (v[::-1], total + log_derivative.sum()), None

    return jax.lax.scan(layer, (u, jnp.zeros((), u.dtype)), params)[0]


def _sweep(module, monotone, layers, params, carry, index):
    """As many evaluations of one layer as there are layers, which is what a pass costs; each finds one coordinate."""

    def write(carry, step):
        given, found, total = carry
        size, layer = given.shape[0], layers.value - 1 - step // given.shape[0]
        weights = jax.tree.map(lambda a: a[layer], params)
        at = step % size
        u, log_derivative = monotone.value.inverse(_apply(module, weights, found), given)
        # What stands in `found` beyond `at` is of the layer before, and no output up to `at` sees it.
        found = found.at[at].set(u[at])
        given = jnp.where(at == size - 1, found[::-1], given)
        return (given, found, total + log_derivative[at]), None

    steps = index * layers.value + jnp.arange(layers.value, dtype=jnp.int32)
    return jax.lax.scan(write, carry, steps)[0]
