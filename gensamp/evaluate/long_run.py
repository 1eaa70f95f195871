"""A reference for a density that nobody can draw from exactly: a long NUTS run, kept at its effective size.

Eight tuned chains run from scattered starts; as many draws are kept, evenly spaced, as the least bulk ESS over the coordinates
says they are worth, so that what is kept may be treated as nearly independent. This is no truth: what all eight chains
miss is missing from the reference, too. So the R-hat of the run is in the name of the reference, and a run whose chains
disagree warns.
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Target, Truth
from gensamp.evaluate.chains import ess_bulk, rhat

__all__ = ["with_long_run"]

NUM_CHAINS = 8
NUM_DRAWS = 4_000
RHAT = 1.01


def with_long_run(key: jax.Array, target: Target) -> Target:
    """The target with reference draws from a long NUTS run in its truth.

    Spends 8 chains of 1,250 tuning steps and 4,000 draws.

    Raises:
        KeyboardInterrupt: the run was interrupted.
        ValueError: the run is worth fewer than 200 draws, or events are not of jax's default dtype, which NUTS needs; give the
            target exact= or reference draws.
    """
    from gensamp.adapt import tune
    from gensamp.mcmc import nuts
    from gensamp.runner import sample

    dtype = jnp.result_type(*jax.tree.leaves(target.template))
    if dtype != jnp.result_type(float):
        raise ValueError(
            f"target '{target.name}' has nothing to be judged against, and events of {dtype}, which a long NUTS run cannot "
            f"draw where jax's default is {jnp.result_type(float)}; give it exact=, or truth=Truth(reference=...)"
        )
    key_tune, key_draw = jax.random.split(key)
    tuned = tune(key_tune, nuts, target, num_chains=NUM_CHAINS, progress=False)
    draws = sample(key_draw, tuned.sampler, NUM_DRAWS, initial=tuned.initial, progress=False)
    if draws.interrupted:
        raise KeyboardInterrupt(draws.message)
    if draws.ending != "finished":
        raise RuntimeError(draws.message)
    leaves = [np.asarray(a) for a in jax.tree.leaves(draws.position)]
    worst = max(float(np.max(rhat(a))) for a in leaves)
    worth = int(min(float(np.min(ess_bulk(a))) for a in leaves))
    if not worth >= 200:
        raise ValueError(
            f"target '{target.name}' has nothing to be judged against, and a long NUTS run of it is worth {worth} draws only; "
            "give it exact=, or truth=Truth(reference=...)"
        )
    if not worst <= RHAT:
        warnings.warn(
            f"the reference of '{target.name}' is a NUTS run whose chains disagree (R-hat {worst:.3f}): judge with care",
            stacklevel=3,
        )
    kept = np.linspace(0, NUM_CHAINS * NUM_DRAWS - 1, min(worth, NUM_CHAINS * NUM_DRAWS)).round().astype(int)
    reference = jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[kept], draws.position)
    source = f"a NUTS run of this comparison: {len(kept):,} draws kept of {NUM_CHAINS * NUM_DRAWS:,}, R-hat {worst:.3f}"
    truth = dataclasses.replace(target.truth or Truth(), reference=reference, source=source)
    return dataclasses.replace(target, truth=truth)
