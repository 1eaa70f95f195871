"""The timing of solvers: ratios are round by round, and a row has the forwards that were made."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import solver_overhead
from gensamp import nets


def test_ratios_are_taken_round_by_round():
    slow = np.array([[2.0, 4.0], [4.0, 2.0], [6.0, 6.0]])
    fast = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 2.0]])
    found = solver_overhead.ratio(slow, fast)
    assert found["wall"] == {"median": 2.0, "quartiles": [2.0, 2.0]}
    assert found["processor"]["median"] == 3.0


def test_sides_alternate_and_their_first_call_is_not_timed():
    calls = []
    seconds = solver_overhead.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert {name: values.shape for name, values in seconds.items()} == {"a": (2, 2), "b": (2, 2)}


def test_a_row_counts_the_forwards_of_its_run(monkeypatch):
    template = jnp.zeros(3)
    small = {"mlp": (nets.mlp(template, width=8, depth=1), template, 4)}
    monkeypatch.setattr(solver_overhead, "cases", lambda: small)
    row = solver_overhead.overhead("mlp", "UniPC-2", 3, 2)
    assert row["forwards"] == 3 and row["draws"] == 4
    assert row["over the network"]["wall"]["median"] > 0 and row["milliseconds"] > 0


def test_more_threads_than_cores_are_refused():
    with pytest.raises(SystemExit, match="may use"):
        solver_overhead.confine(10_000)
