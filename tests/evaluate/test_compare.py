"""compare: registered samplers and somebody's own, on one target; what is written of them; a row that fails; bad input."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import descent, lanes, loops, mcmc, pushforward, runner, training
from gensamp.core import Sampler, Target
from gensamp.evaluate.compare import compare
from gensamp.evaluate.comparison import Comparison
from gensamp.evaluate.write import as_dict, cost_table, markdown, quality_table, summary_table, training_table, write


def log_density(x):
    return -0.5 * jnp.sum((x - 1.0) ** 2)


def exact(key):
    return 1.0 + jax.random.normal(key, (2,))


def broken(target):
    raise RuntimeError("no such thing")


@pytest.fixture(scope="module")
def target():
    return Target.from_log_density(log_density, jnp.zeros(2), name="plain density", exact=exact)


@pytest.fixture(scope="module")
def registered(target) -> Comparison:
    return compare(jax.random.key(0), target, ["hmc", "inverse_transform", "ddpm", "ddim"], "tiny", progress=False)


@pytest.fixture(scope="module")
def own(target) -> Comparison:
    mine = {
        "my chain": mcmc.mala(target, step_size=0.8),
        "my map": pushforward.realnvp(target.template, num_layers=2, width=16),
        "my maker": lambda given: pushforward.inverse_transform(quantile, given.template),
        "my mistake": broken,
    }
    with pytest.warns(UserWarning, match="my mistake failed"):
        return compare(jax.random.key(0), target, mine, "tiny", progress=False)


def quantile(u):
    return 1.0 + jax.scipy.special.ndtri(u)


def test_rows_of_both_halves(registered):
    assert [row.name for row in registered.rows] == ["hmc", "ddpm", "ddim"]
    assert "quantile" in registered.skipped["inverse_transform"]
    chain, diffusion = registered.rows[0], registered.rows[1]
    assert chain.report.chains is not None and not chain.learned and chain.beats_untrained is None
    assert diffusion.learned and diffusion.report.chains is None and diffusion.report.ledger.fit.forwards == 20 * 32
    assert chain.report.ledger.tune.gradients > 0
    assert [point.draws for point in chain.curve] == [10, 30, 100, 300, 1000]
    assert chain.curve[-1].evaluations == pytest.approx(chain.cost("evaluations").of(chain.report.num_draws))
    assert chain.curve[0].error > chain.curve[-1].error


def test_summary_names_every_row(registered, own):
    for comparison in (registered, own):
        assert all(row.name in summary_table(comparison) for row in comparison.rows)


def test_break_even_is_with_the_best_chain(registered):
    assert registered.best_chain("evaluations").report.chains is not None
    assert set(registered.break_evens("seconds")) == {"ddpm", "ddim"}


def test_a_row_depends_on_its_name_and_not_on_its_neighbours(registered, target):
    alone = compare(jax.random.key(0), target, ["hmc"], "tiny", progress=False)
    np.testing.assert_array_equal(alone.rows[0].coordinates, registered.rows[0].coordinates)


def test_what_is_held_equal_is_said(registered):
    said = " ".join(registered.held_equal)
    assert "2,000 exact draws" in said and "20 steps of 32 events: ddpm, ddim" in said and "4 chains, 150 tuning steps" in said


def test_somebody_elses_samplers_need_no_registry(own):
    rows = {row.name: row for row in own.rows}
    assert rows["my chain"].report.chains is not None and rows["my chain"].half == "yours"
    assert rows["my map"].learned and isinstance(rows["my map"].sampler, Sampler)
    assert rows["my maker"].report.verdict == "indistinguishable"
    assert rows["my mistake"].report is None and "no such thing" in rows["my mistake"].failure


def test_written_report_holds_this_run_and_nothing_else(own, tmp_path):
    paths = write([own], tmp_path)
    text = (tmp_path / "report.md").read_text()
    stored = json.loads((tmp_path / "comparison.json").read_text())[0]
    assert quality_table(own) in text and cost_table(own) in text and training_table(own) in text
    assert "my mistake failed: RuntimeError: no such thing" in text
    assert all(path.is_file() for path in paths) and all(path.name in text for path in paths if path.suffix == ".png")
    assert stored == json.loads(json.dumps(as_dict(own)))
    assert [row["name"] for row in stored["rows"]] == [row.name for row in own.rows]
    assert markdown([own]).count("|") > 50


def test_two_samplers_of_one_network_are_trained_once(registered):
    first, second = registered.rows[1:]
    assert second.shares == "ddpm" and first.report.ledger.fit == second.report.ledger.fit
    assert "trained once" in markdown([registered])


@pytest.mark.slow
def test_a_kernel_without_acceptance_takes_malas_step(target):
    row = compare(jax.random.key(0), target, ["ula"], "tiny", progress=False).rows[0]
    assert row.report.ledger.tune.gradients > 0 and row.report.equivalent.value > 20


def test_an_array_is_a_target_and_a_fifth_is_held_out():
    events = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    sampler = pushforward.inverse_transform(jax.scipy.special.ndtri, jnp.zeros(3))
    found = compare(jax.random.key(0), Target.from_data(events, name="my table"), {"mine": sampler}, "tiny", progress=False)
    assert len(found.judge.reference) == 120 and len(found.judge.pool) == 480 and found.judge.source == "held-out data"
    assert found.rows[0].report.verdict == "indistinguishable"


def test_bad_input_is_named_before_anything_runs(target):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="did you mean 'nuts'"):
        compare(key, target, ["nut"], "tiny")
    with pytest.raises(ValueError, match="tiny, small, full"):
        compare(key, target, ["nuts"], "huge")
    for budget in (5, None):
        with pytest.raises(ValueError, match=f"budget is {budget}; expected one of tiny, small, full, or a Budget"):
            compare(key, target, ["nuts"], budget)
    chain = mcmc.mala(target, 0.1)
    for samplers in ([chain], chain, mcmc.nuts, 3):
        with pytest.raises(TypeError, match=r"dict \{name: sampler\}"):
            compare(key, target, samplers, "tiny")
    with pytest.raises(TypeError, match="got 3 as the name of a sampler; expected a string"):
        compare(key, target, {3: chain}, "tiny")
    with pytest.raises(TypeError, match="a Sampler, a Model or a function"):
        compare(key, target, {"five": 5}, "tiny")
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(key, target, ["inverse_transform"], "tiny")
    with pytest.raises(ValueError, match="at least 50"):
        compare(key, Target.from_data(np.zeros((20, 2), np.float32)), ["vae"], "tiny")


def interrupting(monkeypatch, module, name, at):
    """Ctrl-C while the `at`-th call is under way."""
    program, calls = module[name] if isinstance(module, dict) else getattr(module, name), []

    def called(*args, **keywords):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return program(*args, **keywords)

    if isinstance(module, dict):
        monkeypatch.setitem(module, name, called)
    else:
        monkeypatch.setattr(module, name, called)


def test_ctrl_c_ends_the_comparison_and_keeps_the_rows_that_were_finished(target, monkeypatch, tmp_path):
    """A chain of fewer draws, or a map of fewer steps, is no row beside others that had them all."""
    exactly = pushforward.inverse_transform(quantile, target.template)
    chain = mcmc.mala(target, step_size=0.8)
    learned = pushforward.realnvp(target.template, num_layers=2, width=16)
    for name, made in (("chain", chain), ("map", learned)):
        with monkeypatch.context() as patch:
            if name == "chain":
                patch.setattr(loops.Run, "steps", lambda self, per_draw=1: 40)
                interrupting(patch, lanes.advance, "full", at=6)
            else:
                patch.setattr(training, "CAPACITY", 4)
                interrupting(patch, descent, "advance", at=2)
            with pytest.warns(UserWarning, match=f"compare was interrupted; without rows: {name}, never"):
                found = compare(
                    jax.random.key(0), target, {"exact": exactly, name: made, "never": exactly}, "tiny", progress=False
                )
        assert [row.name for row in found.rows] == ["exact"] and found.unfinished == (name, "never")
        assert "Chains" not in " ".join(found.held_equal) and "Learned" not in " ".join(found.held_equal)
    write([found], tmp_path)
    assert "map was not run to its end: the comparison was interrupted" in (tmp_path / "report.md").read_text()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_row_is_ctrl_c(target, monkeypatch):
    interrupting(monkeypatch, lanes.advance, "full", at=1)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="interrupted after"):
        compare(jax.random.key(0), target, {"chain": mcmc.mala(target, step_size=0.8)}, "tiny", progress=False)


def test_a_run_that_failed_on_the_way_is_a_row_that_says_why(target, monkeypatch):
    made = runner.sample

    def failing(*args, **keywords):
        return dataclasses.replace(made(*args, **keywords), ending="failed", message="failed after 10 of 300 draws: it broke")

    monkeypatch.setattr(runner, "sample", failing)
    exactly = pushforward.inverse_transform(quantile, target.template)
    with pytest.warns(UserWarning, match="exact failed on plain density: RuntimeError: failed after 10 of 300 draws"):
        found = compare(jax.random.key(0), target, {"exact": exactly}, "tiny", progress=False)
    assert found.rows[0].report is None and "it broke" in found.rows[0].failure


def test_a_density_of_float32_without_a_truth_is_named_in_double_precision():
    with jax.enable_x64(True):
        bare = Target.from_log_density(log_density, jnp.zeros(2, jnp.float32), name="bare")
        with pytest.raises(ValueError, match="'bare' has nothing to be judged against, and events of float32"):
            compare(jax.random.key(0), bare, ["mala"], "tiny", progress=False)
