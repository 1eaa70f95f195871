"""Learned maps with an exact density: autoregressive and spline flows, Glow, and models that write one coordinate at a time."""

import numpy as np

from gensamp.registry.entry import Entry, FitOptions
from gensamp.registry.parts import cell, lattice

__all__ = ["ENTRIES"]


def _build_maf(target, budget):
    from gensamp.pushforward.flows import maf

    return maf(target.template, dequantise=cell(target), **_LAYERS[budget])


def _build_maf_reverse_kl(target, budget):
    from gensamp.pushforward.flows import maf

    return maf(target.template, **_by_reverse_kl(target, budget), **_LAYERS[budget])


def _build_iaf(target, budget):
    from gensamp.pushforward.flows import iaf

    return iaf(target.template, dequantise=cell(target), **_LAYERS[budget])


def _build_iaf_reverse_kl(target, budget):
    from gensamp.pushforward.flows import iaf

    return iaf(target.template, **_by_reverse_kl(target, budget), **_LAYERS[budget])


def _build_spline_coupling(target, budget):
    from gensamp.pushforward.flows import neural_spline

    return neural_spline(target.template, dequantise=cell(target), **_SPLINES[budget])


def _build_spline_coupling_reverse_kl(target, budget):
    from gensamp.pushforward.flows import neural_spline

    return neural_spline(target.template, **_by_reverse_kl(target, budget), **_SPLINES[budget])


def _build_spline_autoregressive(target, budget):
    from gensamp.pushforward.flows import neural_spline

    return neural_spline(target.template, form="autoregressive", dequantise=cell(target), **_SPLINES[budget])


def _build_glow(target, budget):
    from gensamp.pushforward.flows import glow

    return glow(target.template, dequantise=cell(target), **_STEPS[budget])


def _build_made(target, budget):
    from gensamp.pushforward.autoregressive import made

    return made(target.template, **_on_lattice(target), **_NETWORKS[budget])


def _build_pixelcnn(target, budget):
    from gensamp.pushforward.autoregressive import pixelcnn

    return pixelcnn(target.template, **_on_lattice(target), **_CONVOLUTIONS[budget])


def _build_causal_transformer(target, budget):
    from gensamp.pushforward.autoregressive import causal_transformer

    return causal_transformer(target.template, **_on_lattice(target), **_TRANSFORMERS[budget])


def _on_lattice(target):
    """The lattice of data that are evenly spaced values; for uneven ones the least width of a cell, to add noise in."""
    values, width = lattice(target), cell(target)
    if values is None:
        return {}
    steps = (values - values[0]) / width
    if not np.allclose(steps, np.round(steps), atol=1e-3):
        return {"dequantise": width}
    return {"lattice": (float(values[0]), float(values[-1]), round(float(steps[-1])) + 1)}


def _by_reverse_kl(target, budget):
    return {"target": target, "anneal": _TRAINING[budget].num_steps // 2}


_LAYERS = {
    "tiny": {"num_layers": 2, "width": 16, "depth": 1},
    "small": {"num_layers": 4, "width": 64},
    "full": {"num_layers": 8, "width": 256},
}
_SPLINES = {
    "tiny": {"num_layers": 2, "width": 16, "depth": 1, "num_bins": 4},
    "small": {"num_layers": 4, "width": 64},
    "full": {"num_layers": 8, "width": 128, "num_bins": 16},
}
_STEPS = {
    "tiny": {"num_steps": 2, "width": 8},
    "small": {"num_steps": 4, "width": 32},
    "full": {"num_steps": 16, "width": 128},
}
_NETWORKS = {
    "tiny": {"num_components": 2, "width": 16, "depth": 1},
    "small": {"width": 128},
    "full": {"width": 512, "depth": 3},
}
_CONVOLUTIONS = {
    "tiny": {"num_components": 2, "width": 4, "depth": 1},
    "small": {"width": 24, "depth": 2},
    "full": {"num_components": 10, "width": 96, "depth": 6},
}
_TRANSFORMERS = {
    "tiny": {"num_components": 2, "width": 8, "depth": 1, "num_heads": 2},
    "small": {"width": 48, "depth": 2},
    "full": {"width": 192, "depth": 6, "num_heads": 6},
}
_TRAINING = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(3_000, 128),
    "full": FitOptions(20_000, 256, ema=0.999),
}

ENTRIES = (
    Entry(
        "maf", "Masked autoregressive flow", "pushforward", "model", _build_maf, needs=("events",), training=_TRAINING,
    ),
    Entry("maf_reverse_kl", "MAF, reverse KL", "pushforward", "model", _build_maf_reverse_kl, training=_TRAINING),
    Entry(
        "iaf", "Inverse autoregressive flow", "pushforward", "model", _build_iaf, needs=("events",), training=_TRAINING,
    ),
    Entry("iaf_reverse_kl", "IAF, reverse KL", "pushforward", "model", _build_iaf_reverse_kl, training=_TRAINING),
    Entry(
        "spline_coupling", "Neural spline flow, coupling", "pushforward", "model", _build_spline_coupling, needs=("events",),
        training=_TRAINING,
    ),
    Entry(
        "spline_coupling_reverse_kl", "Neural spline flow, reverse KL", "pushforward", "model",
        _build_spline_coupling_reverse_kl, training=_TRAINING,
    ),
    Entry(
        "spline_autoregressive", "Neural spline flow, autoregressive", "pushforward", "model", _build_spline_autoregressive,
        needs=("events",), training=_TRAINING,
    ),
    Entry("glow", "Glow", "pushforward", "model", _build_glow, needs=("events",), training=_TRAINING),
    Entry("made", "MADE", "pushforward", "model", _build_made, needs=("events",), training=_TRAINING),
    Entry("pixelcnn", "PixelCNN++", "pushforward", "model", _build_pixelcnn, needs=("events",), training=_TRAINING),
    Entry(
        "causal_transformer", "Causal transformer", "pushforward", "model", _build_causal_transformer, needs=("events",),
        training=_TRAINING,
    ),
)  # fmt: skip
