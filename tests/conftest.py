"""Set before jax is imported: the CPU, eight devices of it, and no broadcasting between ranks that nobody asked for."""

import os
import signal

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """A worker of pytest-xdist ignores Ctrl-C; the tests that press it need Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
