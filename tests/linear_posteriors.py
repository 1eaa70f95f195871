"""Posteriors of Gaussian mixtures given y = A x + noise, in closed form."""

import numpy as np
from scipy.stats import multivariate_normal

import gensamp as gs
from gensamp.targets.mixture import PROBABILITIES, marginal_quantiles


def posterior(weights, means, covariances, matrix, observed, scale):
    """The posterior's weights [components], means [components, d] and covariances [components, d, d]."""
    noise = scale**2 * np.eye(len(matrix))
    evidence, centres, spreads = [], [], []
    for mean, covariance in zip(np.asarray(means), np.asarray(covariances), strict=True):
        seen = matrix @ covariance @ matrix.T + noise
        gain = covariance @ matrix.T @ np.linalg.inv(seen)
        evidence.append(multivariate_normal(matrix @ mean, seen).pdf(observed))
        centres.append(mean + gain @ (observed - matrix @ mean))
        spreads.append(covariance - gain @ matrix @ covariance)
    found = np.asarray(weights) * evidence
    return found / found.sum(), np.array(centres), np.array(spreads)


def moments(weights, means, covariances):
    """Mean [d] and covariance [d, d] of a mixture."""
    mean = weights @ means
    inside = np.einsum("k,kij->ij", weights, covariances)
    return mean, inside + np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)


def as_target(weights, means, covariances, template):
    """A target that knows its marginals' moments and quantiles."""
    mean, covariance = moments(weights, means, covariances)
    scales = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    quantiles = marginal_quantiles(weights, means, scales, PROBABILITIES)
    truth = gs.Truth(
        mean=(mean, 0.0),
        variance=(np.diag(covariance), 0.0),
        quantiles={p: (q, 0.0) for p, q in zip(PROBABILITIES, quantiles, strict=True)},
    )
    return gs.Target(template=template, truth=truth, name="posterior")
