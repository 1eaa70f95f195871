"""The command line: `gensamp compare TARGET...` and `gensamp list`.

gensamp compare gmm40 eight_schools digits --with nuts,ddpm --budget small --out results
gensamp list
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


_EXPLAINED = """
n_eq: how many independent exact draws would leave the same error. energy / floor: energy distance to exact draws, in
multiples of what as many exact draws have. as exact draws: whether energy distance and sliced Wasserstein can tell the
difference. evaluations: gradients, densities and passes through a network; once: training, tuning and compiling.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if a sampler failed, 2 for a command that makes no sense, 130
    after Ctrl-C, with a report of the rows that were finished."""
    options = _parser().parse_args(arguments)
    if options.command == "list":
        return _list()
    try:
        targets, names = _checked(options)
        _writable(Path(options.out))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"gensamp: {error}\n")
        return 2
    return _compare(options, targets, names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gensamp", description="Every way to draw a sample, on one scale.")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="run samplers on targets and judge them alike")
    compare.add_argument("targets", nargs="+", metavar="TARGET", help="names as `gensamp list` shows them")
    compare.add_argument(
        "--with", dest="samplers", metavar="NAMES",
        help="samplers, separated by commas, or all; by default the families' best known that apply",
    )  # fmt: skip
    compare.add_argument(
        "--budget", choices=["tiny", "small", "full"], default="small", help="how much to spend (small by default)"
    )
    compare.add_argument("--out", default="comparison", help="folder for the report, the JSON and the pictures (./comparison)")
    compare.add_argument("--seed", type=_seed, default=0, help="of the one key everything derives from")
    commands.add_parser("list", help="targets and samplers by name")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or not (seed := int(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is no seed; expected an integer from 0 to 4294967295")
    return seed


def _checked(options) -> tuple[list, list[str] | None]:
    """The targets and the samplers asked for (None: all that apply); ValueError for a name or a pair that cannot be."""
    from gensamp import registry, targets

    named = [targets.make(name) for name in dict.fromkeys(options.targets)]
    if options.samplers is None:
        return named, None
    entries = registry.choose([name.strip() for name in options.samplers.split(",") if name.strip()])
    for target in named:
        if not any(entry.applicable(target) for entry in entries):
            raise ValueError(
                f"no sampler of --with can run: {'; '.join(entry.reason(target) for entry in entries) or 'it is empty'}"
            )
    return named, [entry.name for entry in entries]


def _writable(folder: Path) -> None:
    """Make the folder of the report now: minutes of work must not end in one that cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"--out {folder} cannot be written; choose another folder")


def _list() -> int:
    from tabulate import tabulate

    from gensamp import registry, targets

    rows = [[name, _what(targets.make(name))] for name in targets.names()]
    rows += [[name, "data (images, from GENSAMP_DATA or downloaded)"] for name in targets.data_sets()]
    sys.stdout.write(tabulate(rows, ["target", "known by"]) + "\n\n")
    # Not made, as the others are: their files may have to be downloaded.
    posteriors = [
        [name, "log_density, reference draws (from GENSAMP_DATA or downloaded)"] for name in targets.posteriordb_names()
    ]
    sys.stdout.write(tabulate(posteriors, ["posterior of posteriordb", "known by"]) + "\n\n")
    samplers = [
        [entry.name, entry.half, entry.title, ", ".join(entry.needs), "yes" if entry.default else ""]
        for entry in registry.entries()
    ]
    sys.stdout.write(tabulate(samplers, ["sampler", "half", "what it is", "needs", "compared by default"]) + "\n")
    return 0


def _what(target) -> str:
    known = [field for field in ("log_density", "exact", "data") if getattr(target, field) is not None]
    reference = target.truth is not None and target.truth.reference is not None
    return ", ".join(known + ["reference draws"] * reference)


def _compare(options, targets: list, names: list[str] | None) -> int:
    import jax

    from gensamp.evaluate.compare import compare
    from gensamp.evaluate.write import summary_table, write

    key = jax.random.key(options.seed)
    done, failed, interrupted, paths = [], False, False, []
    try:
        for target in targets:
            comparison = compare(key, target, names, options.budget)
            done.append(comparison)
            failed |= any(row.failure for row in comparison.rows)
            interrupted = bool(comparison.unfinished)
            many = "1 sampler" if len(comparison.rows) == 1 else f"{len(comparison.rows)} samplers"
            failures = "".join(f"{row.name} failed: {row.failure}\n" for row in comparison.rows if row.failure)
            if names is not None:
                failures += "".join(f"{name} left out: {reason}\n" for name, reason in comparison.skipped.items())
            heading = f"{target.name}: {many}, {comparison.seconds:.0f} seconds"
            sys.stdout.write(f"\n{heading}\n\n{summary_table(comparison)}\n{failures}")
            sys.stdout.flush()
            if interrupted:
                break
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # What stopped the last target must not cost the report of the others.
        if done:
            paths = write(done, options.out)
    if interrupted:
        sys.stderr.write(f"gensamp: interrupted; {'the report holds what was finished' if done else 'nothing was finished'}\n")
    if paths:
        sys.stdout.write(_EXPLAINED)
        sys.stdout.write(f"\nReport: {paths[0]} (numbers in {paths[1].name}, {len(paths) - 2} pictures)\n")
    return 130 if interrupted else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
