"""An object that runs code when it is unpickled, to test that nothing unpickles it."""

from __future__ import annotations

from pathlib import Path


class PickleBomb:
    """An object that writes the file `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return explode, (str(self.mark),)


def explode(mark: str) -> None:
    Path(mark).write_bytes(b"run")
