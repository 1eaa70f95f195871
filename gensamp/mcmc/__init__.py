"""The statistician's samplers: steps made by hand that leave the target (or a path to it) invariant.

Row one of the table is `ula`, `mala`, `hmc` and `nuts` (no end, every state is a draw); row two is `annealed_langevin` (finite,
the last state is the draw). All of them take a `Target` or a `Path` and return a `Sampler`.
"""

from gensamp.mcmc.annealed import annealed_langevin, scaled_step_sizes
from gensamp.mcmc.hamiltonian import hmc, nuts
from gensamp.mcmc.langevin import mala, ula

__all__ = ["annealed_langevin", "hmc", "mala", "nuts", "scaled_step_sizes", "ula"]
