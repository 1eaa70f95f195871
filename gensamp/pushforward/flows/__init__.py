"""Normalizing flows: invertible maps with an exact density."""

from gensamp.pushforward.flows.realnvp import realnvp

__all__ = ["realnvp"]
