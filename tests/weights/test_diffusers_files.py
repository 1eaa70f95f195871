"""Our side of diffusers' files, without that library: the layout of the network, what is refused, and reading what we wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensamp import noise
from gensamp.nets import mlp
from gensamp.nets.diffusers_layout import Layout
from gensamp.nets.diffusers_unet import diffusers_unet, layout_of
from gensamp.pushforward.diffusion import diffusion_model
from gensamp.weights import read_diffusers, write_diffusers

IMAGE = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
NARROW = {
    "block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def weights(network):
    """Random parameters, without compiling their init."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(0.3 * random.normal(size=a.shape), a.dtype), shapes)


def test_what_was_written_is_read_with_its_frame_and_scheduler(tmp_path):
    pytest.importorskip("safetensors", reason="the file format is safetensors: pip install gensamp[diffusers]")
    network = diffusers_unet(IMAGE, **NARROW)
    params = {"network": weights(network), "shift": jnp.float32(0.25), "scale": jnp.float32(2.0)}
    write_diffusers(tmp_path, network, params, noise.cosine(), "v", clip=(-1, 1))
    read = read_diffusers(tmp_path)
    assert read.prediction == "v" and read.clip == (-1.0, 1.0) and read.template == IMAGE
    assert jax.tree.structure(read.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read.params, params)
    assert layout_of(read.network) == layout_of(network)
    # Of another frame, and of none.
    write_diffusers(tmp_path, read.network, params["network"], scheduler=read.scheduler)
    assert float(read_diffusers(tmp_path).params["scale"]) == 1
    with pytest.raises(ValueError, match=r"expected one image \[height, width, 1\]"):
        read_diffusers(tmp_path, template=jnp.zeros((8, 8, 3)))
    model = diffusion_model(
        read.network, read.noise, template=read.template, prediction=read.prediction, clip=read.clip, num_steps=4
    )
    draw = jax.eval_shape(model.sampler(read.params).step, jax.random.key(0), *_begin(model.sampler(read.params)))[0]
    assert draw[0].shape == (8, 8, 1)


def _begin(sampler):
    return jax.eval_shape(lambda key: sampler.init(key, sampler.start(key)), jax.random.key(0)), jnp.int32(0)


def test_it_starts_as_nothing_and_its_clock_is_as_asked():
    network = diffusers_unet(IMAGE, num_class_embeds=3, clock=noise.ve(0.1, 10.0), time_embedding_type="fourier", **NARROW)
    last = jax.jit(lambda key: network.init(key)["conv_out"])(jax.random.key(0))
    assert last["kernel"].shape == (3, 3, 4, 1) and all((leaf == 0).all() for leaf in jax.tree.leaves(last))
    layout, clock = layout_of(network)
    assert layout.conditional and isinstance(clock, noise.Noise)
    assert layout_of(diffusers_unet(IMAGE, **NARROW))[1] == (1000.0, -1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"down_block_types": ("DownBlock2D", "SkipDownBlock2D")},
            r"blocks of the kinds \['SkipDownBlock2D'\]; .* AttnDownBlock2D",
        ),
        ({"up_block_types": ("UpBlock2D",)}, r"number \[1, 2\]; expected equally many"),
        ({"time_embedding_type": "learned"}, "time_embedding_type is 'learned'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"act_fn": "tanh"}, "act_fn is 'tanh'"),
        ({"downsample_padding": 2}, "downsample_padding is 2"),
        ({"norm_num_groups": 3}, "norm_num_groups is 3"),
        ({"dual_cross_attention": False}, r"has the keys \['dual_cross_attention'\]"),
    ],
)
def test_layouts_that_are_not_covered_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        diffusers_unet(IMAGE, **NARROW | options)


def test_images_and_networks_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="an image of 7 x 8 for 2 levels; expected sides divisible by 2"):
        diffusers_unet(jnp.zeros((7, 8, 1)), **NARROW)
    with pytest.raises(ValueError, match="expected one image"):
        diffusers_unet(jnp.zeros(5), **NARROW)
    with pytest.raises(ValueError, match="learned variance"):
        Layout(in_channels=3, out_channels=6)
    assert Layout.of({"down_block_types": ["UNetResDownBlock2D"] * 4}).down_block_types == ("DownBlock2D",) * 4
    network = mlp(IMAGE, width=4, depth=1)
    with pytest.raises(TypeError, match=r"expected a network that nets\.diffusers_unet made"):
        write_diffusers(tmp_path, network, {}, noise.cosine(), "v")
    ours = diffusers_unet(IMAGE, clock=(1000, 0), **NARROW)
    with pytest.raises(ValueError, match="needs either noise and prediction, or scheduler"):
        write_diffusers(tmp_path, ours, {})
    with pytest.raises(ValueError, match=r"clock is \(1000.0, 0.0\), and a DDPMScheduler tells its network by \(1000, -1\)"):
        write_diffusers(tmp_path, ours, {}, noise.cosine(), "v")
    with pytest.raises(ValueError, match="the parameters are not of this network"):
        write_diffusers(tmp_path, diffusers_unet(IMAGE, **NARROW), {"conv_in": {}}, noise.cosine(), "v")
    assert not list(tmp_path.iterdir())
