"""Normalizing flows: invertible maps with an exact density."""

from gensamp.pushforward.flows.flow import flow
from gensamp.pushforward.flows.glow import glow
from gensamp.pushforward.flows.masked_autoregressive import iaf, maf
from gensamp.pushforward.flows.neural_spline import neural_spline
from gensamp.pushforward.flows.realnvp import realnvp

__all__ = ["flow", "glow", "iaf", "maf", "neural_spline", "realnvp"]
