"""The statistician's samplers: steps made by hand that leave the target (or a path to it) invariant.

Row one of the table has no end, and every state is a draw: chains driven by gradients (`ula`, `mala`, `barker`, `underdamped`,
`hmc`, `nuts`, `dynamic_hmc`, `ghmc`, `malt`, `mclmc`, `mams`), by densities alone (`random_walk`, `independence`,
`slice_sampling`, `hit_and_run`, `elliptical_slice`, the ensemble `stretch`), by minibatches (`sgld`, `sghmc`) and by replicas
along a path (`parallel_tempering`). Row two is finite, and the last state is the draw: `annealed_langevin`, `ais`, `smc` and
its kin, `nested`. All of them take a `Target` or a `Path` and return a `Sampler`.
"""

from gensamp.mcmc.annealed import annealed_langevin, scaled_step_sizes
from gensamp.mcmc.barker import barker
from gensamp.mcmc.base import normal_base
from gensamp.mcmc.dynamic_hamiltonian import dynamic_hmc
from gensamp.mcmc.elliptical_slice import elliptical_slice
from gensamp.mcmc.ensemble import stretch
from gensamp.mcmc.generalised_hamiltonian import ghmc
from gensamp.mcmc.hamiltonian import hmc, nuts
from gensamp.mcmc.importance import ais
from gensamp.mcmc.langevin import mala, ula
from gensamp.mcmc.level_schedule import tune_levels
from gensamp.mcmc.malt import malt
from gensamp.mcmc.microcanonical import mams, mclmc
from gensamp.mcmc.nested import nested
from gensamp.mcmc.random_walk import independence, random_walk
from gensamp.mcmc.sgmcmc import polynomial_decay, sghmc, sgld
from gensamp.mcmc.slice import hit_and_run, slice_sampling
from gensamp.mcmc.smc import smc, waste_free_smc
from gensamp.mcmc.smc_adaptive import adaptive_smc
from gensamp.mcmc.tempering import parallel_tempering, round_trips
from gensamp.mcmc.tempering_schedule import communication_barrier, tune_schedule
from gensamp.mcmc.underdamped import underdamped

__all__ = [
    "adaptive_smc", "ais", "annealed_langevin", "barker", "communication_barrier", "dynamic_hmc", "elliptical_slice",
    "ghmc", "hit_and_run", "hmc", "independence", "mala", "malt", "mams", "mclmc", "nested", "normal_base", "nuts",
    "parallel_tempering", "polynomial_decay", "random_walk", "round_trips", "scaled_step_sizes", "sghmc", "sgld",
    "slice_sampling", "smc", "stretch", "tune_levels", "tune_schedule", "ula", "underdamped", "waste_free_smc",
]  # fmt: skip
