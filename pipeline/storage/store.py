"""The only module that opens URLs: list, read, create exclusively, replace, delete.

    >>> create("file:///tmp/x/a", b"1"), create("file:///tmp/x/a", b"2")     # doctest: +SKIP
    (True, False)

Local files go through the operating system, everything else through fsspec. Each call either does
what it says or raises: `SourceError` (not there, or changed), `StorageError` (refused),
`TransientError` (no proper answer after the tries that `pipeline.retry` allows). A write is one PUT
of bytes that are at hand, never a stream: a stream that fails half-way leaves a truncated object
behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote, unquote_to_bytes

import fsspec
from fsspec.asyn import sync
from fsspec.utils import glob_translate

from pipeline.buffers import (
    FIRST_BLOCK,
    LONGEST_BLOCK,
    SHORTEST_BLOCK,
    BlockFile,
    Data,
    Mapped,
    pieces,
    size_of,
)
from pipeline.errors import SourceError, StorageError, TransientError, UsageError, printable, redact
from pipeline.storage.retry import Settings, attempt, status_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_SINGLE_PUT = 5 * 2**30 - 1

CONNECTIONS = 64
"""To one store; more than a worker has threads that fetch, so that none waits for another."""

DELETED_AT_ONCE = 1000
"""As many as S3 takes in one request."""

PAGE_BYTES = 2**20
"""A thousand keys in XML, at most."""

_TMP = re.compile(r"^\..*\.[0-9a-f]{16}\.tmp$")

_SCHEME = re.compile(r"[A-Za-z0-9+.-]+://")

_memory_lock = threading.Lock()


@dataclass(frozen=True)
class Stored:
    """An object: canonical uri, bytes, what changes when its content does, and when it was made."""

    uri: str
    size: int
    identity: str
    modified: datetime | None


def canonical(url: str | os.PathLike[str]) -> str:
    """One spelling per place: `file:///abs/path` percent-encoded, others `protocol://path`.

    Refuses urls that carry a secret: presigned ones (which change with every run), passwords.
    """
    text = os.fspath(url)
    shown = redact(text)
    protocol = protocol_of(text)
    if protocol != "file" and (shown != text or redact(unquote(text)) != unquote(text)):
        bare = shown.split("?", 1)[0]
        raise UsageError(
            f"{bare}{'?…' if '?' in text else ''} carries a signature, a token, a name or a "
            "password, which would expire or leak into the catalogue; give the plain url, and "
            "credentials by the store's own settings"
        )
    if protocol == "file":
        path = text if "://" not in text else local_path(text)
        return Path(os.path.abspath(os.path.expanduser(path))).as_uri()
    head, rest = text.split("://", 1)
    if protocol == "memory":
        rest = rest.lstrip("/")
    return f"{head.lower()}://{rest.rstrip('/')}"


def protocol_of(url: str) -> str:
    """`local` is fsspec's other word for `file`, and would be another name for the same file."""
    protocol = url.split("://", 1)[0].lower() if "://" in url else "file"
    return "file" if protocol == "local" else protocol


def local_path(uri: str) -> str:
    """The path of a `file://` uri (any bytes that a file name may hold)."""
    return os.fsdecode(unquote_to_bytes(uri.split("://", 1)[1]))


def readable(uri: str) -> str:
    """The uri as people write it: without a `file` uri's percent-encoding."""
    if protocol_of(uri) == "file":
        return local_path(uri).encode("utf-8", "backslashreplace").decode()
    return uri


def spelled(uri: str, member: str = "") -> str:
    """An image's name as people read it; what would command a terminal is written out."""
    return printable(f"{readable(uri)}{'::' + member if member else ''}")


def join(root: str, *parts: str) -> str:
    """Below a canonical root; `parts` are of our own making or validated names."""
    return "/".join([root.rstrip("/"), *parts])


def walk(uri: str) -> Iterator[Stored]:
    """Every object below a folder or prefix, or the object itself, as they are found.

    Local folders in order; one reached again through a symbolic link is entered once. Raises
    `SourceError` where there is nothing of that name.
    """
    protocol = protocol_of(uri)
    if protocol == "file":
        yield from _walk_local(uri)
        return
    found = False
    for items in _pages_s3(uri) if protocol == "s3" else _pages(uri):
        found = found or bool(items)
        yield from items
    if not found:
        yield from alone(uri)


def alone(uri: str) -> list[Stored]:
    """Of a place with nothing below it: the object of that name, or nothing of an empty bucket.

    Raises `SourceError` where there is neither.
    """
    bucket = protocol_of(uri) == "s3" and "/" not in uri.removeprefix("s3://")
    return [] if bucket and exists(uri) else [info(uri)]


def list_page(uri: str, after: str) -> tuple[list[Stored], str, bool]:
    """The next objects below a prefix of S3, in order: those whose keys, below it, are above
    `after`; the last key looked at; whether there are more.

    Keys are those of general purpose buckets, in order of their bytes. Directory buckets of S3
    Express list in none, and are refused.
    """
    bucket, folder = _bucket_and_key(uri.removeprefix("s3://"))
    prefix = f"{folder}/" if folder else ""
    asked = {"Bucket": bucket, "Prefix": prefix}
    if after:
        asked["StartAfter"] = prefix + after
    items: list[Stored] = []
    last = after
    while asked and last == after:  # a page may be empty, or hold the folder's marker alone
        page, asked = _page(uri, asked, prefix + last if last else "")
        items += page
        last = page[-1].uri.removeprefix(f"s3://{bucket}/{prefix}") if page else last
    return [item for item in items if not _is_folder_marker(item)], last, bool(asked)


WALKERS = 16


def _pages(uri: str) -> Iterator[list[Stored]]:
    """The objects of each folder below, of any file system of fsspec's; many folders at a time."""
    fs, path = _fs(uri)
    if protocol_of(uri) in ("http", "https"):  # a page with links is a folder, if a client says so
        found = attempt(uri, lambda: cast(dict[str, Any], fs.find(path, detail=True)))
        yield [_stored(uri, row | {"name": name}) for name, row in found.items()]
        return

    def look(folder: str) -> list[dict[str, Any]]:
        return attempt(uri, lambda: cast(list[dict[str, Any]], fs.ls(folder, detail=True)))

    pool = ThreadPoolExecutor(WALKERS, "walk")
    try:
        waiting, seen = {pool.submit(look, path)}, {path.rstrip("/")}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for rows in (future.result() for future in done):
                inner = [row["name"] for row in rows if row.get("type") == "directory"]
                folders = {name.rstrip("/") for name in inner} - seen
                seen |= folders
                waiting |= {pool.submit(look, folder) for folder in folders}
                yield [_stored(uri, row) for row in rows if row.get("type") != "directory"]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def leftovers(uri: str) -> Iterator[Stored]:
    """Temporaries of writers that died, below a local folder."""
    if protocol_of(uri) != "file":
        return
    for folder, _, names in os.walk(local_path(uri)):
        for name in filter(_TMP.match, names):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                identity = _stat_identity(status)
                yield Stored(Path(path).as_uri(), status.st_size, identity, modified)


def glob(pattern: str) -> Iterator[Stored]:
    """Objects that match a shell pattern (`*`, `**`, `?`, `[…]`), in order of uri."""
    if protocol_of(pattern) == "file":
        root = Path(local_path(pattern) if "://" in pattern else pattern).expanduser()
        fs: Any = fsspec.filesystem("file")
        names = sorted(fs.glob(os.path.abspath(root)))
        yield from (entry for n in names if (entry := _local_entry(n)) is not None)
        return
    if protocol_of(pattern) == "s3":
        yield from _glob_s3(pattern)
        return
    fs, path = _fs(pattern)
    matches = attempt(pattern, lambda: cast(dict[str, Any], fs.glob(path, detail=True)))
    for name in sorted(matches):
        item = _stored(pattern, matches[name] | {"name": name})
        if matches[name].get("type") != "directory" and not _is_folder_marker(item):
            yield item


def info(uri: str) -> Stored:
    """Raises `SourceError` where there is no such object."""
    if protocol_of(uri) == "file":
        entry = _local_entry(local_path(uri))
        if entry is None:
            raise SourceError(f"{uri} does not exist, or is not a file")
        return entry
    return _stored(uri, attempt(uri, lambda: _details(uri)))


def exists(uri: str) -> bool:
    if protocol_of(uri) == "file":
        return os.path.exists(local_path(uri))
    try:  # fsspec's own `exists` takes any error for an absence
        attempt(uri, lambda: _details(uri, folders=True))
    except SourceError:
        return False
    return True


def on_disk(data: bytes | mmap) -> bytes | mmap:
    """The same bytes in a temporary file, mapped: in memory is what is in use.

    Raises `StorageError` where the disk has no room.
    """
    return data if isinstance(data, mmap) else _mapped([data], len(data))


def sparse(size: int, pieces: Iterable[tuple[int, bytes]]) -> bytes | mmap:
    """Pieces at their places in a temporary file of that size, mapped.

    Between them are zeros, which take no room.
    """
    if not size:
        return b""
    with contextlib.ExitStack() as stack:
        with _temporary_disk(size):
            file = stack.enter_context(tempfile.TemporaryFile())
            file.truncate(size)
        for start, piece in pieces:
            with _temporary_disk(size):
                file.seek(start)
                file.write(piece)
        with _temporary_disk(size):
            file.flush()
            return mmap(file.fileno(), 0, access=ACCESS_READ)


def _mapped(blocks: Iterable[bytes], size: int) -> bytes | mmap:
    return sparse(size, _placed(blocks))


def _placed(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    at = 0
    for block in blocks:
        yield at, block
        at += len(block)


@contextlib.contextmanager
def _temporary_disk(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{size} bytes do not go to {tempfile.gettempdir()}: {error}; set TMPDIR to a disk "
            "with more room"
        ) from error


def read(uri: str, identity: str | None = None) -> bytes:
    """The whole object. With `identity`, raises `SourceError` unless that is what was read."""
    return _get(uri, identity).data


def read_on_disk(uri: str) -> bytes | mmap:
    """The same as `on_disk(read(uri))`; of a file and of S3, never all of it in memory."""
    if protocol_of(uri) not in ("file", "s3"):
        return on_disk(read(uri))
    try:
        with open_random(uri) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return _mapped(iter(partial(file.read, LONGEST_BLOCK), b""), size)
    except SourceError:  # gone, or put anew between two blocks: then as one answer
        return on_disk(read(uri))


def read_spans(uri: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Bytes [start, stop) of each span, and where they stand; fewer where the object ends before.

    Spans that touch are read together, a long block at a time. That all are of one content is for
    the caller to check.
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


def read_range(uri: str, start: int, length: int, identity: str | None = None) -> bytes:
    """Bytes [start, start + length) of an object, fewer where it ends before.

    With `identity`, raises `SourceError` unless that is what was read.
    """
    return _get(uri, identity, start, length).data


@contextlib.contextmanager
def open_random(uri: str, identity: str | None = None) -> Iterator[IO[bytes]]:
    """A seekable binary file, for formats that are read in part; for one thread at a time.

    All of it is of `identity`, or of what the first answer was of: a read raises `SourceError`
    where the object has changed. Each block is tried again by itself.
    """
    if protocol_of(uri) == "file":
        raw: io.RawIOBase = attempt(uri, lambda: _LocalFile(uri, identity))
    else:
        raw = _remote_file(uri, identity)
    with io.BufferedReader(raw) as file:
        yield file


def _remote_file(uri: str, identity: str | None) -> BlockFile:
    first = _get(uri, identity, 0, FIRST_BLOCK)
    if first.size < 0:
        raise StorageError(f"{uri}: this server does not tell its size; copy it to one that does")

    def fetch(start: int, length: int) -> bytes:
        data = _get(uri, first.identity, start, length).data
        if len(data) != length:
            raise StorageError(
                f"{uri}: {len(data)} bytes came for {length} from {start} on, of {first.size}; "
                "this server answers one identity with two contents"
            )
        return data

    return BlockFile(first.size, first.data, fetch)


def clock(root: str) -> datetime:
    """The time by which objects below `root` are stamped, which need not be this machine's."""
    uri = join(root, "_work", f"probe-{secrets.token_hex(8)}")
    create(uri, uri.encode())
    modified = info(uri).modified
    delete(uri)
    if modified is None:
        raise StorageError(f"{root}: {protocol_of(root)}:// does not tell when an object was made")
    return modified


def create(uri: str, data: Data) -> bool:
    """Write an object unless there is one of that name; whether it was written.

    Exclusive among all writers anywhere, as long as each writes other bytes: on an object store,
    one that is there and equal to `data` counts as written, since the answer may have been lost.
    """
    _require_single_put(uri, data)
    protocol = protocol_of(uri)
    if protocol == "file":
        return _create_local(local_path(uri), data)
    if protocol == "memory":
        fs, path = _fs(uri)
        with _memory_lock:
            if fs.exists(path):
                return False
            fs.pipe_file(path, bytes(data))
            return True
    # Whatever stands between repeats a PUT whose answer was lost, as we do, and is then told that
    # the object is there. Whose it is, its bytes say.
    put = _put_s3 if protocol == "s3" else _put
    return attempt(uri, lambda: put(uri, data, exclusive=True)) or _holds(uri, data)


def _require_single_put(uri: str, data: Data) -> None:
    if size_of(data) > MAX_SINGLE_PUT:
        raise StorageError(f"{uri}: {size_of(data)} bytes do not fit one PUT")


def _holds(uri: str, data: Data) -> bool:
    """Whether the object is these bytes; compared block by block."""
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
    except SourceError:  # gone, or another by now
        return False
    return True


def replace(uri: str, data: Data) -> None:
    """Write an object, whatever was there. For hints and for repeats of the same bytes only."""
    _require_single_put(uri, data)
    protocol = protocol_of(uri)
    if protocol == "file":
        path = Path(local_path(uri))
        temporary = _write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except OSError as error:
            _remove_quietly(temporary)
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
        _sync_folder(os.path.dirname(path))
        return
    put = _put_s3 if protocol == "s3" else _put
    attempt(uri, lambda: put(uri, data, exclusive=False))


def delete(uri: str) -> None:
    """Remove an object; that it is gone already is no error."""
    if protocol_of(uri) == "file":
        try:
            os.unlink(local_path(uri))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"{uri}: cannot be removed: {error.strerror}") from error
        return
    fs, path = _fs(uri)
    with contextlib.suppress(SourceError):
        attempt(uri, lambda: fs.rm_file(path))


def discard(uri: str) -> None:
    """Remove an object that is of no use; where that is not allowed, it stays."""
    try:
        delete(uri)
    except TransientError:
        raise
    except StorageError:
        pass


def delete_tree(uri: str) -> None:
    """Remove everything below a folder or prefix; that there is nothing is no error.

    A local folder above it that this leaves empty goes too: object stores have no empty folders.
    """
    protocol = protocol_of(uri)
    if protocol == "file":
        try:
            shutil.rmtree(local_path(uri))
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(local_path(uri)))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"{uri}: cannot be removed: {error.strerror}") from error
        return
    with contextlib.suppress(SourceError):
        if protocol == "s3":
            _delete_tree_s3(uri)
        else:
            fs, path = _fs(uri)
            attempt(uri, lambda: fs.rm(path, recursive=True))


def require_exclusive(root: str) -> None:
    """Raises `StorageError` unless creating really is exclusive below `root`.

    Some servers take the condition and ignore it; exactness rests on it, so a catalogue is not
    written there.
    """
    uri = join(root, "_work", f"probe-{secrets.token_hex(8)}")
    mine, other = secrets.token_bytes(16), secrets.token_bytes(16)
    first = create(uri, mine)
    second = create(uri, other)
    held = read(uri)
    delete(uri)
    if (first, second, held) != (True, False, mine):
        raise StorageError(
            f"{root}: this endpoint overwrites an object that a conditional PUT should have left "
            "alone; two jobs could corrupt a catalogue there. Use a store with If-None-Match (Ceph "
            "has it only in buckets without versioning)"
        )


# Local files


def _walk_local(uri: str) -> Iterator[Stored]:
    root = local_path(uri)
    if os.path.isfile(root):
        entry = _local_entry(root)
        if entry is not None:
            yield entry
        return
    if not os.path.isdir(root):
        raise SourceError(f"{uri} does not exist")
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()  # which of two names of one folder counts is not left to the disk
        for name in sorted(names):
            entry = _local_entry(os.path.join(folder, name))
            if entry is not None:
                yield entry


def _raise(error: OSError) -> None:
    raise StorageError(f"{error.filename!r} cannot be listed: {error.strerror}") from error


def _local_entry(path: str) -> Stored | None:
    """None for what is no regular file, a dangling link, or a temporary of ours."""
    if _TMP.match(os.path.basename(path)):
        return None
    try:
        status = os.stat(path)
    except ValueError:  # a NUL in the name
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise StorageError(f"{path!r} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        return None
    return Stored(
        Path(path).as_uri(),
        status.st_size,
        _stat_identity(status),
        datetime.fromtimestamp(status.st_mtime, UTC),
    )


def _stat_identity(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _read_local(path: str, start: int = 0, length: int | None = None) -> _Answer:
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        file.seek(start)
        data = file.read(-1 if length is None else length)
        after = os.fstat(file.fileno())
    rest = max(0, after.st_size - start)
    expected = rest if length is None else min(length, rest)
    if _stat_identity(after) != _stat_identity(before):
        return _Answer(data, "being written", after.st_size)
    if len(data) != expected:
        raise OSError(errno.EIO, f"{len(data)} of {expected} bytes were read")
    return _Answer(data, _stat_identity(after), after.st_size)


class _LocalFile(io.FileIO):
    """Read as it is, each read followed by a look at whether it is still the same file."""

    def __init__(self, uri: str, identity: str | None) -> None:
        super().__init__(local_path(uri), "rb")
        self._uri = uri
        self._expected = identity or _stat_identity(os.fstat(self.fileno()))
        try:
            self._check()
        except SourceError:
            self.close()
            raise

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = attempt(self._uri, lambda: super(_LocalFile, self).readinto(buffer))
        self._check()
        return count or 0

    def readall(self) -> bytes:
        data = attempt(self._uri, super().readall)
        self._check()
        return data

    def _check(self) -> None:
        _require_identity(self._uri, self._expected, _stat_identity(os.fstat(self.fileno())))


def _create_local(path: str, data: Data) -> bool:
    if os.path.exists(path):
        return False
    temporary = _write_temporary(Path(path), data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may have lost the answer to a link that it made.
        if not os.path.samefile(temporary, path):
            return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise StorageError(
                f"{path}: this file system cannot create a file exclusively ({error.strerror}); "
                "put the catalogue on one with hard links, or on an object store"
            ) from error
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        _remove_quietly(temporary)
    _sync_folder(os.path.dirname(path))
    return True


_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def _write_temporary(path: Path, data: Data) -> str:
    """The bytes on disk, under a name beside `path` that listings leave out."""
    temporary = str(path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            for piece in pieces(data):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        _remove_quietly(temporary)
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    return temporary


def _remove_quietly(temporary: str) -> None:
    """One that stays behind is left out of listings, and collected when it is old."""
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """So that the name outlasts a crash too."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # does not sync folders at all
            raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


# Any store


@dataclass(frozen=True)
class _Answer:
    """Bytes, and what the same answer says of the whole object: `size` is -1 where it does not."""

    data: bytes
    identity: str
    size: int


def _get(uri: str, identity: str | None, start: int = 0, length: int | None = None) -> _Answer:
    """Bytes from `start`, all that follow for no `length`; those of `identity` if there is one."""
    protocol = protocol_of(uri)
    if protocol == "file":
        answer = attempt(uri, lambda: _read_local(local_path(uri), start, length))
    elif protocol == "s3":
        answer = attempt(uri, lambda: _read_s3(uri, start, length))
    elif protocol in ("http", "https"):
        answer = attempt(uri, lambda: _read_http(uri, start, length))
    else:
        answer = attempt(uri, lambda: _read_other(uri, start, length))
    _require_identity(uri, identity, answer.identity)
    return answer


def _require_identity(uri: str, identity: str | None, found: str) -> None:
    if identity is not None and found != identity:
        raise SourceError(
            f"{uri} changed between listing and reading ({identity} listed, {found} read); rerun "
            "the same command to list again and go on"
        )


def _fs(uri: str) -> tuple[Any, str]:
    """By protocol and path, not by fsspec's url parser, which takes `::` in a key for a chain."""
    protocol, path = uri.split("://", 1)
    if protocol == "memory":
        return fsspec.filesystem("memory"), "/" + path.lstrip("/")
    web = protocol in ("http", "https")
    options: dict[str, Any] = {}
    if protocol == "s3":
        options = _s3_options(Settings.from_environment())
    elif web:
        options = _http_options(Settings.from_environment())
    try:
        fs = fsspec.filesystem(protocol, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{uri}: {error}") from error
    if protocol == "s3":
        fs.retries = 1
    return fs, uri if web else path  # which its file system keeps whole


def _s3_options(settings: Settings) -> dict[str, Any]:
    """Everything else is by S3's own settings: AWS_ENDPOINT_URL, profiles, roles."""
    return {
        "use_listings_cache": False,
        "skip_instance_cache": False,
        "config_kwargs": {
            "connect_timeout": settings.connect_seconds,
            "read_timeout": settings.read_seconds,
            "max_pool_connections": CONNECTIONS,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    }


def _http_options(settings: Settings) -> dict[str, Any]:
    """Beside what fsspec's own settings say of http, headers above all."""
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(
        total=None, sock_connect=settings.connect_seconds, sock_read=settings.read_seconds
    )
    given = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
    return {"client_kwargs": given | {"timeout": timeout}}


def _details(uri: str, *, folders: bool = False) -> dict[str, Any]:
    """What the store tells of an object without its content, in the store's own terms."""
    fs, path = _fs(uri)
    if protocol_of(uri) in ("http", "https"):
        return cast(dict[str, Any], sync(fs.loop, _head_http, fs, uri))
    if protocol_of(uri) == "s3":
        found = sync(fs.loop, _in_time, fs, lambda: fs._info(path))
    else:
        found = fs.info(path)
    if found.get("type") == "directory" and not folders:
        raise IsADirectoryError(uri)
    return cast(dict[str, Any], found)


def _stored(uri: str, details: dict[str, Any]) -> Stored:
    protocol = protocol_of(uri)
    name = str(details["name"]).lstrip("/") if protocol == "memory" else str(details["name"])
    return Stored(
        name if _SCHEME.match(name) else f"{protocol}://{name}",
        int(details.get("size") or 0),
        _identity(details),
        _modified(details),
    )


def _identity(details: dict[str, Any]) -> str:
    for key in ("generation", "ETag", "etag", "md5Hash"):
        if details.get(key):
            return str(details[key]).strip('"')
    stamp = _modified(details)
    return f"{details.get('size')}-{stamp.isoformat() if stamp else ''}"


def _modified(details: dict[str, Any]) -> datetime | None:
    for key in ("LastModified", "Last-Modified", "mtime", "updated", "modified", "created"):
        value = details.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            read = parsedate_to_datetime if key == "Last-Modified" else datetime.fromisoformat
            with contextlib.suppress(ValueError, TypeError):
                return read(value)
    return None


def _read_other(uri: str, start: int, length: int | None) -> _Answer:
    """By fsspec alone; what it was of is asked afterwards."""
    fs, path = _fs(uri)
    try:
        if length is None:
            data = fs.cat_file(path)
        else:
            data = fs.cat_file(path, start, start + length) if length else b""
    except (OSError, ValueError):
        if not start or fs.info(path)["size"] > start:
            raise
        data = b""
    details = fs.info(path)
    return _Answer(data, _identity(details), int(details.get("size") or 0))


def _put(uri: str, data: Data, *, exclusive: bool) -> bool:
    fs, path = _fs(uri)
    mode = {"mode": "create"} if exclusive else {}
    try:
        fs.pipe_file(path, bytes(data), chunksize=MAX_SINGLE_PUT, **mode)
        return True
    except FileExistsError:
        return False
    except (NotImplementedError, TypeError) as error:
        raise StorageError(f"{uri}: {protocol_of(uri)}:// has no exclusive create") from error


# Answers of S3 and of the web


async def _body(
    take: Callable[[int], Awaitable[bytes]],
    told: int | None,
    content_range: str | None,
    start: int,
    length: int | None,
) -> tuple[bytes, int]:
    """The bytes asked for, all of them, and the size of the whole object (-1: unknown).

    `take(n)`: up to n bytes of the body, none at its end. `told`: its Content-Length.
    """
    if content_range is None:  # the whole object, by a server that knows no ranges if one was asked
        data = await _taken(take, start, length)
        size = -1 if told is None else told
    else:
        found = _RANGE.fullmatch(content_range.strip())
        if not found or int(found[1]) != start:
            raise ConnectionError(f"bytes {start}- were asked for, {content_range} answered")
        data = await _taken(take, 0, None)
        size = -1 if found[2] == "*" else int(found[2])
    rest = max(0, size - start)
    expected = rest if length is None else min(length, rest)
    if size >= 0 and len(data) != expected:
        raise ConnectionError(f"{len(data)} of {expected} bytes arrived")
    return data, size


_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


async def _taken(take: Callable[[int], Awaitable[bytes]], start: int, length: int | None) -> bytes:
    """Bytes [start, start + length) of a body. One that trickles in is given up."""
    settings = Settings.from_environment()
    loop = asyncio.get_running_loop()
    began = loop.time()
    pieces: list[bytes] = []
    position, end = 0, None if length is None else start + length
    try:
        async with asyncio.timeout(settings.seconds_for(0)) as limit:
            while (end is None or position < end) and (piece := await take(SHORTEST_BLOCK)):
                last = None if end is None else end - position
                pieces.append(piece[max(0, start - position) : last])
                position += len(piece)
                limit.reschedule(began + settings.seconds_for(position))
    except TimeoutError as error:
        seconds = loop.time() - began
        raise ConnectionError(f"{position} bytes in {seconds:.1f} s, and no more") from error
    return b"".join(pieces)


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ConnectionError(f"no answer within {seconds:g} s") from error


# S3


async def _in_time(fs: Any, call: Callable[[], Awaitable[Any]], size: int = 0) -> Any:
    """One call, its answer and `size` bytes, once there is a client to make it."""
    await fs.set_session()
    async with _within(Settings.from_environment().seconds_for(size)):
        return await call()


def _call_s3(fs: Any, method: str, size: int, **arguments: Any) -> dict[str, Any]:
    """`size`: of the bytes that go or come with it."""
    answer = sync(fs.loop, _in_time, fs, lambda: fs._call_s3(method, **arguments), size)
    return cast(dict[str, Any], answer)


def _read_s3(uri: str, start: int, length: int | None) -> _Answer:
    """One GET, its body and its own ETag: `cat_file` drops the headers and may issue several."""
    fs, path = _fs(uri)
    bucket, key = _bucket_and_key(path)

    async def get() -> _Answer:
        if length == 0:
            return await past_the_end()
        asked = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        try:
            answer = await _in_time(
                fs, lambda: fs._call_s3("get_object", Bucket=bucket, Key=key, **asked)
            )
        except OSError as error:
            if status_of(error) == _PAST_THE_END:
                return await past_the_end()
            raise
        async with answer["Body"] as body:
            if "ContentLength" not in answer:
                raise StorageError(f"{uri}: {_NO_LENGTH}")
            data, size = await _body(
                *(body.read, answer["ContentLength"], answer.get("ContentRange"), start, length)
            )
        return _Answer(data, _identity({**answer, "size": size}), size)

    async def past_the_end() -> _Answer:
        return _nothing(uri, start, length, await _in_time(fs, lambda: fs._info(path)))

    return cast(_Answer, sync(fs.loop, get))


_PAST_THE_END = 416

_NO_LENGTH = "the answer has no Content-Length; whether it all arrived cannot be known"


def _nothing(uri: str, start: int, length: int | None, details: dict[str, Any]) -> _Answer:
    """The answer to a range that holds no byte: of what object, only its details can say."""
    if details.get("type") == "directory":
        raise IsADirectoryError(uri)
    size = -1 if details.get("size") is None else int(details["size"])
    if length and start < size:
        raise ConnectionError(f"no bytes from {start} on of {size}")
    return _Answer(b"", _identity(details), size)


def _put_s3(uri: str, data: Data, *, exclusive: bool) -> bool:
    """One PUT. False where the condition held it back."""
    fs, path = _fs(uri)
    bucket, key = _bucket_and_key(path)
    condition = {"IfNoneMatch": "*"} if exclusive else {}
    try:
        with io.BufferedReader(Mapped(data)) as body:
            arguments = {"Bucket": bucket, "Key": key, "Body": body, **condition}
            _call_s3(fs, "put_object", size_of(data), **arguments)
        return True
    except OSError as error:
        # By the status: s3fs makes EINVAL of Ceph's answer.
        if exclusive and status_of(error) == _PRECONDITION_FAILED:
            return False
        raise


_PRECONDITION_FAILED = 412


def _bucket_and_key(path: str) -> tuple[str, str]:
    """By the first slash alone: s3fs would cut a key at `?versionId=`."""
    bucket, _, key = path.partition("/")
    return bucket, key


def _pages_s3(uri: str) -> Iterator[list[Stored]]:
    after, more = "", True
    while more:
        items, after, more = list_page(uri, after)
        yield items


def _is_folder_marker(item: Stored) -> bool:
    """What consoles make for an empty folder: an object of its name, and nothing in it."""
    return item.uri.endswith("/") and not item.size


def _glob_s3(pattern: str) -> Iterator[Stored]:
    _, path = _fs(pattern)
    stem = re.split(r"[*?\[]", path, maxsplit=1)[0]
    bucket, slash, prefix = stem.partition("/")
    if not slash:
        raise StorageError(f"{pattern}: a bucket must be named whole")
    try:
        matches = re.compile(glob_translate(path)).match
    except ValueError as error:
        raise StorageError(f"{pattern}: {error}") from error
    deeper = "/" in path[len(stem) :] or "**" in path
    for item in _keys(pattern, bucket, prefix, "" if deeper else "/"):
        if matches(item.uri.removeprefix("s3://")) and not _is_folder_marker(item):
            yield item


def _keys(uri: str, bucket: str, prefix: str, delimiter: str = "") -> Iterator[Stored]:
    asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
    last = ""
    while asked:
        items, asked = _page(uri, asked, last)
        last = items[-1].uri.split("/", 3)[3] if items else last
        yield from items


def _page(uri: str, asked: dict[str, str], last: str) -> tuple[list[Stored], dict[str, str]]:
    """The objects of one page of a listing, above `last`; what to ask for the next, empty at the
    end. Each page is tried again by itself: a listing may have ten thousand of them.
    """
    fs, _ = _fs(uri)
    listing = attempt(uri, lambda: _call_s3(fs, "list_objects_v2", PAGE_BYTES, **asked))
    items = []
    for item in listing.get("Contents", ()):
        if item["Key"] <= last:
            raise StorageError(
                f"{uri}: the store lists {item['Key']!r} after {last!r}; that listings are in "
                "order is what says that they are whole"
            )
        last = item["Key"]
        items.append(
            _stored(uri, {**item, "name": f"{asked['Bucket']}/{last}", "size": item["Size"]})
        )
    if not listing.get("IsTruncated"):
        return items, {}
    token = {"ContinuationToken": listing["NextContinuationToken"]}
    return items, {name: value for name, value in asked.items() if name != "StartAfter"} | token


def _delete_tree_s3(uri: str) -> None:
    fs, path = _fs(uri)
    bucket, key = _bucket_and_key(path)
    names = [item.uri.split("/", 3)[3] for item in _keys(uri, bucket, f"{key}/")]
    for first in range(0, len(names), DELETED_AT_ONCE):
        some = {"Objects": [{"Key": name} for name in names[first : first + DELETED_AT_ONCE]]}

        def remove(some: dict[str, Any] = some) -> None:
            answer = _call_s3(fs, "delete_objects", PAGE_BYTES, Bucket=bucket, Delete=some)
            for error in answer.get("Errors", ()):
                raise OSError(f"{error.get('Key')} is not deleted: {error.get('Code')}")

        attempt(uri, remove)


# The web


def _read_http(uri: str, start: int, length: int | None) -> _Answer:
    """One GET, its body and its own headers."""
    fs, _ = _fs(uri)
    settings = Settings.from_environment()

    async def get() -> _Answer:
        if length == 0:
            return _nothing(uri, start, length, await _head_http(fs, uri))
        asked = {"Accept-Encoding": "identity"}
        if length is not None:
            asked["Range"] = f"bytes={start}-{start + length - 1}"
        session = await fs.set_session()
        async with _within(settings.seconds_for(0)):
            answer = await session.get(fs.encode_url(uri), headers=asked)
        async with answer:
            if answer.status == _PAST_THE_END:
                return _nothing(uri, start, length, await _head_http(fs, uri))
            answer.raise_for_status()
            told = _plain_length(answer)
            part = answer.headers.get("Content-Range") if answer.status == _PARTIAL else None
            if told is None and length is not None and _is_encoded(answer):
                raise StorageError(f"{uri}: sent compressed, so that its ranges are not its own")
            if told is None and not _ends_by_itself(answer):
                raise StorageError(f"{uri}: {_NO_LENGTH}")
            data, size = await _body(answer.content.read, told, part, start, length)
            details = {**_told(answer), "size": None if size < 0 else size}
            return _Answer(data, _identity(details), size if length is not None else len(data))

    return cast(_Answer, sync(fs.loop, get))


_PARTIAL = 206


async def _head_http(fs: Any, uri: str) -> dict[str, Any]:
    """By HEAD; by the headers of a GET where a server has none, or none with a length."""
    session = await fs.set_session()
    for ask in (session.head, session.get):
        async with _within(Settings.from_environment().seconds_for(0)):
            answer = await ask(
                fs.encode_url(uri), headers={"Accept-Encoding": "identity"}, allow_redirects=True
            )
        async with answer:
            size = _plain_length(answer)
            if answer.ok and size is not None:
                break
            if ask == session.get:
                answer.raise_for_status()
    return {"name": uri, "size": size, **_told(answer)}


def _told(answer: Any) -> dict[str, Any]:
    return {name: answer.headers.get(name) for name in ("ETag", "Last-Modified")}


def _is_encoded(answer: Any) -> bool:
    return answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity")


def _plain_length(answer: Any) -> int | None:
    """Of the object's own bytes, where the answer tells it."""
    return None if _is_encoded(answer) else answer.content_length


def _ends_by_itself(answer: Any) -> bool:
    """Whether the client notices a body that is cut off, although its length is unknown."""
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    return chunked or answer.content_length is not None
