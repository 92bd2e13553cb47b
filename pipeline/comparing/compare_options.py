"""The options of a comparison: each declared once, with its type, default, help and limits.

>>> CompareOptions(fd=True).error_bars
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pipeline.catalogue import SnapshotKeywords, SnapshotOptions
from pipeline.options import Option, Options


@dataclass(frozen=True, kw_only=True)
class FrechetOptions(Options):
    """The option that adds the Fréchet distance."""

    fd: Annotated[
        bool,
        Option(
            "Also compute Fréchet distances of layers; with Inception's last block, this is FID."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SnapshotOptions, FrechetOptions):
    """The options of a comparison."""

    layers: Annotated[
        Sequence[str] | None,
        Option(
            "Compare this layer only (all: the whole network). Can be repeated.", flag="--layer"
        ),
    ] = None
    error_bars: Annotated[
        bool,
        Option(
            "Also compute corrected distances, intervals, p and q, which takes some 20 times as "
            "long."
        ),
    ] = True


class CompareKeywords(SnapshotKeywords, total=False):
    """The options of `CompareOptions` as keywords of a function, for type checkers.

    A test holds it equal to `CompareOptions`; defaults and help are there.
    """

    layers: Sequence[str] | None
    fd: bool
    error_bars: bool


@dataclass(frozen=True, kw_only=True)
class MemoryLimit(Options):
    """The option that says how much memory a comparison takes."""

    memory: Annotated[
        float,
        Option(
            "Gigabytes that each process may use for the DNAs that it compares; the process needs "
            "some more.",
            least=0.01,
        ),
    ] = 4.0

    @property
    def bytes(self) -> int:
        """The memory in bytes."""
        return round(self.memory * 2**30)
