"""comparing.kept_matrices: TODO-DOC"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.catalogue import MATRIX_FORMAT, READERS, Catalogue, matrix_metadata, matrix_statement
from pipeline.comparing.matrix import Matrix
from pipeline.comparing.selection import Selection
from pipeline.comparing.tiles import Job
from pipeline.dna import UNIFORM, Floats
from pipeline.errors import CorruptFile, SourceError, StorageError, TransientError
from pipeline.events import Listener, Said
from pipeline.spec import digest_of

RECENT = 16
"""Kept matrices that are looked at for pairs to take: so many of the newest, and of the largest."""


def keep_matrix(uri: str, matrix: Matrix, progress: Listener) -> bool:
    """For the next time; who may only read the catalogue has the matrix all the same."""
    try:
        storage.create(uri, matrix.encode())
    except TransientError:
        raise
    except StorageError as error:
        progress(Said(f"the matrix is not kept for the next time: {error}"))
        return False
    return True


def matrix_uri(catalogue: Catalogue, wanted: Selection, job: Job) -> str:
    through = UNIFORM if job.lens is None else job.lens.digest
    name = f"{through}{'-fd' if job.fd else ''}{'' if job.error_bars else '-plain'}"
    if job.lens is not None and (job.lens.weights < 0).any():
        name += "-signed"  # those of old were divided by another sum
    if not job.whole:
        name += f"-layers-{digest_of('layers', job.layers)}"
    return catalogue.matrix_uri(wanted.spec_digest, wanted.members, name)


def find_kept(uri: str, wanted: Selection, job: Job) -> Matrix | None:
    """The matrix that is there, if it is this one; another is removed, to be computed again."""
    if not storage.exists(uri):
        return None
    try:
        with storage.open_random(uri) as file:
            current = _is_current(matrix_metadata(file), job)
        if current:
            kept = Matrix.decode(storage.read(uri), uri)
            if len(kept.planes) != job.planes:
                raise CorruptFile(f"{uri} has {len(kept.planes)} planes, not {job.planes}")
            if kept.members == wanted.members and kept.names == tuple(wanted.versions):
                return _named(kept, job)
            if kept.members == wanted.members:  # of the same datasets in another order
                return _reordered(_named(kept, job), tuple(wanted.versions))
    except SourceError:  # removed since
        return None
    except CorruptFile:
        pass
    storage.discard(uri)
    return None


def _named(matrix: Matrix, job: Job) -> Matrix:
    """By the name that the lens has now."""
    return replace(matrix, lens=job.lens.name if job.lens else UNIFORM)


def _reordered(matrix: Matrix, names: tuple[str, ...]) -> Matrix:
    at = [matrix.names.index(name) for name in names]

    def moved(values: Floats) -> Floats:
        return np.ascontiguousarray(values[:, at][:, :, at])

    return replace(
        matrix,
        names=names,
        emd=moved(matrix.emd),
        nfd=moved(matrix.nfd),
        fd=moved(matrix.fd),
        estimates={column: moved(values) for column, values in matrix.estimates.items()},
    )


def slice_matrix(matrix: Matrix, job: Job) -> Matrix:
    """Some of its layers: of each, all numbers are its own, q among them."""
    at = [matrix.layers.index(layer) for layer in job.layers]
    return replace(
        matrix,
        layers=job.layers,
        emd=matrix.emd[at],
        nfd=matrix.nfd[at],
        fd=matrix.fd[at],
        estimates={column: values[at] for column, values in matrix.estimates.items()},
    )


def _is_current(metadata: Mapping[str, Any], job: Job) -> bool:
    """Whether its numbers are what this job would compute; those of format 1 were not in full."""
    lens = job.lens.digest if job.lens else ""
    return (
        metadata["format"] == MATRIX_FORMAT
        and (metadata.get("method"), metadata.get("lens_digest")) == (job.method, lens)
        and tuple(metadata["layers"]) == job.layers
    )


def nearest_kept(catalogue: Catalogue, wanted: Selection, job: Job) -> Matrix | None:
    """Of the kept matrices of this kind, the one that has most of the DNAs; two or more.

    Of the newest and of the largest, since small comparisons may be many: a listing tells both.
    """
    name = matrix_uri(catalogue, wanted, job).rpartition("/")[2]
    try:
        there = [
            item
            for item in storage.walk(catalogue.matrices_uri(wanted.spec_digest))
            if item.uri.endswith(f"/{name}")
        ]
    except SourceError:
        return None
    there.sort(key=lambda item: (item.modified is None, item.modified), reverse=True)
    largest = sorted(there, key=lambda item: -item.size)
    chosen = dict.fromkeys(item.uri for item in (*there[:RECENT], *largest[:RECENT]))
    digests = Counter(wanted.members.values())

    def shared(uri: str) -> int:
        metadata = matrix_statement(uri)
        if metadata is None or not _is_current(metadata, job):
            return 0
        return (digests & Counter(metadata["members"].values())).total()

    with ThreadPoolExecutor(READERS) as pool:
        found = sorted(zip(pool.map(shared, chosen), chosen, strict=True), key=lambda of: -of[0])
    for count, uri in found:
        if count < 2:
            break
        try:
            return Matrix.decode(storage.read(uri), uri)
        except (CorruptFile, SourceError):
            continue
    return None


def most_shared(wanted: Selection, there: Sequence[Matrix]) -> tuple[Matrix | None, dict[str, int]]:
    """The matrix that has most of the datasets, and their rows in it."""
    best: tuple[Matrix | None, dict[str, int]] = (None, {})
    for matrix in there:
        rows = _rows(matrix, wanted.members)
        if len(rows) > len(best[1]):
            best = matrix, rows
    return best


def _rows(matrix: Matrix, members: Mapping[str, str]) -> dict[str, int]:
    """dataset -> the matrix's row of its DNA.

    Each row once: two datasets of the same images are a pair, which a row with itself is not.
    """
    there: dict[str, list[int]] = {}
    for row, name in reversed(list(enumerate(matrix.names))):
        there.setdefault(matrix.members[name], []).append(row)
    return {name: there[dna].pop() for name, dna in members.items() if there.get(dna)}
