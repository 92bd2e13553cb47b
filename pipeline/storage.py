"""The only module that opens URLs: list, read, create exclusively, replace, delete.

    >>> create("file:///tmp/x/a", b"1"), create("file:///tmp/x/a", b"2")     # doctest: +SKIP
    (True, False)

Local files go through the operating system, everything else through fsspec. Each call either does
what it says or raises: `SourceError` (not there, or changed), `StorageError` (refused),
`TransientError` (no proper answer after retries with jitter). A write is one PUT of bytes in
memory, never a stream: a stream that fails half-way leaves a truncated object behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import unquote_to_bytes

import fsspec
from fsspec.asyn import sync
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from pipeline.errors import NoBucket, SourceError, StorageError, TransientError, UsageError

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.2
MAX_SINGLE_PUT = 5 * 2**30 - 1
S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "skip_instance_cache": False,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"mode": "standard", "max_attempts": 3},
    },
}
"""Everything else about S3 comes from its own settings: AWS_ENDPOINT_URL, profiles, roles."""

_TMP = re.compile(r"^\..*\.[0-9a-f]{16}\.tmp$")
_SECRET_QUERY = re.compile(r"[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig|token)=", re.I)
_SCHEME = re.compile(r"[A-Za-z0-9+.-]+://")
_USER_INFO = re.compile(r"^[A-Za-z0-9+.-]+://[^/]*@")
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

    Refuses presigned urls, whose query is a secret and changes with every run, and urls with a
    password.
    """
    text = os.fspath(url)
    if _SECRET_QUERY.search(text):
        bare = text.split("?", 1)[0]
        raise UsageError(
            f"{bare}?… carries a signature; it would expire and leak into the catalogue. Give the "
            "plain url, and credentials by the store's own settings"
        )
    if _USER_INFO.match(text):
        raise UsageError(
            f"{text.split('://', 1)[0]}://…@{text.rpartition('@')[2]} carries a name or password, "
            "which would leak into the catalogue; give credentials by the store's own settings"
        )
    protocol = protocol_of(text)
    if protocol == "file":
        path = text if "://" not in text else local_path(text)
        return Path(os.path.abspath(os.path.expanduser(path))).as_uri()
    head, rest = text.split("://", 1)
    if protocol == "memory":
        rest = rest.lstrip("/")
    return f"{head.lower()}://{rest.rstrip('/')}"


def protocol_of(url: str) -> str:
    return url.split("://", 1)[0].lower() if "://" in url else "file"


def local_path(uri: str) -> str:
    """The path of a `file://` uri (any bytes that a file name may hold)."""
    return os.fsdecode(unquote_to_bytes(uri.split("://", 1)[1]))


def readable(uri: str) -> str:
    """The uri as people write it: without a `file` uri's percent-encoding."""
    if protocol_of(uri) == "file":
        return local_path(uri).encode("utf-8", "backslashreplace").decode()
    return uri


def join(root: str, *parts: str) -> str:
    """Below a canonical root; `parts` are of our own making or validated names."""
    return "/".join([root.rstrip("/"), *parts])


def walk(uri: str) -> Iterator[Stored]:
    """Every object below a folder or prefix, or the object itself; in order of uri.

    Folders reached again through a symbolic link are entered once. Raises `SourceError` where
    there is nothing of that name.
    """
    if protocol_of(uri) == "file":
        yield from _walk_local(uri)
        return
    fs, path = _fs(uri)
    found = _attempt(uri, lambda: cast(dict[str, Any], fs.find(path, detail=True)))
    if not found and not exists(uri):
        raise SourceError(f"{uri} does not exist")
    for name in sorted(found):
        if found[name].get("type") != "directory" and not _is_folder_marker(found[name]):
            yield _stored(uri, found[name] | {"name": name})


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
    fs, path = _fs(pattern)
    matches = _attempt(pattern, lambda: cast(dict[str, Any], fs.glob(path, detail=True)))
    for name in sorted(matches):
        if matches[name].get("type") != "directory" and not _is_folder_marker(matches[name]):
            yield _stored(pattern, matches[name] | {"name": name})


def info(uri: str) -> Stored:
    """Raises `SourceError` where there is no such object."""
    if protocol_of(uri) == "file":
        entry = _local_entry(local_path(uri))
        if entry is None:
            raise SourceError(f"{uri} does not exist, or is not a file")
        return entry
    fs, path = _fs(uri)
    return _stored(uri, _attempt(uri, lambda: cast(dict[str, Any], fs.info(path))))


def exists(uri: str) -> bool:
    if protocol_of(uri) == "file":
        return os.path.exists(local_path(uri))
    fs, path = _fs(uri)

    try:  # fsspec's own `exists` takes any error for an absence
        _attempt(uri, lambda: fs.info(path))
    except SourceError:
        return False
    return True


def on_disk(data: bytes) -> bytes | mmap:
    """The same bytes in a temporary file, mapped: in memory is what is in use.

    Raises `StorageError` where the disk has no room.
    """
    if not data:
        return data
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise StorageError(
            f"{len(data)} bytes do not go to {tempfile.gettempdir()}: {error}; set TMPDIR to a "
            "disk with more room"
        ) from error


def read(uri: str, identity: str | None = None) -> bytes:
    """The whole object. With `identity`, raises `SourceError` unless that is what was read."""
    protocol = protocol_of(uri)
    if protocol == "file":
        data, found = _attempt(uri, lambda: _read_local(local_path(uri)))
    elif protocol == "s3":
        data, found = _attempt(uri, lambda: _read_s3(uri))
    else:
        fs, path = _fs(uri)
        data = _attempt(uri, lambda: cast(bytes, fs.cat_file(path)))
        found = _attempt(uri, lambda: _identity(fs.info(path))) if identity else ""
    _require_identity(uri, identity, found)
    return data


def read_range(uri: str, start: int, length: int, identity: str | None = None) -> bytes:
    """Bytes [start, start + length) of an object, fewer where it ends before.

    With `identity`, raises `SourceError` unless that is what was read.
    """
    protocol = protocol_of(uri)
    if protocol == "file":
        data, found = _attempt(uri, lambda: _read_local(local_path(uri), start, length))
    elif protocol == "s3":
        data, found = _attempt(uri, lambda: _read_s3(uri, start, length))
    else:
        fs, path = _fs(uri)
        data = _attempt(uri, lambda: cast(bytes, fs.cat_file(path, start, start + length)))
        found = _attempt(uri, lambda: _identity(fs.info(path))) if identity else ""
    _require_identity(uri, identity, found)
    return data


def _require_identity(uri: str, identity: str | None, found: str) -> None:
    if identity is not None and found != identity:
        raise SourceError(
            f"{uri} changed between listing and reading ({identity} listed, {found} read); rerun "
            "the same command to list again and go on"
        )


@contextlib.contextmanager
def open_random(uri: str, identity: str | None = None) -> Iterator[IO[bytes]]:
    """A seekable binary file, for formats that are read in part."""
    try:
        if protocol_of(uri) == "file":
            with open(local_path(uri), "rb") as local:
                yield local
        else:
            fs, path = _fs(uri)
            with fs.open(path, "rb") as remote:
                yield remote
    except Exception as error:
        remote = protocol_of(uri) != "file"
        if remote and _is_transient(error):
            raise TransientError(f"{uri}: no proper answer: {error!r}") from error
        if isinstance(error, FileNotFoundError) or (remote and _is_of_http(error)):
            raise _refusal(uri, error) from error
        raise


def create(uri: str, data: bytes) -> bool:
    """Write an object unless there is one of that name; whether it was written.

    Exclusive among all writers anywhere, as long as each writes other bytes: on an object store,
    one that is there and equal to `data` counts as written, since the answer may have been lost.
    """
    if len(data) > MAX_SINGLE_PUT:
        raise StorageError(f"{uri}: {len(data)} bytes do not fit one PUT")
    protocol = protocol_of(uri)
    if protocol == "file":
        return _create_local(local_path(uri), data)
    if protocol == "memory":
        fs, path = _fs(uri)
        with _memory_lock:
            if fs.exists(path):
                return False
            fs.pipe_file(path, data)
            return True
    # The client library repeats a PUT whose answer was lost, and is then told that the object is
    # there. Whose it is, its bytes say.
    return _attempt(uri, lambda: _put_exclusive(uri, data)) or read(uri) == data


def replace(uri: str, data: bytes) -> None:
    """Write an object, whatever was there. For hints and for repeats of the same bytes only."""
    if protocol_of(uri) == "file":
        path = Path(local_path(uri))
        temporary = _write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except OSError as error:
            os.unlink(temporary)
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
        return
    fs, path_ = _fs(uri)
    _attempt(uri, lambda: fs.pipe_file(path_, data, chunksize=MAX_SINGLE_PUT))


def delete(uri: str) -> None:
    """Remove an object; that it is gone already is no error."""
    try:
        if protocol_of(uri) == "file":
            os.unlink(local_path(uri))
        else:
            fs, path = _fs(uri)
            _attempt(uri, lambda: fs.rm_file(path))
    except (FileNotFoundError, SourceError):
        pass


def delete_tree(uri: str) -> None:
    """Remove everything below a folder or prefix; that there is nothing is no error.

    A local folder above it that this leaves empty goes too: object stores have no empty folders.
    """
    try:
        if protocol_of(uri) == "file":
            shutil.rmtree(local_path(uri))
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(local_path(uri)))
        else:
            fs, path = _fs(uri)
            _attempt(uri, lambda: fs.rm(path, recursive=True))
    except (FileNotFoundError, SourceError):
        pass
    except OSError as error:
        raise StorageError(f"{uri}: cannot be removed: {error.strerror}") from error


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
    entries = []
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()  # which of two names of one folder counts is not left to the disk
        for name in names:
            entry = _local_entry(os.path.join(folder, name))
            if entry is not None:
                entries.append(entry)
    yield from sorted(entries, key=lambda entry: entry.uri)


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


def _read_local(path: str, start: int = 0, length: int = -1) -> tuple[bytes, str]:
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        file.seek(start)
        data = file.read(length)
        after = os.fstat(file.fileno())
    identity = _stat_identity(after)
    return data, identity if identity == _stat_identity(before) else "being written"


def _create_local(path: str, data: bytes) -> bool:
    if os.path.exists(path):
        return False
    temporary = _write_temporary(Path(path), data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(
            f"{path}: this file system cannot create a file exclusively ({error.strerror}); put "
            "the catalogue on one with hard links, or on an object store"
        ) from error
    finally:
        os.unlink(temporary)
    _sync_folder(os.path.dirname(path))
    return True


def _write_temporary(path: Path, data: bytes) -> str:
    """The bytes on disk, under a name beside `path` that listings leave out."""
    temporary = str(path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    return temporary


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Object stores


def _fs(uri: str) -> tuple[Any, str]:
    """By protocol and path, not by fsspec's url parser, which takes `::` in a key for a chain."""
    protocol, path = uri.split("://", 1)
    if protocol == "memory":
        return fsspec.filesystem("memory"), "/" + path.lstrip("/")
    options = S3_OPTIONS if protocol == "s3" else {}
    try:
        fs = fsspec.filesystem(protocol, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{uri}: {error}") from error
    return fs, uri if protocol in ("http", "https") else path  # which its file system keeps whole


def _is_folder_marker(details: dict[str, Any]) -> bool:
    """What consoles make for an empty folder: an object of its name, and nothing in it."""
    return str(details["name"]).endswith("/") and not details.get("size")


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
    for key in ("LastModified", "mtime", "updated", "modified", "created"):
        value = details.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(value)
    return None


def _read_s3(uri: str, start: int = 0, length: int = -1) -> tuple[bytes, str]:
    """One GET, its body and its own ETag: `cat_file` drops the headers and may issue several."""
    fs, path = _fs(uri)
    bucket, _, key = path.partition("/")  # s3fs would cut a key at `?versionId=`

    async def get() -> tuple[bytes, str]:
        extra = {}
        if length == 0:
            return b"", _identity(await fs._info(path))
        if length > 0:
            extra["Range"] = f"bytes={start}-{start + length - 1}"
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **extra)
        async with answer["Body"] as body:
            data = await body.read()
        if len(data) != answer["ContentLength"]:
            raise ConnectionError(f"{len(data)} of {answer['ContentLength']} bytes arrived")
        return data, answer["ETag"].strip('"')

    return cast(tuple[bytes, str], sync(fs.loop, get))


def _put_exclusive(uri: str, data: bytes) -> bool:
    fs, path = _fs(uri)
    try:
        fs.pipe_file(path, data, mode="create", chunksize=MAX_SINGLE_PUT)
        return True
    except FileExistsError:
        return False
    except (NotImplementedError, TypeError) as error:
        raise StorageError(f"{uri}: {protocol_of(uri)}:// has no exclusive create") from error
    except OSError as error:
        # Ceph's answer (412) reaches us as EINVAL.
        if "PreconditionFailed" in str(error) or "PreconditionFailed" in repr(error.__cause__):
            return False
        raise


def _attempt(uri: str, action: Callable[[], T]) -> T:
    """Run it until it answers; what an answer cannot mend is raised at once, by its own name."""
    try:
        return Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(FIRST_WAIT_SECONDS, max=20) + wait_random(0, FIRST_WAIT_SECONDS),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )(action)
    except Exception as error:
        if _is_transient(error):
            raise TransientError(f"{uri}: no answer after {ATTEMPTS} tries: {error!r}") from error
        of_client = isinstance(error, OSError) or type(error).__module__.startswith("botocore")
        # Clients refuse a url that they cannot take by a plain error of Python's.
        of_url = isinstance(error, ValueError | NotImplementedError) and protocol_of(uri) != "file"
        if of_client or of_url or _is_of_http(error):
            raise _refusal(uri, error) from error
        raise


def _refusal(uri: str, error: Exception) -> SourceError | StorageError:
    """By its own name, an error that the same call would meet again."""
    status = _status(error)
    code = _s3_code(error)
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if code == "NoSuchBucket":
        bucket = uri.split("://", 1)[1].partition("/")[0]
        return NoBucket(
            f"{uri}: there is no bucket {bucket}; check its name and AWS_ENDPOINT_URL, or create it"
        )
    if missing or status in (404, 410) or "EntryNotFoundError" in _kinds(error):
        return SourceError(f"{uri} does not exist, or is not a file")
    if code in _DENIALS:
        return StorageError(f"{uri}: access denied ({code}): {_DENIALS[code]}")
    if isinstance(error, PermissionError) or status in (401, 403):
        return StorageError(f"{uri}: access denied; check the credentials: {error}")
    if "NoCredentialsError" in _kinds(error):
        return StorageError(
            f"{uri}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
            "profile or a role"
        )
    return StorageError(f"{uri}: {error!r}")


_DENIALS = {
    "SignatureDoesNotMatch": (
        "the secret key is not the one of this access key; check AWS_SECRET_ACCESS_KEY, or the "
        "profile"
    ),
    "InvalidAccessKeyId": (
        "the store does not know this access key; check AWS_ACCESS_KEY_ID or the profile, and "
        "AWS_ENDPOINT_URL"
    ),
    "AccessDenied": (
        "these credentials may not do this there; images need s3:ListBucket and s3:GetObject, a "
        "catalogue s3:PutObject and s3:DeleteObject as well"
    ),
    "ExpiredToken": "the session of these credentials is over; log in again",
}
"""S3's words for a refusal, and ours."""


def _s3_code(error: BaseException) -> str:
    """S3's own name of an error, which s3fs leaves to the one that it came from."""
    for each in (error, error.__cause__, error.__context__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


_HTTP_CLIENTS = {"aiohttp", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}
"""Libraries under fsspec's file systems that let their own errors through. By name: which of them
is installed, and imported, is the file system's affair."""
_BAD_URL = {"InvalidURL", "UnsupportedProtocol", "TooManyRedirects"}
_TRANSIENT_STATUS = {408, 425, 429}


def _is_of_http(error: BaseException) -> bool:
    return any(kind.__module__.split(".")[0] in _HTTP_CLIENTS for kind in type(error).__mro__)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer that became an error: on its response, or on itself."""
    if not _is_of_http(error):
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = getattr(error, "status", None) if status is None else status
    return status if isinstance(status, int) and 400 <= status < 600 else None


_PERMANENT = (FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError)
_PERMANENT_ERRNO = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EISDIR, errno.ENAMETOOLONG}


def _is_transient(error: BaseException) -> bool:
    """Of the network or the server, so that the same call may well succeed."""
    kinds = _kinds(error)
    if "LocalEntryNotFoundError" in kinds:  # the hub's: not in its cache, and no way there
        return True
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _TRANSIENT_STATUS
    if isinstance(error, _PERMANENT):
        return False
    if _is_of_http(error):
        return not (isinstance(error, ValueError) or kinds & (_BAD_URL | {"EntryNotFoundError"}))
    if isinstance(error, OSError | asyncio.TimeoutError | TimeoutError):
        return error.errno not in _PERMANENT_ERRNO if isinstance(error, OSError) else True
    origin = type(error).__module__.split(".")[0]
    transient_boto = {"ConnectionError", "ReadTimeoutError", "HTTPClientError", "IncompleteRead"}
    return origin in ("botocore", "aiobotocore") and bool(kinds & transient_boto)
