"""Generative adversarial networks: a generator G trained against a critic D, as one loss (Goodfellow et al. 2014).

    z ~ N(0, I_k),    x = G(z)

The critic lowers its loss plus a penalty on its slope, the generator lowers its own. Writing [.] for `stop_gradient`,

    loss = critic_loss(D(x), D([G(z)])) + penalty(D) + generator_loss([D](G(z)))

so the gradient in the critic's parameters is that of the first two terms and the gradient in the generator's that of the last:
both play from one `value_and_grad`, and `fit` needs no special case. Objectives, with D in logits for the first:

    nonsaturating  softplus(-D(x)) + softplus(D(G))   softplus(-D(G))   gamma/2 |grad D(x)|^2       Mescheder et al. 2018, eq. 9
    wasserstein    D(G) - D(x)                        -D(G)             lambda (|grad D(m)| - 1)^2  Gulrajani et al. 2017, eq. 3
    hinge          relu(1 - D(x)) + relu(1 + D(G))    -D(G)             gamma/2 |grad D(x)|^2       Lim and Ye 2017, eqs. 11-12

m is a point drawn evenly between an event and a draw. Hinge takes its penalty in place of spectral normalisation.

A conditional GAN (Mirza and Osindero 2014) plays the game within each condition c: G(z, c) against D(x, c).

Several critic steps per generator step, and two rates (Heusel et al. 2017), are a matter of the optimizer: `gan_optimizer`. The
averaged generator, which draws better than the last one, is `fit(ema=)`. Row "GAN" of the table: start Gaussian, one learned
deterministic step.
"""

from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from gensamp.core import Info, Model, Network, Sampler, Static, Traits, bind, scalar
from gensamp.nets.condition import check_labels, told
from gensamp.nets.critic import critic as perceptron_critic
from gensamp.nets.critic import generator as perceptron_generator
from gensamp.nets.event import Event
from gensamp.nets.sizes import check_sizes
from gensamp.pushforward.conditional import indicator, labelled
from gensamp.pushforward.diffusion.losses import split_condition
from gensamp.pushforward.frame import check_frame, check_params, enter, fit_frame, leave, shapes_of

__all__ = ["gan", "gan_optimizer"]


def gan(
    template: Any,
    *,
    objective: Literal["nonsaturating", "wasserstein", "hinge"] = "nonsaturating",
    latent_dim: int = 16,
    generator: Network | None = None,
    critic: Network | None = None,
    penalty: float | int | None = None,
    conditional: bool = False,
    num_classes: int | None = None,
) -> Model:
    """A GAN over events of any shape.

    Args:
        template: one event. latent_dim: k.
        objective: see above. penalty: its gamma or lambda; by default 1, and 10 for "wasserstein", as in the paper. On a
            Gaussian in the plane a lambda of 1 came within .01 nats where 10 stayed .02 to .3 away after as many steps.
        generator: apply(params, z [latent_dim]) -> like the template. critic: apply(params, x) -> scalar. Both work in the
            frame of the data, about zero mean and unit variance; by default the perceptrons of `nets.critic`.
        conditional: batches are pairs (events, conditions), both networks take the condition of one event as a last input, and
            samplers are made by model.sampler(params, condition); see `pushforward.conditional`.
        num_classes: makes it conditional on integer labels [], which the default networks see as indicator vectors.

    Returns:
        Model without log_density: nobody knows a GAN's. A loss costs four forwards per event, five for "wasserstein"; a draw
        costs one. Metrics: "critic_loss", "generator_loss", "penalty" (weighed), and "gap", mean D(x) - mean D(G), which for
        "wasserstein" estimates the distance the generator has left.

    Raises:
        ValueError: a size is no positive integer, an unknown objective, a negative penalty, or conditions that a default
            network cannot see; on fitting and on making a sampler, labels outside [0, num_classes).
    """
    event = Event.of(template)
    if objective not in _OBJECTIVES:
        raise ValueError(f"gan got objective={objective!r}; expected one of {', '.join(_OBJECTIVES)}")
    check_sizes("gan", latent_dim=(latent_dim, 1), num_classes=(1 if num_classes is None else num_classes, 1))
    penalty = _PENALTIES[objective] if penalty is None else penalty
    if not penalty >= 0:
        raise ValueError(f"gan got penalty={penalty}; expected a weight of at least 0")
    conditional = conditional or num_classes is not None
    if conditional and num_classes is None and (generator is None or critic is None):
        raise ValueError(
            "gan got conditional=True and no network; give num_classes= for labels, or both generator= and critic="
        )
    generator = _default_generator(template, latent_dim, num_classes) if generator is None else generator
    critic = _default_critic(template, event, num_classes) if critic is None else critic
    latent, options = Static(latent_dim), Static((objective, conditional))
    classes = Static(generator.num_classes or num_classes)
    return Model(
        init=bind(_init, generator, critic, event, options, classes),
        loss=bind(_loss, generator, critic, event, latent, options, scalar(penalty, event.template)),
        sampler=bind(_sampler, generator, event, latent, classes),
        forwards=5 if objective == "wasserstein" else 4,
    )


@cache
def gan_optimizer(
    *,
    generator_rate: float = 1e-3,
    critic_rate: float = 1e-3,
    critic_steps: int = 1,
    momentum: float = 0.0,
    second_momentum: float = 0.99,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for `fit(model, ..., optimizer=gan_optimizer(...))`: Adam with a rate for each player.

    Args:
        generator_rate, critic_rate: step sizes, constant: the players' game has no end to anneal towards, so average the
            parameters instead, `fit(ema=0.999)`.
        critic_steps: critic steps per step of the generator, which moves at every critic_steps-th step of the fit (its
            gradient is computed at the others too, and dropped). Gulrajani et al. take 5.
        momentum, second_momentum: Adam's beta_1 and beta_2; a first momentum makes the game cycle.

    Returns:
        The same object for the same arguments, so that a second fit compiles nothing.

    Raises:
        ValueError: a rate is not positive, or critic_steps < 1.
    """
    if generator_rate <= 0 or critic_rate <= 0 or critic_steps < 1:
        raise ValueError(
            f"gan_optimizer got generator_rate={generator_rate}, critic_rate={critic_rate}, critic_steps={critic_steps}; "
            "expected positive rates and at least one step"
        )

    def due(step):
        return step % critic_steps == critic_steps - 1

    def player(rate):
        return optax.adam(rate, b1=momentum, b2=second_momentum)

    players = {
        "generator": optax.conditionally_mask(player(generator_rate), due),
        "critic": player(critic_rate),
        "frame": optax.set_to_zero(),
    }
    return optax.with_extra_args_support(optax.multi_transform(players, _labels))


def _labels(params):
    return {name: name for name in params}


def _nonsaturating(real, fake):
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def _wasserstein(real, fake):
    return fake - real


def _hinge(real, fake):
    return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)


_OBJECTIVES = {
    "nonsaturating": (_nonsaturating, lambda fake: jax.nn.softplus(-fake)),
    "wasserstein": (_wasserstein, jnp.negative),
    "hinge": (_hinge, jnp.negative),
}
_PENALTIES = {"nonsaturating": 1.0, "wasserstein": 10.0, "hinge": 1.0}


def _default_generator(template, latent_dim, num_classes):
    if num_classes is None:
        return perceptron_generator(template, latent_dim)
    return labelled(perceptron_generator(template, latent_dim + num_classes), num_classes)


def _default_critic(template, event, num_classes):
    if num_classes is None:
        return perceptron_critic(template)
    critic = perceptron_critic((event.template, jax.ShapeDtypeStruct((num_classes,), event.dtype)))
    return Network(critic.init, bind(_judge, critic.apply, Static(num_classes), event), num_classes)


def _judge(apply, num_classes, event, params, x, *condition):
    label = told(condition, "critic", num_classes=num_classes.value)
    return apply(params, (x, indicator(label, num_classes.value, event.dtype)))


def _init(generator, critic, event, options, num_classes, key, batch):
    if batch is None:
        raise ValueError("gan got no data; expected a batch of events to learn from")
    batch, conditions = split_condition(options.value[1], batch)
    event.check(batch)
    check_labels(conditions, num_classes.value, "gan")
    key_generator, key_critic = jax.random.split(key)
    return {
        "generator": generator.init(key_generator), "critic": critic.init(key_critic), "frame": fit_frame(batch),
    }, ()  # fmt: skip


def _loss(generator, critic, event, latent_dim, options, weight, params, state, key, batch):
    objective, conditional = options.value
    batch, conditions = split_condition(conditional, batch)
    frame = jax.lax.stop_gradient(params["frame"])
    held = jax.lax.stop_gradient(params["critic"])
    critic_loss, generator_loss = _OBJECTIVES[objective]

    def one(key, x, *condition):
        key_latent, key_between = jax.random.split(key)
        asked = _asked(condition)

        def value(y):
            return critic.apply(params["critic"], event.unflatten(y), *asked)

        real = event.flatten(enter(frame, x))
        drawn = generator.apply(params["generator"], _prior(latent_dim, event, key_latent), *condition)
        fake = _apart(event.flatten(drawn))
        if objective == "wasserstein":
            share = jax.random.uniform(key_between, (), event.dtype)
            slope = jax.grad(value)(share * real + (1 - share) * fake)
            # A norm whose derivative at a slope of zero is zero and not NaN.
            steepness = jnp.square(optax.safe_norm(slope, 1e-12) - 1)
            on_real = value(real)
        else:
            on_real, slope = jax.value_and_grad(value)(real)
            steepness = 0.5 * jnp.square(slope).sum()
        return on_real, value(fake), critic.apply(held, drawn, *asked), steepness

    size = len(jax.tree.leaves(batch)[0])
    on_real, on_fake, judged, steepness = jax.vmap(one)(jax.random.split(key, size), batch, *conditions)
    metrics = {
        "critic_loss": critic_loss(on_real, on_fake).mean(), "generator_loss": generator_loss(judged).mean(),
        "penalty": weight * steepness.mean(), "gap": on_real.mean() - on_fake.mean(),
    }  # fmt: skip
    return metrics["critic_loss"] + metrics["penalty"] + metrics["generator_loss"], (state, metrics)


def _asked(condition):
    """What the critic is told of the condition."""
    return condition


def _apart(draws):
    """The generator's draws as the critic sees them: data, through which no gradient returns."""
    return jax.lax.stop_gradient(draws)


def _sampler(generator, event, latent_dim, num_classes, params, *condition):
    check_labels(condition, num_classes.value, "gan")
    check_params(params, {"frame": None, "generator": shapes_of(generator.init)})
    check_frame(params["frame"], event.template)
    return Sampler(
        start=bind(_prior, latent_dim, event),
        init=bind(_stand, event),
        step=bind(_step, generator, params["generator"], condition),
        position=bind(_position, params["frame"]),
        num_steps=1,
        traits=Traits(law="approximate"),
    )


def _prior(latent_dim, event, key):
    return jax.random.normal(key, (latent_dim.value,), event.dtype)


def _stand(event, key, z):
    del key
    return z, event.zeros()


def _step(generator, weights, condition, key, state, index):
    del key, index
    return (state[0], generator.apply(weights, state[0], *condition)), Info.of(forwards=1)


def _position(frame, state):
    return leave(frame, state[1])
