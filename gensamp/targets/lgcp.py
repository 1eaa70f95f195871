"""A log-Gaussian Cox process: where Finnish pine saplings stand, on a grid of 1,600 cells.

    x ~ N(mu, Sigma),  Sigma_ij = sigma^2 exp(-|i - j| / (40 beta)),  p(y | x) = prod_i exp(x_i y_i - e^x_i / 1600),

with sigma^2 = 1.91, beta = 1/33, mu = log 126 - sigma^2 / 2, cells i on a 40 x 40 grid with |i - j| in cells, and y_i the
number of saplings in cell i. The likelihood is without its factors 1600^-y_i / y_i!, as in the literature on evidence, where
log normalisers of 512.6 and of 501.8 are both in print. Of this density it is the second: annealed importance sampling in
float64, from the normal law that has the mode's curvature, by 1,000 levels of HMC, gave 501.81 with a standard error of 0.09
over 32 runs.

An event is x, [1600], not whitened. One gradient is two products with a 1600 x 1600 triangular matrix, the inverse of the
Cholesky factor, made once in float64.

Source: Moeller, Syversveen and Waagepetersen 1998, "Log Gaussian Cox processes"; Heng, Bishop, Deligiannidis and Doucet 2020,
"Controlled sequential Monte Carlo", section 6.1, for the grid. Saplings: Kelomaki and Penttinen, counted per cell.
"""

import math
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gensamp.core import Target, Truth, bind
from gensamp.targets.mixture import float_dtype

__all__ = ["lgcp"]

_SIDE = 40
_VARIANCE, _SCALE = 1.91, 1 / 33
_MEAN = math.log(126) - _VARIANCE / 2


def lgcp(*, dtype: Any = None) -> Target:
    """The posterior of the log intensity of pine saplings; see the module's docstring.

    Args:
        dtype: of events; jax's default float if None.

    Returns:
        Target: events [1600]; `constrain` gives the log intensity on the grid, [40, 40].
    """
    dtype = float_dtype(dtype)
    with resources.files("gensamp.targets").joinpath("pines_counts.npz").open("rb") as file, np.load(file) as stored:
        counts = stored["counts"].ravel()
    cells = np.stack(np.meshgrid(np.arange(_SIDE), np.arange(_SIDE), indexing="ij"), -1).reshape(-1, 2)
    from scipy.linalg import solve_triangular
    from scipy.spatial.distance import cdist

    factor = np.linalg.cholesky(_VARIANCE * np.exp(-cdist(cells, cells) / (_SIDE * _SCALE)))
    whiten = solve_triangular(factor, np.eye(len(factor)), lower=True)
    constant = -np.log(np.diag(factor)).sum() - 0.5 * len(factor) * math.log(2 * math.pi)
    return Target.from_log_density(
        bind(_log_density, *(jnp.asarray(a, dtype) for a in (counts, whiten, constant))),
        jax.ShapeDtypeStruct((_SIDE**2,), dtype),
        name="lgcp",
        constrain=bind(_constrain),
        truth=Truth(log_normaliser=(501.81, 0.09), source="annealed importance sampling, 32 runs of 1,000 levels"),
    )


def _log_density(counts: Array, whiten: Array, constant: Array, x: Float[Array, " cells"]) -> Array:
    prior = constant - 0.5 * jnp.sum((whiten @ (x - _MEAN)) ** 2)
    return prior + jnp.sum(counts * x - jnp.exp(x) / _SIDE**2)


def _constrain(x):
    return {"log_intensity": x.reshape(_SIDE, _SIDE)}
