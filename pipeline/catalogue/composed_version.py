"""Describes a sum whose files are stored, as a commit states it.

>>> version_of(composed, manifest, spec, products, files).images               # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.buffers import Data, sha256
from pipeline.catalogue.commit import Version, footers_of, software

if TYPE_CHECKING:
    from pipeline.counting import Composed
    from pipeline.sources import Manifest


def version_of(
    composed: Composed,
    manifest: Manifest,
    spec: str,
    products: Sequence[str],
    files: Mapping[str, Data],
) -> Version:
    """Describes a sum as a version of a dataset.

    Args:
        composed: The sum.
        manifest: The manifest of its shards.
        spec: The digest of the spec.
        products: What was kept beside the histograms.
        files: The bytes of its files as they are stored, by kind.

    Returns:
        The version, built now, of no parts.
    """
    return Version(
        dna=composed.digest,
        manifest=manifest.digest,
        spec=spec,
        images=composed.images,
        failed=len(composed.failures),
        products=tuple(products),
        sha256={kind: sha256(data) for kind, data in files.items()},
        footers=footers_of(files),
        source=storage.readable(manifest.source),
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software(),
        numerics=composed.numerics,
        transparent=composed.transparent,
        single_colour=composed.single_colour,
    )
