"""A diffusion model of the diffusers library on disk, read into ours, and ours written so that that library loads it.

    folder/unet/config.json, folder/unet/diffusion_pytorch_model.safetensors, folder/scheduler/scheduler_config.json

is what a `DDPMPipeline` writes; the three files may as well lie side by side in `folder`. Files are JSON and safetensors, read
by the safetensors library without torch: nothing in them is executed, and the pickled `.bin` files of old are refused. A model
that was fitted here to data of another frame than [-1, 1] (`pushforward.frame`) keeps its shift and scale in
`folder/gensamp_frame.json`, which that library ignores: there its draws are in the frame's coordinates.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gensamp.core import Network, PyTree, bind
from gensamp.nets.diffusers_layout import Layout
from gensamp.nets.diffusers_unet import diffusers_unet, layout_of
from gensamp.noise import Noise
from gensamp.weights.schedulers import read_scheduler, write_scheduler

__all__ = ["Pretrained", "read_diffusers", "write_diffusers"]

CONFIG, TENSORS, SCHEDULER = "config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"
FRAME = "gensamp_frame.json"
# Of the library whose format this is; it warns where this is newer than itself.
VERSION = "0.30.0"
# Names of attention's matrices in the oldest files.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Somebody's diffusion model: what a solver, or `diffusion_model` and `fit`, need of it.

    network: of `nets.diffusers_unet`. params: {"network", "shift", "scale"}, as `diffusion_model`'s are. noise, prediction,
    clip: of the scheduler, see `Process`. template: one image, [height, width, channels]. scheduler: the configuration it was
    read from, to be written back.

    Example:
        model = diffusion_model(
            it.network, it.noise, template=it.template, prediction=it.prediction, clip=it.clip, grid=trailing(20)
        )
        draws = gs.sample(key, model.sampler(it.params), 64)
    """

    network: Network
    params: dict[str, Any]
    noise: Noise
    prediction: str
    clip: tuple[float, float] | None
    template: Any
    scheduler: Mapping[str, Any]

    def denoiser(self, *condition: Any) -> Any:
        """The network as (t, x) -> prediction, for any solver: `unipc(it.denoiser(), it.noise, grid, it.template, ...)`."""
        return bind(_denoise, self.network, self.params["network"], condition)


def read_diffusers(
    folder: str | Path, *, scheduler: Mapping[str, Any] | None = None, template: Any = None, **options: Any
) -> Pretrained:
    """Read a `UNet2DModel` and its scheduler.

    Args:
        folder: as the module's docstring says; a download of a repository of the Hugging Face hub will do.
        scheduler: its configuration, where the folder has none or another process is wanted.
        template: one image [height, width, channels], where it is of another size than `sample_size`, or that is not known.
            Its dtype is the parameters'; float32 by default, whatever the file holds.
        options: convolution and compute, see `nets.diffusers_unet`.

    Raises:
        FileNotFoundError: a file is not there (named), or only its pickled form is.
        ValueError: the network or the scheduler is not covered, or a tensor is missing, left over, or of another shape (named).
        ModuleNotFoundError: the safetensors library is not installed.
    """
    folder = Path(folder)
    layout = Layout.of(_json(_find(folder, "unet", CONFIG)))
    process_config = _json(_find(folder, "scheduler", SCHEDULER)) if scheduler is None else dict(scheduler)
    process = read_scheduler(process_config)
    template = _template(layout, template)
    own = ("_class_name", "sample_size", "in_channels", "out_channels")
    config = {name: value for name, value in layout.config().items() if name not in own}
    network = diffusers_unet(template, clock=process.clock, **config, **options)
    weights = _from_tensors(network, _tensors(_find(folder, "unet", TENSORS)), template.dtype)
    frame = {"shift": 0.0, "scale": 1.0}
    if (folder / FRAME).exists():
        frame = _json(folder / FRAME)
    params = {"network": weights} | {name: jnp.asarray(frame[name], template.dtype) for name in ("shift", "scale")}
    return Pretrained(network, params, process.noise, process.prediction, process.clip, template, process_config)


def write_diffusers(
    folder: str | Path,
    network: Network,
    params: PyTree,
    noise: Noise | None = None,
    prediction: str | None = None,
    *,
    clip: Any = None,
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Write a network of `nets.diffusers_unet` so that `DDPMPipeline.from_pretrained(folder)` loads it, and `read_diffusers`.

    Args:
        folder: made where it is not there; its files are replaced.
        network: from `nets.diffusers_unet` or `read_diffusers`.
        params: a diffusion model's parameters {"network", "shift", "scale"}, or the network's alone.
        noise, prediction, clip: what to make the scheduler's configuration of (`write_scheduler`), with as many steps as the
            network's clock has.
        scheduler: that configuration itself, such as `Pretrained.scheduler`, instead of the three.

    Raises:
        TypeError: another network. ValueError: neither a process nor a scheduler is given, the network is told other times than
            the scheduler would tell it, that library has no such scheduler, or the parameters are another network's.
        ModuleNotFoundError: the safetensors library is not installed.
    """
    layout, clock = layout_of(network)
    if (noise is None or prediction is None) == (scheduler is None):
        raise ValueError("write_diffusers needs either noise and prediction, or scheduler, the configuration of one")
    if scheduler is None:
        assert noise is not None and prediction is not None
        steps = 1000 if isinstance(clock, Noise) else int(clock[0])
        scheduler = write_scheduler(noise, prediction, steps=steps, clip=clip)
    wanted = read_scheduler(scheduler).clock
    if isinstance(clock, Noise) != isinstance(wanted, Noise) or (not isinstance(clock, Noise) and clock != tuple(wanted)):
        raise ValueError(
            f"the network's clock is {clock}, and a {scheduler['_class_name']} tells its network by {wanted}; make the network "
            "with that clock"
        )
    folder = Path(folder)
    framed = isinstance(params, dict) and set(params) == {"network", "shift", "scale"}
    weights = params["network"] if framed else params
    expected = jax.eval_shape(network.init, jax.random.key(0))
    if jax.tree.map(jnp.shape, weights) != jax.tree.map(jnp.shape, expected):
        raise ValueError("the parameters are not of this network: their names or shapes differ from those of its init")
    safetensors = _safetensors()
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(_to_tensors(weights), folder / "unet" / TENSORS, metadata={"format": "pt"})
    _write(folder / "unet" / CONFIG, layout.config() | {"_diffusers_version": VERSION})
    _write(folder / "scheduler" / SCHEDULER, {"_diffusers_version": VERSION} | dict(scheduler))
    pipeline = {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION}
    parts = {"scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", "UNet2DModel"]}
    _write(folder / "model_index.json", pipeline | parts)
    frame = {name: np.asarray(params[name]).tolist() for name in ("shift", "scale")} if framed else {"shift": 0.0, "scale": 1.0}
    if frame != {"shift": 0.0, "scale": 1.0}:
        _write(folder / FRAME, frame)
    else:
        (folder / FRAME).unlink(missing_ok=True)


def _denoise(network, weights, condition, t, x):
    return network.apply(weights, x, t, *condition)


def _find(folder: Path, part: str, name: str) -> Path:
    for path in (folder / part / name, folder / name):
        if path.is_file():
            return path
    pickled = [path for path in (folder / part, folder) if (path / "diffusion_pytorch_model.bin").is_file()]
    if name == TENSORS and pickled:
        raise FileNotFoundError(
            f"{pickled[0]} holds its weights as a pickle only, which could execute anything; write them anew from diffusers by "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    raise FileNotFoundError(f"{folder} has neither {part}/{name} nor {name}; expected a folder that diffusers wrote")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected an object")
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _template(layout: Layout, template: Any) -> jax.ShapeDtypeStruct:
    if template is not None:
        template = jax.ShapeDtypeStruct(template.shape, template.dtype)
        if len(template.shape) != 3 or template.shape[2] != layout.in_channels:
            raise ValueError(
                f"the template has shape {template.shape}; expected one image [height, width, {layout.in_channels}]"
            )
        return template
    if layout.sample_size is None:
        raise ValueError("the network's configuration has no sample_size; pass template=, one image [height, width, channels]")
    sides = layout.sample_size if isinstance(layout.sample_size, tuple) else (layout.sample_size,) * 2
    return jax.ShapeDtypeStruct((*sides, layout.in_channels), jnp.dtype("float32"))


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "diffusers' files are safetensors, whose library is not installed; pip install 'gensamp[diffusers]'"
        ) from None
    return safetensors


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors; those of bfloat16, which NumPy has not, through JAX's extension of it."""
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {_renamed(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or damaged: {error}") from None


def _renamed(name: str) -> str:
    head, _, leaf = name.rpartition(".")
    place, _, last = head.rpartition(".")
    return f"{place}.{_OLD_NAMES[last]}.{leaf}" if ".attentions." in name and last in _OLD_NAMES else name


def _name(path: Any) -> tuple[str, str]:
    """The tensor's name there, and the leaf's here, of a path in the parameters."""
    *places, leaf = (entry.key for entry in path)
    return ".".join([*places, "bias" if leaf == "bias" else "weight"]), leaf


def _from_tensors(network: Network, tensors: dict[str, np.ndarray], dtype: Any) -> PyTree:
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    wanted = {_name(path)[0] for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    if missing := sorted(wanted - set(tensors)):
        raise ValueError(f"the file lacks {len(missing)} tensors that its configuration asks for, the first {missing[0]!r}")
    if unused := sorted(set(tensors) - wanted):
        raise ValueError(f"the file has {len(unused)} tensors that its configuration does not know, the first {unused[0]!r}")

    def read(path, shape):
        name, leaf = _name(path)
        tensor = tensors[name]
        if leaf == "kernel":
            tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        if tensor.shape != shape.shape:
            raise ValueError(
                f"the tensor {name!r} has shape {tensors[name].shape}; its configuration asks for {shape.shape} here"
            )
        return jnp.asarray(np.asarray(tensor, dtype))

    return jax.tree_util.tree_map_with_path(read, shapes)


def _to_tensors(weights: PyTree) -> dict[str, np.ndarray]:
    tensors = {}
    for path, value in jax.tree_util.tree_leaves_with_path(weights):
        name, leaf = _name(path)
        value = np.asarray(value)
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        tensors[name] = np.ascontiguousarray(value)
    return tensors
