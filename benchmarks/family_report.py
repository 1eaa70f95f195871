"""How the families' results are shown: one Markdown table, one picture each."""

import numpy as np


def table(results):
    """Markdown."""
    lines = [
        "| family | parameters | training s | steps | bits/dim | Frechet (floor) | precision | recall | confidence | "
        "class gap | forwards | draws/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def number(row, name, form):
        return format(row[name], form) if name in row else "-"

    for row in [*results["references"].values(), *results["families"].values()]:
        training = row.get("training", {})
        bits = number(row, "bits per dimension", ".2f")
        lines.append(
            f"| {row['title']} | {number(row, 'parameters', ',')} | {number(training, 'seconds', '.0f')} | "
            f"{number(training, 'steps', ',')} | {'<= ' + bits if row.get('is a bound') else bits} | "
            f"{number(row, 'frechet', '.1f')} ({number(row, 'floor', '.1f')}) | {number(row, 'precision', '.2f')} | "
            f"{number(row, 'recall', '.2f')} | {number(row, 'confidence', '.3f')} | {number(row, 'class gap', '.3f')} | "
            f"{number(row, 'forwards per draw', '.0f')} | {number(row, 'draws per second', '.1f')} |"
        )
    return "\n".join(lines)


def picture(images, path, columns=16, lines=10):
    """The first images, tiled."""
    from matplotlib.image import imsave

    shown = np.full((columns * lines, *images.shape[1:]), -1.0)
    shown[: len(images[: columns * lines])] = images[: columns * lines]
    height, across, channels = images.shape[1:]
    tiled = shown.reshape(lines, columns, height, across, channels).transpose(0, 2, 1, 3, 4)
    tiled = tiled.reshape(lines * height, columns * across, channels)
    imsave(path, np.clip((np.repeat(tiled, 3, axis=-1) if channels == 1 else tiled) / 2 + 0.5, 0, 1))
