"""Scheduler configurations as noise processes and back; beside the library itself in tests/oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import noise
from gensamp.weights import read_scheduler, tabulated, write_scheduler

LINEAR = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4,
    "beta_end": 0.02,
}  # fmt: skip


def curve(function, times):
    return np.asarray(jax.jit(jax.vmap(function))(jnp.asarray(times, jnp.float32)))


def test_a_table_is_met_at_its_times_and_clean_at_zero():
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    process = read_scheduler(LINEAR).noise
    times = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(curve(process.alpha, times), np.sqrt(signal), rtol=2e-5)
    np.testing.assert_allclose(curve(process.sigma, times), np.sqrt(1 - signal), rtol=2e-4)
    assert process.t_min == 1e-3 and float(process.alpha(0.0)) == 1 and float(process.sigma(0.0)) == 0
    # Ho et al.'s thousand steps are nearly the linear process of continuous time.
    np.testing.assert_allclose(curve(process.alpha, times), curve(noise.vp_linear().alpha, times), atol=6e-3)
    slope = jax.grad(lambda t: jnp.log(process.alpha(t)))(jnp.float32(0.5003))
    assert float(slope) == pytest.approx(1000 * 0.5 * np.log1p(-np.linspace(1e-4, 0.02, 1000)[500]), rel=1e-2)


@pytest.mark.parametrize(
    ("process", "prediction", "kind"),
    [
        (noise.vp_linear(), "eps", "DDPMScheduler"),
        (noise.cosine(), "v", "DDPMScheduler"),
        (noise.rectified_flow(), "velocity", "FlowMatchEulerDiscreteScheduler"),
        (noise.ve(0.01, 50.0), "score", "ScoreSdeVeScheduler"),
    ],
)
def test_processes_go_there_and_back(process, prediction, kind):
    config = write_scheduler(process, prediction, steps=500)
    read = read_scheduler(config)
    assert config["_class_name"] == kind and read.prediction == prediction and read.clip is None
    times = np.arange(1, 501) / 500
    np.testing.assert_allclose(curve(read.noise.alpha, times), curve(process.alpha, times), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(curve(read.noise.sigma, times), curve(process.sigma, times), rtol=1e-3)
    if kind == "DDPMScheduler":
        assert read.clock == (500, -1) and min(config["trained_betas"]) > 0
        assert read_scheduler(write_scheduler(process, prediction, clip=(-2, 2))).clip == (-2.0, 2.0)


def test_a_process_without_signal_at_the_end_has_none():
    read = read_scheduler(LINEAR | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert float(read.noise.alpha(1.0)) < noise.FLOOR and np.isfinite(float(read.noise.log_snr(1.0)))
    plain = read_scheduler(LINEAR)
    assert float(read.noise.alpha(0.001)) == pytest.approx(float(plain.noise.alpha(0.001)), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LINEAR | {"_class_name": "VQDiffusionScheduler"},
            "the scheduler is 'VQDiffusionScheduler'; covered are",
        ),
        ({}, "the scheduler is None"),
        (LINEAR | {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'; covered are epsilon, sample"),
        (LINEAR | {"beta_schedule": "laplace"}, "beta_schedule is 'laplace'; covered are linear"),
        (LINEAR | {"thresholding": True}, "dynamic thresholding"),
        (LINEAR | {"use_flow_sigmas": True}, "flow matching by a scheduler other"),
        (LINEAR | {"variance_type": "learned_range"}, "a learned variance"),
        ({k: v for k, v in LINEAR.items() if k != "beta_end"}, "has no 'beta_end'"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        read_scheduler(config)


def test_processes_that_no_scheduler_has_are_refused():
    with pytest.raises(ValueError, match="alpha\\^2 \\+ sigma\\^2 other than 1"):
        write_scheduler(noise.edm(), "eps")
    with pytest.raises(ValueError, match="prediction is 'score', and a process that preserves variance"):
        write_scheduler(noise.cosine(), "score")
    with pytest.raises(ValueError, match="a straight line can be written with velocity only"):
        write_scheduler(noise.rectified_flow(), "eps")
    with pytest.raises(ValueError, match=r"clip is \(0, 1\)"):
        write_scheduler(noise.cosine(), "eps", clip=(0, 1))
    with pytest.raises(ValueError, match="decreasing numbers"):
        tabulated([0.5, 0.9])
