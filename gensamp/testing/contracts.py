"""What every sampler promises by being a `Sampler`, checked on one sampler at a time.

A new sampler is covered by what it says of itself (num_steps, traits, which fields it fills), with no line of test of its own:

    type         its fields are pytree functions, num_steps is None or positive, its static parts hash
    leaves       every array is a leaf of the pytree, strongly typed; none hides in a closure
    state        a step gives back a state of the same structure, shapes and dtypes; position, log_weight and log_density have
                 the shapes the type says
    x64          all of that under 64-bit mode too: a float32 sampler stays float32
    info         an Info of int32 counts, a float32 acceptance in [0, 1], a bool
    callbacks    nothing in it calls the host
    determinism  tracing twice gives the same program, running twice the same bits; another key gives another draw
    retrace      another key, other leaf values, and the sampler built again compile nothing
    vmap         mapped over keys and over its own leaves it gives what it gives alone
    index        the state of a chain does not count its own steps (the shared index does that)
    retarget     init at the position of a chain's state gives back what the state caches
    counts       its Info says how often density, score and network were called
    grad         a finite sampler is differentiable in its leaves, to finite numbers, where it has no data-dependent loop
    shard_map    spread over devices it gives the same draws, without communication

Two programs are compiled for all but the last two: the sampler alone, and mapped over keys and leaves.
"""

from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial, keystr, tree_leaves_with_path

from gensamp.core import Info, PyTree, Sampler, Target, as_template, begin, draw
from gensamp.testing.case import Case, close, equal, fetch, moved, program_text, run, split_floats
from gensamp.testing.hidden import hidden_arrays

__all__ = ["CONTRACTS", "ContractError", "check_sampler"]

CONTRACTS = (
    "type", "leaves", "state", "x64", "info", "callbacks", "determinism", "retrace", "vmap", "index", "retarget", "counts",
    "grad", "shard_map",
)  # fmt: skip


class ContractError(AssertionError):
    """A sampler broke a contract; the message is one sentence that begins with the contract's name."""

    def __init__(self, contract: str, sentence: str) -> None:
        super().__init__(f"{contract}: {sentence}")
        self.contract = contract


def check_sampler(
    sampler: Sampler,
    *,
    template: PyTree = None,
    target: Target | None = None,
    networks: Sequence[Callable] = (),
    remake: Callable[[], Sampler] | None = None,
    contracts: Collection[str] = CONTRACTS,
    skip: Collection[str] = (),
    key: jax.Array | None = None,
    rtol: float = 1e-3,
) -> dict[str, str]:
    """Hold a sampler to its type.

    Args:
        sampler: any Sampler. Run under `jax.enable_x64` with a float64 sampler to check it in double precision.
        template: one event; positions must then have its shapes and dtypes.
        target: its log_density, score and minibatch_log_density are counted while the sampler runs. networks: `apply` functions
            to count likewise.
        remake: builds the sampler again, perhaps with other numbers: it must be the same program.
        contracts: which to check; see the module's docstring. skip: which to leave out (adaptation counts its steps: "index").
        key: a typed key. rtol: relative tolerance between differently compiled programs.

    Returns:
        contract -> "held", or "not applicable: ..." with the reason.

    Raises:
        ContractError: an AssertionError naming the contract that broke, in one sentence.
        ValueError: a contract is asked for that does not exist.
    """
    for name in (*contracts, *skip):
        if name not in CONTRACTS:
            raise ValueError(f"there is no contract '{name}'; expected some of {', '.join(CONTRACTS)}")
    wanted = [name for name in CONTRACTS if name in contracts and name not in skip]
    case = Case(sampler, template, target, tuple(networks), remake, jax.random.key(0) if key is None else key, rtol)
    return {name: _CHECKS[name](case) or "held" for name in wanted}


def _check_type(case: Case) -> None:
    sampler = case.sampler
    if not isinstance(sampler, Sampler):
        raise ContractError("type", f"got {type(sampler).__name__}; expected a gensamp.Sampler")
    for name in ("start", "init", "step", "position", "log_density", "log_weight"):
        value = getattr(sampler, name)
        optional = name.startswith("log_")
        if not (isinstance(value, Partial) or (optional and value is None)):
            raise ContractError("type", f"{name} is {type(value).__name__}; expected a pytree function made by gensamp.bind")
    steps = sampler.num_steps
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise ContractError("type", f"num_steps is {steps!r}; expected None or a positive integer")
    try:
        hash(jax.tree.structure(sampler))
    except TypeError as error:
        raise ContractError(
            "type", f"its static parts do not hash ({error}); make arrays leaves and wrap the rest in Static"
        ) from error


def _check_leaves(case: Case) -> None:
    if hidden := hidden_arrays(case.sampler):
        raise ContractError("leaves", f"arrays hide in {'; '.join(hidden)}; pass them as arguments of bind")
    for path, leaf in tree_leaves_with_path(case.sampler):
        if not isinstance(leaf, jax.Array | np.ndarray) or getattr(leaf, "weak_type", False):
            kind = "a weakly typed array" if isinstance(leaf, jax.Array) else f"a Python {type(leaf).__name__}"
            raise ContractError("leaves", f"the leaf {keystr(path)} is {kind}; normalise it with gensamp.core.scalar")


def _check_state(case: Case, contract: str = "state") -> None:
    sampler, key = case.sampler, case.keys[0]
    try:
        start = jax.eval_shape(sampler.start, key)
        state = jax.eval_shape(sampler.init, key, start)
        after, _ = jax.eval_shape(sampler.step, key, state, jax.ShapeDtypeStruct((), jnp.int32))
        position = jax.eval_shape(sampler.position, after)
    except (TypeError, ValueError) as error:
        raise ContractError(contract, f"start, init, step or position does not trace: {_first_line(error)}") from error
    _same_avals(contract, state, after, "the state after a step differs from the state that init makes")
    if case.endless:
        _same_avals(contract, start, position, "a chain's position differs from its start")
    population = sampler.traits.population
    if case.template is not None:
        event = as_template(case.template)
        if population > 1:
            event = jax.tree.map(lambda a: jax.ShapeDtypeStruct((population, *a.shape), a.dtype), event)
        _same_avals(contract, event, position, "the position differs from the template")
    for name, argument in (("log_weight", after), ("log_density", position)):
        function = getattr(sampler, name)
        if function is None:
            continue
        out = jax.eval_shape(function, argument)
        allowed = [()] if name == "log_density" or population == 1 else [(), (population,)]
        if not hasattr(out, "shape") or out.shape not in allowed or not jnp.issubdtype(out.dtype, jnp.floating):
            raise ContractError(contract, f"{name} returns {out}; expected a floating-point number of shape {allowed[-1]}")


def _check_x64(case: Case) -> str | None:
    if jax.config.read("jax_enable_x64"):
        return "not applicable: 64-bit mode is on already, and state has been checked under it"
    # A constant or a random number made without a dtype is float64 here, whatever the sampler's own precision.
    with jax.enable_x64(True):
        _check_state(case, "x64")
    return None


def _same_avals(contract: str, expected: PyTree, got: PyTree, sentence: str) -> None:
    if jax.tree.structure(expected) != jax.tree.structure(got):
        shapes = f"{jax.tree.structure(got)} instead of {jax.tree.structure(expected)}"
        raise ContractError(contract, f"{sentence}: structure {shapes}")
    for (path, a), b in zip(tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        one, other = ((x.shape, x.dtype, bool(getattr(x, "weak_type", False))) for x in (a, b))
        if one != other:
            names = [f"{'weak ' * weak}{dtype}{list(shape)}" for shape, dtype, weak in (one, other)]
            raise ContractError(contract, f"{sentence}: leaf {keystr(path) or 'x'} was {names[0]} and is {names[1]}")


def _check_info(case: Case) -> None:
    sampler, key = case.sampler, case.keys[0]
    state = jax.eval_shape(lambda k: begin(k, sampler), key)
    _, info = jax.eval_shape(sampler.step, key, state, jax.ShapeDtypeStruct((), jnp.int32))
    if not isinstance(info, Info):
        raise ContractError("info", f"step returned {type(info).__name__} beside the state; expected Info.of(...)")
    for name, dtype in (
        ("gradients", jnp.int32), ("densities", jnp.int32), ("forwards", jnp.int32), ("acceptance", jnp.float32),
        ("diverged", bool),
    ):  # fmt: skip
        leaf = getattr(info, name)
        if getattr(leaf, "shape", None) != () or leaf.dtype != dtype:
            raise ContractError("info", f"{name} is {leaf}; expected one {jnp.dtype(dtype)} per step, as Info.of makes it")
    mean = case.standard()["info"].acceptance / case.num_steps
    if not ((mean >= -1e-5) & (mean <= 1 + 1e-5)).all():
        raise ContractError("info", f"the average acceptance is {mean.ravel().tolist()}; expected probabilities in [0, 1]")


def _check_callbacks(case: Case) -> None:
    if "_callback[" in program_text(case):
        raise ContractError("callbacks", "a compiled step calls the host; what does so belongs to the runner, between chunks")


def _check_determinism(case: Case) -> None:
    if program_text(case) != program_text(case):
        raise ContractError("determinism", "tracing twice gives two programs; draw random numbers from the key, not from NumPy")
    first, second = case.standard(), case.mapped()
    if not equal(first, second):
        raise ContractError("determinism", "the same keys gave different bits in a second run; draw everything from the key")
    if equal(*(jax.tree.map(lambda a, i=i: a[:, i], first["position"]) for i in range(2))):
        raise ContractError("determinism", "two keys gave the same draw; use the key in start or step")


def _check_retrace(case: Case) -> None:
    case.standard()
    before = case.traces
    case.mapped(keys=jax.random.split(case.keys[1], 2))
    if case.traces != before:
        raise ContractError("retrace", "a second key compiled the sampler again")
    case.mapped(samplers=moved(case.both))
    if case.traces != before:
        raise ContractError("retrace", "new values of the leaves compiled the sampler again")
    if case.remake is not None:
        other = case.remake()
        if _signature(other) != _signature(case.sampler):
            raise ContractError(
                "retrace",
                "the sampler built again is another program; use module-level functions, Static and scalar to build it",
            )


def _check_vmap(case: Case) -> None:
    mapped, alone = case.standard(), case.alone()
    case.tally.take()
    mine = jax.tree.map(lambda a: a[0, 0], mapped)
    for name in ("position", "weight", "density"):
        if not close(mine[name], alone[name], case.rtol):
            raise ContractError(
                "vmap", f"mapped over keys and leaves its {name} differs from what it is alone; keep draws apart"
            )
    for count in ("gradients", "densities", "forwards"):
        one, other = getattr(mine["info"], count), getattr(alone["info"], count)
        if one != other:
            raise ContractError("vmap", f"mapped over keys it reports {one} {count}, alone {other}; count per draw")


def _check_index(case: Case) -> str | None:
    if not case.endless:
        return "not applicable: a finite sampler ends, and its state may"
    states = [case.mapped(num_steps=n)["state"] for n in range(1, 4)]
    for (path, a), b, c in zip(tree_leaves_with_path(states[0]), *map(jax.tree.leaves, states[1:]), strict=True):
        if jnp.issubdtype(a.dtype, jnp.integer) and a.size and ((b - a == 1) & (c - b == 1)).all():
            raise ContractError("index", f"the state counts its steps in {keystr(path)}; use the index that step is given")
    return None


def _check_retarget(case: Case) -> str | None:
    if not case.endless:
        return "not applicable: a finite sampler's draw is not a place to start it from"
    outcome = case.standard()
    one, two = outcome["again"]
    caches = zip(tree_leaves_with_path(outcome["state"]), jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    for (path, cached), a, b in caches:
        # What init draws anew (a momentum) differs between its keys, and is not a cache.
        if equal(a, b) and not close(cached, a, case.rtol):
            raise ContractError("retarget", f"init at a state's position gives another {keystr(path)}: the step left it stale")
    return None


def _check_counts(case: Case) -> str | None:
    _, found = case.counted()
    if not found:
        if case.target is None and not case.networks:
            return "not applicable: no target and no networks were given to count"
        return "not applicable: the sampler holds none of the given functions as an argument"
    case.tally.take()
    case.alone(num_steps=0)
    idle = case.tally.take()
    info = case.alone()["info"]
    seen = case.tally.take()
    for kind in ("gradients", "densities", "forwards"):
        truly, said = seen[kind] - idle[kind], int(getattr(info, kind))
        if truly != said:
            raise ContractError("counts", f"{case.num_steps} steps made {truly} {kind} and Info says {said}; report every call")
    return None


def _check_grad(case: Case) -> str | None:
    if case.endless:
        return "not applicable: a chain without end is not differentiated"
    leaves, rebuild = split_floats(case.sampler)
    if not leaves:
        return "not applicable: it has no floating-point leaf"
    key = case.keys[0]

    def total(leaves):
        position = draw(key, rebuild(leaves)).position
        return sum(jnp.sum(a) for a in jax.tree.leaves(position))

    try:
        gradients = jax.jit(jax.grad(total))(leaves)
    except ValueError as error:
        if "Reverse-mode differentiation does not work" in str(error):
            return "not applicable: it has a loop whose length depends on the data"
        raise ContractError("grad", f"a draw cannot be differentiated in its leaves: {_first_line(error)}") from error
    if not all(np.isfinite(g).all() for g in jax.device_get(gradients)):
        raise ContractError("grad", "the derivative of a draw in its leaves is not finite; guard roots and divisions at zero")
    return None


def _check_shard_map(case: Case) -> str | None:
    if len(jax.local_devices()) < 2:
        return "not applicable: there is one device"
    from gensamp.parallel import AXIS, mesh, per_device

    def device(sampler, keys):
        return jax.vmap(run, in_axes=(None, 0, None))(sampler, keys, jnp.int32(case.num_steps))

    spread = jax.jit(per_device(device, mesh(2), split_in=(P(), P(AXIS)), split_out=P(AXIS)))
    program = spread.lower(case.sampler, case.keys).compile().as_text() or ""
    for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        if word in program:
            raise ContractError("shard_map", f"spread over devices it compiles to {word}; independent draws need none")
    outcome = fetch(spread(case.sampler, case.keys))
    expected = jax.tree.map(lambda a: a[0], case.standard())
    if not close(outcome["position"], expected["position"], case.rtol):
        raise ContractError("shard_map", "spread over devices it gives other draws than on one")
    return None


def _signature(sampler: Sampler) -> tuple:
    return jax.tree.structure(sampler), [(jnp.shape(a), jnp.result_type(a)) for a in jax.tree.leaves(sampler)]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


_CHECKS: dict[str, Callable[[Case], str | None]] = {
    "type": _check_type, "leaves": _check_leaves, "state": _check_state, "x64": _check_x64, "info": _check_info,
    "callbacks": _check_callbacks, "determinism": _check_determinism, "retrace": _check_retrace, "vmap": _check_vmap,
    "index": _check_index, "retarget": _check_retarget, "counts": _check_counts, "grad": _check_grad,
    "shard_map": _check_shard_map,
}  # fmt: skip
