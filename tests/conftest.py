"""Set before jax is imported: the CPU, eight devices of it, and no broadcasting between ranks that nobody asked for."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("MPLBACKEND", "agg")

QUICK = ["--xla_backend_optimization_level=0"]
if version("jax").startswith("0.10."):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")  # XLA ends a process whose flags it does not know
MAPS = Path("/proc/self/maps")
MOST_MAPS = 20_000


def pytest_addoption(parser):
    parser.addoption("--quick-compilation", action="store_true", help="ask XLA for its quickest code: half of the time")


def pytest_configure(config):
    if config.getoption("quick_compilation"):
        os.environ["XLA_FLAGS"] = " ".join([os.environ["XLA_FLAGS"], *QUICK])


def pytest_runtest_teardown(item, nextitem):
    """Every compiled program maps memory, and Linux gives a process 65,530 maps: beyond them XLA's compiler crashes.

    Programs are forgotten between modules only, whose tests share what their fixtures compiled.
    """
    if nextitem is None or nextitem.module is item.module or not MAPS.exists():
        return
    if MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """A worker of pytest-xdist ignores Ctrl-C; the tests that press it need Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
