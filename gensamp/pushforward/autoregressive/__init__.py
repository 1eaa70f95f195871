"""Autoregressive models: one site after another, with an exact likelihood."""

from gensamp.pushforward.autoregressive.made import made
from gensamp.pushforward.autoregressive.pixelcnn import pixelcnn
from gensamp.pushforward.autoregressive.transformer import causal_transformer

__all__ = ["causal_transformer", "made", "pixelcnn"]
