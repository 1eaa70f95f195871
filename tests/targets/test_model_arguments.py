"""numpyro models as targets: what is no model, and data that are missing."""

import re

import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize("y", [np.array(["a", "b"]), np.array([1.0, None]), np.array(["2020-01-01"], "datetime64[D]")])
def test_an_array_of_no_numbers_is_named(y):
    with pytest.raises(TypeError, match=rf"the model got an array of dtype {re.escape(str(y.dtype))}; expected numbers"):
        gs.Target.from_numpyro(model, y)


@pytest.mark.parametrize("total", [lambda y: int(y.sum()), lambda y: np.asarray(y).sum(), lambda y: range(9)[y.sum()]])
def test_a_size_from_data_is_asked_for_as_an_integer(total):
    def counted(y, number=None):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(2)))
        numpyro.sample("y", dist.Multinomial(total(y) if number is None else number, p), obs=y)

    y = np.array([1, 2])
    with pytest.raises(TypeError, match="compute what sets a size outside the model and pass it as a Python int"):
        gs.Target.from_numpyro(counted, y)
    assert gs.Target.from_numpyro(counted, y, int(y.sum())).template["p"].shape == (1,)


def test_missing_data_are_warned_of():
    """Not refused: a model may mask what is missing."""
    with pytest.warns(UserWarning, match="the model's arguments hold NaN"):
        gs.Target.from_numpyro(model, jnp.array([jnp.nan, 1.0]))
