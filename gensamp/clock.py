"""How long a run spent compiling, as JAX itself reports it.

JAX announces every trace, lowering and backend compilation as a time span (`jax.monitoring`). A compilation often traces inner
functions inside outer ones, so spans nest and their durations must not be added: the seconds are the length of their union.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

__all__ = ["CompileClock", "compile_clock"]

PREFIX = "/jax/core/compile/"
BACKEND = PREFIX + "backend_compile_duration"


class CompileClock:
    """What has been compiled since the clock started.

    seconds: wall time in which something was being traced, lowered or compiled. programs: names of what the backend
    compiled, or read from the persistent compilation cache, such as "jit(advance)".
    """

    def __init__(self) -> None:
        self.programs: list[str] = []
        self._spans: list[tuple[float, float]] = []

    @property
    def count(self) -> int:
        """How many programs."""
        return len(self.programs)

    @property
    def seconds(self) -> float:
        """Length of the union of all spans."""
        return sum((end - start for start, end in self._spans), 0.0)

    def __call__(self, event: str, start_time: float, end_time: float, **kwargs: str | int) -> None:
        """The listener: spans arrive in the order in which they end, an outer one after those inside it."""
        if not event.startswith(PREFIX):
            return
        if event == BACKEND:
            self.programs.append(str(kwargs.get("fun_name", "")))
        start = start_time
        while self._spans and self._spans[-1][1] >= start:
            start = min(start, self._spans.pop()[0])
        self._spans.append((start, end_time))


@contextmanager
def compile_clock() -> Iterator[CompileClock]:
    """A clock that runs inside the `with` block and can be read there and after it.

    Yields:
        CompileClock. Clocks may be nested; each listens for itself and is unregistered at the end of its block.
    """
    clock = CompileClock()
    jax.monitoring.register_event_time_span_listener(clock)
    try:
        yield clock
    finally:
        jax.monitoring.unregister_event_time_span_listener(clock)
