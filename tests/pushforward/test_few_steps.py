"""Few-step models: on a Gaussian every student is a known matrix, and is one of its loss; and what all of them share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_flows import (
    COVARIANCE,
    EVENTS,
    PROCESS,
    VECTORS,
    ddim_map,
    exact_consistency,
    exact_end,
    exact_v,
    framed,
    independent_velocity,
    linear_network,
    mapped,
    matrices,
    straight_velocity,
)

import gensamp as gs
from gensamp import noise
from gensamp.nets import mlp
from gensamp.pushforward import conditional, flow_matching
from gensamp.pushforward.diffusion import euler, heun
from gensamp.pushforward.diffusion.consistency import consistency, consistency_function
from gensamp.pushforward.diffusion.progressive import progressive
from gensamp.pushforward.reflow import coupled, coupled_draws, reflow

TEMPLATE = jax.ShapeDtypeStruct((2,), jnp.float32)
BATCH = EVENTS[:512]


def loss_of(model, params, state=None, batch=BATCH):
    """Loss and metrics at given parameters, [several of them]."""
    state = jax.jit(model.init)(jax.random.key(0), batch)[1] if state is None else state

    @jax.jit
    def losses(params):
        return jax.lax.map(lambda p: model.loss(p, state, jax.random.key(1), batch), params)

    loss, (_, metrics) = losses(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params))
    return np.asarray(loss), metrics


def test_the_consistency_function_of_a_gaussian_is_a_known_matrix_and_the_minimum_of_distillation():
    network, knots = linear_network(129), 129
    weights = matrices(exact_consistency, knots)
    times = jnp.array([0.25, 0.5, 1.0, 0.0])

    @jax.jit
    def found(weights):
        function = consistency_function(network, PROCESS, weights)
        return jax.vmap(lambda t: jax.vmap(lambda x: function(t, x * PROCESS.alpha(t)))(jnp.eye(2)))(times)

    for t, got in zip((0.25, 0.5, 1.0), found(weights), strict=False):
        np.testing.assert_allclose(got, VECTORS @ np.diag(exact_end(t, np.array([0.2, 1.8]))) @ VECTORS.T, atol=1e-3)
    # At the smallest level it is the identity, whatever the network.
    np.testing.assert_allclose(found(weights + 1)[-1], np.eye(2), atol=1e-4)
    teacher = framed(matrices(exact_v, knots))
    model = consistency(network, PROCESS, template=TEMPLATE, teacher=teacher, levels=(160, 160), distance="squared")
    (right, copied), metrics = loss_of(model, [framed(weights), teacher])
    # The teacher's copy gives the mean of what the path may end in, and not its end.
    assert right < 1e-3 * copied and np.all(metrics["levels"] == 160)
    assert model.forwards == 4


def test_a_progressive_student_of_a_gaussian_is_a_known_matrix():
    network, knots = linear_network(3), 3
    teacher = framed(matrices(exact_v, knots))
    model = progressive(network, PROCESS, template=TEMPLATE, num_steps=1, teacher_steps=2, teacher=teacher)
    # v at t = 1 such that one step lands where two of the teacher's do: x_0 = alpha x - sigma v.
    alpha, sigma = np.float64(PROCESS.alpha(1.0)), np.float64(PROCESS.sigma(1.0))
    alpha_end, sigma_end = np.float64(PROCESS.alpha(0.0)), np.float64(PROCESS.sigma(0.0))
    kept = sigma_end / sigma
    clean = (ddim_map(2) - kept * np.eye(2)) / (alpha_end - kept * alpha)
    student = framed(teacher["network"].at[-1].set(jnp.asarray((alpha * np.eye(2) - clean) / sigma, jnp.float32)))
    (right, copied), metrics = loss_of(model, [student, teacher])
    assert right < 1e-6 * copied and np.all(metrics["stage"] == 1) and np.all(metrics["forwards"] == 2 * len(BATCH))
    np.testing.assert_allclose(mapped(model.sampler(student), jnp.eye(2)), ddim_map(2), atol=1e-4)


def test_stages_follow_each_other_and_the_student_becomes_the_teacher():
    network = linear_network(5)
    model = progressive(network, PROCESS, template=TEMPLATE, num_steps=1, teacher_steps=4, stage_steps=10)
    params, state = model.init(jax.random.key(0), BATCH)
    loss = jax.jit(model.loss)
    seen = []
    for step in (0, 9, 10, 11, 20, 25, 40):
        moved = {**params, "network": params["network"] + step}
        given = {"step": jnp.int32(step), "teacher": state["teacher"] - 1}
        _, (after, metrics) = loss(moved, given, jax.random.key(1), BATCH)
        seen.append((int(metrics["stage"]), float(after["teacher"].max()), int(metrics["forwards"])))
        assert after["step"] == step + 1
    # Without a teacher the first stage trains one; the last one goes on for as long as it is fitted.
    assert seen == [(0, -1, 0), (0, -1, 0), (1, 10, 1024), (1, -1, 1024), (2, 20, 1024), (2, -1, 1024), (2, -1, 1024)]
    assert loss._cache_size() == 1


def test_reflow_straightens_the_paths_of_a_gaussian():
    network, knots = linear_network(65), 65
    curved, straight = (framed(matrices(f, knots)) for f in (independent_velocity, straight_velocity))
    many = flow_matching(network, template=TEMPLATE, solver=heun, num_steps=32).sampler(curved)
    data, ledger = coupled_draws(jax.random.key(3), many, 512, progress=False)
    assert jax.tree.map(jnp.shape, data) == ((512, 2), (512, 2)) and ledger.sample.forwards == 512 * (2 * 32 - 1)
    np.testing.assert_allclose(data[1], data[0] @ (VECTORS @ np.diag(np.sqrt([0.2, 1.8])) @ VECTORS.T), atol=0.02)

    model = reflow(network, template=TEMPLATE, teacher=curved)
    (right, before), _ = loss_of(model, [straight, curved], batch=data)
    assert right < 1e-3 * before
    one = mapped(model.sampler(straight), jnp.eye(2))
    np.testing.assert_allclose(one @ one.T, COVARIANCE, atol=0.01)
    # One step of the flow that is not straight ends at the mean.
    assert np.abs(mapped(model.sampler(curved), jnp.eye(2))).max() < 0.01
    params, _ = jax.jit(model.init)(jax.random.key(0), data)
    np.testing.assert_array_equal(params["network"], curved["network"])


def test_the_target_average_and_the_number_of_levels_follow_the_training():
    model = consistency(
        linear_network(3), PROCESS, template=TEMPLATE, levels=(4, 16), train_steps=30, target_decay=0.75, num_steps=2
    )
    params, state = model.init(jax.random.key(0), BATCH)
    loss = jax.jit(model.loss)
    levels = []
    for step in (0, 9, 10, 20, 29, 50):
        _, (after, metrics) = loss(
            {**params, "network": params["network"] + 8.0}, {**state, "step": jnp.int32(step)}, jax.random.key(1), BATCH
        )
        levels.append(int(metrics["levels"]))
        np.testing.assert_allclose(after["target"], 8.0 if step == 0 else 2.0, rtol=1e-5)
    assert levels == [4, 4, 8, 16, 16, 16] and model.forwards == 2 and loss._cache_size() == 1


MAKERS = {
    "consistency": partial(consistency, noise=PROCESS, levels=(4, 8)),
    "progressive": partial(progressive, noise=PROCESS, teacher_steps=12),
    "reflow": reflow,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["consistency", "progressive", "reflow"])
def test_a_draw_costs_as_many_forwards_as_steps_and_labels_are_a_leaf(name):
    draw = jax.jit(lambda key, sampler: gs.draw(key, sampler))
    labels, pairs = jnp.arange(512) % 3, (BATCH, BATCH)
    network = mlp(TEMPLATE, width=16, depth=1, num_classes=3)
    model = MAKERS[name](network, template=TEMPLATE, num_steps=3, conditional=True)
    batch = (pairs if name == "reflow" else BATCH, labels)
    params, state = jax.jit(model.init)(jax.random.key(0), batch)
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(5), a.shape), params)
    assert np.isfinite(jax.jit(model.loss)(params, state, jax.random.key(1), batch)[0])
    out = [draw(jax.random.key(2), conditional(model, params)(jnp.int32(label))) for label in range(3)]
    assert out[0].info.forwards == 3 and draw._cache_size() == 1
    assert len({float(o.position[0]) for o in out}) == 3


def test_bad_input_is_refused_in_a_sentence():
    network = mlp(TEMPLATE, width=8, depth=1)
    with pytest.raises(ValueError, match="leaves no signal at t = 1"):
        consistency(network, noise.rectified_flow(), template=TEMPLATE)
    with pytest.raises(ValueError, match=r"levels=\(8, 4\)"):
        consistency(network, PROCESS, template=TEMPLATE, levels=(8, 4))
    with pytest.raises(ValueError, match=r"target_decay=1\.5"):
        consistency(network, PROCESS, template=TEMPLATE, target_decay=1.5)
    with pytest.raises(ValueError, match=r"a teacher of \['weights'\]"):
        consistency(network, PROCESS, template=TEMPLATE, teacher={"weights": jnp.zeros(2)})
    with pytest.raises(ValueError, match="teacher_steps=12 for num_steps=4"):
        progressive(network, PROCESS, template=TEMPLATE, num_steps=4, teacher_steps=12)
    with pytest.raises(ValueError, match="stage_steps=0"):
        progressive(network, PROCESS, template=TEMPLATE, stage_steps=0)
    with pytest.raises(ValueError, match="a pair \\(starts, events\\)"):
        reflow(network, template=TEMPLATE).init(jax.random.key(0), BATCH)


def test_a_coupled_sampler_keeps_its_start_and_its_draws():
    sampler = flow_matching(linear_network(9), template=TEMPLATE, solver=euler, num_steps=4).sampler(
        framed(matrices(independent_velocity, 9))
    )
    start, event = jax.jit(gs.draw)(jax.random.key(7), coupled(sampler)).position
    np.testing.assert_array_equal(event, jax.jit(gs.draw)(jax.random.key(7), sampler).position)
    np.testing.assert_allclose(mapped(sampler, start[None])[0], event, rtol=1e-4, atol=1e-5)


OPTIMIZER = optax.adam(optax.cosine_decay_schedule(0.03, 1500))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "distillation", "progressive"])
def test_fitted_by_the_one_loop_a_student_is_the_known_matrix(name):
    knots = 9
    network, teacher = linear_network(knots), framed(matrices(exact_v, knots))
    if name == "progressive":
        model = progressive(network, PROCESS, template=TEMPLATE, teacher_steps=8, stage_steps=500, teacher=teacher)
        want = ddim_map(8)
    else:
        given = {"teacher": teacher} if name == "distillation" else {}
        # Without a teacher the error is of the first order in the levels; with one few do, and many want more steps than these.
        levels = (10, 40 if given else 160)
        model = consistency(network, PROCESS, template=TEMPLATE, levels=levels, train_steps=1500, distance="squared", **given)
        want = VECTORS @ np.diag(exact_end(1.0, np.array([0.2, 1.8]))) @ VECTORS.T / float(PROCESS.alpha(1.0))
    fitted = gs.fit(jax.random.key(0), model, EVENTS, optimizer=OPTIMIZER, num_steps=1500, batch_size=256, progress=False)
    one = mapped(model.sampler(fitted.params), jnp.eye(2))
    np.testing.assert_allclose(one, want, atol={"training": 0.1, "distillation": 0.02, "progressive": 0.01}[name])
