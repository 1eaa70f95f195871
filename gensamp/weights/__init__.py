"""Other libraries' files of weights, read into networks and noise processes of ours, and ours written as theirs."""

from gensamp.weights.diffusers import Pretrained, read_diffusers, write_diffusers
from gensamp.weights.schedulers import Process, read_scheduler, tabulated, write_scheduler

__all__ = ["Pretrained", "Process", "read_diffusers", "read_scheduler", "tabulated", "write_diffusers", "write_scheduler"]
