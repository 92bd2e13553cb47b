"""Reads and writes whatever else fsspec knows, `memory://` among it.

A scheme that tells more in its answers has a store of its own, on top of `FsspecStore`.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import chain
from typing import Any, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync

from pipeline.buffers import Data
from pipeline.errors import SourceError, StorageError, UsageError, shortened
from pipeline.storage.name_patterns import NamePattern
from pipeline.storage.retry import RetrySettings, attempt
from pipeline.storage.store import Answer, Stored
from pipeline.storage.uris import protocol_of
from pipeline.wording import option

MAX_SINGLE_PUT = 5 * 2**30 - 1
"""The most bytes that S3 takes in one request."""

NO_STORES = frozenset({"data", "reference"})
"""Schemes of fsspec whose urls hold the content itself, or lead somewhere else."""

CHECK_THEN_WRITE = frozenset({"hdfs", "arrow_hdfs", "webhdfs", "ftp", "dbfs"})
"""Schemes known for clients that create a file in two steps: two writers may both find none there.

So do all that leave the creating to fsspec (see `_looks_then_writes`).
"""

SPLIT_UPLOADS = frozenset({"gs", "gcs"})
"""Schemes whose client sends an object in parts unless it is told to send it in one piece."""

WALKERS = 16
"""Folders that are listed at the same time."""

_SCHEME = re.compile(r"[A-Za-z0-9+.-]+://")

_TAGS = (
    *("generation", "ETag", "etag", "md5Hash"),
    *("blob_id", "xet_hash"),  # of Hugging Face
    *("sha", "hex"),  # of GitHub, and of git
)
"""What clients call a text that changes when an object's content does."""

_FTP_TIME = "modify"

_WEBHDFS_TIME = "modificationTime"

Details = dict[str, Any]
"""What a store tells about an object, in its own terms."""


class FsspecStore:
    """Any file system of fsspec."""

    is_local = False
    is_shared = True
    lists_in_key_order = False
    answers_ranges = False
    loses_answers = True
    needs_tags = True
    """Whether an object is refused if the client tells neither a tag nor a time of it."""

    def open(self, uri: str) -> tuple[Any, str]:
        """Opens the file system of a uri. No connection is made yet.

        The uri is cut here, because fsspec would take `::` in a key for a chain of file systems.

        Returns:
            The file system of fsspec, and the path in it.

        Raises:
            StorageError: The client would read another object than the one of this name.
            UsageError: fsspec does not know the scheme, or lacks the package for it.
        """
        protocol, path = uri.split("://", 1)
        if protocol in NO_STORES:
            raise UsageError(f"{shortened(uri)}: {protocol}:// is no store of objects")
        try:
            fs = fsspec.filesystem(protocol, **self.options())
        except Exception as error:  # some need arguments, and complain in their own ways
            raise UsageError(f"{uri}: {protocol}:// cannot be opened: {error}") from error
        taken = fs._strip_protocol(path)
        if not taken.rstrip("/").endswith(path.partition("/")[2].rstrip("/")):
            raise StorageError(
                f"{uri}: the client of {protocol}:// looks for {taken} instead; rename the object, "
                f"or leave it out with {option('exclude')}"
            )
        return fs, path

    def options(self) -> dict[str, Any]:
        """Gives the arguments of the file system. The rest comes from the store's own settings."""
        return {}

    def _open_anew(self, uri: str) -> tuple[Any, str]:
        """Opens the file system of a uri, and has it forget what it has listed before.

        Most keep listings for ever and answer from them, whatever other processes write. Not all
        take an argument that keeps them from it.

        Returns:
            The file system and the path, as `open` gives them.
        """
        fs, path = self.open(uri)
        _forget_listings(fs)
        return fs, path

    def details(self, uri: str) -> Details:
        """Asks for what the store tells about an object or a folder."""
        fs, path = self._open_anew(uri)
        return cast(Details, fs.info(path))

    def stored(self, uri: str, details: Details) -> Stored:
        """Reads what the store tells about an object of the same scheme as `uri`.

        Returns:
            The object's description.

        Raises:
            StorageError: The store tells too little to know a file that was replaced.
        """
        name = self.name_of(details)
        name = name if _SCHEME.match(name) else f"{protocol_of(uri)}://{name}"
        if self.needs_tags and not (any(map(details.get, _TAGS)) or _stamp(details)):
            raise StorageError(
                f"{name}: {protocol_of(uri)}:// tells neither a tag nor a time of this file, so a "
                "file that replaces it with the same size would not be counted; copy the files to "
                "s3:// or a disk"
            )
        size = int(details.get("size") or 0)
        return Stored(name, size, identity_of(details), _modified(details))

    def name_of(self, details: Details) -> str:
        """Gives the name of an object, with or without the scheme."""
        return str(details["name"])

    def info(self, uri: str) -> Stored:
        """Describes an object."""
        details = self.details(uri)
        if details.get("type") == "directory":
            raise IsADirectoryError(uri)
        return self.stored(uri, details)

    def exists(self, uri: str) -> bool:
        """Tells whether there is an object, or raises what the store says if there is nothing."""
        return not self.is_folder(uri)  # fsspec's own `exists` takes any error for an absence

    def is_folder(self, uri: str) -> bool:
        """Tells whether there is a folder, or raises what the store says if there is nothing."""
        return self.details(uri).get("type") == "directory"

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        """Reads bytes, then asks what they were of, because fsspec does not tell."""
        fs, path = self._open_anew(uri)  # a client that opens files takes their sizes from listings
        wanted = most + 1 if length is None and most is not None else length
        try:
            if wanted is None:
                data = fs.cat_file(path)
            else:
                data = _cat(fs, path, start, wanted) if wanted else b""
        except Exception:  # clients have errors of their own for a range beyond the end
            found = {} if wanted is None else fs.info(path)
            size = None if found.get("type") == "directory" else found.get("size")
            if size is None or size > start:
                raise
            data = b""
        details = self.details(uri)
        too_long = length is None and most is not None and len(data) > most
        data, size = b"" if too_long else data, int(details.get("size") or 0)
        return Answer(data, identity_of(details), size, too_long)

    def put(self, uri: str, data: Data, *, exclusive: bool) -> bool:
        """Writes in one piece, with fsspec's mode `create` if it is to be exclusive."""
        if exclusive and protocol_of(uri) in CHECK_THEN_WRITE:
            raise StorageError(_not_exclusive(uri))
        fs, path = self.open(uri)
        if exclusive and _looks_then_writes(fs):
            raise StorageError(_not_exclusive(uri))
        options: dict[str, Any] = {"mode": "create"} if exclusive else {}
        if protocol_of(uri) in SPLIT_UPLOADS:
            options["chunksize"] = MAX_SINGLE_PUT
        try:
            fs.pipe_file(path, bytes(data), **options)
            return True
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError) as error:
            if not exclusive:
                raise
            raise StorageError(
                f"{uri}: {protocol_of(uri)}:// cannot create a file only if it is new"
            ) from error

    def delete(self, uri: str) -> None:
        """Removes an object."""
        fs, path = self.open(uri)
        fs.rm_file(path)

    def delete_all(self, uris: Sequence[str]) -> None:
        """Removes objects one after the other."""
        for uri in uris:
            with contextlib.suppress(SourceError):
                attempt(uri, partial(self.delete, uri))

    def delete_tree(self, uri: str) -> None:
        """Removes everything below a folder, in one call of the client."""
        fs, path = self._open_anew(uri)
        attempt(uri, lambda: fs.rm(path, recursive=True))

    def walk(self, uri: str) -> Iterator[Stored]:
        """Yields what the pages of the listing hold, or the object of that name."""
        found = False
        for items in self.pages(uri):
            found = found or bool(items)
            yield from items
        if not found:
            yield from self.alone(uri)

    def alone(self, uri: str) -> list[Stored]:
        """Gives the object of that name, for a place with nothing below it."""
        return [attempt(uri, lambda: self.info(uri))]

    def pages(self, uri: str) -> Iterator[list[Stored]]:
        """Yields the objects of each folder below a folder. Many are listed at the same time."""
        fs, path = self._open_anew(uri)
        for rows in _folders(uri, fs, path, lambda folder: True):
            yield [self.stored(uri, row) for row in rows]

    def glob(self, pattern: str) -> Iterator[Stored]:
        """Yields the objects that match, in order."""
        fs, path = self._open_anew(pattern)
        if _omits_folders(fs):
            matches = _matches(pattern, fs, path)
        else:
            matches = attempt(pattern, lambda: cast(dict[str, Details], fs.glob(path, detail=True)))
        for name in sorted(matches):
            if matches[name].get("type") == "directory":
                continue
            item = self.stored(pattern, matches[name] | {"name": name})
            if not is_folder_marker(item):
                yield item


class MemoryStore(FsspecStore):
    """Objects in the memory of this process."""

    is_shared = False
    loses_answers = False
    _lock = threading.Lock()

    def open(self, uri: str) -> tuple[Any, str]:
        """Gives the file system, and the path with the one slash that it wants in front."""
        fs, path = super().open(uri)
        return fs, "/" + path.lstrip("/")

    def name_of(self, details: Details) -> str:
        """Gives the name without the slash in front."""
        return str(details["name"]).lstrip("/")

    def put(self, uri: str, data: Data, *, exclusive: bool) -> bool:
        """Writes under a lock, so that a check and a write are one step."""
        fs, path = self.open(uri)
        with self._lock:
            if exclusive and fs.exists(path):
                return False
            fs.pipe_file(path, bytes(data))
            return True


def _not_exclusive(uri: str) -> str:
    return (
        f"{uri}: the client of {protocol_of(uri)}:// looks whether a file is there before it "
        "writes it, so two jobs could corrupt a catalogue there; keep it on s3:// or a disk"
    )


def _looks_then_writes(fs: Any) -> bool:
    """Tells whether fsspec's own function creates files: it asks for the file, and then writes."""
    return getattr(fs.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file


def _forget_listings(fs: Any) -> None:
    """Has a file system of fsspec forget its listings: in the thread that uses them, if it has one.

    Without that, a listing could go between a look at whether it is kept and its use.
    """

    async def forget() -> None:
        fs.invalidate_cache()

    if isinstance(fs, AsyncFileSystem):
        sync(fs.loop, forget)
    else:
        fs.invalidate_cache()


def _folders(
    uri: str, fs: Any, path: str, is_wanted: Callable[[str], bool]
) -> Iterator[list[Details]]:
    """Lists a folder and those below it, many at the same time.

    Args:
        uri: What is listed, for errors.
        fs: The file system.
        path: The folder, whose listing comes first.
        is_wanted: Tells whether a folder below it is to be listed.

    Yields:
        What the store tells about the objects of each folder.
    """

    def look(folder: str) -> list[Details]:
        return attempt(uri, lambda: cast(list[Details], fs.ls(folder, detail=True)))

    pool = ThreadPoolExecutor(WALKERS, "walk")
    try:
        waiting, seen = {pool.submit(look, path)}, {path.rstrip("/")}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for rows in (future.result() for future in done):
                inner = [row["name"] for row in rows if row.get("type") == "directory"]
                folders = {name.rstrip("/") for name in inner} - seen
                seen |= folders
                waiting |= {pool.submit(look, each) for each in filter(is_wanted, folders)}
                yield [row for row in rows if row.get("type") != "directory"]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _matches(pattern: str, fs: Any, path: str) -> dict[str, Details]:
    """Finds the objects that match, in folders that may hold some.

    Args:
        pattern: The pattern, for errors.
        fs: The file system.
        path: The pattern's path in it.

    Returns:
        What the store tells about each, by its name; nothing if there is no such folder.

    Raises:
        StorageError: A folder cannot be listed.
    """
    wanted = NamePattern(fs._strip_protocol(path))
    folders = _folders(
        pattern, fs, wanted.folder, lambda folder: wanted.parts_before(folder) is not None
    )
    try:
        first = next(folders, [])
    except SourceError:
        return {}
    rows = chain(first, chain.from_iterable(folders))
    return {row["name"]: row for row in rows if wanted.matches(row["name"])}


def _omits_folders(fs: Any) -> bool:
    """Tells whether a file system's glob is fsspec's own, which omits folders it cannot list."""
    base, names = AbstractFileSystem, ("glob", "find", "walk")
    if isinstance(fs, AsyncFileSystem):
        base, names = AsyncFileSystem, ("_glob", "_find", "_walk")
    return all(getattr(type(fs), name) is getattr(base, name) for name in names)


def _cat(fs: Any, path: str, start: int, length: int) -> bytes:
    """Reads a part, and gives up one that trickles in, if the client can be told to."""
    seconds = RetrySettings.from_environment().seconds_for(length)
    limit = {"timeout": seconds} if getattr(fs, "async_impl", False) else {}
    return cast(bytes, fs.cat_file(path, start, start + length, **limit))


def is_folder_marker(item: Stored) -> bool:
    """Tells whether it is what consoles make for an empty folder: `name/`, without any bytes."""
    return item.uri.endswith("/") and not item.size


def identity_of(details: Details) -> str:
    """Gives the best sign of an object's content: a tag such as its ETag, or size and time."""
    for key in _TAGS:
        if details.get(key):
            return str(details[key]).strip('"')
    return f"{details.get('size')}-{_stamp(details)}"


def _stamp(details: Details) -> str:
    """Gives the time when an object was written. FTP's has fractions, or is the time of `ls`."""
    time = _modified(details)
    return str(details.get(_FTP_TIME) or (time.isoformat() if time else ""))


def _modified(details: Details) -> datetime | None:
    if isinstance(milliseconds := details.get(_WEBHDFS_TIME), int):
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    with contextlib.suppress(ValueError):
        return datetime.strptime(str(details.get(_FTP_TIME))[:14] + "Z", "%Y%m%d%H%M%S%z")
    for key in (
        *("LastModified", "Last-Modified", "last_modified"),
        *("mtime", "updated", "modified", "created"),
    ):
        value = details.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            read = parsedate_to_datetime if key == "Last-Modified" else datetime.fromisoformat
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                return read(value)
    return None


def nothing(uri: str, start: int, length: int | None, details: Details) -> Answer:
    """Answers a range that holds no byte, from what the store tells about the object.

    Args:
        uri: The object.
        start: Where the range begins.
        length: How long the range is.
        details: What the store tells about the object.

    Returns:
        An answer without bytes.

    Raises:
        IsADirectoryError: It is a folder.
        ConnectionError: The object has bytes there.
    """
    if details.get("type") == "directory":
        raise IsADirectoryError(uri)
    size = -1 if details.get("size") is None else int(details["size"])
    if length and start < size:
        raise ConnectionError(f"no bytes from {start} on of {size}")
    return Answer(b"", identity_of(details), size)
