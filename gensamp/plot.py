"""Pictures of a Comparison: draws beside truth, error against cost, samples of image models, and a finite sampler painting.

Functions return a matplotlib Figure of their own (nothing global is touched); `save_comparison` writes all that fit a
target. Colours are Okabe and Ito's, which colour-blind readers can tell apart; a sampler also keeps one marker.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gensamp.core import Sampler, begin
from gensamp.evaluate.comparison import Comparison, Row
from gensamp.evaluate.cost import Unit

__all__ = ["animate", "draws_beside_truth", "error_curves", "image_grid", "is_image", "save_comparison", "trajectory"]

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C6D31",
    "#7F7F7F",
    "#882255",
    "#332288",
)
_MARKERS = "osD^vPX*<>p"
_TRUTH = "#5B5B5B"
_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}


def draws_beside_truth(comparison: Comparison, pair: tuple[int, int] = (0, 1)) -> Figure:
    """A panel of exact draws and one for each row: two coordinates, the same axes for all, as many points for all.

    Args:
        comparison: of a target with vector events.
        pair: which two coordinates; a target with one coordinate gets histograms.
    """
    judge, rows = comparison.judge, comparison.done
    truth = judge.pool * judge.scale[None, :] + judge.centre[None, :]
    drawn = [row.coordinates[np.isfinite(row.coordinates).all(1)] for row in rows if row.coordinates is not None]
    shown = min(1_500, len(truth), *(len(x) for x in drawn))
    panels = [("exact draws", truth, None), *((row.name, x, row) for row, x in zip(rows, drawn, strict=True))]
    across = min(4, len(panels))
    figure, axes = _grid(len(panels), across, width=2.7, height=2.6)
    one = truth.shape[1] == 1
    chosen: tuple[int, ...] = (0,) if one else pair
    limits = [_limits(truth[:, c]) for c in chosen]
    for axis, (name, x, row) in zip(axes, panels, strict=False):
        part = x[np.linspace(0, len(x) - 1, shown).round().astype(int)]
        colour = _TRUTH if row is None else _style(comparison, row)[0]
        if one:
            axis.hist(truth[:, 0], np.linspace(*limits[0], 50), density=True, color="#CCCCCC")
            axis.hist(part[:, 0], np.linspace(*limits[0], 50), density=True, histtype="step", color=colour, lw=1.5)
        else:
            axis.scatter(part[:, chosen[0]], part[:, chosen[-1]], s=5, alpha=0.45, color=colour, linewidths=0, rasterized=True)
            axis.set_ylim(*limits[-1])
        axis.set_xlim(*limits[0])
        away = np.mean(
            [any(not low <= value <= high for value, (low, high) in zip(p[list(chosen)], limits, strict=True)) for p in part]
        )
        note = "" if away < 0.005 else f"{away:.0%} outside"
        axis.text(0.97, 0.96, note, transform=axis.transAxes, ha="right", va="top", fontsize=8, color="#B00000", bbox=_PAPER)
        axis.set_title(name, fontsize=10, color=colour, fontweight="bold")
    for i, axis in enumerate(axes[: len(panels)]):
        axis.tick_params(labelsize=7)
        if i + across >= len(panels):
            axis.set_xlabel(judge.names[chosen[0]], fontsize=9)
        if i % across == 0:
            axis.set_ylabel("density" if one else judge.names[chosen[-1]], fontsize=9)
    figure.suptitle(f"{comparison.target.name}: {shown:,} draws of each", fontsize=12)
    return figure


def error_curves(comparison: Comparison, unit: Unit = "evaluations") -> Figure:
    """Error of the first n draws against what they cost, bill included, on logarithmic axes; on the right in exact draws.

    Hollow points cannot be told from exact draws with this reference: they stand at the resolution, twice the standard error.
    """
    figure, (axis,) = _grid(1, 1, width=8.2, height=4.4)
    spread = comparison.judge.yard.spread
    for row in comparison.done:
        if not row.curve:
            continue
        colour, marker = _style(comparison, row)
        cost = np.array([getattr(point, unit) for point in row.curve])
        resolution = np.array([2.0 * point.standard_error for point in row.curve])
        error = np.array([point.error for point in row.curve])
        clear = error > resolution
        height = np.where(clear, error, np.maximum(resolution, 1e-12))
        label = row.name if cost[-1] > 0 else f"{row.name}: free"
        axis.plot(cost, height, color=colour, lw=1.4, marker=marker, ms=5, mfc="none", mew=1.2, label=label)
        axis.plot(cost[clear], height[clear], color=colour, ls="none", marker=marker, ms=5)
    axis.set_yscale("log")
    if any(row.curve and getattr(row.curve[0], unit) > 0 for row in comparison.done):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=_subs(*axis.get_xlim())))
        axis.xaxis.set_major_formatter(FuncFormatter(_short))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(
        "evaluations (training and tuning included)" if unit == "evaluations"
        else "seconds (training, tuning and compilation included)"
    )  # fmt: skip
    axis.set_ylabel("squared energy distance to the truth")
    axis.grid(True, which="major", color="#DDDDDD", lw=0.6)
    axis.set_axisbelow(True)
    right = axis.secondary_yaxis("right", functions=(partial(_inverse, spread), partial(_inverse, spread)))
    right.set_ylabel("equivalent number of exact draws")
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside right upper",
        fontsize=9,
        frameon=False,
        title="hollow: as good\nas exact, here",
        title_fontsize=8,
    )
    axis.set_title(f"{comparison.target.name}: error against {unit}", fontsize=11)
    return figure


def image_grid(comparison: Comparison, columns: int = 12, lines: int = 2) -> Figure:
    """Draws of each row beside held-out or exact images: for targets whose one leaf is an image [height, width, channels]."""
    judge, shape = comparison.judge, jax.tree.leaves(comparison.target.template)[0].shape
    truth = judge.reference * judge.scale[None, :] + judge.centre[None, :]
    panels = [(judge.source, truth, None)] + [
        (row.name, row.coordinates, row) for row in comparison.done if row.coordinates is not None
    ]
    figure, axes = _grid(len(panels), 1, width=0.5 * columns, height=0.5 * lines + 0.3)
    low, high = np.quantile(truth, [0.005, 0.995])
    for axis, (name, x, row) in zip(axes, panels, strict=False):
        axis.imshow(_tiles(x[: columns * lines].reshape(-1, *shape), columns, low, high), cmap="gray_r", vmin=low, vmax=high)
        colour = _TRUTH if row is None else _style(comparison, row)[0]
        axis.set_title(name, loc="left", fontsize=9, color=colour, fontweight="bold", pad=2)
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set_visible(False)
    figure.suptitle(f"{comparison.target.name}: draws of each sampler", fontsize=12)
    return figure


def trajectory(key: jax.Array, sampler: Sampler, num_draws: int, num_frames: int) -> Any:
    """States of a finite sampler on its way: positions [frame, draw, ...event], from start to draw, evenly spaced.

    Raises:
        ValueError: the sampler has no end, or fewer steps than two frames need.
    """
    if sampler.num_steps is None or num_frames < 2:
        raise ValueError(
            f"trajectory got num_steps {sampler.num_steps} and {num_frames} frames; expected a finite sampler and 2 frames"
        )
    stops = np.unique(np.linspace(0, sampler.num_steps, num_frames).round().astype(np.int32))
    keys = jax.random.split(key, num_draws)
    return jax.tree.map(np.asarray, _trajectory(keys, sampler, jnp.asarray(stops)))


@jax.jit
def _trajectory(keys, sampler, stops):
    def advance(state, bounds):
        def step(i, state):
            return jax.vmap(lambda k, s: sampler.step(jax.random.fold_in(k, i + 1), s, i)[0])(keys, state)

        state = jax.lax.fori_loop(bounds[0], bounds[1], step, state)
        return state, jax.vmap(sampler.position)(state)

    state = jax.vmap(begin, in_axes=(0, None))(keys, sampler)
    first = jax.vmap(sampler.position)(state)
    _, rest = jax.lax.scan(advance, state, jnp.stack([stops[:-1], stops[1:]], axis=1))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def animate(
    frames: dict[str, np.ndarray], path: str | Path, *, limits: tuple[float, float] = (-1.0, 1.0), seconds: float = 4.0
) -> None:
    """Write an animated GIF: for each name images [frame, draw, height, width, channels], side by side, the last frame held.

    Args:
        frames: by title; a sampler with fewer frames waits at its last.
        limits: values shown white and black.
        seconds: of the motion; the result then stands for two more.
    """
    from PIL import Image

    count = max(len(images) for images in frames.values())
    figure, axes = _grid(len(frames), len(frames), width=2.6, height=2.75)
    canvas = FigureCanvasAgg(figure)
    artists = []
    for axis, (name, images) in zip(axes, frames.items(), strict=False):
        columns = math.ceil(math.sqrt(images.shape[1]))
        artists.append(
            (axis.imshow(_tiles(images[0], columns, *limits), cmap="gray_r", vmin=limits[0], vmax=limits[1]), images, columns)
        )
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=10)
    pages = []
    for i in range(count):
        for artist, images, columns in artists:
            artist.set_data(_tiles(images[min(i, len(images) - 1)], columns, *limits))
        figure.suptitle(f"step {i / max(count - 1, 1):.0%}", fontsize=9, x=0.5)
        canvas.draw()
        pages.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(64))
    each = max(20, round(1000 * seconds / count))
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=[each] * (count - 1) + [2_000], loop=0, optimize=False)


def save_comparison(comparison: Comparison, out: Path, key: jax.Array) -> dict[str, str]:
    """Write the pictures that fit the target into `out`; returns captions and file names."""
    if not comparison.done:
        return {}
    name = comparison.target.name
    stem = "".join(c if c.isalnum() else "_" for c in name)
    figures = {
        f"Error against {unit}": (f"{stem}_error_{unit}.png", error_curves(comparison, unit))
        for unit in ("evaluations", "seconds")
    }
    if is_image(comparison):
        figures = {"Draws of each sampler": (f"{stem}_samples.png", image_grid(comparison)), **figures}
    else:
        figures = {"Draws beside truth": (f"{stem}_draws.png", draws_beside_truth(comparison)), **figures}
    files = {}
    for caption, (file, figure) in figures.items():
        figure.savefig(out / file, dpi=130)
        files[caption] = file
    painters = {row.name: row.sampler for row in comparison.done if row.sampler is not None and _paints(row.sampler)}
    if is_image(comparison) and painters:
        frames = {
            f"{title} ({sampler.num_steps} steps)": trajectory(key, sampler, 16, 48) for title, sampler in painters.items()
        }
        frames = {title: jax.tree.leaves(images)[0] for title, images in frames.items()}
        file = f"{stem}_painting.gif"
        animate(
            frames, out / file, limits=tuple(np.quantile(jax.tree.leaves(next(iter(frames.values()))[-1])[0], [0.005, 0.995]))
        )
        files["From noise to image, step by step"] = file
    return files


def is_image(comparison: Comparison) -> bool:
    """Whether events of the target are single images [height, width, channels]."""
    leaves = jax.tree.leaves(comparison.target.template)
    return len(leaves) == 1 and len(leaves[0].shape) == 3 and leaves[0].shape[2] in (1, 3)


def _paints(sampler: Sampler) -> bool:
    return sampler.num_steps is not None and sampler.num_steps >= 8


def _grid(panels: int, across: int, *, width: float, height: float):
    down = math.ceil(panels / across)
    figure = Figure(figsize=(width * across, height * down + 0.4), layout="constrained")
    axes = np.ravel(figure.subplots(down, across, squeeze=False))
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, list(axes)


def _style(comparison: Comparison, row: Row) -> tuple[str, str]:
    index = [r.name for r in comparison.rows].index(row.name)
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]


def _limits(x: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(x, [0.001, 0.999])
    margin, edge = 0.15 * (high - low) or 1.0, 0.04 * (high - low) or 1.0
    return float(max(low - margin, x.min() - edge)), float(min(high + margin, x.max() + edge))


def _tiles(images: np.ndarray, columns: int, low: float, high: float) -> np.ndarray:
    """Images [n, height, width, channels] as one sheet with light borders between them."""
    n, height, width, channels = images.shape
    lines = math.ceil(n / columns)
    sheet = np.full((lines, columns, height + 1, width + 1, channels), low + 0.08 * (high - low))
    sheet.reshape(-1, height + 1, width + 1, channels)[:n, :height, :width] = np.clip(images, low, high)
    sheet = sheet.transpose(0, 2, 1, 3, 4).reshape(lines * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return sheet[..., 0] if channels == 1 else (sheet - low) / (high - low)


def _subs(low: float, high: float) -> tuple[float, ...]:
    """More ticks per decade the fewer decades there are, so that labels neither collide nor run out."""
    decades = math.log10(high / low)
    return (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)


def _short(value: float, _position: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _inverse(spread, error):
    with np.errstate(divide="ignore"):
        return spread / np.maximum(error, 1e-300)
