"""Networks: pairs (init, apply) over one event, and adapters for other people's modules."""

from gensamp.nets.adapters import from_equinox, from_linen, from_nnx
from gensamp.nets.couplings import affine_couplings
from gensamp.nets.critic import critic, generator
from gensamp.nets.diffusers_unet import diffusers_unet
from gensamp.nets.event import Event
from gensamp.nets.mlp import feedforward, mlp
from gensamp.nets.noise_levels import at_levels, without_time
from gensamp.nets.transformer import transformer
from gensamp.nets.unet import unet

__all__ = [
    "Event", "affine_couplings", "at_levels", "critic", "diffusers_unet", "feedforward", "from_equinox", "from_linen",
    "from_nnx", "generator", "mlp", "transformer", "unet", "without_time",
]  # fmt: skip
