"""Tells in what two versions of a dataset differ: images, failures, layers and neurons.

>>> found = difference(catalogue, "photos@-1", "photos")                    # doctest: +SKIP
>>> str(found.changes), found.explanation.layers.slice(0, 1).to_pylist()    # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from typing import Unpack

from pipeline import storage
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import resolve_versions
from pipeline.dna import Failure, FileKind, SealedWriter
from pipeline.errors import UsageError
from pipeline.events import Listener
from pipeline.explaining.explain_options import ExplainKeywords, ExplainOptions
from pipeline.explaining.explanation import Explanation
from pipeline.explaining.sensitivity import explain
from pipeline.sources import DIFFERENCE_SCHEMA, ImageChanges, ManifestDifference

_DIFFERENCE = FileKind("difference")

_CHANGES = ("added", "removed", "changed")
"""The ways in which an image may differ."""

NAMED_IMAGES = 5
"""How many images of each kind are named by default."""


@dataclass(frozen=True)
class VersionDifference:
    """In what two versions, a and b, differ.

    Attributes:
        versions: The versions, a first.
        changes: How the images of b differ from those of a.
        images: The uri and member of the first images of each kind: `added`, `removed`, `changed`.
        failing: Images that could not be read in b, and could be in a or were not there.
        mended: Images of b that could not be read in a, and were counted in b.
        explanation: Which layers and neurons differ. None if both are the same DNA.
    """

    versions: Mapping[str, Version]
    changes: ImageChanges
    images: Mapping[str, tuple[tuple[str, str], ...]]
    failing: tuple[Failure, ...]
    mended: tuple[Failure, ...]
    explanation: Explanation | None


def difference(
    catalogue: Catalogue,
    a: str,
    b: str,
    *,
    named: int = NAMED_IMAGES,
    out: str | None = None,
    progress: Listener | None = None,
    **options: Unpack[ExplainKeywords],
) -> VersionDifference:
    """Finds in what two versions differ, of one dataset or of two.

    Args:
        catalogue: The catalogue.
        a: The name of a version, such as `photos@-1`.
        b: The name of another one.
        named: How many images of each kind to name.
        out: The Parquet file that all images that differ are written to; None for none.
        progress: Is told of each layer.
        **options: The options of `ExplainOptions`.

    Returns:
        The difference.

    Raises:
        NotFound: If there is no such version, or one was imported, and so has no list of images.
        SourceError: If files of a version are not there any more.
        SpecMismatch: If the versions cannot be compared.
        UsageError: If both names are the same, or `out` does not end in .parquet.
    """
    if a == b:
        raise UsageError(f"a difference takes two versions, and {a!r} is given twice")
    uri = None if out is None else storage.parquet_uri(out, "the images are")
    if options.get("at") is None:  # all that is read is of one commit, whatever comes meanwhile
        options["at"] = catalogue.head().number or None
    asked = ExplainOptions(**options)
    digest, versions = resolve_versions(catalogue, [a, b], at=asked.at, spec=asked.spec)
    before, after = (catalogue.manifest(*each) for each in versions.items())
    failed_a, failed_b = (
        {(of.uri, of.member): of for of in catalogue.failures(*each)} for each in versions.items()
    )
    with ManifestDifference(before, after) as found:
        images = {change: tuple(found.first(change, named)) for change in _CHANGES}
        gone = found.removed_of(failed_a.keys() - failed_b.keys())
        if uri is not None:
            _write(found, versions, uri)
        changes = found.counts
    mended = [of for key, of in failed_a.items() if key not in failed_b and key not in gone]
    failing = [of for key, of in failed_b.items() if key not in failed_a]
    same = len({version.dna for version in versions.values()}) == 1
    why = None
    if not same:
        options["spec"] = digest
        why = explain(catalogue, a, b, progress=progress, **options)
    return VersionDifference(
        versions, changes, images, tuple(sorted(failing)), tuple(sorted(mended)), why
    )


def _write(found: ManifestDifference, versions: Mapping[str, Version], uri: str) -> None:
    """Writes all images that differ to a file, which appears whole or not at all."""
    stated = {"members": {name: version.dna for name, version in versions.items()}}
    with tempfile.TemporaryFile() as file:
        with SealedWriter(file, _DIFFERENCE, DIFFERENCE_SCHEMA) as writer:
            for table in found.tables():
                writer.write(table)
            writer.seal(stated)
        file.flush()
        storage.replace(uri, mmap(file.fileno(), 0, access=ACCESS_READ))
