"""The comparison of families: sizes are matched, budgets kept, and a row has all it should, on small random images."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import families
from gensamp.evaluate.images import ImageJudge

TEMPLATE = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
BATCH = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)


@pytest.mark.parametrize("name", ["realnvp", "vae", "made"])
def test_families_are_given_as_many_parameters_as_the_denoiser(name):
    family, wanted = families.FAMILIES[name], families.num_parameters(families._ddpm(TEMPLATE, 32), BATCH)
    width = families.matched_width(family, TEMPLATE, wanted, 32)
    found = families.num_parameters(family.build(TEMPLATE, width), BATCH)
    assert 0.6 < found / wanted < 1.6
    assert families.matched_width(families.FAMILIES["flow_matching"], TEMPLATE, wanted, 32) == 32


def test_samplers_that_share_a_training_say_of_which_family_and_have_its_parameters():
    shared = {name: family.trained_as for name, family in families.FAMILIES.items() if family.trained_as}
    assert shared and all(families.FAMILIES[other].trained_as is None for other in shared.values())
    sizes = {families.num_parameters(families.FAMILIES[name].build(TEMPLATE, 8), BATCH) for name in ("ddpm", "score_langevin")}
    assert len(sizes) == 1


def test_the_denoiser_sees_blocks_of_pixels_and_returns_them_to_their_places():
    def seen(params, x, t):
        assert x.shape == (4, 4, 4)
        return x

    x = jax.random.normal(jax.random.key(0), TEMPLATE.shape)
    np.testing.assert_array_equal(families._through_blocks(seen, None, x, 0.5), x)
    # Pixels of one block are neighbours.
    first = families._through_blocks(lambda p, x, t: x.at[1:].set(0).at[:, 1:].set(0), None, x, 0.5)
    assert np.count_nonzero(first) == 4 and np.count_nonzero(first[:2, :2]) == 4


def test_one_family_is_trained_for_its_seconds_drawn_from_and_judged(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = np.clip(rng.normal(size=(300, 8, 8, 1)), -1, 1).astype(np.float32), rng.integers(0, 3, 300)
    judge = ImageJudge.of(jax.random.key(0), images, labels, (images, labels), images, width=4, num_features=4, num_steps=2)
    parts = ((images, labels), images, (images, labels))
    options = {"budget": (0.3, 2, 80, 16, 8), "clock": time.process_time, "fits": {}, "store": None}
    row, draws = families.run("vae", jax.random.key(1), parts, judge, options)
    assert draws.shape == (80, 8, 8, 1) and row["not finite"] == 0 and row["forwards per draw"] == 1
    assert 0.05 < row["training"]["seconds"] < 5 and row["training"]["ending"] == "finished"
    assert 0 < row["bits per dimension"] < 20 and row["is a bound"]
    assert row["frechet"] > 0 and np.isclose(sum(row["classes"]), 1)
    results = {"references": families.references(judge, images, 100), "families": {"vae": row}}
    assert len(families.table(results).splitlines()) == 5
    families.picture(draws, tmp_path / "vae.png", columns=8, lines=10)
    assert (tmp_path / "vae.png").stat().st_size > 1000
