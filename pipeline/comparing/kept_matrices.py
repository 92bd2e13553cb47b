"""Finds and keeps matrices in the catalogue, so that pairs are not computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.catalogue import MATRIX_READERS, Catalogue, find_matrix_metadata, matrix_metadata
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.matrix import Matrix
from pipeline.comparing.selection import Selection
from pipeline.dna import UNIFORM, Floats
from pipeline.errors import CorruptFile, SourceError, StorageError, TransientError
from pipeline.events import Listener, Said
from pipeline.spec import digest_of

RECENT = 16
"""How many of the newest, and of the largest, kept matrices are searched for known pairs."""


def keep_matrix(uri: str, matrix: Matrix, progress: Listener) -> bool:
    """Writes a matrix for the next time.

    Args:
        uri: Where it is kept.
        matrix: The matrix.
        progress: Is told if the catalogue cannot be written; the comparison goes on then.

    Returns:
        Whether the matrix is kept.

    Raises:
        TransientError: If the store does not answer for now.
    """
    try:
        storage.create(uri, matrix.encode())
    except TransientError:
        raise
    except StorageError as error:
        progress(Said(f"the matrix is not kept for the next time: {error}"))
        return False
    return True


def matrix_uri(catalogue: Catalogue, wanted: Selection, job: Job) -> str:
    """Names the object that keeps the matrix of a job.

    Args:
        catalogue: The catalogue.
        wanted: The datasets that are compared.
        job: What is computed of them.

    Returns:
        The uri, made of the spec, the DNAs, the lens, the layers and the kind of numbers.
    """
    through = UNIFORM if job.lens is None else job.lens.digest
    name = f"{through}{'-fd' if job.fd else ''}{'' if job.error_bars else '-plain'}"
    if not job.whole:
        name += f"-layers-{digest_of('layers', job.layers)}"
    return catalogue.matrix_uri(wanted.spec_digest, wanted.members, name)


def find_kept(uri: str, wanted: Selection, job: Job, *, discard: bool = True) -> Matrix | None:
    """Reads a kept matrix, if it is the one that is wanted.

    One that does not fit, or is damaged, must be computed again.

    Args:
        uri: Where it is kept.
        wanted: The datasets that are compared.
        job: What is computed of them.
        discard: Whether one that must be computed again is removed.

    Returns:
        The matrix in the order of `wanted`, or None if there is none.
    """
    if not storage.exists(uri):
        return None
    try:
        with storage.open_random(uri) as file:
            current = _is_current(matrix_metadata(file, uri), job)
        if current:
            kept = Matrix.decode(storage.read(uri), uri)
            if len(kept.planes) == job.planes and kept.members == wanted.members:
                named = _named(kept, job)
                order = tuple(wanted.versions)
                return named if named.names == order else _reordered(named, order)
    except SourceError:  # removed since
        return None
    except CorruptFile:
        pass
    if discard:
        storage.discard(uri)
    return None


def _named(matrix: Matrix, job: Job) -> Matrix:
    """Returns the matrix with the name that the lens has now."""
    return replace(matrix, lens=job.lens.name if job.lens else UNIFORM)


def _reordered(matrix: Matrix, names: tuple[str, ...]) -> Matrix:
    """Returns the matrix with its datasets in the order of `names`."""
    at = [matrix.names.index(name) for name in names]

    def moved(values: Floats) -> Floats:
        return np.ascontiguousarray(values[:, at][:, :, at])

    return matrix.mapped(moved, names=names)


def slice_matrix(matrix: Matrix, job: Job) -> Matrix:
    """Takes some layers of a matrix. All their numbers, q among them, are their own.

    Args:
        matrix: A matrix of all layers.
        job: The job that names the layers.

    Returns:
        The matrix of these layers, without the mean over all.
    """
    at = [matrix.layers.index(layer) for layer in job.layers]
    return matrix.mapped(lambda values: values[at], layers=job.layers)


def _is_current(metadata: Mapping[str, Any], job: Job) -> bool:
    """Returns whether a matrix's numbers are those that this job would compute."""
    lens = job.lens.digest if job.lens else ""
    return (metadata["method"], metadata["lens_digest"]) == (job.method, lens) and tuple(
        metadata["layers"]
    ) == job.layers


def nearest_kept(catalogue: Catalogue, wanted: Selection, job: Job) -> Matrix | None:
    """Finds the kept matrix of this kind that has the most DNAs of a selection.

    The newest and the largest are looked at, as one listing shows them, since there may be many
    small comparisons.

    Args:
        catalogue: The catalogue.
        wanted: The datasets that are compared.
        job: What is computed of them.

    Returns:
        The matrix, or None if none has two of the DNAs or more.
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
        metadata = find_matrix_metadata(uri)
        if metadata is None or not _is_current(metadata, job):
            return 0
        return (digests & Counter(metadata["members"].values())).total()

    with ThreadPoolExecutor(MATRIX_READERS) as pool:
        found = sorted(
            zip(pool.map(shared, chosen), chosen, strict=True), key=lambda each: -each[0]
        )
    for count, uri in found:
        if count < 2:
            break
        try:
            return Matrix.decode(storage.read(uri), uri)
        except (CorruptFile, SourceError):
            continue
    return None


def most_shared(wanted: Selection, there: Sequence[Matrix]) -> tuple[Matrix | None, dict[str, int]]:
    """Finds the matrix that has the most datasets of a selection.

    Args:
        wanted: The datasets that are compared.
        there: Matrices to look at.

    Returns:
        The matrix, and the rows in it of the datasets that it has; None and no rows if there is
        none.
    """
    best: tuple[Matrix | None, dict[str, int]] = (None, {})
    for matrix in there:
        rows = _rows(matrix, wanted.members)
        if len(rows) > len(best[1]):
            best = matrix, rows
    return best


def _rows(matrix: Matrix, members: Mapping[str, str]) -> dict[str, int]:
    """Returns the matrix's row of each dataset's DNA, and no row twice.

    Two datasets of the same images are a pair, which a row with itself is not.
    """
    there: dict[str, list[int]] = {}
    for row, name in reversed(list(enumerate(matrix.names))):
        there.setdefault(matrix.members[name], []).append(row)
    return {name: there[dna].pop() for name, dna in members.items() if there.get(dna)}
