"""The U-Net of the diffusers library and ours, given the same weights: the same function, there and back again.

Networks are made by that library with random weights, saved as it saves them, and read here.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import noise
from gensamp.nets.diffusers_unet import diffusers_unet
from gensamp.pushforward.diffusion import diffusion_model, trailing
from gensamp.weights import read_diffusers, write_diffusers

torch = pytest.importorskip(
    "torch", reason="the oracle is the diffusers library, which needs torch: pip install gensamp[oracles]"
)
diffusers = pytest.importorskip("diffusers", reason="the oracle is the diffusers library: pip install gensamp[oracles]")
torch.set_num_threads(1)

SMALL = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
# The published networks of Ho et al. at 32 x 32, narrow: one head, padding on one side, the old order of sines.
DDPM = {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
LAYOUTS = {
    "attention": {},
    "published": DDPM | {"block_out_channels": (8, 8, 16), "layers_per_block": 2, "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
    "no attention": {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False},
    "classes": {"num_class_embeds": 3, "resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"},
    "resampling blocks": {"downsample_type": "resnet", "upsample_type": "resnet", "class_embed_type": "timestep",
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "mid_block_scale_factor": 1.5, "act_fn": "mish"},
    "fourier": {"time_embedding_type": "fourier", "class_embed_type": "identity", "center_input_sample": True,
        "act_fn": "relu", "attn_norm_num_groups": 2},
    "no middle": {"mid_block_type": None, "sample_size": (8, 4)},
}  # fmt: skip
CONDITIONS = {"classes": 1, "resampling blocks": 3.0, "fourier": np.linspace(-1, 1, 32, dtype=np.float32)}
STEPS = (1, 402, 1000)


def made(name):
    """That library's network, with weights about as large as trained ones: its own start has outputs near zero."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**SMALL | LAYOUTS[name]).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model


def save(model, folder, scheduler=None):
    model.save_pretrained(folder / "unet")
    (scheduler or diffusers.DDPMScheduler()).save_pretrained(folder / "scheduler")


def theirs(model, x, told, condition=()):
    labels = [torch.tensor(np.asarray(c)[None]) for c in condition]
    with torch.no_grad():
        out = model(torch.tensor(x.transpose(2, 0, 1)[None]), torch.tensor(told), *labels).sample
    return out.numpy()[0].transpose(1, 2, 0)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "classes" else pytest.mark.slow) for n in LAYOUTS])
def test_a_network_is_the_same_function_here_there_and_back(name, tmp_path):
    model = made(name)
    save(model, tmp_path / "theirs")
    process = {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.1, "sigma_max": 20.0} if name == "fourier" else None
    read = read_diffusers(tmp_path / "theirs", scheduler=process)
    condition = (np.asarray(CONDITIONS[name]),) if name in CONDITIONS else ()
    x = np.random.default_rng(0).normal(size=read.template.shape).astype(np.float32)
    ours = jax.jit(lambda t: read.denoiser(*map(jnp.asarray, condition))(t, x))

    write_diffusers(tmp_path / "ours", read.network, read.params, scheduler=read.scheduler)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours" / "unet", low_cpu_mem_usage=False)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    for step in STEPS:
        t = np.float32(step / 1000)
        told = np.float32(read.noise.sigma(t)) if name == "fourier" else step - 1
        want = theirs(model, x, told, condition)
        assert np.abs(want).max() > 0.05 / (told if name == "fourier" else 1)
        np.testing.assert_allclose(ours(t), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
        # That library's own sums differ in their last bits from one copy of a network to another.
        np.testing.assert_allclose(theirs(again, x, told, condition), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_the_compilers_convolution_takes_the_same_parameters(tmp_path):
    save(made("published"), tmp_path)
    patches, xla = (read_diffusers(tmp_path, convolution=form) for form in ("patches", "xla"))
    x = np.random.default_rng(0).normal(size=patches.template.shape).astype(np.float32)
    one, other = (jax.jit(it.denoiser())(jnp.float32(0.4), x) for it in (patches, xla))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_model_of_ours_draws_there(tmp_path):
    image = jnp.zeros((8, 8, 1))
    network = diffusers_unet(
        image, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    process = noise.vp_linear()
    model = diffusion_model(network, process, template=image, prediction="eps", grid=trailing(20))
    data = np.random.default_rng(0).normal(2.0, 3.0, size=(64, 8, 8, 1)).astype(np.float32)
    params, _ = jax.jit(model.init)(jax.random.key(0), data)
    params["network"] = jax.tree.map(lambda a: a + 0.05 * np.random.default_rng(1).normal(size=a.shape), params["network"])
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    write_diffusers(tmp_path, network, params, process, "eps")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert np.isfinite(pipeline(num_inference_steps=3, output_type="np", batch_size=1).images).all()
    read = read_diffusers(tmp_path)
    assert read.prediction == "eps" and read.clip is None
    assert float(read.params["scale"]) == pytest.approx(float(params["scale"])) and float(read.params["scale"]) > 2
    jax.tree.map(np.testing.assert_array_equal, read.params["network"], params["network"])
    t, x = jnp.float32(0.4), data[0]
    np.testing.assert_allclose(read.noise.alpha(t), process.alpha(t), rtol=1e-5)
    want = theirs(pipeline.unet, x, 399)
    np.testing.assert_allclose(jax.jit(read.denoiser())(t, x), want, rtol=1e-4, atol=1e-4)


def test_old_files_are_read_and_damaged_ones_are_refused_by_name(tmp_path):
    from safetensors.numpy import load_file, save_file

    save(made("attention"), tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    new = load_file(path)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name):
        for ours, theirs in old_names.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        return name

    save_file({old(name): value.astype(np.float16) for name, value in new.items()}, path)
    assert any("proj_attn" in name for name in load_file(path))
    read = read_diffusers(tmp_path).params["network"]
    kernel = read["mid_block.attentions.0"]["to_q"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, new["mid_block.attentions.0.to_q.weight"].T, atol=1e-3)

    def refuses(tensors, match):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=match):
            read_diffusers(tmp_path)

    bias = "conv_in.bias"
    refuses({name: value for name, value in new.items() if name != bias}, "lacks 1 tensors .* the first 'conv_in.bias'")
    refuses(new | {"extra": new[bias]}, "has 1 tensors .* the first 'extra'")
    refuses(new | {bias: new[bias][:3]}, r"'conv_in.bias' has shape \(3,\)")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no safetensors file, or damaged"):
        read_diffusers(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="has neither unet/diffusion_pytorch_model"):
        read_diffusers(tmp_path)
    (path.parent / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match="as a pickle only"):
        read_diffusers(tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="of a UNet2DConditionModel; expected a UNet2DModel"):
        read_diffusers(tmp_path)
