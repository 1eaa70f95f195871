"""Judging drawn images by a classifier that no sampler has seen: distance, precision, recall, class balance, confidence.

A small convolutional classifier is trained on events of its own, and its last hidden layer f: image -> R^k is the space in
which draws and held-out events are compared:

    Frechet distance    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), of means and covariances of f  (Heusel et al. 2017, eq. 6)
    precision           share of draws that lie in the held-out events' manifold: within the distance to its third nearest
                        neighbour of some event; recall: share of events in the draws'  (Kynkaanniemi et al. 2019, eq. 2)
    classes             share of draws in each class, confidence: mean probability of the likeliest class

The first is positive between two sets of real events too, and depends on their number: it is given beside its floor. Recall is
no better than what real events reach, which is given as well. Confidence alone is a weak judge: blends of two digits reach .8.
Every number is a property of this classifier, and comparable only to others of the same one.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Model, Static, bind
from gensamp.evaluate.distances import Distance, Floor
from gensamp.nets.convolution import Convolution, halve
from gensamp.training import fit

__all__ = ["ImageJudge", "ImageReport", "frechet_distance", "precision_recall"]

_LANE = 256
_ROWS = 512


class ImageReport(NamedTuple):
    """What is said of a set of images.

    frechet: beside its floor. precision, recall, with real_precision and real_recall of real events in the same number.
    confidence, with real_confidence. classes: shares [classes]; class_gap: the largest difference from the held-out events'.
    """

    frechet: Distance
    precision: float
    recall: float
    real_precision: float
    real_recall: float
    confidence: float
    real_confidence: float
    classes: np.ndarray
    class_gap: float


@dataclasses.dataclass(frozen=True, eq=False)
class ImageJudge:
    """A fitted classifier and real events as it sees them; make one with `ImageJudge.of`.

    params, module: the classifier. reference, pool: features [events, k] of held-out events and of others. accuracy: share of
    held-out events classified right. classes: shares of the held-out events [classes]. confidence: on them.
    """

    params: Any
    module: Static
    reference: np.ndarray
    pool: np.ndarray
    accuracy: float
    classes: np.ndarray
    confidence: float

    @classmethod
    def of(
        cls,
        key: jax.Array,
        images: Any,
        labels: Any,
        held_out: tuple[Any, Any],
        pool: Any,
        *,
        width: int = 16,
        num_features: int = 64,
        num_steps: int = 3_000,
        batch_size: int = 128,
        store: Any = None,
    ) -> "ImageJudge":
        """Train a classifier, and look at real events with it.

        Args:
            key: consumed.
            images: [events, height, width, channels], sides divisible by 4; labels [events], integers from 0. No sampler that
                is judged may learn from these events, nor be steered by this classifier.
            held_out: images and labels of events that nobody learns from, the reference of all distances.
            pool: further real images [events, ...], whose subsets play the part of a perfect sampler.
            width: channels of the first layer. num_features: k. num_steps, batch_size: of the training, which moves images by
                up to two pixels. store: folder of its checkpoints, from which it goes on, or None.

        Raises:
            ValueError: sides that do not divide, or numbers of images and labels that differ.
        """
        images, labels = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
        if images.ndim != 4 or images.shape[1] % 4 or images.shape[2] % 4 or len(images) != len(labels):
            raise ValueError(
                f"ImageJudge got images of shape {images.shape} and {len(labels)} labels; expected [events, height, width, "
                "channels] with sides divisible by 4, and as many labels"
            )
        module = Static(_Classifier(width, num_features, int(labels.max()) + 1))
        model = Model(init=bind(_init, module), loss=bind(_loss, module), sampler=bind(_no_sampler))
        options = {"num_steps": num_steps, "batch_size": batch_size, "store": store, "resume": store is not None}
        fitted = fit(key, model, (images, labels), ema=0.99, progress=False, **options)
        reference, probabilities = _seen(module, fitted.ema, held_out[0])
        right = np.asarray(held_out[1])
        shares = np.bincount(right, minlength=probabilities.shape[1]) / len(right)
        return cls(
            fitted.ema, module, reference, _seen(module, fitted.ema, pool)[0],
            float((probabilities.argmax(1) == right).mean()), shares, float(probabilities.max(1).mean()),
        )  # fmt: skip

    def report(self, images: Any, *, replicates: int = 8) -> ImageReport:
        """Judge drawn images [draws, height, width, channels] with `replicates` sets of real ones behind the floor.

        Raises:
            ValueError: there are more draws than half of the pool, or some are not finite.
        """
        images = np.asarray(images)
        if 2 * len(images) > len(self.pool):
            raise ValueError(f"{len(images)} draws for a pool of {len(self.pool)} images; expected at most half as many")
        if not np.isfinite(images).all():
            raise ValueError("some of the images are not finite; judge those that are, and report how many are not")
        features, probabilities = _seen(self.module, self.params, images)
        rng = np.random.default_rng(len(images))
        sets = [rng.choice(self.pool, len(images), replace=False) for _ in range(replicates)]
        floors = [frechet_distance(real, self.reference) for real in sets]
        known = self.reference[: len(images)]
        classes = np.bincount(probabilities.argmax(1), minlength=len(self.classes)) / len(images)
        return ImageReport(
            Distance(
                frechet_distance(features, self.reference),
                Floor(float(np.mean(floors)), float(np.std(floors, ddof=1)), replicates),
            ),
            *precision_recall(known, features),
            *precision_recall(known, sets[0]),
            float(probabilities.max(1).mean()),
            self.confidence,
            classes,
            float(np.abs(classes - self.classes).max()),
        )


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The squared Frechet (Wasserstein-2) distance of the Gaussians fitted to two samples [n, k] and [m, k].

    Raises:
        ValueError: shapes that do not match, or fewer than two rows.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"samples have shapes {x.shape} and {y.shape}; expected [n, k] and [m, k] with at least two rows")
    first, second = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))[None]) @ vectors.T
    # The eigenvalues of S S' are those of the symmetric S^(1/2) S' S^(1/2), which has no complex square root.
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(max(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * mixed, 0))


def precision_recall(real: np.ndarray, drawn: np.ndarray, *, neighbours: int = 3) -> tuple[float, float]:
    """Share of drawn points in the real points' manifold, and of real ones in the drawn ones'; both should have one size.

    Args:
        real: [n, k]. drawn: [m, k]. neighbours: a point's ball reaches to so-manyth nearest of its own set.

    Raises:
        ValueError: shapes that do not match, or no more points than neighbours.
    """
    real, drawn = np.asarray(real, np.float32), np.asarray(drawn, np.float32)
    if real.ndim != 2 or drawn.ndim != 2 or real.shape[1] != drawn.shape[1] or min(len(real), len(drawn)) <= neighbours:
        raise ValueError(
            f"precision_recall got {real.shape} and {drawn.shape}; expected [n, k] and [m, k] with more than {neighbours} rows"
        )
    return _covered(drawn, real, neighbours), _covered(real, drawn, neighbours)


def _covered(points, centres, neighbours) -> float:
    """Share of the points within the ball of some centre."""
    # The nearest of a centre's own set is itself.
    radii = np.concatenate([np.partition(d, neighbours, axis=1)[:, neighbours] for d in _distances(centres, centres)])
    return float(np.concatenate([(d <= radii[None]).any(1) for d in _distances(points, centres)]).mean())


def _distances(x, y):
    """Squared distances [rows, m], a block of rows at a time."""
    for first in range(0, len(x), _ROWS):
        rows = x[first : first + _ROWS]
        squared = np.square(rows).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * rows @ y.T
        yield np.maximum(squared, 0)


class _Classifier(nn.Module):
    width: int
    num_features: int
    num_classes: int

    @nn.compact
    def __call__(self, x):
        h = halve(nn.silu(Convolution(self.width, "xla")(x)))
        h = halve(nn.silu(Convolution(2 * self.width, "xla")(h)))
        h = nn.silu(Convolution(4 * self.width, "xla")(h))
        features = nn.silu(nn.Dense(self.num_features)(h.reshape(-1)))
        return features, nn.Dense(self.num_classes)(features)


def _init(module, key, batch):
    return module.value.init(key, batch[0][0])["params"], ()


def _loss(module, params, state, key, batch):
    def one(key, image, label):
        move = jax.random.randint(key, (2,), 0, 5)
        # The edge of a picture stands for what lies beyond it.
        padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
        moved = jax.lax.dynamic_slice(padded, (move[0], move[1], 0), image.shape)
        _, logits = module.value.apply({"params": params}, moved)
        return -jax.nn.log_softmax(logits)[label]

    loss = jax.vmap(one)(jax.random.split(key, len(batch[0])), *batch).mean()
    return loss, (state, {})


def _no_sampler(params):
    raise ValueError("a classifier draws nothing")


def _seen(module, params, images) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, k] and class probabilities [n, classes], float64."""
    images = np.asarray(images)
    size = min(_LANE, len(images))
    parts = []
    for first in range(0, len(images), size):
        rows = images[first : first + size]
        padded = np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])
        parts.append([np.asarray(a, np.float64)[: len(rows)] for a in _look(module, params, padded)])
    features, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return features, exponents / exponents.sum(1, keepdims=True)


@jax.jit
def _look(module, params, images):
    return jax.vmap(lambda x: module.value.apply({"params": params}, x))(images)
