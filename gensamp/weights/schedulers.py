"""A scheduler's configuration in the diffusers library as a noise process, and a noise process as such a configuration.

A scheduler there says three things at once: the process, what the network predicts, and how to solve. Here the last is the
sampler's own, so only the process, the prediction and a clip are read; grids (`timestep_spacing`, `use_karras_sigmas`, ...) and
orders are arguments of our solvers.

    theirs                                      here
    step k = 0 .. T - 1 of T, abar_k            t = (k + 1) / T, alpha(t)^2 = abar_k, sigma^2 = 1 - alpha^2; t = 0 is clean
    final_alpha_cumprod = 1, sigma "zero"       a grid that ends at t = 0
    final_alpha_cumprod = abar_0, "sigma_min"   a grid that ends at t = 1 / T, which is noise.t_min
    Euler, Heun, LMS on x / alpha               the same solver on a process with alpha = 1 and sigma / alpha for its sigma
    "epsilon", "sample", "v_prediction"         "eps", "x0", "v"
    FlowMatchEulerDiscreteScheduler             noise.rectified_flow(), "velocity"; the network is told T t
    ScoreSdeVeScheduler                         noise.ve(), "score"; the network is told sigma

Between two steps log abar is a straight line in t, a constant rate of noise (as Lu et al. 2022, appendix D.4, have it).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import bind
from gensamp.noise import Noise, rectified_flow, root, ve
from gensamp.predictions import check_prediction

__all__ = ["Process", "read_scheduler", "tabulated", "write_scheduler"]

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# Schedulers of one variance-preserving table of betas: which of them it is says how to solve, and nothing of the process.
_TABLED = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler",
)  # fmt: skip
_NOT_COVERED = {
    "thresholding": "dynamic thresholding",
    "use_flow_sigmas": "flow matching by a scheduler other than FlowMatchEulerDiscreteScheduler",
}
# Below this share of signal (squared) there is none: `noise.FLOOR` is its root's neighbour.
_NO_SIGNAL = 1e-12


class Process(NamedTuple):
    """What a scheduler's configuration says of a process.

    noise: the process. prediction: what its network predicts, see `predictions`. clock: what the network is told for a time, as
    `nets.diffusers_unet` takes it. clip: (lowest, highest) value that guesses of x_0 are clipped to, or None.
    """

    noise: Noise
    prediction: str
    clock: Any
    clip: tuple[float, float] | None


def tabulated(signal: Any) -> Noise:
    """A variance-preserving process from a table of its signal: alpha((k + 1) / T)^2 = signal[k], no noise at t = 0.

    Args:
        signal: [T] decreasing numbers in [0, 1), "alphas_cumprod"; less than 1e-12 counts as none.

    Returns:
        Noise: log alpha^2 is linear between the times; t_min is 1 / T.

    Raises:
        ValueError: the table is not a vector of decreasing numbers from below 1 to 0.
    """
    table = np.asarray(signal, np.float64)
    if table.ndim != 1 or table.size < 1 or not np.all(np.diff(np.concatenate([[1.0], table])) < 0) or table[-1] < 0:
        raise ValueError(f"tabulated got a table of shape {table.shape}; expected a vector of decreasing numbers in [0, 1)")
    logarithms = jnp.asarray(np.log(np.maximum(np.concatenate([[1.0], table]), _NO_SIGNAL)), jnp.result_type(float))
    return Noise(bind(_alpha, logarithms), bind(_sigma, logarithms), t_min=1 / table.size)


def read_scheduler(config: Mapping[str, Any]) -> Process:
    """The process of a scheduler_config.json.

    Args:
        config: the file's contents, with "_class_name".

    Raises:
        ValueError: a scheduler, a schedule of betas or a prediction that is not covered, by name; a key that is missing.
    """
    kind = config.get("_class_name")
    steps = int(config.get("num_train_timesteps", 1000))
    if kind == "FlowMatchEulerDiscreteScheduler":
        return Process(rectified_flow(), "velocity", (steps, 0), None)
    if kind == "ScoreSdeVeScheduler":
        noise = ve(_key(config, "sigma_min"), _key(config, "sigma_max"))
        return Process(noise, "score", noise, None)
    if kind not in _TABLED:
        covered = (*_TABLED, "FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler")
        raise ValueError(f"the scheduler is {kind!r}; covered are {', '.join(covered)}")
    for key, what in _NOT_COVERED.items():
        if config.get(key):
            raise ValueError(f"the scheduler asks for {what} ({key}), which is not covered; switch it off in the file")
    if str(config.get("variance_type", "")).startswith("learned"):
        raise ValueError(f"the scheduler asks for a learned variance ({config['variance_type']!r}), which is not covered")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"the scheduler's prediction_type is {prediction!r}; covered are {', '.join(_PREDICTIONS)}")
    limit = float(config.get("clip_sample_range", 1.0))
    clip = (-limit, limit) if config.get("clip_sample") else None
    signal = np.cumprod(1 - _betas(config, steps))
    return Process(tabulated(signal), _PREDICTIONS[prediction], (len(signal), -1), clip)


def write_scheduler(noise: Noise, prediction: str, *, steps: int = 1000, clip: Any = None) -> dict[str, Any]:
    """A scheduler_config.json for a process.

    A process with alpha^2 + sigma^2 = 1 becomes a DDPMScheduler with its own betas (`trained_betas`), which the library's other
    schedulers read as well; a straight line becomes a FlowMatchEulerDiscreteScheduler, a geometric growth of noise a
    ScoreSdeVeScheduler.

    Args:
        noise: the process. prediction: what the network predicts. steps: how many steps divide [0, 1] there.
        clip: (-limit, limit) for guesses of x_0, or None.

    Raises:
        ValueError: that library has no scheduler for this process, this prediction under it, or this clip.
    """
    check_prediction(prediction, "write_scheduler")
    times = np.arange(1, steps + 1) / steps
    alpha, sigma = (np.asarray(jax.vmap(f)(jnp.asarray(times)), np.float64) for f in (noise.alpha, noise.sigma))
    if np.allclose(alpha, 1 - times, atol=1e-5) and np.allclose(sigma, times, atol=1e-5):
        _expect(prediction, ("velocity",), "a straight line")
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": steps, "shift": 1.0}
    if np.allclose(alpha, 1, atol=1e-6) and np.ptp(np.diff(np.log(sigma))) < 1e-4:
        _expect(prediction, ("score",), "a geometric growth of noise")
        ends = {"sigma_min": float(noise.sigma(0.0)), "sigma_max": float(noise.sigma(1.0))}
        return {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": steps} | ends
    if not np.allclose(alpha**2 + sigma**2, 1, atol=1e-4):
        raise ValueError(
            "the process has alpha^2 + sigma^2 other than 1 and is neither a straight line nor a geometric growth of noise; "
            "write one that preserves variance, such as noise.cosine() or noise.vp_linear()"
        )
    names = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    _expect(prediction, tuple(names), "a process that preserves variance")
    if clip is not None and float(clip[0]) != -float(clip[1]):
        raise ValueError(f"clip is {clip}; expected (-limit, limit), which is what that library has")
    # Of alpha near 1 its logarithm keeps no digits, and sigma's does.
    squares = np.where(sigma < 0.7, np.log1p(-(np.minimum(sigma, 0.9) ** 2)), 2 * np.log(np.maximum(alpha, _NO_SIGNAL)))
    betas = -np.expm1(np.diff(squares, prepend=0.0))
    return {
        "_class_name": "DDPMScheduler", "num_train_timesteps": steps, "trained_betas": betas.tolist(),
        "prediction_type": names[prediction], "variance_type": "fixed_small", "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else float(clip[1]), "timestep_spacing": "trailing",
    }  # fmt: skip


def _key(config, name):
    if config.get(name) is None:
        raise ValueError(f"the scheduler's configuration has no {name!r}; expected the file that diffusers writes, whole")
    return config[name]


def _expect(prediction, covered, process):
    if prediction not in covered:
        raise ValueError(f"the prediction is {prediction!r}, and {process} can be written with {', '.join(covered)} only")


def _betas(config, steps):
    """Shares of noise that each step adds, [T]."""
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    else:
        betas = _schedule(config, steps)
    if not config.get("rescale_betas_zero_snr"):
        return betas
    # The root of the signal, stretched to end at zero (Lin et al. 2024, algorithm 1).
    roots = np.sqrt(np.cumprod(1 - betas))
    signal = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return 1 - signal / np.concatenate([[1.0], signal[:-1]])


def _schedule(config, steps):
    kind = _key(config, "beta_schedule")
    if kind == "squaredcos_cap_v2":
        signal = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    start, end = (float(_key(config, name)) for name in ("beta_start", "beta_end"))
    if kind == "linear":
        return np.linspace(start, end, steps)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if kind == "sigmoid":
        return (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))) + start
    raise ValueError(
        f"the scheduler's beta_schedule is {kind!r}; covered are linear, scaled_linear, squaredcos_cap_v2, sigmoid and "
        "trained_betas"
    )


def _log_signal(logarithms, t):
    """log alpha^2 at time t, along straight lines."""
    t = jnp.asarray(t)
    t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))
    table, last = logarithms.astype(t.dtype), logarithms.size - 1
    low = jnp.clip(jnp.floor(t * last).astype(jnp.int32), 0, last - 1)
    return table[low] + (t * last - low) * (table[low + 1] - table[low])


def _alpha(logarithms, t):
    return jnp.exp(_log_signal(logarithms, t) / 2)


def _sigma(logarithms, t):
    return root(-jnp.expm1(_log_signal(logarithms, t)))
