"""Reads, writes and lists objects, in whatever store their uri names.

    >>> create("file:///tmp/x/a", b"1"), create("file:///tmp/x/a", b"2")     # doctest: +SKIP
    (True, False)

Each function either does what it says or raises: `SourceError` (not there, or changed),
`StorageError` (refused), or `TransientError` (no proper answer after all the tries that
`pipeline.storage.retry` allows). A write is one PUT of bytes that are at hand, never a stream: a
stream that fails half-way leaves a truncated object behind.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from mmap import mmap
from typing import IO, cast

from pipeline.buffers import FIRST_BLOCK, LONGEST_BLOCK, BlockFile, Data, size_of
from pipeline.errors import SourceError, StorageError, TooManyBytes, TransientError
from pipeline.storage import local
from pipeline.storage.http import HttpStore
from pipeline.storage.local import LocalFile, LocalStore
from pipeline.storage.other import MAX_SINGLE_PUT, FsspecStore, MemoryStore
from pipeline.storage.retry import attempt
from pipeline.storage.s3 import S3Store
from pipeline.storage.store import Answer, Store, Stored, require_identity
from pipeline.storage.temporary import on_disk, sparse
from pipeline.storage.uris import protocol_of

_HTTP = HttpStore()

_OTHER = FsspecStore()

_STORES: dict[str, Store] = {
    "file": LocalStore(),
    "memory": MemoryStore(),
    "s3": S3Store(),
    "http": _HTTP,
    "https": _HTTP,
}


def store_of(url: str) -> Store:
    """Chooses the store of a url by its scheme; all that differs between schemes is in there."""
    return _STORES.get(protocol_of(url), _OTHER)


# Listing


def walk(uri: str) -> Iterator[Stored]:
    """Yields every object below a folder or prefix, or the object of that name, as it is found.

    Args:
        uri: A folder, a prefix, a bucket or an object. Local folders are walked in order.

    Raises:
        SourceError: There is nothing of that name.
    """
    yield from store_of(uri).walk(uri)


def alone(uri: str) -> list[Stored]:
    """Looks at a place of S3 with nothing below it.

    Returns:
        The object of that name, or nothing for an empty bucket.

    Raises:
        SourceError: There is neither.
    """
    return cast(S3Store, store_of(uri)).alone(uri)


def list_page(uri: str, after: str) -> tuple[list[Stored], str, bool]:
    """Lists the next objects below a prefix of S3, in the order of their keys.

    Keys are in the order of their bytes in general purpose buckets. Directory buckets of S3 Express
    list in no order, and are refused.

    Args:
        uri: The prefix.
        after: A key below the prefix; the listing goes on with the keys above it. Empty to begin.

    Returns:
        The objects, the last key that was looked at, and whether there are more.

    Raises:
        StorageError: The listing is not in order.
    """
    return cast(S3Store, store_of(uri)).list_page(uri, after)


def glob(pattern: str) -> Iterator[Stored]:
    """Yields the objects that match a shell pattern, in the order of their uris.

    Args:
        pattern: A path or uri with `*`, `**`, `?` or `[…]`.
    """
    yield from store_of(pattern).glob(pattern)


def leftovers(uri: str) -> Iterator[Stored]:
    """Yields the temporary files below a local folder that writers left when they died."""
    if store_of(uri).is_local:
        yield from local.temporary_files(uri)


def info(uri: str) -> Stored:
    """Describes an object.

    Returns:
        Its size, its identity and when it was written.

    Raises:
        SourceError: There is no such object.
    """
    store = store_of(uri)
    return attempt(uri, lambda: store.info(uri))


def exists(uri: str) -> bool:
    """Tells whether there is an object of that name; a folder is none."""
    store = store_of(uri)
    try:
        return attempt(uri, lambda: store.exists(uri))
    except SourceError:
        return False


def is_folder(uri: str) -> bool:
    """Tells whether there is a folder of that name, and no object."""
    store = store_of(uri)
    try:
        return attempt(uri, lambda: store.is_folder(uri))
    except SourceError:
        return False


# Reading


def _get(
    uri: str,
    identity: str | None,
    start: int = 0,
    length: int | None = None,
    most: int | None = None,
) -> Answer:
    """Reads bytes from `start` on, all that follow if there is no `length`."""
    store = store_of(uri)
    answer = attempt(uri, lambda: store.get(uri, start, length, most))
    require_identity(uri, identity, answer.identity)
    return answer


def read(uri: str, identity: str | None = None, most: int | None = None) -> bytes:
    """Reads a whole object.

    Args:
        uri: The object.
        identity: What the object must be, as it was listed. None accepts any content.
        most: The most bytes that it may have. Reading stops after one more, whatever its size was
            said to be. None sets no limit, except for an object whose size the server does not
            tell (`pipeline.storage.answers.MOST_UNTOLD`).

    Returns:
        Its bytes.

    Raises:
        SourceError: It is not there, or it has changed.
        TooManyBytes: It is longer than `most`.
    """
    answer = _get(uri, identity, most=most)
    if answer.is_too_long:
        found = answer.size if answer.size > (most or 0) else f"over {most}"
        raise TooManyBytes(f"{uri} has {found} bytes; the limit is {most}")
    return answer.data


def read_range(uri: str, start: int, length: int, identity: str | None = None) -> bytes:
    """Reads a part of an object.

    Args:
        uri: The object.
        start: The position of the first byte.
        length: How many bytes to read.
        identity: What the object must be, as it was listed. None accepts any content.

    Returns:
        Bytes [start, start + length), fewer if the object ends before.

    Raises:
        SourceError: It is not there, or it has changed.
    """
    return _get(uri, identity, start, length).data


def read_spans(uri: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Reads several spans of an object, at most `LONGEST_BLOCK` bytes at a time.

    Spans that touch are read together. The caller has to check that all bytes are of one content.

    Args:
        uri: The object.
        spans: The first position of each span, and the one after its last.

    Yields:
        Where the bytes begin in the object, and the bytes: fewer if the object ends before.
    """
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    for start, stop in runs:
        for at in range(start, stop, LONGEST_BLOCK):
            yield at, read_range(uri, at, min(LONGEST_BLOCK, stop - at))


@contextlib.contextmanager
def open_random(uri: str, identity: str | None = None) -> Iterator[IO[bytes]]:
    """Opens an object as a seekable binary file, for formats that are read in part.

    Each block is tried again by itself. A read raises `SourceError` if the object has changed.

    Args:
        uri: The object.
        identity: What the object must be. None takes what the first answer brings.

    Yields:
        The file, for use by one thread at a time.
    """
    if store_of(uri).is_local:
        raw: io.RawIOBase = attempt(uri, lambda: LocalFile(uri, identity))
    else:
        raw = _file_of_blocks(uri, identity)
    with io.BufferedReader(raw) as file:
        yield file


def _file_of_blocks(uri: str, identity: str | None) -> BlockFile:
    first = _get(uri, identity, 0, FIRST_BLOCK)
    if first.size < 0:
        raise StorageError(f"{uri}: this server does not tell its size; copy it to one that does")

    def fetch(start: int, length: int) -> bytes:
        data = _get(uri, first.identity, start, length).data
        if len(data) != length:
            raise StorageError(
                f"{uri}: the server sent {len(data)} bytes where {length} were asked "
                "for (from byte "
                f"{start} of {first.size}), though it says that the object has not changed"
            )
        return data

    return BlockFile(first.size, first.data, fetch)


def read_on_disk(uri: str) -> bytes | mmap:
    """Reads a whole object into a temporary file and maps it.

    Stores that answer ranges are read in blocks, so that memory never holds all of it.

    Returns:
        The map; plain bytes if the object is empty.

    Raises:
        SourceError: The object is not there.
        StorageError: The disk has no room.
    """
    if not store_of(uri).answers_ranges:
        return on_disk(read(uri))
    try:
        with open_random(uri) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return sparse(size, _placed(iter(partial(file.read, LONGEST_BLOCK), b"")))
    except SourceError:  # it is gone, or was replaced between two blocks: then in one answer
        return on_disk(read(uri))


def _placed(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    at = 0
    for block in blocks:
        yield at, block
        at += len(block)


# Writing


def create(uri: str, data: Data) -> bool:
    """Writes an object unless there is one of that name.

    It is exclusive among all writers anywhere, as long as each writes other bytes: the answer of an
    object store to a write may be lost, so an object there that equals `data` counts as written.

    Returns:
        Whether it was written.

    Raises:
        StorageError: The store refuses, or cannot create exclusively.
    """
    _require_single_put(uri, data)
    store = store_of(uri)
    if attempt(uri, lambda: store.put(uri, data, exclusive=True)):
        return True
    # Whatever stands between repeats a PUT whose answer was lost, as we do, and is then told that
    # there is an object. Its bytes show who wrote it.
    return store.loses_answers and _holds(uri, data)


def replace(uri: str, data: Data) -> None:
    """Writes an object, whatever was there. For hints, and to repeat the same bytes, only.

    Raises:
        StorageError: The store refuses.
    """
    _require_single_put(uri, data)
    store = store_of(uri)
    attempt(uri, lambda: store.put(uri, data, exclusive=False))


def _require_single_put(uri: str, data: Data) -> None:
    if size_of(data) > MAX_SINGLE_PUT and not store_of(uri).is_local:
        raise StorageError(
            f"{uri}: {size_of(data)} bytes are too many for one PUT request; write it to a local "
            "path, and copy it from there"
        )


def _holds(uri: str, data: Data) -> bool:
    """Compares an object with bytes, block by block."""
    at = 0
    try:
        with open_random(uri) as file, memoryview(data) as view:
            if file.seek(0, os.SEEK_END) != size_of(data):
                return False
            file.seek(0)
            while block := file.read(LONGEST_BLOCK):
                if view[at : at + len(block)] != block:
                    return False
                at += len(block)
    except SourceError:  # it is gone, or another by now
        return False
    return True


def delete(uri: str) -> None:
    """Removes an object. It is no error if there is none.

    Raises:
        StorageError: The store refuses.
    """
    store = store_of(uri)
    with contextlib.suppress(SourceError):
        attempt(uri, lambda: store.delete(uri))


def delete_all(uris: Sequence[str]) -> None:
    """Removes objects of one store, on S3 a thousand with each request.

    It is no error if some are not there.

    Raises:
        StorageError: The store refuses. Some objects may be removed by then.
    """
    if uris:
        store_of(uris[0]).delete_all(uris)


def discard(uri: str) -> None:
    """Removes an object that is of no use. It stays if the store does not allow to remove it.

    Raises:
        TransientError: The store does not answer.
    """
    try:
        delete(uri)
    except TransientError:
        raise
    except StorageError:
        pass


def delete_tree(uri: str) -> None:
    """Removes everything below a folder or prefix. It is no error if there is nothing.

    A local folder above it that this leaves empty goes too: object stores have no empty folders.

    Raises:
        StorageError: The store refuses.
    """
    with contextlib.suppress(SourceError):
        store_of(uri).delete_tree(uri)
