"""Where chains start: let down together, not into a density's spikes, and thrown apart by its curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from numpyro import distributions as dist

import gensamp as gs
from gensamp.starts import Trail, curvature, let_down, overdispersed, resting_places, walked_back

SCALES = np.array([1e-3, 1.0, 50.0])
CORRELATION = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.5], [0.0, 0.5, 1.0]])
COVARIANCE = CORRELATION * SCALES[:, None] * SCALES
CENTRE = np.array([0.5, -3.0, 200.0])
GROUPS = 20


class Density:
    """Log density and gradient in NumPy; counts its calls."""

    dtype = np.dtype(np.float64)

    def __init__(self, evaluate):
        self.evaluate, self.calls = evaluate, 0

    def __call__(self, positions):
        self.calls += 1
        return self.evaluate(np.asarray(positions, np.float64))


def quadratic(positions):
    gaps = positions - CENTRE
    slope = -gaps @ np.linalg.inv(COVARIANCE)
    return 0.5 * (gaps * slope).sum(1), slope


def spike(positions):
    """x | s ~ N(0, exp(2 s) I), s ~ N(0, 1) in the last coordinate: no bound where s goes to minus infinity and x to 0."""
    x, s = positions[:, :-1], positions[:, -1]
    scaled = x * np.exp(np.minimum(-2 * s, 200))[:, None]
    value = -0.5 * (x * scaled).sum(1) - x.shape[1] * s - 0.5 * s**2
    return value, np.column_stack([-scaled, (x * scaled).sum(1) - x.shape[1] - s])


def modes(positions):
    """Two normal laws of the same weight in ten dimensions, of sd 1 at 0 and of sd 0.01 at 3 in every coordinate."""
    gaps = positions[None] - np.array([0.0, 3.0])[:, None, None]
    sds = np.array([1.0, 0.01])
    each = -0.5 * (gaps**2).sum(2) / sds[:, None] ** 2 - 10 * np.log(sds)[:, None]
    value = np.logaddexp(*each)
    return value, (np.exp(each - value)[:, :, None] * -gaps / sds[:, None, None] ** 2).sum(0)


def test_starts_are_let_down_together_and_thrown_apart_by_the_curvature():
    evaluate = Density(quadratic)
    rng = np.random.default_rng(0)
    trails = let_down(evaluate, rng.uniform(-2, 2, (8, 3)))
    assert all(np.diff(trail.heights).min() > 0 for trail in trails), "each point is higher than all before"
    np.testing.assert_allclose([trail.heights[-1] for trail in trails], 0, atol=1e-2)
    assert evaluate.calls <= 250, "the chains meet at each evaluation"
    covariance = curvature(evaluate, trails[0].positions[-1], 8)
    np.testing.assert_allclose(covariance, COVARIANCE, rtol=1e-4, atol=1e-12)
    away = overdispersed(evaluate, np.tile(CENTRE, (4000, 1)), covariance, rng.standard_normal((4000, 3)))
    np.testing.assert_allclose(away.std(0), 2 * SCALES, rtol=0.06)


@pytest.mark.parametrize("least", [1e-5, 1e-7])
def test_nearly_collinear_coordinates_get_their_long_variance_in_float64(least):
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    precision = (rotation * [least, 0.5, 1.0, 2.0]) @ rotation.T
    covariance = curvature(Density(lambda x: (-0.5 * np.sum(x @ precision * x, 1), -x @ precision)), np.zeros(4), 8)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[-1], 1 / least, rtol=0.02)


def test_directions_without_curvature_get_the_variance_one():
    along = np.array([3.0, -2.0, 1.0, 0.5]) / np.sqrt(14.25)
    precision = np.eye(4) - np.outer(along, along)
    covariance = curvature(Density(lambda x: (-0.5 * np.sum(x @ precision * x, 1), -x @ precision)), np.ones(4), 8)
    assert along @ covariance @ along < 20


def test_a_normal_law_is_left_where_the_descent_ended():
    evaluate, rng = Density(quadratic), np.random.default_rng(0)
    trails = let_down(evaluate, rng.uniform(-2, 2, (8, 3)))
    before = evaluate.calls
    positions, near, covariance = resting_places(evaluate, trails, rng)
    assert evaluate.calls - before <= 40, "two calls for each point that is tried"
    assert near.all()
    assert (quadratic(positions)[0] > -1).all()
    np.testing.assert_allclose(covariance, COVARIANCE, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dense", [True, False])
def test_a_descent_into_a_spike_is_walked_back(dense, seed):
    evaluate, rng = Density(spike), np.random.default_rng(seed)
    trails = let_down(evaluate, rng.uniform(-2, 2, (16, 10)))
    assert min(trail.positions[-1, -1] for trail in trails) < -3.5, "some descent ended where the scale is gone"
    positions, near, _ = resting_places(evaluate, trails, rng, most_dense=10 if dense else 9)
    assert near.sum() >= 8
    assert (positions[:, -1] > -3.5).all(), "no chain starts where s has next to no mass"


def test_a_narrow_mode_does_not_swallow_a_wide_one():
    evaluate, rng = Density(modes), np.random.default_rng(0)
    begun = np.concatenate([rng.normal(0, 1, (8, 10)), rng.normal(3, 0.02, (8, 10))])
    trails = let_down(evaluate, begun)
    heights = [trail.heights[-1] for trail in trails]
    assert max(heights) - min(heights) > 40
    positions, near, _ = resting_places(evaluate, trails, rng)
    assert near.all()
    assert (np.abs(positions.mean(1)) < 1).sum() == 8


def test_where_nothing_is_a_law_the_covariance_is_an_identity():
    trail = Trail(np.zeros((5, 3)), np.arange(5.0))
    nowhere = Density(lambda x: (np.full(len(x), -np.inf), np.zeros_like(x)))
    found, covariance, bound = walked_back(nowhere, trail, lambda x: np.eye(3), np.ones((4, 3)))
    assert len(found.heights) == 5 and bound == -np.inf
    np.testing.assert_array_equal(covariance, np.eye(3))


def test_a_hierarchical_model_without_a_bound_is_drawn_from():
    """Group means around a scale of their own: where that goes to zero the joint density is infinite."""
    observed = 4.0 * np.random.default_rng(0).standard_normal(GROUPS)

    def log_density(x):
        scale = x["scale"]
        groups = dist.Normal(0, scale).log_prob(x["means"]) + dist.Normal(x["means"], 1).log_prob(observed)
        return groups.sum() + dist.HalfNormal(5).log_prob(scale)

    constraints = {"scale": dist.constraints.positive, "means": dist.constraints.real}
    template = {"scale": jnp.zeros(()), "means": jnp.zeros(GROUPS)}
    target = gs.Target.from_log_density(log_density, template, constraints=constraints)
    draws = gs.auto(jax.random.key(0), target)
    assert draws.ending == "converged"
    scale = np.asarray(gs.named(target, draws.position)["scale"], np.float64)[..., None]

    grid = np.linspace(1e-4, 20, 4000)
    weight = np.exp(-0.5 * (observed**2).sum() / (1 + grid**2) - GROUPS / 2 * np.log(1 + grid**2) - grid**2 / 50)
    truth = (weight * grid).sum() / weight.sum()
    error = scale.std() / np.sqrt(array_stats.ess(scale, chain_axis=0, draw_axis=1, method="mean")[0])
    assert abs(scale.mean() - truth) < 4 * error
