"""Progress of a long job: images/s, shards done, failures, time left; a bar, lines, or nothing.

A comparison counts pairs and tiles in their place.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what happens; how it is shown is its own affair."""

    def say(self, message: str) -> None: ...
    def start(self, *, images: int, shards: int, present: int) -> None: ...
    def advance(self, images: int, failures: int) -> None: ...
    def finish(self) -> None: ...


class Silent:
    def say(self, message: str) -> None:
        pass

    def start(self, *, images: int, shards: int, present: int) -> None:
        pass

    def advance(self, images: int, failures: int) -> None:
        pass

    def finish(self) -> None:
        pass
