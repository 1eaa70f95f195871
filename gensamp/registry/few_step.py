"""Models of few steps, and those that choose their noise levels: learned, or as the first score networks had them."""

from functools import partial

from gensamp.registry.entry import Entry, FitOptions
from gensamp.registry.parts import DENOISING, cell, denoiser

__all__ = ["ENTRIES"]

# Halvings of the teacher, each with a stage of its own after the one that trains it.
_HALVINGS = {"tiny": 2, "small": 4, "full": 5}


def _build_consistency(target, budget):
    from gensamp import noise
    from gensamp.pushforward.diffusion.consistency import consistency

    levels = {"tiny": (4, 8), "small": (10, 160), "full": (10, 1280)}[budget]
    return consistency(
        denoiser(target, budget), noise.cosine(), template=target.template, levels=levels, num_steps=2,
        train_steps=_CONSISTENCY[budget].num_steps,
    )  # fmt: skip


def _build_progressive(target, budget):
    from gensamp import noise
    from gensamp.pushforward.diffusion.progressive import progressive

    num_steps, stages = (2, _HALVINGS[budget] + 1)
    return progressive(
        denoiser(target, budget), noise.cosine(), template=target.template, num_steps=num_steps,
        teacher_steps=num_steps << _HALVINGS[budget], stage_steps=_PROGRESSIVE[budget].num_steps // stages,
    )  # fmt: skip


def _build_variational_diffusion(target, budget):
    from gensamp.pushforward import ancestral
    from gensamp.pushforward.learned_noise import variational_diffusion

    steps = {"tiny": 8, "small": 100, "full": 1000}[budget]
    return variational_diffusion(
        denoiser(target, budget), template=target.template, solver=ancestral, num_steps=steps, dequantise=cell(target)
    )


def _build_ncsn(target, budget):
    from gensamp.hybrid.ncsn import Levels, ncsn
    from gensamp.nets import mlp

    chosen, options = {
        "tiny": (Levels(5.0, 0.1, 4), {"steps_per_level": 2}),
        "small": (Levels(10.0, 0.01, 40), {}),
        "full": (Levels(50.0, 0.01, 200), {}),
    }[budget]
    width = {"tiny": 16, "small": 128, "full": 256}[budget]
    network = mlp(target.template, width=width, depth=1 if budget == "tiny" else 3, num_classes=chosen.num_levels)
    return ncsn(target.template, chosen, network=network, **options)


def _steady(rate):
    import optax

    # No schedule over the whole: the last stage, which halves for the last time, needs its rate as much as the first.
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


_CONSISTENCY = {
    "tiny": FitOptions(20, 32),
    "small": FitOptions(6_000, 128, ema=0.995),
    "full": FitOptions(60_000, 256, ema=0.9999),
}
_PROGRESSIVE = {
    "tiny": FitOptions(21, 32, optimizer=partial(_steady, 1e-3)),
    "small": FitOptions(7_500, 128, ema=0.99, optimizer=partial(_steady, 5e-4)),
    "full": FitOptions(60_000, 256, ema=0.999, optimizer=partial(_steady, 3e-4)),
}
ENTRIES = (
    Entry(
        "consistency", "Consistency model", "pushforward", "model", _build_consistency, needs=("events",),
        training=_CONSISTENCY,
    ),
    Entry(
        "progressive", "Progressive distillation", "pushforward", "model", _build_progressive, needs=("events",),
        training=_PROGRESSIVE,
    ),
    Entry(
        "variational_diffusion", "Diffusion, learned noise schedule", "pushforward", "model", _build_variational_diffusion,
        needs=("events",), training=DENOISING,
    ),
    Entry(
        "ncsn", "Noise-conditional score network", "hybrid", "model", _build_ncsn, needs=("events",), training=DENOISING,
    ),
)  # fmt: skip
