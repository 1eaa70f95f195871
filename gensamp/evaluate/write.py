"""A Comparison as tables for the terminal, as Markdown, as JSON, and as a folder with its pictures.

Every number comes from the Comparison. Three tables: how good the draws are, what they cost, and each learned map beside its
own untrained network. Rows are ordered by equivalent sample size, best first.
"""

import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tabulate import tabulate

from gensamp.evaluate.comparison import Comparison, Row
from gensamp.evaluate.report import Report, plain

__all__ = ["as_dict", "cost_table", "markdown", "quality_table", "summary_table", "training_table", "write"]


def summary_table(comparison: Comparison) -> str:
    """One narrow table for a terminal; the energy distance in multiples of its floor's mean, 1 being as good as exact draws."""
    modes = any(row.report and row.report.coverage for row in comparison.rows)
    header = ["sampler", "n_eq", "energy\n/ floor", "as exact\ndraws", "R-hat", *["modes\nfound"] * modes]
    header += ["evaluations\nonce", "per\ndraw", "seconds\nonce", "per 1,000\ndraws", "beats\nuntrained"]
    rows = []
    for row in _ranked(comparison):
        report = row.report
        if report is None:
            rows.append([row.name, "failed"])
            continue
        evaluations, seconds = row.cost("evaluations"), row.cost("seconds")
        cells = [row.name, str(report.equivalent or 0)]
        cells.append("" if report.energy is None else f"{_value(report.energy.value / report.energy.floor.mean)}")
        cells.append("yes" if report.verdict == "indistinguishable" else "no")
        cells.append("" if report.chains is None else f"{report.chains.worst()['rhat'][1]:.2f}")
        cells += [f"{report.coverage.found}/{report.coverage.modes}" if report.coverage else ""] * modes
        cells += [
            f"{evaluations.bill:,.0f}",
            f"{evaluations.price:,.1f}",
            f"{seconds.bill:,.1f}",
            f"{1000 * seconds.price:,.2f}",
        ]
        rows.append([*cells, {None: "", True: "yes", False: "NO"}[row.beats_untrained]])
    return _table(header, rows, "simple")


def quality_table(comparison: Comparison) -> str:
    """How good: equivalent sample size with its interval, both distances with floors and verdict, modes, chain diagnostics."""
    modes = any(row.report and row.report.coverage for row in comparison.rows)
    chains = any(row.report and row.report.chains for row in comparison.rows)
    header = [
        "sampler",
        "draws",
        "n_eq [95%]",
        "energy distance",
        "sliced W2",
        "against exact draws",
        "worst mean: error/sd (z)",
    ]
    header += ["modes", "weight error"] * modes + ["least ESS bulk / tail", "R-hat"] * chains
    return _table(header, [_quality(row, modes, chains) for row in _ranked(comparison)])


def cost_table(comparison: Comparison) -> str:
    """What it cost: the bill paid once, the price per draw, the break-even with the best chain, in evaluations and seconds."""
    header = [
        "sampler", "paid once: evaluations", "seconds", "of it compiling", "per draw: evaluations", "seconds per 1,000 draws",
        "break-even: evaluations", "seconds",
    ]  # fmt: skip
    even = {unit: comparison.break_evens(unit) for unit in ("evaluations", "seconds")}
    return _table(header, [_cost(row, even) for row in _ranked(comparison) if row.report is not None])


def training_table(comparison: Comparison) -> str:
    """Each learned map beside its own untrained network; empty when nothing was learned."""
    header = [
        "learned map",
        "n_eq",
        "untrained n_eq",
        "energy distance",
        "untrained",
        "sliced W2",
        "untrained",
        "better than untrained",
    ]
    rows = []
    for row in _ranked(comparison):
        if row.report is not None and row.untrained is not None:
            after, before = row.report, row.untrained
            values = [_value(r.energy and r.energy.value) for r in (after, before)] + [
                _value(r.sliced and r.sliced.value) for r in (after, before)
            ]
            rows.append([row.name, _worth(after), _worth(before), *values, "yes" if row.beats_untrained else "**no**"])
    return _table(header, rows) if rows else ""


def markdown(comparisons: Sequence[Comparison], pictures: dict[str, dict[str, str]] | None = None) -> str:
    """The report. `pictures`: for each target's name, captions and file names to link."""
    parts = [
        "# Samplers compared",
        f"Budget {comparisons[0].budget.name}; {sum(c.seconds for c in comparisons):,.0f} seconds in all on "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s), jax {jax.__version__}, "
        f"Python {platform.python_version()}. Every number below was computed in this run.",
        _LEGEND,
    ]
    for comparison in comparisons:
        name = comparison.target.name
        parts += [f"## {name}", "\n".join(f"- {line}" for line in comparison.held_equal), quality_table(comparison)]
        parts += [line for line in (_modes_line(comparison), *_notes(comparison)) if line]
        parts += ["### Cost", cost_table(comparison), _chain_line(comparison)]
        if learned := training_table(comparison):
            parts += ["### Did training help", learned]
        parts += [f"![{caption}]({file})" for caption, file in (pictures or {}).get(name, {}).items()]
        failures = [f"- {row.name} failed: {row.failure}" for row in comparison.rows if row.failure]
        left_out = [f"- {name} left out: {reason}" for name, reason in comparison.skipped.items()]
        left_out += [f"- {name} was not run to its end: the comparison was interrupted" for name in comparison.unfinished]
        if failures or left_out:
            parts += ["### Not in the table", "\n".join(failures + left_out)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything a Comparison found, ready for JSON."""
    rows = []
    for row in comparison.rows:
        entry: dict[str, Any] = {
            "name": row.name,
            "title": row.title,
            "half": row.half,
            "shares_training_with": row.shares,
            "failure": row.failure,
        }
        entry["report"] = None if row.report is None else row.report.as_dict()
        entry["untrained"] = None if row.untrained is None else row.untrained.as_dict()
        entry["beats_untrained"] = row.beats_untrained
        if row.report is not None:
            entry["cost"] = {unit: row.cost(unit) for unit in ("evaluations", "seconds")}
        rows.append(entry | {"curve": row.curve})
    even = {unit: comparison.break_evens(unit) for unit in ("evaluations", "seconds")}
    return plain(
        {
            "target": comparison.target.name,
            "budget": comparison.budget,
            "source": comparison.judge.source,
            "reference_draws": len(comparison.judge.reference),
            "held_equal": comparison.held_equal,
            "skipped": comparison.skipped,
            "unfinished": comparison.unfinished,
            "seconds": comparison.seconds,
            "break_even_with_best_chain": even,
            "rows": rows,
        }
    )


def write(comparisons: Sequence[Comparison], out: str | Path, key: jax.Array | None = None) -> list[Path]:
    """Write report.md, comparison.json and the pictures of every target into the folder `out`; returns the paths.

    key: for the runs that an animation of image samplers repeats; jax.random.key(0) by default.
    """
    from gensamp import plot

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, dict[str, str]] = {}
    for comparison in comparisons:
        pictures[comparison.target.name] = plot.save_comparison(comparison, out, jax.random.key(0) if key is None else key)
    (out / "report.md").write_text(markdown(comparisons, pictures))
    (out / "comparison.json").write_text(json.dumps([as_dict(c) for c in comparisons], indent=1, allow_nan=False) + "\n")
    return [out / "report.md", out / "comparison.json", *(out / file for files in pictures.values() for file in files.values())]


_LEGEND = (
    "**n_eq**, the equivalent sample size, is how many independent exact draws would leave the same error; it counts "
    "correlation and bias in one number, and `>=` says that the reference is too short to tell. Distances stand beside "
    "their **floor**, the mean and sd of the same statistic for exact draws of the same number; *indistinguishable* means "
    "within three sd of it. An **evaluation** is one gradient, one density or one pass through a network. Compiling is "
    "paid by the first row that needs a program. The **break-even** is the number of draws from which on a learned map is "
    "cheaper than the best chain, each draw of the chain counted at its equivalent worth; a map's own draws help only up "
    "to its n_eq."
)


def _ranked(comparison: Comparison) -> list[Row]:
    def worth(row):
        return row.report.equivalent.value if row.report is not None and row.report.equivalent is not None else -math.inf

    return sorted(comparison.rows, key=worth, reverse=True)


def _quality(row: Row, modes: bool, chains: bool) -> list[str]:
    report = row.report
    if report is None:
        return [row.name, "failed"]
    cells = [
        row.name,
        f"{report.num_draws:,}",
        _worth(report),
        _distance(report.energy),
        _distance(report.sliced),
        _verdict(report),
    ]
    cells.append("" if report.mean is None else f"{report.mean.name}: {report.mean.bias:+.3f} ({report.mean.z:+.1f})")
    if modes:
        cover = report.coverage
        cells += ["", ""] if cover is None else [f"{cover.found} of {cover.modes}", f"{cover.weight_error:.3f}"]
    if chains and report.chains is not None:
        worst = report.chains.worst()
        cells += [f"{worst['ess_bulk'][1]:,.0f} / {worst['ess_tail'][1]:,.0f}", f"{worst['rhat'][1]:.3f}"]
    return cells


def _cost(row: Row, even: dict[str, dict[str, float | None]]) -> list[str]:
    evaluations, seconds = row.cost("evaluations"), row.cost("seconds")
    ledger = row.report.ledger if row.report is not None else None
    compiling = 0.0 if ledger is None else sum(bill.compile_seconds for bill in (ledger.fit, ledger.tune, ledger.sample))
    meets = [_draws(even[unit][row.name]) if row.name in even[unit] else "" for unit in ("evaluations", "seconds")]
    return [
        row.name, f"{evaluations.bill:,.0f}", f"{seconds.bill:,.1f}", f"{compiling:,.1f}", f"{evaluations.price:,.1f}",
        f"{1000 * seconds.price:,.3f}", *meets,
    ]  # fmt: skip


def _modes_line(comparison: Comparison) -> str:
    covers = [row.report.coverage for row in comparison.done if row.report is not None and row.report.coverage is not None]
    if not covers:
        return ""
    found = max(cover.expected_found for cover in covers)
    error = max(cover.expected_weight_error for cover in covers)
    return (
        f"Exact draws of the largest number above find {found:.1f} of {covers[0].modes} modes; those of the smallest leave a "
        f"weight error of {error:.3f}."
    )


def _notes(comparison: Comparison) -> list[str]:
    lines = [
        f"`{row.name}` and `{row.shares}` draw with one network, trained once; its bill stands in both rows."
        for row in comparison.rows
        if row.shares
    ]
    lines += [f"`{row.name}`: {note}." for row in comparison.rows if row.report is not None for note in row.report.notes]
    worst = [
        (row.name, row.report.reference_mean)
        for row in comparison.done
        if row.report is not None and row.report.reference_mean is not None
    ]
    if worst:
        found = "; ".join(f"{name}: {mean.name} {mean.bias:+.3f} sd (z {mean.z:+.1f})" for name, mean in worst)
        lines.append(f"Worst means against the target's reference draws, an independent computation: {found}.")
    return lines


def _chain_line(comparison: Comparison) -> str:
    best = {unit: comparison.best_chain(unit) for unit in ("evaluations", "seconds")}
    named = [f"{row.name} (in {unit})" for unit, row in best.items() if row is not None]
    return f"Best chain: {', '.join(named)}." if named else ""


def _table(header: list[str], rows: list[list[str]], style: str = "github") -> str:
    filled = [row + [""] * (len(header) - len(row)) for row in rows]
    return tabulate(filled, header, tablefmt=style, disable_numparse=True, colalign=("left", *["right"] * (len(header) - 1)))


def _worth(report: Report) -> str:
    size = report.equivalent
    if size is None:
        return "0"
    high = "inf" if math.isinf(size.high) else f"{size.high:,.0f}"
    return f"{size} [{size.low:,.0f}, {high}]"


def _distance(distance) -> str:
    return (
        ""
        if distance is None
        else f"{_value(distance.value)} (floor {_value(distance.floor.mean)} ± {_value(distance.floor.sd)})"
    )


def _verdict(report: Report) -> str:
    notes = [f"{report.nonfinite:,} not finite"] * (report.nonfinite > 0) + [f"{report.divergences:,} divergences"] * (
        report.divergences > 0
    )
    return "; ".join([report.verdict, *notes])


def _draws(value: float | None) -> str:
    return "never" if value is None else f"{math.ceil(value):,}"


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 100 else f"{value:,.0f}"
