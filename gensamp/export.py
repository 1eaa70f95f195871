"""to_arviz: a run as the tree of labelled arrays that ArviZ reads, plots and judges.

    posterior            named quantities [chain, draw, ...], in the user's own space; without a target, the coordinates
    sample_stats         acceptance_rate, diverging, lp, energy, n_steps, log_weight, ... [chain, draw, ...]
    warmup_posterior     the same of the warm-up, where it was kept
    warmup_sample_stats
    log_likelihood       of each observed site and draw, for cross-validation (LOO)
    posterior_predictive data drawn anew, given draws of the posterior
    prior                one chain of draws from the prior, and data drawn anew given them
    prior_predictive
    observed_data        the data of the observed sites

This serves every row of the design's table. Draws of a finite sampler are one chain of independent draws. A population of a
chain has one chain per walker, with the coordinates `run` and `walker` beside it; a finite population has one chain per run
and its particles for draws. Statistics of a whole population are repeated for its members. Weighted draws keep their weights
(sample_stats.log_weight), which ArviZ's own summaries do not look at.

The last five groups need a model: a target made by `from_numpyro`. Dimensions are named by its plates.

Source: the InferenceData schema of ArviZ (Kumar et al. 2019) for the names; Vehtari, Gelman and Gabry 2017 for what
log_likelihood is for.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from gensamp.core import PyTree, Target, bind, check_key, require
from gensamp.quantities import clash, named, names
from gensamp.runner import Draws
from gensamp.targets import predictive

__all__ = ["to_arviz"]

SAMPLE_DIMS = ("chain", "draw")
WALKER_COORDS = ("run", "walker")
ARVIZ_NAMES = {"num_steps": "n_steps"}


def to_arviz(
    draws: Any,
    target: Any = None,
    *,
    warmup: Any = None,
    log_density: bool = False,
    log_likelihood: bool | None = None,
    posterior_predictive: Any = 0,
    prior: Any = 0,
    key: Any = None,
    coords: Any = None,
    dims: Any = None,
) -> Any:
    """A run for ArviZ.

    Args:
        draws: what `sample` or `auto` returned.
        target: what they were drawn from: it names the quantities, and a numpyro posterior has the model and the data for the
            further groups. None: the coordinates of the draws, by the names in their tree.
        warmup: the Draws of the warm-up. `sample` throws its own away; to keep one, run it as draws (`warmup=0`) and give the
            last positions to the next run as `initial`.
        log_density: whether sample_stats gets lp, the target's log density at each draw, on the coordinates chains move in
            (one evaluation per draw, in no ledger).
        log_likelihood: None is: if the target is a numpyro posterior with observations. As many numbers as draws x data.
            `numpyro.factor` sites are among them, since nobody can tell whether they hold data.
        posterior_predictive: draws per chain, at even distances, for which to draw data anew. A law that is a function of
            other data (an autoregression) keeps those data.
        prior: draws from the prior, and of data given them.
        key: a typed key, consumed; for posterior_predictive and prior. The draw i of the chain c has
            fold_in(fold_in(split(key)[0], c), i), the draw i of the prior fold_in(split(key)[1], i).
        coords: {dimension: labels}.
        dims: {quantity: [names of its dimensions after chain and draw]}, in place of the names of plates.

    Returns:
        xarray.DataTree with the groups of the module's docstring. The tree's attributes are the version, how the run ended,
        its message and notes, and its ledger, as JSON.

    Raises:
        TypeError: draws or warmup are no Draws, a key is needed and there is none, or coords or dims are no such dicts.
        ValueError: the draws are not of this target, nothing was recorded, a group was asked for that the target cannot give,
            coords or dims name what is not there, or a quantity, a plate or dims has a name that is kept for the axes of draws.
        ModuleNotFoundError: arviz-base is not installed.
    """
    arviz_base = _arviz_base()
    _check_labels(coords, dims)
    position = _positions(draws, target, "draws")
    chains, length = np.shape(jax.tree.leaves(position)[0])[:2]
    early = None if warmup is None else _positions(warmup, target, "warmup")
    if early is not None and len(jax.tree.leaves(early)[0]) != chains:
        raise ValueError(
            f"warmup has {len(jax.tree.leaves(early)[0])} chains and the draws have {chains}; expected the warm-up of these"
        )
    complaint = clash(names(_shaped(position) if target is None else target))
    if complaint:
        raise ValueError(f"quantities of the draws {complaint}; rename them")
    asked = {"log_likelihood": log_likelihood, "posterior_predictive": posterior_predictive, "prior": prior}
    _check_counts(asked, length)
    posterior_predictive, prior = int(posterior_predictive), int(prior)
    density = _density_of(target) if log_density else None
    observed, plates = _model_of(target, asked)
    keys = (None, None)
    if posterior_predictive or prior:
        check_key(key)
        keys = jax.random.split(key)
    groups: dict[str, dict] = {
        "posterior": _quantities(target, position),
        "sample_stats": _sample_stats(draws, density, position),
    }
    if early is not None:
        groups["warmup_posterior"] = _quantities(target, early)
        groups["warmup_sample_stats"] = _sample_stats(warmup, density, early)
    predicted = np.arange(posterior_predictive) * length // max(posterior_predictive, 1)
    if observed and log_likelihood is not False:
        groups["log_likelihood"] = _over(predictive.log_likelihood(target), position)
    if posterior_predictive:
        chain, draw = np.meshgrid(np.arange(chains, dtype=np.uint32), predicted.astype(np.uint32), indexing="ij")
        rows = {"position": jax.tree.map(lambda a: a[:, predicted], position), "chain": chain, "draw": draw}
        groups["posterior_predictive"] = _over(predictive.posterior_predictive(keys[0], target), rows)
    if prior:
        index = np.arange(prior, dtype=np.uint32)[None]
        values = _over(predictive.prior_predictive(keys[1], target), index)
        groups["prior"] = {name: a for name, a in values.items() if name not in observed}
        groups["prior_predictive"] = {name: a for name, a in values.items() if name in observed}
    if observed:
        groups["observed_data"] = observed
    groups = {group: {_plain(name): a for name, a in values.items()} for group, values in groups.items()}
    walkers = chains // len(np.asarray(draws.info.acceptance))
    _check_names(dims, plates, groups, {*SAMPLE_DIMS, *(WALKER_COORDS if walkers > 1 else ())})
    tree = arviz_base.from_dict(
        {group: values for group, values in groups.items() if values},
        sample_dims=list(SAMPLE_DIMS),
        save_warmup=True,
        coords=dict(coords or {}),
        dims=plates | {name: list(given) for name, given in (dims or {}).items()},
        check_conventions=False,
        attrs=_attributes(draws),
    )
    _check_coords(coords, tree)
    if posterior_predictive:
        _relabel(tree, ["posterior_predictive"], draw=tree["posterior"].coords["draw"].values[predicted])
    if walkers > 1:
        members = np.arange(chains)
        everywhere = [group for group in tree.children if "chain" in tree[group].dims and "prior" not in group]
        _relabel(tree, everywhere, run=("chain", members // walkers), walker=("chain", members % walkers))
    return tree


def _arviz_base():
    try:
        import arviz_base
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to_arviz needs arviz-base, which is not installed; pip install 'gensamp[arviz]'") from None
    return arviz_base


def _positions(draws: Any, target: Any, argument: str) -> PyTree:
    """The positions [chain, draw, ...] on the host, once they are known to be of the target."""
    if not isinstance(draws, Draws):
        raise TypeError(f"to_arviz got {type(draws).__name__} as {argument}; expected the Draws that sample returned")
    if target is not None and not isinstance(target, Target):
        raise TypeError(f"to_arviz got {type(target).__name__} as its target; expected a Target, or None")
    leaves = jax.tree.leaves(draws.position)
    if not leaves or 0 in np.shape(leaves[0])[:2]:
        raise ValueError(f"{argument} hold nothing ({draws.message or 'no draw was recorded'}); run sample for some draws")
    if target is not None:
        events = jax.tree.map(lambda a: list(np.shape(a)[2:]), draws.position)
        wanted = jax.tree.map(lambda a: list(a.shape), target.template)
        if events != wanted:
            raise ValueError(
                f"{argument} have events of shapes {events}, and those of the target '{target.name}' have {wanted}; give the "
                "target they were drawn from, or None"
            )
    return jax.tree.map(np.asarray, draws.position)


def _quantities(target: Target | None, position: PyTree) -> dict[str, np.ndarray]:
    return named(_shaped(position) if target is None else target, position)


def _density_of(target: Target | None) -> Any:
    if target is None:
        raise ValueError("to_arviz got log_density=True and no target; give the target that the draws are of")
    return require(target, "log_density", "to_arviz")


def _sample_stats(draws: Draws, log_density: Any, position: PyTree) -> dict[str, np.ndarray]:
    """What is known of each draw, under ArviZ's names."""
    lead = np.shape(jax.tree.leaves(position)[0])[:2]
    acceptance = np.asarray(draws.info.acceptance)

    def per_draw(a):
        a = np.asarray(a)
        if acceptance.ndim == 1:  # [run]: one of a whole population of particles
            return np.broadcast_to(a[:, None], (*lead, *a.shape[1:]))
        return np.repeat(a, lead[0] // len(acceptance), axis=0)

    extra = jax.tree.map(per_draw, draws.info.extra)
    stats = {ARVIZ_NAMES.get(name, name): a for name, a in named(_shaped(extra), extra).items()}
    stats |= {"acceptance_rate": per_draw(acceptance), "diverging": per_draw(draws.info.diverged)}
    if draws.log_weight is not None:
        stats["log_weight"] = np.asarray(draws.log_weight)
    if log_density is not None:
        stats |= _over(bind(_named_log_density, log_density), position)
    return stats


def _check_counts(asked: dict[str, Any], length: int) -> None:
    for name in ("posterior_predictive", "prior"):
        count = asked[name]
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise ValueError(f"to_arviz got {name}={count!r}; expected a number of draws")
    if asked["posterior_predictive"] > length:
        raise ValueError(
            f"to_arviz got posterior_predictive={asked['posterior_predictive']} for {length} draws per chain; expected at most "
            "those"
        )


def _model_of(target: Target | None, asked: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, list]]:
    """The data of a numpyro posterior, and the dimensions of its sites; nothing of another target.

    Raises:
        ValueError: something was asked for that needs a model, or data, where there are none.
    """
    wanted = [name for name, value in asked.items() if value]
    if target is None or not predictive.has_model(target):
        if wanted:
            got = "no target" if target is None else f"the target '{target.name}', which is of no numpyro model"
            raise ValueError(f"to_arviz got {' and '.join(wanted)} with {got}; expected one made by Target.from_numpyro")
        return {}, {}
    observed = predictive.observed_data(target)
    if not observed and {"log_likelihood", "posterior_predictive"} & set(wanted):
        raise ValueError(
            f"to_arviz got {' and '.join(wanted)} with the target '{target.name}', which observes nothing; "
            "give the observations to from_numpyro"
        )
    axes = {
        _plain(site): [None if name is None else _plain(name) for name in names]
        for site, names in predictive.plates(target).items()
    }
    return observed, axes


def _named_log_density(log_density: Any, position: PyTree) -> dict[str, jax.Array]:
    return {"lp": log_density(position)}


def _over(function: Partial, rows: PyTree) -> dict[str, Any]:
    """A function of one row over rows [chain, draw, ...]: one program for blocks of one size, as quantities are computed."""
    return named(dataclasses.replace(_shaped(rows), constrain=function), rows)


def _shaped(rows: PyTree) -> Target:
    """A target that only says what one row [chain, draw, ...] looks like."""
    return Target(template=jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a)[2:], a.dtype), rows))


def _plain(name: str) -> str:
    """A name without the sign that divides groups, which numpyro's scopes put there."""
    return name.replace("/", ".")


def _check_labels(coords: Any, dims: Any) -> None:
    for name, given, expected in (("coords", coords, "{dimension: labels}"), ("dims", dims, "{quantity: [names]}")):
        if not isinstance(given, Mapping | None):
            raise TypeError(f"to_arviz got {type(given).__name__} as {name}; expected a dict {expected}")
    for quantity, axes in (dims or {}).items():
        if not isinstance(axes, list | tuple) or not all(isinstance(axis, str | None) for axis in axes):
            raise TypeError(f"dims has {axes!r} for '{quantity}'; expected a list of names, such as ['school']")


def _check_names(dims: Mapping[str, Any] | None, plates: dict[str, list], groups: dict[str, dict], reserved: set[str]) -> None:
    """Are the names of quantities known, and those of quantities and dimensions not the ones of the axes of draws?"""
    names = {name for values in groups.values() for name in values}
    unknown, taken = sorted(set(dims or {}) - names), sorted(names & reserved)
    if unknown:
        raise ValueError(f"dims names {unknown}, which are not in the draws; expected some of {sorted(names)}")
    if taken:
        raise ValueError(f"quantities are named {taken}, which ArviZ reserves for the axes of draws; rename them")
    swapped = {name: list(axes) for name, axes in (plates | dict(dims or {})).items() if reserved & set(axes)}
    if swapped:
        raise ValueError(
            f"dimensions are {swapped}, and ArviZ reserves {sorted(reserved)} for the axes of draws; give them other names by "
            "dims="
        )


def _check_coords(coords: Mapping[str, Any] | None, tree: Any) -> None:
    known = {str(dim) for node in tree.children.values() for dim in node.dims}
    unknown = sorted(set(coords or {}) - known)
    if unknown:
        raise ValueError(f"coords names {unknown}, which are no dimensions; expected some of {sorted(known)}")


def _relabel(tree: Any, groups: list[str], **coords: Any) -> None:
    for group in groups:
        tree[group] = type(tree)(tree[group].to_dataset().assign_coords(**coords))


def _attributes(draws: Draws) -> dict[str, dict[str, Any]]:
    from gensamp import __version__

    library = {"inference_library": "gensamp", "inference_library_version": __version__}
    ledger = json.dumps(dataclasses.asdict(draws.ledger))
    root = {"ending": draws.ending, "message": draws.message, "notes": "; ".join(draws.notes), "ledger": ledger}
    return {"/": library | root, "posterior": library | {"sampling_time": draws.ledger.sample.wall_seconds}}
