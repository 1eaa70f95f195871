"""The runner: one compilation, draws that depend on their keys alone, every ending, every bad input."""

import contextlib
import dataclasses
import gc
import os
import subprocess
import sys
import textwrap
import types

import chains_by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains_by_hand import autoregression, convolution
from jax.tree_util import Partial

import gensamp as gs
from gensamp import plan
from gensamp.clock import compile_clock

KEY = jax.random.key(0)


def test_endless_draws_have_chain_and_draw_axes_and_counts():
    draws = gs.sample(KEY, autoregression(), 50, num_chains=3, warmup=20)
    assert draws.position.shape == (3, 50, 3)
    assert draws.info.acceptance.shape == draws.info.diverged.shape == (3, 50)
    assert draws.ledger.tune.gradients == 3 * 20
    assert draws.ledger.sample.gradients == 3 * 50
    assert draws.info.gradients == 3 * 70
    assert draws.ending == "finished" and draws.log_weight is None and draws.nonfinite == 0


def test_finite_draws_have_one_chain():
    draws = gs.sample(KEY, autoregression(num_steps=5), 12)
    assert draws.position.shape == (1, 12, 3)
    assert draws.info.gradients.tolist() == [[5] * 12]
    assert draws.ledger.sample.gradients == 60
    np.testing.assert_allclose(draws.info.acceptance, 1.0)


def test_sample_is_the_traceable_verbs_mapped():
    """`sample` and vmap of `chain` or `draw` give the same draws, whose keys are fold_in(fold_in(key, chain), event)."""
    keys = jax.vmap(lambda c: jax.random.fold_in(KEY, c))(jnp.arange(4))
    chained = jax.vmap(lambda key: gs.chain(key, autoregression(), 30).position)(keys)
    np.testing.assert_allclose(gs.sample(KEY, autoregression(), 30).position, chained, atol=1e-6)
    drawn = jax.vmap(lambda key: gs.draw(key, convolution()).position)(keys)
    np.testing.assert_allclose(gs.sample(KEY, convolution(), 4).position[0], drawn, atol=1e-6)


def test_thinning_keeps_every_kth_state_after_warmup():
    every = gs.sample(KEY, autoregression(), 60).position
    thinned = gs.sample(KEY, autoregression(), 10, warmup=20, thin=4).position
    np.testing.assert_array_equal(thinned, every[:, 23::4])


@pytest.mark.parametrize("make", [autoregression, lambda: autoregression(num_steps=7)], ids=["endless", "finite"])
def test_second_call_longer_run_and_new_leaves_compile_nothing(make, tmp_path):
    def run(draws, sampler, **kwargs):
        with compile_clock() as clock:
            gs.sample(KEY, sampler, draws, batch=5, **kwargs)
        return clock.count

    assert run(24, make(), store=tmp_path / "a.zarr") > 0
    assert run(24, make()) == 0
    assert run(40, make()) == 0
    assert run(40, make(), store=tmp_path / "a.zarr", resume=True) == 0
    changed = jax.tree.map(lambda leaf: leaf * 0.9, make())
    assert run(24, changed) == 0


OPTIONS = dict.fromkeys(["num_chains", "initial", "each", "mesh", "batch", "chunk", "until", "store"])
OPTIONS |= {"warmup": 0, "thin": 1, "resume": False, "effort": "full"}


def shifted(arrays, key, state, index):
    """x + shift."""
    return jax.tree.map(lambda x: x + arrays["shift"], state), gs.core.Info.of(forwards=1)


def steady(key, state, index):
    """Three forwards at every step."""
    return state, gs.core.Info.of(forwards=3, acceptance=0.25)


def uneven(key, state, index):
    """A forward at every other step."""
    return state, gs.core.Info.of(forwards=index % 2, acceptance=index / 2, diverged=index == 3)


def test_what_is_remembered_of_a_sampler_goes_stale_with_its_arrays_and_away_with_it():
    arrays = {"shift": jnp.ones((8, 8, 1))}
    sampler = dataclasses.replace(convolution(), step=Partial(shifted, arrays))
    before = len(plan._REMEMBERED)
    once, again = (gs.sample(KEY, sampler, 3).position for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert len(plan._REMEMBERED) == before + 1
    arrays["shift"] = 2 * arrays["shift"]
    np.testing.assert_allclose(gs.sample(KEY, sampler, 3).position, once + sampler.num_steps, rtol=1e-5)
    del sampler
    gc.collect()
    assert len(plan._REMEMBERED) == before


def test_a_sampler_is_placed_once_and_shares_the_memory_of_what_was_given():
    sampler = convolution()
    first, second = (plan.make_plan(KEY, sampler, 4, **OPTIONS) for _ in range(2))
    assert first.maker is second.maker
    for given, placed in zip(jax.tree.leaves(sampler), jax.tree.leaves(first.maker), strict=True):
        assert given.unsafe_buffer_pointer() == placed.unsafe_buffer_pointer()
    assert plan.remembered(jax.tree.map(np.array, sampler), KEY) == {}


@pytest.mark.parametrize("step, forwards, acceptance, diverged", [(steady, 21, 0.25, False), (uneven, 3, 1.5, True)])
def test_counts_are_exact_whether_or_not_they_are_the_same_at_every_step(step, forwards, acceptance, diverged):
    info = gs.sample(KEY, dataclasses.replace(convolution(num_steps=7), step=Partial(step)), 4, chunk=2).info
    assert info.forwards.tolist() == [[forwards] * 4] and info.forwards.dtype == np.int32
    assert info.diverged.tolist() == [[diverged] * 4] and info.acceptance.dtype == np.float32
    np.testing.assert_allclose(info.acceptance, acceptance)


BITS = """
    import sys, jax, numpy as np
    sys.path.insert(0, {tests!r})
    import chains_by_hand, gensamp as gs
    sampler = chains_by_hand.{case}()
    kwargs = dict() if sampler.num_steps else dict(num_chains=16)
    one, two, eight = [
        gs.sample(jax.random.key(0), sampler, 16, batch=2, chunk=chunk, mesh=gs.parallel.mesh(devices), **kwargs).position
        for chunk, devices in [(1, 1), (7, 2), (100, 8)]
    ]
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, eight)
"""


@pytest.mark.parametrize("case", ["no_u_turn", "diffusion"])
def test_bits_do_not_depend_on_chunks_or_sub_meshes(case):
    """In a process of its own, compiled by XLA's defaults: its quickest lets a convolution's bits depend on the devices."""
    code = textwrap.dedent(BITS.format(tests=os.path.dirname(__file__), case=case))
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    ran = subprocess.run([sys.executable, "-c", code], env=flags, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_independent_draws_compile_to_no_collective():
    from jax.sharding import PartitionSpec as P

    from gensamp import lanes, parallel

    mesh = parallel.mesh(8)
    ids = parallel.put(np.arange(16, dtype=np.uint32), mesh, P(parallel.AXIS))
    sampler, key = parallel.put((autoregression(num_steps=3), KEY), mesh, P())
    states = lanes.begin["full"](sampler, None, key, ids, None, mesh=mesh)
    info, _, _ = lanes.lane_shapes(sampler, None, states)
    totals = jax.tree.map(lambda a: parallel.put(np.zeros((16, *a.shape), a.dtype), mesh, P(parallel.AXIS)), info)
    hlo = (
        lanes.advance_finite["full"]
        .lower(sampler, None, key, ids, states, totals, np.int32(0), np.int32(3), mesh=mesh)
        .compile()
        .as_text()
    )
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in hlo


def test_each_maps_a_step_size_sweep_in_one_program():
    rhos = np.linspace(0.0, 0.95, 6, dtype=np.float32)
    with compile_clock() as first:
        swept = gs.sample(KEY, Partial(autoregression), 400, each=rhos)
    with compile_clock() as second:
        gs.sample(KEY, Partial(autoregression), 400, each=rhos[::-1])
    assert first.count > 0 and second.count == 0
    lag_one = [np.corrcoef(chain[:-1, 0], chain[1:, 0])[0, 1] for chain in swept.position]
    np.testing.assert_allclose(lag_one, rhos, atol=5 / np.sqrt(400))


def test_each_row_is_the_sampler_made_from_it():
    rhos = np.array([0.2, 0.7], np.float32)
    swept = gs.sample(KEY, Partial(autoregression), 30, each=rhos).position
    alone = gs.sample(KEY, autoregression(0.7), 30, num_chains=2).position
    np.testing.assert_allclose(swept[1], alone[1], atol=1e-6)


def test_initial_positions_are_where_chains_start():
    initial = np.full((2, 3), 100.0, np.float32)
    draws = gs.sample(KEY, autoregression(0.999), 1, initial=initial)
    assert draws.position.shape == (2, 1, 3)
    np.testing.assert_allclose(draws.position[:, 0], 99.9, atol=0.5)


def test_until_stops_when_the_draws_are_good_enough_and_not_before():
    easy = gs.sample(KEY, autoregression(0.5), 100_000, until=gs.Until(ess=400, rhat=1.05))
    assert easy.ending == "converged"
    assert 100 <= easy.position.shape[1] < 5_000
    hard = gs.sample(KEY, autoregression(0.999), 300, until=gs.Until(ess=400, rhat=1.01))
    assert hard.ending == "finished" and hard.position.shape[1] == 300
    again = gs.sample(KEY, autoregression(0.5), 100_000, until=gs.Until(ess=400, rhat=1.05), chunk=13)
    np.testing.assert_array_equal(easy.position, again.position)


def test_not_finite_draws_are_counted_and_named():
    def poison(key, state, index):
        (x,) = state
        return (jnp.where(index == 5, jnp.nan, 1.0) * x + index * 0.0,), gs.Info.of()

    sampler = autoregression()
    broken = gs.Sampler(sampler.start, sampler.init, Partial(poison), sampler.position)
    with pytest.warns(UserWarning, match="NaN or an infinity"):
        draws = gs.sample(KEY, broken, 10, num_chains=2)
    assert draws.nonfinite == 2 * 5


@pytest.mark.parametrize("thin", [1, 3])
def test_draws_do_not_depend_on_how_often_the_buffers_fill(thin, monkeypatch):
    from gensamp import loops

    until = gs.Until(ess=1e9, minimum=10)
    long = gs.sample(KEY, autoregression(), 41, num_chains=3, thin=thin)
    monkeypatch.setattr(loops, "BUFFER_ROWS", 4)
    for rule in (None, until):
        with contextlib.nullcontext() if rule is None else pytest.warns(UserWarning, match="before"):
            short = gs.sample(KEY, autoregression(), 41, num_chains=3, thin=thin, until=rule)
        np.testing.assert_array_equal(short.position, long.position)
        np.testing.assert_array_equal(short.info.acceptance, long.info.acceptance)


def test_failure_returns_what_there_is(monkeypatch):
    from gensamp import loops

    steps = iter(range(100))
    advance = loops.lanes.advance["full"]

    def failing(*args, **kwargs):
        if next(steps) == 2:
            raise RuntimeError("the device is gone")
        return advance(*args, **kwargs)

    monkeypatch.setitem(loops.lanes.advance, "full", failing)
    monkeypatch.setattr(loops, "BLOCK_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="failed after 10 of 100 draws: the device is gone"):
        draws = gs.sample(KEY, autoregression(), 100, chunk=5)
    assert draws.ending == "failed" and draws.position.shape == (4, 10, 3)


def test_progress_bar_is_silent_outside_a_terminal_and_shown_when_asked(capsys):
    gs.sample(KEY, autoregression(), 20)
    assert capsys.readouterr().err == ""
    gs.sample(KEY, autoregression(), 20, progress=True)
    assert "20/20" in capsys.readouterr().err


BAD = {
    "raw key": ((jax.random.PRNGKey(0), autoregression(), 10), {}, TypeError, "expected one typed key"),
    "integer key": ((0, autoregression(), 10), {}, TypeError, "expected one typed key"),
    "several keys": ((jax.random.split(KEY), autoregression(), 10), {}, TypeError, "expected one key"),
    "no sampler": ((KEY, 3.0, 10), {}, TypeError, "expected a Sampler"),
    "no draws": ((KEY, autoregression(), 0), {}, ValueError, "num_draws is 0"),
    "chains of a finite sampler": ((KEY, autoregression(num_steps=2), 5), {"num_chains": 4}, ValueError, "finite sampler"),
    "warm-up of a finite sampler": ((KEY, autoregression(num_steps=2), 5), {"warmup": 4}, ValueError, "finite sampler"),
    "thinned finite sampler": ((KEY, autoregression(num_steps=2), 5), {"thin": 2}, ValueError, "finite sampler"),
    "initial NaN": ((KEY, autoregression(), 5), {"initial": np.array([[0.0] * 3, [np.nan] * 3])}, ValueError, r"chains \[1\]"),
    "initial shape": ((KEY, autoregression(), 5), {"initial": np.zeros((4, 2))}, ValueError, r"expected \[chain, 3\]"),
    "initial tree": ((KEY, autoregression(), 5), {"initial": {"x": np.zeros((4, 3))}}, ValueError, "structure"),
    "chains that differ": ((KEY, autoregression(), 5), {"initial": np.zeros((4, 3)), "num_chains": 3}, ValueError, "differ"),
    "each without a maker": ((KEY, autoregression(), 5), {"each": np.zeros(4)}, TypeError, "function from one slice"),
    "each of a finite run": ((KEY, Partial(chains_by_hand.two_steps), 5), {"each": np.zeros(4)}, ValueError, "4 rows"),
    "a lane of one": ((KEY, autoregression(), 5), {"batch": 1}, ValueError, "batch is 1"),
    "no chain": ((KEY, autoregression(), 5), {"initial": np.zeros((0, 3))}, ValueError, "share one leading axis"),
    "no mesh": ((KEY, autoregression(), 5), {"mesh": 3}, ValueError, "expected a mesh made by"),
    "each NaN": (
        (KEY, Partial(autoregression), 5), {"each": np.float32([0.1, np.nan])}, ValueError, r"each .* in rows \[1\]"
    ),
    "each of strings": ((KEY, Partial(autoregression), 5), {"each": np.array(["a", "b"])}, ValueError, "each holds <U1"),
    "initial of strings": ((KEY, autoregression(), 5), {"initial": np.array([["a"] * 3] * 4)}, ValueError, "initial holds <U1"),
    "initial of objects": ((KEY, autoregression(), 5), {"initial": np.array([[None] * 3] * 4)}, ValueError, "holds object"),
    "initial too large": ((KEY, autoregression(), 5), {"initial": np.full((2, 3), 1e300)}, ValueError, "not finite in float32"),
    "initial of a number": (
        (KEY, autoregression(shape=()), 5), {"initial": np.zeros((4, 1))}, ValueError, r"expected \[chain\]"
    ),
    "a rule not made": ((KEY, autoregression(), 5), {"until": gs.Until}, TypeError, "until is the class Until"),
    "more than memory": ((KEY, autoregression(), 10**12), {}, MemoryError, "give store= a path"),
    "more chains than memory": ((KEY, autoregression(), 1), {"num_chains": 10**9}, MemoryError, "take fewer chains"),
    "no effort": ((KEY, autoregression(), 1), {"effort": "hasty"}, ValueError, "expected one of full"),
    "more than counted": ((KEY, autoregression(), 10**10), {"store": "run.zarr"}, ValueError, "the most that are counted"),
    "initial not whole": (
        (KEY, dataclasses.replace(autoregression(), start=Partial(lambda key: jnp.zeros(3, jnp.int32))), 5),
        {"initial": np.array([[0.5, 3e9, 1.0]])}, ValueError, "that int32 has not",
    ),
    "half a rule": (
        (KEY, autoregression(), 5), {"until": types.SimpleNamespace(next_look=int)}, TypeError, "or what has its parts"
    ),
    "no rule": ((KEY, autoregression(), 5), {"until": {"ess": 3}}, TypeError, "expected a gensamp.Until"),
    "R-hat of one": ((KEY, autoregression(), 5), {"until": gs.Until(), "num_chains": 1}, ValueError, "or rhat=None"),
    "no path": ((KEY, autoregression(), 5), {"store": 3}, ValueError, "expected the path of a folder"),
    "resume without a store": ((KEY, autoregression(), 5), {"resume": True}, ValueError, "needs store="),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_sentence_before_compilation(case):
    args, kwargs, error, message = BAD[case]
    with compile_clock() as clock, pytest.raises(error, match=message) as caught:
        gs.sample(*args, **kwargs)
    assert clock.count == 0
    assert "\n" not in str(caught.value)


def test_a_start_where_the_target_is_not_finite_is_named():
    def log_density(x):
        return jnp.sum(jnp.log(x))

    target = gs.Target.from_log_density(log_density, jnp.zeros(2))
    initial = np.array([[1.0, 1.0], [-1.0, 1.0]])
    with pytest.raises(ValueError, match=r"chains \[1\] start where"):
        gs.sample(KEY, gs.mcmc.mala(target, step_size=0.1), 5, initial=initial)


def test_lists_of_positions_are_as_good_as_arrays():
    listed = gs.sample(KEY, autoregression(), 3, initial=[[0.0] * 3] * 4).position
    np.testing.assert_array_equal(listed, gs.sample(KEY, autoregression(), 3, initial=np.zeros((4, 3))).position)


def test_chains_that_each_made_unable_to_move_are_named():
    target = gs.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    with pytest.warns(UserWarning, match=r"chains \[1, 2\] never moved; look at their rows of each"):
        draws = gs.sample(KEY, Partial(gs.mcmc.mala, target), 12, each=np.float32([0.1, -1.0, 0.0]), chunk=5)
    assert draws.ending == "finished"


@pytest.mark.parametrize("rule", [{"ess": "400"}, {"ess": None}, {"ess": True}, {"minimum": 100.5}, {"rhat": "1.01"}])
def test_a_stopping_rule_of_no_numbers_is_refused(rule):
    with pytest.raises(TypeError, match=r"Until got .*; expected a"):
        gs.Until(**rule)


@pytest.mark.parametrize("rule", [{"ess": -3}, {"minimum": 0}, {"rhat": 0.5}])
def test_a_stopping_rule_that_cannot_be_met_is_refused(rule):
    with pytest.raises(ValueError, match="cannot be met"):
        gs.Until(**rule)
