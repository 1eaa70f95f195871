"""Posteriors of the public database posteriordb as targets, with the reference draws to judge them by.

`posteriordb(name)` reads the data of one posterior in the database's own format and binds them to its model in
`posteriordb_models`, a translation of its Stan program. Files are looked for in the folder that GENSAMP_DATA names,
`posteriordb/posteriors/<name>.json`, `posteriordb/data/<data>.json.zip` and `posteriordb/draws/<name>.json.zip`; those that are
not there come from the database's repository by checksum, and are kept.

Source: Magnusson, Torgander, Buerkner, Zhang, Carpenter and Vehtari 2024, "posteriordb: Testing, benchmarking and developing
Bayesian inference algorithms"; data and draws BSD-3.
"""

import dataclasses
import difflib
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gensamp.core import Target, Truth
from gensamp.targets.mixture import float_dtype
from gensamp.targets.posteriors import posterior, unconstrain

__all__ = ["posteriordb", "posteriordb_model", "posteriordb_names", "reference_draws"]


def posteriordb_names() -> tuple[str, ...]:
    """The posteriors that have a model here, in alphabetical order."""
    return tuple(sorted(_POSTERIORS))


def posteriordb(name: Any, *, reference: bool = True, dtype: Any = None) -> Target:
    """One posterior of posteriordb.

    Args:
        name: one of `posteriordb_names()`, such as "arK-arK".
        reference: whether to read the reference draws too, as events in `truth.reference`: [10000, ...] per site.
        dtype: of data and events; jax's default float if None.

    Returns:
        Target: events are dicts {site: array} of unconstrained values. `constrain` gives the parameters of the Stan program by
        its names, every quantity of `reference_draws(name)` among them, with the same shapes.

    Raises:
        TypeError: the name is no string.
        ValueError: there is no model of that name; the message names the nearest one.
        FileNotFoundError: a file is neither in GENSAMP_DATA nor to be had from the repository.

    Cost of one gradient: one pass over the data; 100 steps of a differential equation for the Lotka-Volterra posterior.
    """
    dtype = float_dtype(dtype)
    model, arguments = posteriordb_model(name, dtype=dtype)
    target = posterior(model, arguments, name=name, dtype=dtype)
    if not reference:
        return target
    named = reference_draws(name)
    if "theta_trans" in target.template:
        named["theta_trans"] = (named["theta"] - named["mu"][..., None]) / named["tau"][..., None]
    flat = {site: named[site].reshape(-1, *named[site].shape[2:]) for site in target.template}
    source = "reference draws of posteriordb: long runs of Stan, thinned to be nearly independent"
    return dataclasses.replace(target, truth=Truth(reference=unconstrain(target, flat), source=source))


def posteriordb_model(name: Any, *, dtype: Any = None) -> tuple[Callable, tuple[Array, ...]]:
    """The numpyro model of one posterior and the arrays it is called with; arguments and errors as for `posteriordb`."""
    _check_name(name, "posteriordb")
    if name not in _POSTERIORS:
        raise ValueError(f"no posterior of posteriordb is called '{name}' here; {_nearest(name)}")
    dtype = float_dtype(dtype)
    entry = json.loads(_find("posteriors", f"{name}.json").read_bytes())
    data = {k: np.asarray(v, np.float64) for k, v in _read_zip(_find("data", f"{entry['data_name']}.json.zip")).items()}
    model, arguments = _POSTERIORS[name](data)
    return model, tuple(jnp.asarray(a, dtype) for a in arguments)


def reference_draws(name: Any, *, download: bool = True) -> dict[str, np.ndarray]:
    """Reference draws of a posterior in posteriordb, by the names of its Stan program.

    Args:
        name: posteriordb's, such as "eight_schools-eight_schools_noncentered".
        download: whether to ask the repository for a file that is not in GENSAMP_DATA.

    Returns:
        dict of float64 arrays [chains, draws, ...], on the constrained scale: `theta[1]`, `theta[2]`, ... become one "theta".

    Raises:
        TypeError: the name is no string.
        FileNotFoundError: the file is neither in GENSAMP_DATA nor to be had from the repository. Of a posterior that has no
            model here the message doubts the name.

    Source: Magnusson, Buerkner and Vehtari, posteriordb (BSD-3): long Stan runs, thinned to be nearly independent.
    """
    _check_name(name, "reference_draws")
    try:
        chains = _read_zip(_find("draws", f"{name}.json.zip", download=download))
    except FileNotFoundError as error:
        if name in _POSTERIORS:
            raise
        raise FileNotFoundError(f"{error}; or no posterior is called '{name}': {_nearest(name)} with models here") from error
    columns = {label: np.asarray([chain[label] for chain in chains], np.float64) for label in chains[0]}
    gathered: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for label, values in columns.items():
        match = re.fullmatch(r"([^\[]+)(?:\[([\d,]+)\])?", label)
        if match is None:
            raise ValueError(f"reference draws of '{name}' have a column {label!r}; expected a name, or a name[i] or name[i,j]")
        index = tuple(int(i) - 1 for i in match[2].split(",")) if match[2] else ()
        gathered.setdefault(match[1], {})[index] = values
    return {site: _assemble(parts) for site, parts in gathered.items()}


def _check_name(name: Any, by: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{by} got {type(name).__name__} as its name; expected a string, such as 'arK-arK'")


def _nearest(name: str) -> str:
    nearest = difflib.get_close_matches(name, _POSTERIORS, n=1, cutoff=0.3)
    return f"{f'did you mean {nearest[0]!r}? ' if nearest else ''}there are {', '.join(posteriordb_names())}"


def _assemble(parts: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """[chains, draws, ...] from one column [chains, draws] per index."""
    shape = tuple(max(index) + 1 for index in zip(*parts, strict=True))
    first = next(iter(parts.values()))
    out = np.full((*first.shape, *shape), np.nan)
    for index, values in parts.items():
        out[(..., *index)] = values
    return out


_REPOSITORY = "https://raw.githubusercontent.com/stan-dev/posteriordb/master/posterior_database/"
_FOLDERS = {"posteriors": "posteriors", "data": "data/data", "draws": "reference_posteriors/draws/draws"}


def _find(folder: str, file: str, *, download: bool = True) -> Path:
    """Where a file of the database lies on this machine, downloaded if it has to be."""
    path = Path(os.environ.get("GENSAMP_DATA", ""), "posteriordb", folder, file)
    if path.is_file():
        return path
    remedy = f"set GENSAMP_DATA to a folder that has it as posteriordb/{folder}/{file}"
    if not download:
        raise FileNotFoundError(f"{file} of posteriordb is not at {path}; {remedy}")
    import pooch

    digest = _SHA256.get(f"{folder}/{file}")
    cache = Path(pooch.os_cache("gensamp"), "posteriordb", folder)
    try:
        return Path(pooch.retrieve(f"{_REPOSITORY}{_FOLDERS[folder]}/{file}", digest, file, cache))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{file} of posteriordb is not at {path}, and the download failed ({error}); {remedy}"
        ) from error


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def _models() -> Any:
    # Imported late: the module defines numpyro distributions, and a run on another target needs no numpyro.
    from gensamp.targets import posteriordb_models

    return posteriordb_models


def _ark(data: dict) -> tuple[Callable, tuple]:
    lags = int(data["K"])
    lagged = np.stack([data["y"][lags - 1 - k : len(data["y"]) - 1 - k] for k in range(lags)], axis=1)
    return _models().ark, (lagged, data["y"][lags:])


def _blr(data: dict) -> tuple[Callable, tuple]:
    return _models().blr, (data["X"], data["y"])


def _diamonds(data: dict) -> tuple[Callable, tuple]:
    predictors = data["X"][:, 1:]
    return _models().diamonds, (predictors - predictors.mean(0), data["Y"])


def _eight_schools(data: dict) -> tuple[Callable, tuple]:
    from gensamp.targets import schools

    return schools.model, (data["y"], data["sigma"])


def _garch11(data: dict) -> tuple[Callable, tuple]:
    return _models().garch11, (data["y"], data["sigma1"])


def _gp_regr(data: dict) -> tuple[Callable, tuple]:
    return _models().gp_regr, ((data["x"][:, None] - data["x"]) ** 2, data["y"])


def _kidscore_interaction(data: dict) -> tuple[Callable, tuple]:
    school, iq = data["mom_hs"], data["mom_iq"]
    return _models().kidscore_interaction, (np.stack([np.ones_like(iq), school, iq, school * iq], axis=1), data["kid_score"])


def _lotka_volterra(data: dict) -> tuple[Callable, tuple]:
    if not np.array_equal(data["ts"], np.arange(1, len(data["ts"]) + 1)):
        raise ValueError(
            f"lotka_volterra got measurement times {data['ts']}; expected the years 1, 2, ..., as in hudson_lynx_hare"
        )
    return _models().lotka_volterra, (data["y_init"], data["y"])


def _low_dim_gauss_mix(data: dict) -> tuple[Callable, tuple]:
    return _models().low_dim_gauss_mix, (data["y"],)


def _nes(data: dict) -> tuple[Callable, tuple]:
    age = [data["age_discrete"] == group for group in (2, 3, 4)]
    columns = [
        np.ones_like(data["income"]),
        data["real_ideo"],
        data["race_adj"],
        *age,
        data["educ1"],
        data["gender"],
        data["income"],
    ]
    return _models().nes, (np.stack(columns, axis=1).astype(np.float64), data["partyid7"])


_POSTERIORS: dict[str, Callable[[dict], tuple[Callable, tuple]]] = {
    "arK-arK": _ark,
    "diamonds-diamonds": _diamonds,
    "eight_schools-eight_schools_noncentered": _eight_schools,
    "garch-garch11": _garch11,
    "gp_pois_regr-gp_regr": _gp_regr,
    "hudson_lynx_hare-lotka_volterra": _lotka_volterra,
    "kidiq-kidscore_interaction": _kidscore_interaction,
    "low_dim_gauss_mix-low_dim_gauss_mix": _low_dim_gauss_mix,
    "nes2000-nes": _nes,
    "sblrc-blr": _blr,
}

# fmt: off
_SHA256 = {  # of the files as the database ships them
    "data/arK.json.zip":
        "6f2acbacb04655927bfc9173c42e51fc330bf08c6184242a62b7e39c22abe410",
    "data/diamonds.json.zip":
        "127d44a642f954b707bec2d82725e168d57a412d59487708794d4a17097f26ba",
    "data/eight_schools.json.zip":
        "8e37cc01fe05b0e1779255e9bd386261f3d61daf7f75f02f72f38cdc9750531c",
    "data/garch.json.zip":
        "056100504a96a72ee6be6af80228d26189dea7343a30df6ecfefac70cc9b3957",
    "data/gp_pois_regr.json.zip":
        "9aaaa9d5694b74e2aefa6d0bd2f0a48637fcb4d455a74b33985e58154f285da9",
    "data/hudson_lynx_hare.json.zip":
        "36d116efc116fee9c9e7286df5545cbf11d08171c4f48b84476740464a4e33ec",
    "data/kidiq.json.zip":
        "16d341a99ec8178231eab660d8fda084a44145f6a241daf35276d0192d13b92d",
    "data/low_dim_gauss_mix.json.zip":
        "9b5ea284321417a7816b0426a0c96788a6824e6ceb4ec4ecd89493779720b8f9",
    "data/nes2000.json.zip":
        "4170d5780771b54b763315b5c21772befd4ca208c62d23424535f4b4af347439",
    "data/sblrc.json.zip":
        "81990278b8762ac79244afcd470861560c7b28e34e411ce6da814e6f632a1b81",
    "draws/arK-arK.json.zip":
        "7ddb947e6c1ac5380f9c1e1fa101833a1236ef03de30f2cf5ece7b5b71841530",
    "draws/diamonds-diamonds.json.zip":
        "2745f4857ceb358ff6c692ba1dd1fd9d01cf8bc5ac456ae87e3c957fd51c4aae",
    "draws/eight_schools-eight_schools_noncentered.json.zip":
        "0858641e630c877103dba2b78beaf6bc1f39435fc43d2894c4dff5d609c7a264",
    "draws/garch-garch11.json.zip":
        "5a56df72455394fec4bca2b8186432be76c8b8ecabfa43eff15bf19308edbf18",
    "draws/gp_pois_regr-gp_regr.json.zip":
        "df89f5011d9518b06c95a631c258ce03f4818b78deb40ed069cfd1d70074c8bb",
    "draws/hudson_lynx_hare-lotka_volterra.json.zip":
        "1d2124d283c104fb8faeb8c65b68e3fa22e39665accdac95979238587f85314b",
    "draws/kidiq-kidscore_interaction.json.zip":
        "acac3c394dfeb65ced6f14ddf20b5a5c075d7a80ae663d1d71f904c16d207065",
    "draws/low_dim_gauss_mix-low_dim_gauss_mix.json.zip":
        "422de750b20aef29c7b86f6bfa88dd9759050b6ffeb3588c004d6a4861c1e776",
    "draws/nes2000-nes.json.zip":
        "1b62971bd0ee49024afd2e77a3e0e2a10729a6b0ecf5d801f51233481b48cd74",
    "draws/sblrc-blr.json.zip":
        "44f876cf35a038fcd1fd13fb19bbadf04b4308618ad41390050ae8b014a4592d",
}
# fmt: on
