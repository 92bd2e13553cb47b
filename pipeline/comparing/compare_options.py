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
class NearOptions(Options):
    """The options that list neighbours."""

    near: Annotated[
        str | None,
        Option(
            "List the neighbours of this dataset, or of a version of it, the nearest first.",
            metavar="NAME",
        ),
    ] = None
    top: Annotated[
        int | None,
        Option(
            "Find only this many nearest datasets, of each dataset or of the one of --near, "
            "without comparing all pairs.",
            least=1,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ErrorBarOptions(Options):
    """The option that leaves out error bars."""

    error_bars: Annotated[
        bool,
        Option(
            "Also compute corrected distances, intervals, p and q, which takes some 20 times as "
            "long."
        ),
    ] = True


@dataclass(frozen=True, kw_only=True)
class NearestOptions(SnapshotOptions, NearOptions, ErrorBarOptions):
    """The options of a search for the nearest."""

    layer: Annotated[
        str | None, Option("Compare this layer only (default: the whole network).")
    ] = None


class NearestKeywords(SnapshotKeywords, total=False):
    """The options of `NearestOptions` as keywords of a function, for type checkers.

    A test holds it equal to `NearestOptions`; defaults and help are there.
    """

    near: str | None
    top: int | None
    error_bars: bool
    layer: str | None


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SnapshotOptions, FrechetOptions, ErrorBarOptions):
    """The options of a comparison."""

    layers: Annotated[
        Sequence[str] | None,
        Option(
            "Compare this layer only (all: the whole network). Can be repeated.", flag="--layer"
        ),
    ] = None


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
