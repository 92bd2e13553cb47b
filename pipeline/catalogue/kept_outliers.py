"""Keeps which of a dataset's own images are the farthest from it, as the last ranking found them.

    >>> find_outliers(Catalogue("dnas"), version).images[0]                    # doctest: +SKIP
    FarImage(uri='file:///photos/a.jpg', member='', rank=1204, score=3.2, emd=12.3)

They are kept for as long as the DNA that the images were counted into. They lie under its digest,
so they are never taken for those of another version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.commit import Version
from pipeline.dna import FileKind, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SourceError

OUTLIERS = FileKind("outliers")
"""Its format is raised when the rule of the score changes, so that no older score is shown."""

_SCHEMA = pa.schema(
    {
        "uri": pa.string(),
        "member": pa.string(),
        "rank": pa.int64(),
        "score": pa.float64(),
        "emd": pa.float64(),
    }
)


@dataclass(frozen=True)
class FarImage:
    """An image that is far from its own dataset.

    Attributes:
        uri: Where the image is.
        member: Its name inside an archive, or empty.
        rank: Its place among all images of the dataset; 1 is the nearest.
        score: What the images are ordered by: the distance, less a share of that to the background.
        emd: The distance of the image's own DNA to that of the dataset, in bins.
    """

    uri: str
    member: str
    rank: int
    score: float
    emd: float

    def __str__(self) -> str:
        return storage.spelled(self.uri, self.member)


@dataclass(frozen=True)
class Outliers:
    """The farthest of a dataset's own images.

    Attributes:
        spec: Digest of the dataset's spec.
        dna: Digest of its DNA.
        ranked: How many of its images have a distance.
        failed: How many could not be read.
        undefined: How many have no finite activation of some neuron, and so no distance.
        median: Half of the images are at most so far from the dataset, in bins.
        background: The datasets that distances are held against, as they were named then, each
            with the digest of its DNA; none if images are ordered by the distance alone.
        images: The farthest images, the farthest first.
    """

    spec: str
    dna: str
    ranked: int
    failed: int
    undefined: int
    median: float
    background: Mapping[str, str]
    images: tuple[FarImage, ...]

    def first(self, count: int) -> Outliers:
        """Returns the same with so many of the images, the farthest ones."""
        return replace(self, images=self.images[:count])

    def to_json(self) -> dict[str, Any]:
        """Returns the same for JSON."""
        return {
            "ranked": self.ranked,
            "failed": self.failed,
            "undefined": self.undefined,
            "median": self.median,
            "background": dict(self.background),
            "images": [asdict(image) for image in self.images],
        }

    def encode(self) -> bytes:
        """Returns the bytes of a file, which has a row for each image."""
        stated = self.to_json() | {"spec": self.spec, "dna": self.dna}
        rows = pa.Table.from_pylist(stated.pop("images"), _SCHEMA)
        return encode_sealed(OUTLIERS, stated, [rows])

    @classmethod
    def decode(cls, data: bytes, name: str) -> Outliers:
        """Reads a file.

        Args:
            data: Its bytes.
            name: Its name in errors.

        Returns:
            What it holds.

        Raises:
            CorruptFile: It is torn, or not what was written.
        """
        file = SealedFile(data, OUTLIERS, name)
        rows = file.read(_SCHEMA).to_pylist()
        with corrupt_if_unreadable(f"{name}: its metadata cannot be read"):
            stated = file.metadata
            return cls(
                spec=str(stated["spec"]),
                dna=str(stated["dna"]),
                ranked=int(stated["ranked"]),
                failed=int(stated["failed"]),
                undefined=int(stated["undefined"]),
                median=float(stated["median"]),
                background={str(of): str(dna) for of, dna in stated["background"].items()},
                images=tuple(FarImage(**row) for row in rows),
            )


def keep_outliers(catalogue: Catalogue, found: Outliers, erasure: int) -> bool:
    """Keeps what a ranking has found, in the place of what an earlier one did.

    If images were erased while it ran, nothing is kept: their names may be among those found, and
    their activations in the sums that distances were measured to.

    Args:
        catalogue: The catalogue.
        found: What was found.
        erasure: The number of the commit that had erased images last when the ranking began.

    Returns:
        Whether it is kept.
    """
    uri = catalogue.outliers_uri(found.spec, found.dna)
    storage.replace(uri, found.encode())
    # An erasure commits before it searches. So it finds this object, or this finds its commit.
    if catalogue.head().erasure == erasure:
        return True
    storage.discard(uri)
    return False


def find_outliers(catalogue: Catalogue, version: Version) -> Outliers | None:
    """Finds what is kept of a version's outliers.

    Args:
        catalogue: The catalogue.
        version: The version.

    Returns:
        What the last ranking of its images found; None if there was none.

    Raises:
        CorruptFile: The file is torn, of another format, or another version's.
        TransientError: Storage does not answer now.
    """
    uri = catalogue.outliers_uri(version.spec, version.dna)
    try:
        data = storage.read(uri)
    except SourceError:
        return None
    found = Outliers.decode(data, uri)
    if (found.spec, found.dna) != (version.spec, version.dna):
        raise CorruptFile(
            f"{uri} holds the outliers of DNA {found.dna} under spec {found.spec}, not those of "
            f"{version.dna} under {version.spec}; delete it, and rank the images again"
        )
    return found


def outliers_identity(catalogue: Catalogue, version: Version) -> str:
    """Tells whether a version's outliers are still those that were read, without reading them.

    Args:
        catalogue: The catalogue.
        version: The version.

    Returns:
        A text that is another one when they are ranked again; empty if none are kept.

    Raises:
        TransientError: Storage does not answer now.
    """
    try:
        return storage.info(catalogue.outliers_uri(version.spec, version.dna)).identity
    except SourceError:
        return ""


def measured_dnas(uri: str) -> set[str]:
    """Reads to which DNAs the distances of kept outliers were measured.

    Args:
        uri: The url of their file.

    Returns:
        The digest of each DNA; none if the file is torn or gone.
    """
    try:
        found = Outliers.decode(storage.read(uri), uri)
    except (CorruptFile, SourceError):
        return set()
    return {found.dna, *found.background.values()}
