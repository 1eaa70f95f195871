"""What autoregressive models share: a law for every site given those before it, learned by likelihood, drawn site by site.

    log p(x) = sum_t log p(x_t | x_1..x_{t-1}),    x_t ~ p( . | x_1..x_{t-1}),    t = 1, ..., T

A site is a coordinate, or a pixel with all its channels; sites come in the order in which the event is flattened. A network
gives the raw numbers of all T laws in one pass over the whole event, so a density costs one forward and a draw T of them. Where
the network keeps what it has seen, each of the T reads one site, or one row, and not the whole event. Row "autoregressive" of
the table: the start is empty, step t writes site t, num_steps = T, the last state is the draw.

Events are shifted and scaled into a frame: that of the first batch (`frame.py`), or, for a law on a lattice, the one that takes
its ends to -1 and 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gensamp.core import Info, Model, Sampler, Static, Traits, bind, scalar
from gensamp.nets.event import Event
from gensamp.pushforward.autoregressive.mixtures import Mixture
from gensamp.pushforward.frame import check_frame, check_params, enter, fit_frame, leave, log_volume, shapes_of
from gensamp.pushforward.lattice import Lattice, dequantised, in_bits

__all__ = ["Scribe", "check_lattice", "writing"]


class Scribe(NamedTuple):
    """A network that knows every site from those before it.

    init: (key) -> params. apply: (params, x [sites, channels]) -> raw [sites, raw], row t seeing x[:t] only. empty: () ->
    memory and recall: (params, memory, x, index) -> (raw [raw], memory), the row `index` alone with what was remembered of the
    rows before it, called once for each in turn; or both None, and `apply` is used.
    """

    init: Any
    apply: Any
    empty: Any = None
    recall: Any = None


def writing(
    name: str, template: Any, scribe: Scribe, law: Mixture, *, lattice: Lattice | None = None, dequantise: Any = 0.0
) -> Model:
    """An autoregressive model.

    Args:
        name: of the model, for messages.
        template: one event of sites * law.channels coordinates.
        scribe: the network. law: what its raw numbers mean.
        lattice: the values that data take; the law is then one on the lattice, draws are values of it, and log densities are
            log masses. A value between two is scored as if a cell were centred on it, one beyond an end by the tail there.
        dequantise: without a lattice, the width of a cell: training adds uniform noise in one cell.

    Returns:
        Model with log_density (params, x), one forward; a draw takes as many steps as there are sites, of one forward each.
        Metrics: "nll" in nats per event, "bits_per_dim".

    Raises:
        ValueError: dequantise is given with a lattice; from init, where data are no tracers, they are off the lattice.
    """
    event = Event.of(template)
    if lattice is not None and not (isinstance(dequantise, float | int) and dequantise == 0):
        raise ValueError(f"{name} got dequantise={dequantise} and a lattice; a law on the lattice needs no noise: leave it out")
    sites = Static((event.size // law.channels, law.channels))
    on, law_, cell = Static(lattice), Static(law), scalar(dequantise, event.template)
    density = bind(_log_density, event, sites, scribe.apply, law_, on)
    return Model(
        init=bind(_init, Static(name), event, scribe.init, on),
        loss=bind(_loss, event, sites, scribe.apply, law_, on, cell),
        sampler=bind(_sampler, event, sites, scribe, law_, on, density),
        log_density=density,
    )


def check_lattice(name: str, lattice: Any) -> Lattice | None:
    """A Lattice, from one or from (low, high, levels), or None.

    Raises:
        ValueError: it is neither.
    """
    if lattice is None or isinstance(lattice, Lattice):
        return lattice
    if not isinstance(lattice, tuple) or len(lattice) != 3:
        raise ValueError(f"{name} got lattice={lattice!r}; expected (low, high, levels), such as (-1.0, 1.0, 256)")
    return Lattice(*lattice)


def _init(name, event, init, on, key, batch):
    if batch is None:
        raise ValueError(f"{name.value} got no data; expected a batch of events to learn from")
    event.check(batch)
    frame = fit_frame(batch)
    if on.value is not None:
        on.value.check(name.value, batch)
        middle, half = (on.value.low + on.value.high) / 2, (on.value.high - on.value.low) / 2
        ends = {"shift": middle, "scale": half}
        frame = {part: jax.tree.map(lambda a, v=ends[part]: jnp.full_like(a, v), frame[part]) for part in frame}
    return {"network": init(key), "frame": frame}, ()


def _log_density(event, sites, apply, law, on, params, x):
    frame = jax.lax.stop_gradient(params["frame"])
    y = event.flatten(enter(frame, x)).reshape(sites.value)
    logs = jax.vmap(law.value.log_density)(apply(params["network"], y), y).sum()
    return logs if on.value is not None else logs - log_volume(frame, event.template)


def _loss(event, sites, apply, law, on, cell, params, state, key, batch):
    if on.value is None:
        x = dequantised(key, jax.vmap(event.flatten)(batch), cell)
        batch = jax.vmap(event.unflatten)(x)
    nll = -jax.vmap(lambda x: _log_density(event, sites, apply, law, on, params, x))(batch).mean()
    return nll, (state, {"nll": nll, "bits_per_dim": in_bits(nll, event.size, cell)})


def _sampler(event, sites, scribe, law, on, density, params):
    check_params(params, {"frame": None, "network": shapes_of(scribe.init)})
    check_frame(params["frame"], event.template)
    return Sampler(
        start=bind(_empty, event, sites),
        init=bind(_stand, scribe.empty),
        step=bind(_write if scribe.recall is None else _write_from_memory, scribe.recall or scribe.apply, law, params),
        position=bind(_position, event, on, params["frame"]),
        log_density=bind(_density_of, density, params),
        num_steps=sites.value[0],
        traits=Traits(law="approximate"),
    )


def _empty(event, sites, key):
    del key
    return jnp.zeros(sites.value, event.dtype)


def _stand(empty, key, x):
    del key
    return x, () if empty is None else empty()


def _write(apply, law, params, key, state, index):
    x, _ = state
    raw = apply(params["network"], x)[index]
    return (x.at[index].set(law.value.draw(key, raw)), ()), Info.of(forwards=1)


def _write_from_memory(recall, law, params, key, state, index):
    x, memory = state
    raw, memory = recall(params["network"], memory, x, index)
    return (x.at[index].set(law.value.draw(key, raw)), memory), Info.of(forwards=1)


def _position(event, on, frame, state):
    y = state[0].reshape(-1)
    if on.value is None:
        return leave(frame, event.unflatten(y))
    # From the index, and not by leaving the frame: whole numbers would come back next to themselves.
    index = jnp.round((y + 1) * ((on.value.levels - 1) / 2))
    return event.unflatten(jnp.minimum(on.value.low + on.value.cell * index, on.value.high))


def _density_of(density, params, x):
    return density(params, x)
