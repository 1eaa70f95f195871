"""The statistician's finite samplers, which walk a path of laws from an easy one to the target."""

from gensamp.registry.entry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = ()
