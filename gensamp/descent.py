"""The compiled programs of training: begin, advance, validate, averaged.

Step i of a fit is

    batch_i = data[rows_i],    g_i = grad loss(theta_i, state_i, key_i, batch_i),    theta_{i+1} = theta_i + update(g_i),

with the rows drawn on the device: with replacement from fold_in(key, i + 1), or, in epochs, as the next ones of a permutation
that is made anew from the key and the number of the epoch, and kept nowhere. The number of steps of a call is a traced bound
of one loop, so every chunk, a longer run and a resumed one are the same program. A step whose loss or gradient is not finite
is not taken: the seed stands still from there on, and says at which step that was.

A batch may be taken in parts, one after another, whose gradients are averaged before the one update:

    g_i = 1/parts sum over p of grad loss(theta_i, state_p, key_p, part_p)

Shapes: data [events, ...], order [events] (held-out events first), carry like the parameters, buffer [capacity]; with many
seeds key, order and carry have a leading axis [seeds], and buffer is [capacity, seeds].
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gensamp.core import Model, PyTree
from gensamp.parallel import AXIS

__all__ = ["Carry", "Setting", "advance", "augmented", "averaged", "begin", "default_optimizer", "first_batch", "validate"]

INIT_EVENTS = 4096
PEAK_RATE = 1e-3
PARTS, WARMUP_PARTS = 1000, 50


class Carry(NamedTuple):
    """What a step hands to the next: parameters, optimizer state, sum of the moving average (or None), the model's state, and
    the step at which the seed failed (int32, -1 while all is well)."""

    params: Any
    optimizer: Any
    average: Any
    state: Any
    failed: Any


class Setting(NamedTuple):
    """What a program is compiled for. mapped: whether there is an axis of seeds. parts: of a batch, whose gradients are
    averaged. epochs: whether every event is seen once before any is seen again."""

    optimizer: optax.GradientTransformation
    batch_size: int
    held_out: int
    averaging: bool
    mapped: bool
    mesh: Mesh | None
    parts: int = 1
    epochs: bool = False

    @property
    def part_size(self) -> int:
        """Events that are on the way through the network at one time."""
        return self.batch_size // self.parts


@cache
def default_optimizer() -> optax.GradientTransformationExtraArgs:
    """Adam behind a clip of the global norm at 1; its rate warms up to 1e-3 over 5 % of the steps and falls to 0 as a cosine.

    The length of the run reaches it as an argument of its update, so that runs of all lengths are one program.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, WARMUP_PARTS, PARTS)

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.int32(0))

    def update(updates, state, params=None, *, num_steps, **extra):
        del params, extra
        # The rate belongs to the end of the step: at its beginning the first rate would be 0, and the step wasted.
        rate = schedule(PARTS * (state.count + 1) / num_steps)
        return optax.tree.scale(-1.0 * rate, updates), optax.ScaleByScheduleState(optax.safe_increment(state.count))

    by_progress = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), by_progress)


@partial(jax.jit, static_argnames="setting")
def begin(model: Model, data: PyTree, key: jax.Array, *, setting: Setting) -> tuple[Carry, Any]:
    """Carry before the first step, and the order of the events."""

    def one(key):
        key_order, key_init, _ = _own_keys(key)
        order = None if data is None else jax.random.permutation(key_order, len(jax.tree.leaves(data)[0]))
        params, state = model.init(key_init, first_batch(data, order, setting.held_out))
        params, state = jax.tree.map(_strong, (params, state))
        average = optax.tree.zeros_like(params) if setting.averaging else None
        return Carry(params, setting.optimizer.init(params), average, state, jnp.int32(-1)), order

    return _replicated(jax.vmap(one)(key) if setting.mapped else one(key), setting)


@partial(jax.jit, static_argnames="setting", donate_argnames=("carry", "buffer"))
def advance(
    model, data, order, key, carry: Carry, buffer, start, stop, num_steps, decay, augment=None, *, setting: Setting
):  # fmt: skip
    """Steps start <= i < stop, fewer when no seed is left that can go on; step i is recorded in row i - start of the buffer.

    augment: (key, event) -> event, applied to every event of every batch, or None.

    Returns:
        carry, and the buffer: loss and metrics of each step taken.
    """

    def one(carry, key, order, index):
        return _step(model, data, order, augment, key, carry, index, num_steps, decay, setting)

    steps = jax.vmap(one, in_axes=(0, 0, 0, None)) if setting.mapped else one

    def going(loop, stop=stop):
        index, carry, _ = loop
        return (index < stop) & jnp.any(carry.failed < 0)

    def run(loop, order, stop):
        def body(loop):
            index, carry, buffer = loop
            carry, row = steps(carry, key, order, index)
            buffer = jax.tree.map(lambda b, x: jax.lax.dynamic_update_index_in_dim(b, x, index - start, 0), buffer, row)
            return index + 1, carry, buffer

        return jax.lax.while_loop(partial(going, stop=stop), body, loop)

    def epoch(loop):
        length = (order.shape[-1] - setting.held_out) // setting.batch_size
        number = loop[0] // length
        shuffle = partial(_shuffled, number=number, setting=setting)
        shuffled = jax.vmap(shuffle)(key, order) if setting.mapped else shuffle(key, order)
        return run(loop, shuffled, jnp.minimum((number + 1) * length, stop))

    loop = (start, carry, buffer)
    _, carry, buffer = jax.lax.while_loop(going, epoch, loop) if setting.epochs else run(loop, order, stop)
    return _replicated((carry, buffer), setting)


@partial(jax.jit, static_argnames="setting")
def validate(model, data, order, key, carry: Carry, count, decay, *, setting: Setting):
    """Mean loss over the held-out events, at the averaged parameters where there are any; the same keys at each call."""

    def one(carry, key, order):
        params = carry.params if carry.average is None else _debiased(carry, count, decay)
        _, _, key = _own_keys(key)

        def loss(index, rows):
            batch = _split(jax.tree.map(lambda a: a[rows], data), setting)
            return model.loss(params, carry.state, jax.random.fold_in(key, index), batch)[0]

        size = min(setting.part_size, setting.held_out)
        full, rest = divmod(setting.held_out, size)
        blocks = order[: full * size].reshape(full, size)
        total = jax.lax.map(lambda block: loss(*block), (jnp.arange(full), blocks)).sum() * size
        if rest:
            total += loss(full, order[full * size : setting.held_out]) * rest
        return total / setting.held_out

    return jax.vmap(one)(carry, key, order) if setting.mapped else one(carry, key, order)


@partial(jax.jit, static_argnames="setting")
def averaged(carry: Carry, count, decay, *, setting: Setting) -> PyTree:
    """The exponential moving average of the parameters after each of `count` steps, without the pull of its zero start."""

    def one(carry):
        return _debiased(carry, count, decay)

    return jax.vmap(one)(carry) if setting.mapped else one(carry)


def first_batch(data: PyTree, order, held_out: int) -> PyTree:
    """The events a model's `init` sees: all that are trained on, up to 4096 of them in random order; None without data."""
    if data is None:
        return None
    return jax.tree.map(lambda a: a[order[held_out:][:INIT_EVENTS]], data)


def _step(model, data, order, augment, key, carry: Carry, index, num_steps, decay, setting: Setting):
    key_step = jax.random.fold_in(key, index + 1)
    key_rows, key_loss = jax.random.split(key_step)
    rows = augmentations = None
    if data is not None:
        rows = _rows(order, key_rows, index, setting)
        if augment is not None:
            augmentations = jax.random.split(jax.random.fold_in(key_step, 2), setting.batch_size)

    def part(state, key, rows, augmentations):
        batch = None
        if data is not None:
            batch = _split(jax.tree.map(lambda a: a[rows], data), setting)
        if augmentations is not None:
            batch = augmented(augment, augmentations, batch)
        (loss, (state, metrics)), gradient = jax.value_and_grad(model.loss, has_aux=True)(carry.params, state, key, batch)
        return state, gradient, jax.tree.map(jnp.asarray, {"loss": loss, "metrics": metrics})

    if setting.parts == 1:
        state, gradient, row = part(carry.state, key_loss, rows, augmentations)
    else:
        state, gradient, row = _in_parts(part, carry, key_loss, rows, augmentations, setting)

    def take():
        optimizer = optax.with_extra_args_support(setting.optimizer)
        updates, own = optimizer.update(gradient, carry.optimizer, carry.params, value=row["loss"], num_steps=num_steps)
        params = optax.apply_updates(carry.params, updates)
        average = carry.average
        if setting.averaging:
            average = optax.tree.cast_like(optax.tree.update_moment(params, average, decay, 1), average)
        return Carry(params, own, average, state, carry.failed)

    def stay():
        return carry._replace(failed=jnp.where(alive, index, carry.failed))

    alive = carry.failed < 0
    finite = jnp.isfinite(row["loss"]) & _all_finite(gradient)
    # A branch and not a select: selecting would read and write the parameters and the optimizer's moments once more.
    after = jax.lax.cond(alive & finite, take, stay)
    return after, jax.tree.map(lambda a: jnp.where(alive, a, _blank(a)), row)


def augmented(augment, keys, batch: PyTree) -> PyTree:
    """A batch with `augment` applied to its events; of a pair (events, conditions) the conditions stay."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return jax.vmap(augment)(keys, batch[0]), batch[1]
    return jax.vmap(augment)(keys, batch)


def _rows(order, key, index, setting: Setting):
    """Which events make the batch of a step; in epochs `order` is the shuffled order of those that are trained on."""
    if setting.epochs:
        position = index % (len(order) // setting.batch_size)
        return jax.lax.dynamic_slice_in_dim(order, position * setting.batch_size, setting.batch_size)
    return order[jax.random.randint(key, (setting.batch_size,), setting.held_out, len(order))]


def _shuffled(key, order, *, number, setting: Setting):
    """The events that are trained on, in the order of one epoch: a function of the key and the epoch's number alone."""
    key_shuffle = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, 0), 3), number)
    return jax.random.permutation(key_shuffle, order[setting.held_out :])


def _in_parts(part, carry: Carry, key, rows, augmentations, setting: Setting):
    """The state after all parts of a batch, the mean of their gradients, and what is recorded of the step."""

    def add(carried, given):
        state, total = carried
        state, gradient, row = part(state, *given)
        return (state, jax.tree.map(jnp.add, total, gradient)), row

    cut = (jax.random.split(key, setting.parts), *jax.tree.map(lambda a: _cut(a, setting.parts), (rows, augmentations)))
    (state, total), row = jax.lax.scan(add, (carry.state, optax.tree.zeros_like(carry.params)), cut)
    # Counts of a batch add up over its parts; means over its events are averaged.
    row = jax.tree.map(lambda a: a.mean(0) if jnp.issubdtype(a.dtype, jnp.inexact) else a.sum(0, dtype=a.dtype), row)
    return state, jax.tree.map(lambda a: a / setting.parts, total), row


def _cut(a, parts: int):
    return a.reshape(parts, -1, *a.shape[1:])


def _all_finite(gradient):
    """By the largest entry and not by the norm: a maximum is vectorised on a CPU, and a sum of squares is not."""
    tops = [jnp.isfinite(jnp.max(jnp.abs(a), initial=0)) for a in jax.tree.leaves(gradient)]
    return jnp.stack([*tops, True]).all()


def _blank(a):
    """What is recorded of a seed that stands still: not a number, and of what is counted nothing."""
    return jnp.asarray(jnp.nan if jnp.issubdtype(a.dtype, jnp.inexact) else 0, a.dtype)


def _debiased(carry: Carry, count, decay):
    taken = jnp.where(carry.failed < 0, count, carry.failed)
    corrected = optax.tree.bias_correction(carry.average, decay, jnp.maximum(taken, 1))
    return jax.tree.map(lambda average, a: jnp.where(taken > 0, average, a), corrected, carry.params)


def _own_keys(key):
    """Keys of the order of events, of the model's start, and of validation."""
    return jax.random.split(jax.random.fold_in(key, 0), 3)


def _strong(a):
    """Without this a Python number among the initial parameters is weakly typed, and the second chunk another program."""
    a = jnp.asarray(a)
    return a if jnp.issubdtype(a.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(a, a.dtype)


def _split(batch, setting: Setting):
    """Ask for the events of a batch to lie across the mesh; gradients are then summed over it."""
    if setting.mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(setting.mesh, P(AXIS)))


def _replicated(tree, setting: Setting):
    if setting.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(setting.mesh, P()))
