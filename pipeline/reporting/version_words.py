"""Says which versions a dataset has had, and in what two of them differ: as lines, and as JSON.

>>> for line in version_lines(list_versions(catalogue, "photos")):   # doctest: +SKIP
...     print(line)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from pipeline import storage
from pipeline.building import LISTED
from pipeline.dna import Failure
from pipeline.explaining import VersionDifference, VersionRow
from pipeline.reporting.conclusions import format_number
from pipeline.wording import count_of

_HEADINGS = ("commit", "time", "images", "failed", "change", "plain move", "plain drift", "tags")

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}

VERSION_COLUMNS = (
    "change: images added, removed, changed and equal since the version before. plain move, plain "
    "drift: the distance from the version before, and from the oldest one here, in bins, not "
    "corrected for the sizes of the samples. What a build and vdna drift print is corrected, and "
    "so smaller as a rule"
)


def version_lines(rows: Sequence[VersionRow]) -> list[str]:
    """Returns the table of the versions of a dataset, and a line that says what its columns are."""
    lines = aligned_lines([_HEADINGS, *(_cells(row) for row in rows)], left=(1, 4, 7))
    return [*lines, VERSION_COLUMNS] if len(rows) > 1 else lines


def aligned_lines(cells: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Lays out a table as lines.

    Args:
        cells: The cells of each row, the headings first.
        left: The columns that are flush on the left; the others are on the right.

    Returns:
        A line for each row.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _cells(row: VersionRow) -> tuple[str, ...]:
    moved, drift = (
        "" if distance is None else format_number(distance)
        for distance in (row.movement, row.drift)
    )
    changes = "" if row.changes is None else str(row.changes)
    tags = ", ".join((*row.tags, *(() if row.kept else ("(files removed by gc)",))))
    counts = (f"{row.images:,}", f"{row.failed:,}")
    return (str(row.commit), row.time[:19], *counts, changes, moved, drift, tags)


def difference_lines(found: VersionDifference) -> list[str]:
    """Returns in which images two versions differ, and which could not be read in one alone."""
    a, b = found.versions
    lines = [f"From {a} to {b}: {found.changes} images"]
    for change, images in found.images.items():
        total = getattr(found.changes, change)
        lines += [f"  {_SIGNS[change]} {storage.spelled(*image)}" for image in images]
        if left := total - len(images):
            lines.append(f"  {_SIGNS[change]} … and {left:,} more ({change})")
    lines += _failure_lines("cannot be read now", found.failing)
    lines += _failure_lines("can be read now", found.mended)
    if found.explanation is None:
        lines.append("Both have the same DNA: nothing has moved")
    return lines


def difference_json(found: VersionDifference, top: int) -> dict[str, Any]:
    """Returns in what two versions differ, for JSON, with so many neurons."""
    a, b = found.versions
    why = found.explanation
    neurons = [] if why is None else why.neurons.slice(0, top).to_pylist()
    for row, sides in zip(neurons, () if why is None else why.reactions, strict=False):
        row["exemplars"] = {
            side: [{"uri": of.uri, "member": of.member} for of in images or ()]
            for side, images in zip("ab", sides, strict=True)
        }
    return {
        "a": a,
        "b": b,
        "dna": [version.dna for version in found.versions.values()],
        "changes": asdict(found.changes),
        "images": {
            change: [{"uri": uri, "member": member} for uri, member in images]
            for change, images in found.images.items()
        },
        "failing": [asdict(failure) for failure in found.failing],
        "mended": [asdict(failure) for failure in found.mended],
        "layers": [] if why is None else why.layers.to_pylist(),
        "neurons": neurons,
    }


def _failure_lines(what: str, failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    lines = [f"{count_of(len(failures), 'image')} {what}:"]
    lines += [f"  {failure}" for failure in failures[:LISTED]]
    if (left := len(failures) - LISTED) > 0:
        lines.append(f"  … and {left:,} more")
    return lines
