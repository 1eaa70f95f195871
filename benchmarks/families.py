"""Every learned family on the same images, with as many parameters and as many seconds of training.

    python -m benchmarks.families --data mnist --budget tiny|cpu|gpu [--family NAME ...] [--seconds N] [--draws N] [--out FILE]

Each family is given the width at which it has about as many parameters as the diffusion's network, and trained for the same
time: processor seconds on a CPU, which a busy machine does not change, and seconds by the clock elsewhere; compilation is not
counted. Steps are as many as fit, by the speed of the first ones. Then it draws, and `evaluate.images` judges the draws by a
classifier that is trained on images of its own, of which no family sees one: Frechet distance beside the floor of real images
in the same number, precision, recall, confidence, class balance. Bits per dimension are of the 256 grey levels: of held-out
images under an exact likelihood, or an upper bound (ELBO) where only that is known. Real images, and real images blurred with
a standard deviation of one pixel, stand in the table to compare with.

Families that share a training (the samplers of one diffusion) are trained once. Results are gathered in --out, so that families
can be run one at a time; a picture of each one's draws lies beside it, and a Markdown table.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gensamp as gs
from benchmarks.family_report import picture, table
from gensamp import nets, noise
from gensamp.core import Network, bind
from gensamp.evaluate.images import ImageJudge
from gensamp.nets.critic import critic, generator
from gensamp.pushforward import diffusion_elbo, gan, gan_optimizer, hierarchical_vae, ladder, uniform_log_snr
from gensamp.pushforward.lattice import Lattice, bits_per_dimension, in_bits
from gensamp.pushforward.likelihoods import discretised_logistic
from gensamp.runner import sample
from gensamp.targets.images import images_labelled
from gensamp.training import fit

LEVELS = (-1.0, 1.0, 256)
CELL = 2 / 255
BATCH = 64
JUDGE_EVENTS = 20_000
FLOOR_EVENTS = 8_000
# seconds of training, steps of the judge, draws, held-out images that bits are measured on, width of the denoiser.
BUDGETS = {"tiny": (2.0, 20, 64, 32, 8), "cpu": (1800.0, 3_000, 2_000, 500, 40), "gpu": (600.0, 6_000, 2_000, 2_000, 128)}


@dataclasses.dataclass(frozen=True)
class Family:
    """One row: `build(template, width) -> Model`, how wide it may be, and what is known of its likelihood.

    widths: tried, for the one with the wanted number of parameters; None: the denoiser's own. bits: (model, params, template,
    key, held-out images, width) -> (bits per dimension, standard error), or None. bound: whether they are an upper bound.
    trained_as: the family whose training it shares. most: draws at most, for those that draw slowly.
    """

    title: str
    build: Callable[[Any, int], gs.Model]
    widths: tuple[int, ...] | None = None
    bits: Callable | None = None
    bound: bool = False
    trained_as: str | None = None
    optimizer: Callable[[], Any] | None = None
    most: int = 2_000


def denoiser(template, width):
    """A U-Net that sees 2 x 2 pixels as one with four channels: half the side, where most of the time goes."""
    height, across, channels = template.shape
    halves = jax.ShapeDtypeStruct((height // 2, across // 2, 4 * channels), template.dtype)
    inner = nets.unet(halves, width=width, multipliers=(1, 2), attention=(1,), convolution="xla")
    return Network(inner.init, bind(_through_blocks, inner.apply))


def _through_blocks(apply, params, x, t):
    height, across, channels = x.shape
    blocks = x.reshape(height // 2, 2, across // 2, 2, channels).transpose(0, 2, 1, 3, 4)
    out = apply(params, blocks.reshape(height // 2, across // 2, 4 * channels), t)
    return out.reshape(blocks.shape).transpose(0, 2, 1, 3, 4).reshape(x.shape)


def _ddpm(template, width):
    return gs.pushforward.ddpm(denoiser(template, width), noise.cosine(), template=template, num_steps=50, clip=(-1, 1))


def _ddim(template, width):
    return gs.pushforward.ddim(denoiser(template, width), noise.cosine(), template=template, num_steps=50, clip=(-1, 1))


def _unipc(template, width):
    network, process = denoiser(template, width), noise.cosine()
    return gs.pushforward.diffusion_model(network, process, template=template, num_steps=20, clip=(-1, 1), order=2)


def _score_langevin(template, width):
    return gs.hybrid.score_langevin(denoiser(template, width), noise.cosine(), template=template)


def _flow_matching(template, width):
    return gs.pushforward.flow_matching(denoiser(template, width), template=template, num_steps=25, clip=(-1, 1))


def _gan(template, width):
    sizes = {"width": width, "multipliers": (1, 2)}
    return gan(template, latent_dim=32, generator=generator(template, 32, **sizes), critic=critic(template, **sizes))


def _vae(template, width):
    return gs.pushforward.vae(template, latent_dim=16, width=width, likelihood=_levels(template))


def _hierarchical_vae(template, width):
    return hierarchical_vae(ladder(template, num_groups=6, latent_dim=8, width=width, likelihood=_levels(template)))


def _levels(template):
    return discretised_logistic(template, Lattice(*LEVELS))


def _flow(name, **options):
    def build(template, width):
        return getattr(gs.pushforward, name)(template, width=width, dequantise=CELL, **options)

    return build


def _autoregressive(name, **options):
    def build(template, width):
        return getattr(gs.pushforward, name)(template, width=width, lattice=LEVELS, **options)

    return build


def _density_bits(model, params, template, key, images, width):
    del template, width
    return bits_per_dimension(key, model.sampler(params).log_density, images, cell=CELL)


def _mass_bits(model, params, template, key, images, width):
    del template, width
    return bits_per_dimension(key, model.sampler(params).log_density, images)


def _elbo_bits(model, params, template, key, images, width):
    """Of a VAE over grey levels: means of its own metric over blocks of images."""
    del width
    blocks = np.array_split(np.asarray(images), max(len(images) // BATCH, 2))
    blocks = [b for b in blocks if len(b) == len(blocks[-1])]
    elbo = jax.jit(lambda key, batch: model.loss(params, (), key, batch)[1][1]["elbo"])
    nats = [float(elbo(jax.random.fold_in(key, i), jnp.asarray(b))) for i, b in enumerate(blocks)]
    bits = np.asarray(in_bits(-np.asarray(nats), template.shape[0] * template.shape[1] * template.shape[2]))
    return float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits)))


def _diffusion_bits(model, params, template, key, images, width, process=None, prediction="v"):
    """Of a diffusion: its discrete-time bound on 200 levels, the images with noise within their cells."""
    del model
    network, process = denoiser(template, width), noise.cosine() if process is None else process
    grid = uniform_log_snr(process, 200, start=0.999, end=1e-3)

    def bound(given):
        key, x = given
        key_cell, key_noise = jax.random.split(key)
        x = x + CELL * jax.random.uniform(key_cell, x.shape, x.dtype, minval=-0.5, maxval=0.5)
        return diffusion_elbo(network, process, grid, params, key_noise, x, prediction=prediction)["elbo"]

    images = jnp.asarray(images[:128])
    nats = jax.jit(lambda keys, images: jax.lax.map(bound, (keys, images), batch_size=32))(
        jax.random.split(key, len(images)), images
    )
    bits = np.asarray(in_bits(-nats, images[0].size, CELL))
    return float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits)))


_WIDE = (4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
FAMILIES = {
    "ddpm": Family("Diffusion, ancestral, 50 steps", _ddpm, bits=_diffusion_bits, bound=True),
    "ddim": Family("Diffusion, DDIM, 50 steps", _ddim, bits=_diffusion_bits, bound=True, trained_as="ddpm"),
    "unipc": Family("Diffusion, UniPC-2, 20 steps", _unipc, bits=_diffusion_bits, bound=True, trained_as="ddpm"),
    "score_langevin": Family("Annealed Langevin, learned scores", _score_langevin, trained_as="ddpm", most=500),
    "flow_matching": Family("Flow matching, Heun, 25 steps", _flow_matching),
    "vae": Family("VAE, logistic likelihood", _vae, _WIDE, _elbo_bits, bound=True),
    "hierarchical_vae": Family("Hierarchical VAE, 6 groups", _hierarchical_vae, _WIDE, _elbo_bits, bound=True),
    "gan": Family("GAN, non-saturating, R1", _gan, _WIDE, optimizer=gan_optimizer),
    "realnvp": Family("RealNVP", _flow("realnvp", num_layers=6), _WIDE, _density_bits),
    "glow": Family("Glow", _flow("glow", num_steps=8), _WIDE, _density_bits),
    "neural_spline": Family("Neural spline flow", _flow("neural_spline", num_layers=4, num_bins=4), _WIDE, _density_bits),
    "maf": Family("Masked autoregressive flow", _flow("maf"), _WIDE, _density_bits, most=500),
    "made": Family("MADE, logistic mixtures", _autoregressive("made", num_components=3), _WIDE, _mass_bits),
    "pixelcnn": Family("PixelCNN", _autoregressive("pixelcnn"), _WIDE, _mass_bits, most=500),
    "transformer": Family("Causal transformer", _autoregressive("causal_transformer"), _WIDE, _mass_bits, most=100),
}  # fmt: skip


def num_parameters(model, batch):
    """How many numbers are learned, frames included."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0), batch)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def matched_width(family, template, wanted, own):
    """The width whose model has nearest to the wanted number of parameters, by their ratio; widths grow monotonely."""
    if family.widths is None:
        return own
    batch = jax.ShapeDtypeStruct((2, *template.shape), template.dtype)
    low, high = 0, len(family.widths) - 1
    sizes = {}

    def size(i):
        if i not in sizes:
            sizes[i] = num_parameters(family.build(template, family.widths[i]), batch)
        return sizes[i]

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return family.widths[min((low, high), key=lambda i: abs(np.log(size(i) / wanted)))]


def split(name):
    """(judge's images and labels, images to learn from, held-out images and labels), NumPy, in a fixed random order.

    The order matters: MNIST's files go from writer to writer.
    """
    images, labels = (np.asarray(a) for a in images_labelled(name))
    order = np.random.default_rng(0).permutation(len(images))
    judging = min(JUDGE_EVENTS, len(images) // 3)
    held_out = tuple(np.asarray(a) for a in images_labelled(name, "held_out"))
    return (images[order[:judging]], labels[order[:judging]]), images[order[judging:]], held_out


def trained(key, model, images, seconds, *, clock, optimizer=None, store=None):
    """(Fitted, what it took): as many steps as fit in the seconds, by the speed of some first ones."""

    def timed(num_steps, **more):
        began = clock()
        options = {"optimizer": optimizer, "batch_size": min(BATCH, len(images)), "progress": False} | more
        fitted = fit(key, model, images, num_steps=num_steps, **options)
        return fitted, clock() - began

    # Taken up again, a fit must be as long as it was to be.
    plan = None if store is None else Path(store).with_suffix(".json")
    again = False
    if plan is not None and plan.exists():
        again = True
        num_steps = json.loads(plan.read_text())
    else:
        # The average's decay is an argument of the program, so the first fit compiles for all others; the second shows what a
        # fit takes besides its steps.
        timed(1, ema=0.9)
        (_, fixed), probe, took = timed(1, ema=0.9), 1, 0.0
        while took - fixed < 0.02 * seconds and probe < 4096:
            probe *= 4
            _, took = timed(probe, ema=0.9)
        num_steps = max(int((seconds - fixed) * (probe - 1) / max(took - fixed, 1e-9)), 1)
        if plan is not None:
            plan.parent.mkdir(parents=True, exist_ok=True)
            plan.write_text(json.dumps(num_steps))
    decay = float(np.clip(1 - 20 / num_steps, 0.9, 0.9995))
    fitted, took = timed(num_steps, ema=decay, store=store, resume=store is not None)
    steps = len(fitted.history["loss"])
    return fitted, {
        "steps": steps,
        "seconds": took,
        "ending": fitted.ending,
        "seconds are of the last part only": again,
        "loss": float(fitted.history["loss"][-50:].mean()),
    }


def run(name, key, split_, judge, options):
    """Train, draw, judge one family; the row, and the draws."""
    family, (seconds, _, draws, held_out_events, own) = FAMILIES[name], options["budget"]
    _, images, (held_out, _) = split_
    template = jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)
    wanted = num_parameters(_ddpm(template, own), jax.ShapeDtypeStruct((2, *template.shape), template.dtype))
    width = matched_width(family, template, wanted, own)
    model = family.build(template, width)
    shared = family.trained_as or name
    if shared not in options["fits"]:
        optimizer = None if family.optimizer is None else family.optimizer()
        store = None if options["store"] is None else Path(options["store"]) / shared
        options["fits"][shared] = trained(
            jax.random.fold_in(key, 0), model, images, seconds, clock=options["clock"], optimizer=optimizer, store=store
        )
    fitted, training = options["fits"][shared]
    sampler = model.sampler(fitted.ema)
    row = {"title": family.title, "width": width, "parameters": num_parameters(model, images[:2]), "training": training}
    row["training"] = training | {"shared with": family.trained_as} if family.trained_as else training
    number = min(draws, family.most)
    began = options["clock"]()
    made = sample(jax.random.fold_in(key, 1), sampler, number, progress=False)
    bill, spent = made.ledger.sample, options["clock"]() - began
    position = np.asarray(made.position)[0]
    finite = position[np.isfinite(position).all((1, 2, 3))]
    row |= {
        "draws": number, "not finite": number - len(finite), "forwards per draw": float(np.mean(made.info.forwards)),
        "draws per second": number / max(bill.wall_seconds - bill.compile_seconds, 1e-9),
        "draws per second of the budget's clock, compilation included": number / spent,
    }  # fmt: skip
    # Values beyond the lattice's ends cannot be grey levels: everybody's draws are judged as the picture shows them.
    finite = np.clip(finite, *LEVELS[:2])
    row |= judged(judge, finite) if len(finite) >= 64 else {}
    if family.bits is not None:
        bits, error = family.bits(
            model, fitted.ema, template, jax.random.fold_in(key, 2), jnp.asarray(held_out[:held_out_events]), width
        )
        row |= {"bits per dimension": bits, "standard error": error, "is a bound": family.bound}
    return row, finite


def judged(judge, images):
    """What the judge says, as numbers for JSON."""
    report = judge.report(images)
    return {
        "frechet": report.frechet.value, "floor": report.frechet.floor.mean, "floor sd": report.frechet.floor.sd,
        "precision": report.precision, "recall": report.recall, "real precision": report.real_precision,
        "real recall": report.real_recall, "confidence": report.confidence, "real confidence": report.real_confidence,
        "class gap": report.class_gap, "classes": report.classes.tolist(),
    }  # fmt: skip


def references(judge, images, number):
    """Real images and blurred ones, as rows."""
    from scipy.ndimage import gaussian_filter

    real = images[-number:]
    rows = {"real": ("Real images", real), "blurred": ("Real images, blurred", gaussian_filter(real, (0, 1, 1, 0)))}
    return {name: {"title": title, "draws": number} | judged(judge, x) for name, (title, x) in rows.items()}


def main():
    parser = argparse.ArgumentParser(description="All learned families on the same images.")
    parser.add_argument("--data", default="mnist", choices=["mnist", "cifar10", "olivetti"])
    parser.add_argument("--budget", default="tiny", choices=list(BUDGETS))
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--seconds", type=float, help="of training, instead of the budget's")
    parser.add_argument("--draws", type=int, help="instead of the budget's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="folder for checkpoints, to go on with a run that was cut off")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    seconds, judge_steps, draws, held_out_events, own = BUDGETS[given.budget]
    budget = (given.seconds or seconds, judge_steps, given.draws or draws, held_out_events, own)
    out = given.out or Path(f"{given.data}_{given.budget}.json")
    results = json.loads(out.read_text()) if out.exists() else {"families": {}}

    on_cpu = jax.default_backend() == "cpu"
    parts = split(given.data)
    pool = parts[1][:FLOOR_EVENTS]
    store = None if given.store is None else given.store / "judge"
    judge = ImageJudge.of(jax.random.key(given.seed), *parts[0], parts[2], pool, num_steps=judge_steps, store=store)
    print(f"judge: {judge.accuracy:.4f} right of {len(judge.reference)} held-out images", flush=True)
    results["judge"] = {"accuracy": judge.accuracy, "trained on": len(parts[0][0]), "steps": judge_steps}
    results["references"] = references(judge, parts[1], min(budget[2], len(pool) // 2))
    results["about"] = {
        "data": given.data, "budget": given.budget, "jax": jax.__version__, "python": platform.python_version(),
        "device": jax.devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)),
        "seconds are": "of the processor" if on_cpu else "by the clock",
    }  # fmt: skip
    options = {"budget": budget, "clock": time.process_time if on_cpu else time.perf_counter, "fits": {}, "store": given.store}
    for name in given.family:
        key = jax.random.fold_in(jax.random.key(given.seed), list(FAMILIES).index(FAMILIES[name].trained_as or name))
        row, images = run(name, key, parts, judge, options)
        results["families"][name] = row | {"asked seconds": budget[0], "date": datetime.date.today().isoformat()}
        picture(images, out.with_name(f"{out.stem}_{name}.png"))
        out.write_text(json.dumps(results, indent=1))
        out.with_suffix(".md").write_text(table(results) + "\n")
        print(table({"references": {}, "families": {name: row}}).splitlines()[-1], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
