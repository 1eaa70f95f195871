"""Draws in the model's own terms: how `named` is called."""

import jax.numpy as jnp
import numpy as np
import pytest

import gensamp as gs


def test_named_says_how_it_is_called():
    target, position = gs.targets.banana(), np.zeros((4, 5, 2), np.float32)
    info = gs.Info(0, 0, 0, np.ones((4, 5), np.float32), np.zeros((4, 5), bool), ())
    draws = gs.Draws(position, None, info, gs.Ledger(), "finished", "", 0)
    with pytest.raises(TypeError, match=r"expected named\(target, position\)"):
        gs.named(position, target)
    with pytest.raises(TypeError, match=r"such as draws\.position"):
        gs.named(target, draws)
    with pytest.raises(ValueError, match="position has shapes"):
        gs.named(gs.Target.from_log_density(lambda x: -(x**2), jnp.zeros(())), 3.0)
