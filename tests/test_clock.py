import time

import jax
import jax.numpy as jnp
import pytest

from gensamp.clock import BACKEND, PREFIX, CompileClock, compile_clock


def _fresh():
    @jax.jit
    def inner(x):
        return jnp.sin(x) + 1.0

    @jax.jit
    def outer(x):
        return inner(x) * inner(x + 1.0)

    return outer


def test_counts_programs_and_stays_within_wall_time():
    function, x = _fresh(), jnp.ones(3)
    started = time.perf_counter()
    with compile_clock() as clock:
        function(x)
        first = clock.count
        function(x)
    wall = time.perf_counter() - started
    assert first == clock.count == 1 and "outer" in clock.programs[0]
    assert 0 < clock.seconds <= wall


def test_stops_listening_after_the_block():
    with compile_clock() as clock:
        _fresh()(jnp.ones(4))
    seconds, count = clock.seconds, clock.count
    _fresh()(jnp.ones(5))
    assert (clock.seconds, clock.count) == (seconds, count)


def test_stops_listening_after_an_error_and_nests():
    with compile_clock() as outer:
        with pytest.raises(ZeroDivisionError), compile_clock() as inner:
            raise ZeroDivisionError
        _fresh()(jnp.ones(6))
    assert inner.count == 0 and outer.count >= 1


def test_nested_spans_are_counted_once():
    clock = CompileClock()
    clock(PREFIX + "jaxpr_trace_duration", 1.0, 2.0)
    clock(PREFIX + "jaxpr_trace_duration", 3.0, 4.0)
    clock(PREFIX + "jaxpr_trace_duration", 0.5, 5.0)
    clock(BACKEND, 6.0, 7.0)
    clock("/jax/other", 0.0, 100.0)
    assert clock.seconds == pytest.approx(5.5) and clock.count == 1
