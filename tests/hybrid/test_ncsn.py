"""Noise-conditional score networks: what the network is told, which levels it is trained at, and how they are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import norm

import gensamp as gs
from gensamp import noise
from gensamp.hybrid.ncsn import Levels, geometric_levels, ncsn
from gensamp.nets import mlp
from gensamp.nets.noise_levels import at_levels, without_time

TEMPLATE = jnp.zeros(2)
EVENTS = jax.random.normal(jax.random.key(0), (64, 2))
CHOSEN = Levels(5.0, 0.1, 5)


def no_params(key):
    return ()


def told_what(params, x, t, *label):
    """What a network hears, as an output."""
    return jnp.stack([x[0], t + sum(label)])


def test_a_network_hears_of_the_nearest_level_or_of_nothing_but_the_noisy_event():
    heard = at_levels(gs.Network(gs.bind(no_params), gs.bind(told_what)), 5)
    x = jnp.array([3.0, 0.0])
    for t, level in ((0.0, 0), (0.1, 0), (0.2, 1), (0.6, 2), (1.0, 4)):
        np.testing.assert_array_equal(heard.apply((), x, jnp.float32(t)), [3.0, level])
    process = noise.ve(0.1, 5.0)
    blind = without_time(gs.Network(gs.bind(no_params), gs.bind(told_what)), process)
    for t in (0.0, 0.5, 1.0):
        # Models divide by r what they show a network; this one is to see the noise by its size.
        r = jnp.sqrt(1 + process.sigma(t) ** 2)
        np.testing.assert_allclose(blind.apply((), x / r, jnp.float32(t)), [3.0, 0.0], rtol=1e-5)


def test_levels_are_chosen_by_the_largest_distance_and_by_overlap():
    events = jax.random.normal(jax.random.key(0), (64, 50))
    wide = 7 + 3 * events
    chosen = geometric_levels(wide, sigma_min=0.02)
    assert chosen.sigma_max == pytest.approx(pdist(events / events.std(0)[None]).max(), rel=1e-4) and chosen.sigma_min == 0.02
    ratio = (chosen.sigma_max / chosen.sigma_min) ** (1 / (chosen.num_levels - 1))
    shift = 10 * (ratio - 1)
    # The number is rounded up, so that neighbours overlap by half at least.
    assert 0.5 <= norm.cdf(shift + 3 * ratio) - norm.cdf(shift - 3 * ratio) < 0.75
    # In the plane shells always overlap by more than half, and neighbours stand at a ratio of two at most.
    few = geometric_levels(EVENTS)
    assert 1.7 < (few.sigma_max / few.sigma_min) ** (1 / (few.num_levels - 1)) <= 2
    with pytest.raises(ValueError, match=r"sigma_min=100\.0"):
        geometric_levels(wide, sigma_min=100.0)


@pytest.mark.parametrize("told", ["level", pytest.param("nothing", marks=pytest.mark.slow)])
def test_its_loss_is_taken_at_its_levels_and_a_draw_is_annealed_langevin(told):
    network = mlp(TEMPLATE, width=8, depth=1, num_classes=5 if told == "level" else None)
    model = ncsn(TEMPLATE, CHOSEN, network=network, told=told, steps_per_level=2)
    params, state = jax.jit(model.init)(jax.random.key(0), EVENTS)
    loss, _ = jax.jit(model.loss)(params, state, jax.random.key(1), EVENTS)
    # An untrained network says that there is no noise: the loss is that of eps itself.
    assert loss == pytest.approx(1.0, abs=0.4)
    out = jax.jit(gs.draw)(jax.random.key(2), model.sampler(params))
    assert out.info.forwards == 10 and np.isfinite(out.position).all()


def test_what_it_is_told_must_be_one_of_two():
    with pytest.raises((ValueError, TypeError), match="told"):
        ncsn(TEMPLATE, CHOSEN, told="sigma")
    with pytest.raises(ValueError, match="num_levels=1"):
        at_levels(mlp(TEMPLATE, width=8, depth=1), 1)
