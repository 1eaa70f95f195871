"""Compilation is most of the time to an answer: no sampler's step may take more of it than its entry allows.

A budget is a multiple of what MALA's step takes, measured side by side in processor seconds, so that it means the same on any
machine. Learned maps are left out: their compilation is their network's.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import pytest
from contracts.test_contracts import everything

from gensamp import registry

LANES = 4
NAMES = [entry.name for entry in registry.entries() if entry.half == "mcmc"]


def compile_seconds(sampler):
    """Processor seconds that one step of LANES draws takes to compile."""

    def step(key, sampler, index):
        def one(key):
            state = sampler.init(key, sampler.start(key))
            state, info = sampler.step(key, state, index)
            return sampler.position(state), info

        return jax.vmap(one)(jax.random.split(key, LANES))

    lowered = jax.jit(step).lower(jax.random.key(0), sampler, jnp.int32(0))
    jax.clear_caches()
    began = time.process_time()
    lowered.compile()
    return time.process_time() - began


@pytest.fixture
def no_cache():
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_step_compiles_within_its_budget(name, no_cache):
    entry = registry.find(name)
    target = everything((3,), jnp.float32)
    if reason := entry.reason(target):
        pytest.skip(reason)
    made, mala = (registry.find(n).make(target, "small") for n in (name, "mala"))
    ratio = statistics.median(compile_seconds(made) / compile_seconds(mala) for _ in range(3))
    assert ratio <= entry.compile_budget, f"{name}: {ratio:.1f} times MALA"
