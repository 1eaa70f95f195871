"""Where chains and learned maps meet."""

from gensamp.hybrid.score_langevin import score_langevin

__all__ = ["score_langevin"]
