"""Tests that samplers can be put to: the law of their draws (`check_law`) and the contract of their type (`check_sampler`)."""

from gensamp.testing.contracts import CONTRACTS, ContractError, check_sampler
from gensamp.testing.counting import Tally, instrument
from gensamp.testing.hidden import hidden_arrays
from gensamp.testing.law import LawCheck, check_law, check_laws, power

__all__ = [
    "CONTRACTS", "ContractError", "LawCheck", "Tally", "check_law", "check_laws", "check_sampler", "hidden_arrays",
    "instrument", "power",
]  # fmt: skip
