"""Do solvers have the order they are named for? Measured against diffrax on an exact score, by `benchmarks.solver_orders`.

The twins: a third-order DPM-Solver++ whose quadratic term has half its size, as in widely used code, and one that starts with
signal on a grid whose first step is not divided. Each loses the order.
"""

import functools
from importlib import import_module

import jax
import numpy as np
import pytest

from benchmarks import solver_orders

DPM_SOLVER_PP = import_module("gensamp.pushforward.diffusion.dpm_solver_pp")
SETS, STARTS = 8, 256


@functools.cache
def posed(name):
    """The problem and its truth as NumPy arrays: 64-bit mode is on only within a test."""
    given = solver_orders.problem(name, SETS * STARTS)
    process, denoise, _, starts, times = given
    return given, np.asarray(solver_orders.reference(process, denoise, starts, times))


@pytest.fixture
def fresh_programs():
    """For a test that changes a line of a solver, which a compiled program would not notice."""
    solver_orders.ends.clear_cache()
    yield
    solver_orders.ends.clear_cache()


def order(problem, name):
    """(median over sets of the order of the root mean square, order of the median error)."""
    with jax.enable_x64(True):
        found = solver_orders.measure(name, *posed(problem), SETS)
    return found["order"], found["order of the median error"]


def test_multistep_solvers_have_their_orders_on_the_whole_path():
    assert order("whole", "DPM-Solver++ 3M")[0] >= 2.7
    assert order("whole", "UniPC-3")[0] >= 3.7


def test_the_start_of_a_multistep_solver_is_as_good_as_the_rest(monkeypatch):
    assert order("middle", "DPM-Solver++ 3M")[0] >= 2.9
    # The broken line: nothing divides the first step, which is of first order.
    monkeypatch.setitem(solver_orders.SOLVERS, "DPM-Solver++ 3M", (*solver_orders.SOLVERS["DPM-Solver++ 3M"][:3], 1, None))
    assert order("middle", "DPM-Solver++ 3M")[0] < 2.3


def test_half_of_the_quadratic_term_is_of_second_order(monkeypatch, fresh_programs):
    whole = DPM_SOLVER_PP.exponential_moments
    halves = np.array([1.0, 1.0, 0.5])
    monkeypatch.setattr(DPM_SOLVER_PP, "exponential_moments", lambda *arguments: whole(*arguments) * halves)
    assert order("whole", "DPM-Solver++ 3M")[0] < 2.5


# The least order of the root mean square, and of the median error, on the whole path and from the middle of it.
FLOORS = {
    "DDIM": (0.9, 0.9, 0.9, 0.9), "Euler": (0.85, 0.9, 0.9, 0.9), "Heun": (1.7, 1.75, 1.8, 1.9), "LMS-4": (3.1, 3.6, 3.5, 3.5),
    "DEIS-3": (2.5, 2.9, 2.6, 2.9), "DEIS-3, time": (2.4, 2.6, 2.6, 2.7),
    "DPM-Solver-2": (1.7, 1.8, 1.8, 1.8), "DPM-Solver-3": (2.69, 2.7, 2.6, 2.7),
    "DPM-Solver++ 2S": (1.4, 1.5, 1.7, 1.7), "DPM-Solver++ 2M": (1.8, 1.95, 1.8, 1.85), "UniPC-2": (2.55, 2.9, 2.8, 2.7),
    "UniPC-3": (3.7, 3.8, 3.7, 3.8),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_every_solver_has_its_order(name):
    got = order("whole", name) + order("middle", name)
    assert all(a >= b for a, b in zip(got, FLOORS[name], strict=True)), got


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("Euler", 0.95), ("Heun", 2.0), ("LMS-4", 3.8)])
def test_orders_on_the_grid_and_process_of_karras(name, least):
    assert order("karras", name)[1] >= least


@pytest.mark.slow
def test_no_solver_gives_nan_on_any_grid_and_process():
    with jax.enable_x64(True):
        found = solver_orders.sweep(draws=4)
    assert not found["not finite"], found["not finite"]
    assert found["tried"] == 17 * 6 * 6
    # What integrates eps cannot start without signal, and says so.
    assert all("rectified_flow" in line and "no signal" in line for line in found["refused, and tried from t = 0.999 instead"])
