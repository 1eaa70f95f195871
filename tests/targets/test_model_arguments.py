"""numpyro models as targets: what is no model, and data that are missing."""

import jax.numpy as jnp
import numpyro
import pytest
from numpyro import distributions as dist

import gensamp as gs


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def test_what_is_no_model_is_named():
    with pytest.raises(TypeError, match="from_numpyro got int as its model; expected a function"):
        gs.Target.from_numpyro(3)
    with pytest.raises(TypeError, match=r"cannot be run on the arguments it was given: .* takes 1 positional argument"):
        gs.Target.from_numpyro(model, 1.0, 2.0)


def test_missing_data_are_warned_of():
    """Not refused: a model may mask what is missing."""
    with pytest.warns(UserWarning, match="the model's arguments hold NaN"):
        gs.Target.from_numpyro(model, jnp.array([jnp.nan, 1.0]))
