"""Where chains and learned maps meet."""

from gensamp.hybrid.ncsn import Levels, geometric_levels, ncsn
from gensamp.hybrid.score_langevin import score_langevin

__all__ = ["Levels", "geometric_levels", "ncsn", "score_langevin"]
