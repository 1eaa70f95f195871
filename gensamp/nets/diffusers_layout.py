"""What a `config.json` of the diffusers library says of a `UNet2DModel`, as a hashable value, and what of it is covered here.

Covered are blocks of residual layers with and without self-attention, the middle block, both ways of resampling, positional and
Fourier features of time, classes by table, by number and by vector, and time as a shift or as a scale and a shift. Left out,
and refused by name: blocks with filters or cross-attention, a learned table of times, norms that see the embedding, networks
that predict a variance too.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Layout"]

_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
# What a config.json may say of each field; every other field is a number or a list of them.
_CHOICES = {
    "time_embedding_type": ("positional", "fourier"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish", "relu", "mish", "gelu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}


@dataclass(frozen=True)
class Layout:
    """A `UNet2DModel`'s configuration by its own names and defaults (diffusers 0.42), tuples for its lists.

    dropout and num_train_timesteps are kept to be written back and have no effect. The rest is as that library documents it.

    Raises:
        ValueError: a kind of block, time, class or resampling that is not covered here, by name.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float | int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float | int = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float | int = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float | int = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), _CHOICES.get(field.name)
            if choices is not None and value not in choices:
                raise ValueError(f"a U-Net's {field.name} is {value!r}; this one covers {', '.join(map(repr, choices))}")
        for kinds, covered in ((self.down_block_types, _DOWN), (self.up_block_types, _UP)):
            if unknown := sorted(set(kinds) - set(covered)):
                raise ValueError(f"a U-Net has blocks of the kinds {unknown}; this one covers {', '.join(covered)}")
        levels = {len(self.down_block_types), len(self.up_block_types), len(self.block_out_channels)}
        if len(levels) != 1 or 0 in levels:
            raise ValueError(f"a U-Net's blocks down and up and their channels number {sorted(levels)}; expected equally many")
        groups = self.norm_num_groups
        if not isinstance(groups, int) or groups < 1 or any(channels % groups for channels in self.block_out_channels):
            raise ValueError(
                f"a U-Net's norm_num_groups is {groups} for block_out_channels={self.block_out_channels}; expected a positive "
                "number that divides them"
            )
        if self.in_channels != self.out_channels:
            raise ValueError(
                f"a U-Net takes {self.in_channels} channels and returns {self.out_channels}; expected as many (a learned "
                "variance is not covered)"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Layout":
        """The layout of a config.json, whose keys that begin with an underscore are left out.

        Raises:
            ValueError: it is of another class than UNet2DModel, has keys that class has not, or is not covered.
        """
        kind = config.get("_class_name", "UNet2DModel")
        if kind != "UNet2DModel":
            raise ValueError(f"the configuration is of a {kind}; expected a UNet2DModel")
        given = {name: _hashable(value) for name, value in config.items() if not name.startswith("_")}
        if unknown := sorted(set(given) - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"the configuration of a UNet2DModel has the keys {unknown}, which are not known here")
        return cls(**given)

    def config(self) -> dict[str, Any]:
        """The config.json of this layout, but for the version of the library that reads it."""
        values = dataclasses.asdict(self)
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"_class_name": "UNet2DModel", **lists}

    @property
    def embedding_size(self) -> int:
        """Width of the embedding of time."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def conditional(self) -> bool:
        """Whether the network is told a class."""
        return self.class_embed_type is not None or self.num_class_embeds is not None


def _hashable(value):
    """Lists as tuples; the names of blocks in the oldest files have a prefix."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(v.removeprefix("UNetRes") if isinstance(v, str) else v for v in value)
