"""Puts the image hashes of all partials into the file of a version, in the manifest's order.

>>> data = file_of_hashes(files.values(), manifest, products, "photos")        # doctest: +SKIP

The hashes of a large dataset lie on this machine's disk: memory holds those of one part at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from mmap import mmap

import numpy as np

from pipeline import storage
from pipeline.dna import HASH_ROW, DnaFile, ImageHashes, write_image_hashes
from pipeline.errors import ConservationError, CorruptFile
from pipeline.sources import Manifest
from pipeline.spec import IMAGE_HASHES


def file_of_hashes(
    parts: Collection[DnaFile], manifest: Manifest, products: Sequence[str], dataset: str
) -> mmap | None:
    """Makes the file of the image hashes of a version.

    Args:
        parts: The files of partials, or of sums of them, which hold each of the manifest's shards.
        manifest: The manifest of the dataset.
        products: What is kept of each shard.
        dataset: The name of the dataset, for errors.

    Returns:
        The map of a temporary file; None if the products have no image hashes.

    Raises:
        CorruptFile: If a part has hashes that it should not have, or none.
        ConservationError: If a shard has not as many hashes as candidates.
        StorageError: If this machine's disk has no room.
    """
    wanted = IMAGE_HASHES in products
    if any((IMAGE_HASHES in file.metadata) != wanted for file in parts):
        raise CorruptFile(f"{dataset}: the partials' products are not {', '.join(products)}")
    if not wanted:
        return None
    spec = next(iter(parts)).spec.digest
    sizes = [head.candidates for head in manifest.heads]
    starts = np.cumsum(sizes) - sizes
    places = {key: at for at, key in enumerate(manifest.keys(spec, products))}

    def in_place() -> Iterator[tuple[int, bytes]]:
        for file in parts:
            hashes = ImageHashes.from_partial(file)
            for key, rows in hashes.by_shard.items() if hashes is not None else ():
                at = places[key]
                if len(rows) != sizes[at]:
                    raise ConservationError(
                        f"{dataset}: shard {at} has hashes of {len(rows)} of its {sizes[at]} "
                        "candidates"
                    )
                yield int(starts[at]) * HASH_ROW.itemsize, rows.tobytes()

    rows = np.frombuffer(storage.sparse(sum(sizes) * HASH_ROW.itemsize, in_place()), HASH_ROW)
    return storage.written(
        rows.nbytes, lambda file: write_image_hashes(file, rows, sizes, manifest.digest)
    )
