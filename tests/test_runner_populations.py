"""Populations without end: walkers that come out as chains, and resume."""

import jax
import jax.numpy as jnp
import numpy as np

import gensamp as gs

KEY = jax.random.key(0)


def test_an_endless_population_comes_out_as_chains_of_walkers():
    """[run * walker, draw, ...]: the walkers of run r are rows 3 r, 3 r + 1, 3 r + 2, the same as `chain` gives."""
    sampler = gs.Sampler(
        start=gs.bind(_three_walkers), init=gs.bind(_stand), step=gs.bind(_drift), position=gs.bind(_where),
        traits=gs.Traits(population=3),
    )  # fmt: skip
    draws = gs.sample(jax.random.key(0), sampler, 7, num_chains=2, warmup=2, progress=False)
    assert draws.position.shape == (6, 7, 2)
    assert draws.info.acceptance.shape == (2, 7)
    assert draws.info.gradients == 2 * 9 * 3
    for run in range(2):
        by_hand = gs.chain(jax.random.fold_in(jax.random.key(0), run), sampler, 9).position
        np.testing.assert_array_equal(draws.position[3 * run : 3 * run + 3], np.moveaxis(np.asarray(by_hand)[2:], 0, 1))
    initial = np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)
    moved = gs.sample(jax.random.key(0), sampler, 1, initial=initial, progress=False)
    assert np.abs(moved.position[:, 0] - initial.reshape(6, 2)).max() < 2


def test_a_stored_endless_population_resumes_to_the_same_bits(tmp_path):
    sampler = gs.Sampler(
        start=gs.bind(_three_walkers), init=gs.bind(_stand), step=gs.bind(_drift), position=gs.bind(_where),
        traits=gs.Traits(population=3),
    )  # fmt: skip
    run = {"num_chains": 2, "progress": False}
    whole = gs.sample(jax.random.key(0), sampler, 9, **run)
    gs.sample(jax.random.key(0), sampler, 4, store=tmp_path / "run.zarr", **run)
    stored = gs.sample(jax.random.key(0), sampler, 9, store=tmp_path / "run.zarr", resume=True, **run)
    np.testing.assert_array_equal(np.asarray(stored.position[:]), whole.position)


def _three_walkers(key):
    return jax.random.normal(key, (3, 2), jnp.float32)


def _stand(key, z):
    return z


def _drift(key, state, index):
    return state + 0.1 * jax.random.normal(key, (3, 2), jnp.float32), gs.core.Info.of(gradients=3)


def _where(state):
    return state
