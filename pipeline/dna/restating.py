"""Makes the files of a version state another dataset, for a dataset that is renamed.

>>> restate_dataset(data, "dna", "photos", "s3://bucket/a.parquet")            # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline.buffers import Data
from pipeline.dna.dna_encoding import encode_layers
from pipeline.dna.exemplars import EXEMPLAR_COLUMN
from pipeline.dna.sealed import FileKind, SealedFile, encode_sealed


def restate_dataset(data: Data, kind: str, dataset: str, name: str) -> bytes:
    """Makes a file with the same rows that states another dataset.

    Args:
        data: The bytes of the file.
        kind: `dna`, `folds`, `layer_gaussians` or `exemplars`.
        dataset: The dataset that the new file states.
        name: The name of the file in errors.

    Returns:
        The bytes that a build of that dataset would have written.

    Raises:
        CorruptFile: The file is torn, or not what was written.
    """
    file = SealedFile(data, FileKind(kind), name)
    metadata = {**file.metadata, "dataset": dataset}
    if kind == EXEMPLAR_COLUMN:
        return encode_sealed(FileKind(kind), metadata, [file.read()])
    file.check()

    def layers() -> Iterator[pa.Table]:
        for index in range(len(file.row_groups)):
            yield file.parquet.read_row_group(index)

    return encode_layers(kind, metadata, layers())
