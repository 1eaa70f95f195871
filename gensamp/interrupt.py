"""Ctrl-C as a value: a run looks at it between compiled blocks, keeps what is recorded, and says that it was interrupted."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that the block in hand is finished and its donated buffers are whole; a second one raises.

    Outside the main thread, where Python delivers no signal, and where Ctrl-C is ignored (nohup), the event is never set.
    """
    interrupted = threading.Event()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(number, frame):
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
