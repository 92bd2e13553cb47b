"""Reads and writes files of this machine, through the operating system."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.buffers import Data, pieces
from pipeline.errors import SourceError, StorageError
from pipeline.storage.name_patterns import NamePattern
from pipeline.storage.retry import attempt
from pipeline.storage.store import Answer, Stored, require_identity
from pipeline.storage.uris import absolute, local_path, with_plain_scheme

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TEMPORARY = re.compile(r"^\..*\.[0-9a-f]{16}\.tmp$")


class LocalStore:
    """Files of this machine, or of a disk that it shares with others."""

    is_local = True
    is_shared = True
    lists_in_key_order = False
    answers_ranges = True
    loses_answers = False

    def info(self, uri: str) -> Stored:
        """Describes a file, or the one that a link leads to."""
        entry = entry_of(local_path(uri))
        if entry is None:
            raise SourceError(_no_file(uri))
        return entry

    def exists(self, uri: str) -> bool:
        """Tells whether there is a file."""
        status = _status_of(local_path(uri))
        return status is not None and not stat.S_ISDIR(status.st_mode)

    def is_folder(self, uri: str) -> bool:
        """Tells whether there is a folder."""
        status = _status_of(local_path(uri))
        return status is not None and stat.S_ISDIR(status.st_mode)

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        """Reads bytes, and looks at the file before and after, in case it is being written."""
        with open(_path_to_open(uri), "rb", opener=_open_at_once) as file:
            before = os.fstat(file.fileno())
            if length is None and most is not None and before.st_size > most:
                return Answer(b"", _identity(before), before.st_size, is_too_long=True)
            rest = max(0, before.st_size - start)  # what is appended meanwhile may never end
            file.seek(start)
            data = file.read(rest if length is None else min(length, rest))
            after = os.fstat(file.fileno())
        rest = max(0, after.st_size - start)
        expected = rest if length is None else min(length, rest)
        if _identity(after) != _identity(before):
            return Answer(data, "being written", after.st_size)
        if len(data) != expected:
            raise OSError(errno.EIO, f"{len(data)} of {expected} bytes were read")
        return Answer(data, _identity(after), after.st_size)

    def put(self, uri: str, data: Data, *, exclusive: bool) -> bool:
        """Writes a temporary file, and gives it its name once it is on disk.

        The name is given by a hard link if it is to be exclusive.

        Returns:
            False if `exclusive` and there is a file of that name.

        Raises:
            StorageError: The disk is full, or cannot do this.
        """
        path = local_path(uri)
        if exclusive and os.path.exists(path):
            return False
        temporary = _write_temporary(Path(path), data)
        try:
            if not exclusive:
                os.replace(temporary, path)
            elif not _link(temporary, path):
                return False
        except OSError as error:
            raise StorageError(_not_written(path, error)) from error
        finally:
            _remove_quietly(temporary)
        _sync_folder(os.path.dirname(path))
        return True

    def delete(self, uri: str) -> None:
        """Removes a file, if there is one."""
        try:
            os.unlink(local_path(uri))
        except OSError as error:
            _raise_unless_missing(uri, error)

    def delete_all(self, uris: Sequence[str]) -> None:
        """Removes files one after the other."""
        for uri in uris:
            with contextlib.suppress(SourceError):
                attempt(uri, partial(self.delete, uri))

    def delete_tree(self, uri: str) -> None:
        """Removes a folder, and the one above it if that is empty then."""
        path = local_path(uri)
        try:
            _remove_tree(path)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(path))
        except OSError as error:
            _raise_unless_missing(uri, error)

    def walk(self, uri: str) -> Iterator[Stored]:
        """Yields the files below a folder, in order.

        A folder that a symbolic link leads to once more is entered only once. One that is removed
        meanwhile, as builds do with theirs, has no files.

        Raises:
            SourceError: There is nothing of that name.
            StorageError: A folder cannot be listed or looked at, or the uppermost one is gone or is
                another now, as when a disk is unmounted.
        """
        root = local_path(uri)
        status = attempt(uri, partial(_status_of, root))
        if status is None:
            raise SourceError(f"{uri} does not exist")
        if stat.S_ISREG(status.st_mode):
            entry = entry_of(root)
            if entry is not None:
                yield entry
            return
        if not stat.S_ISDIR(status.st_mode):
            raise SourceError(_no_file(uri))
        for folder, names in _folders(root):
            for name in names:
                entry = entry_of(os.path.join(folder, name))
                if entry is not None:
                    yield entry

    def glob(self, pattern: str) -> Iterator[Stored]:
        """Yields the files that match, in order.

        Only folders that may hold some are looked into, as `walk` does.

        Raises:
            StorageError: One of these cannot be listed.
            UsageError: It is no pattern.
        """
        pattern = with_plain_scheme(pattern)
        root = Path(local_path(pattern) if "://" in pattern else pattern).expanduser()
        wanted = NamePattern(absolute(str(root)))
        folder = wanted.folder or "/"
        if not attempt(Path(folder).as_uri(), partial(self.is_folder, Path(folder).as_uri())):
            return
        paths = (
            os.path.join(below, name)
            for below, names in _folders(folder, wanted.parts_before)
            for name in names
        )
        for path in sorted(filter(wanted.matches, paths)):
            if (entry := entry_of(path)) is not None:
                yield entry


class LocalFile(io.FileIO):
    """A file that is read in part, and checked after each read to be still the same.

    Args:
        uri: The file.
        identity: The identity that it must have. None takes the one that it has when opened.

    Raises:
        SourceError: The file has another identity.
    """

    def __init__(self, uri: str, identity: str | None) -> None:
        super().__init__(_path_to_open(uri), "rb", opener=_open_at_once)
        self._uri = uri
        self._expected = identity or _identity(os.fstat(self.fileno()))
        try:
            self._check()
        except SourceError:
            self.close()
            raise

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Reads into the buffer, and checks the identity."""
        count = attempt(self._uri, lambda: super(LocalFile, self).readinto(buffer))
        self._check()
        return count or 0

    def readall(self) -> bytes:
        """Reads the rest, and checks the identity."""
        start = self.tell()

        def read() -> bytes:
            self.seek(start)  # a try that failed may have read a part
            return super(LocalFile, self).readall()

        data = attempt(self._uri, read)
        self._check()
        return data

    def _check(self) -> None:
        require_identity(self._uri, self._expected, _identity(os.fstat(self.fileno())))


def _folders(
    root: str, place_of: Callable[[str], int | None] = lambda _: 0
) -> Iterator[tuple[str, list[str]]]:
    """Yields a folder and those below it, each once, with the sorted names of what is no folder.

    Args:
        root: The uppermost folder.
        place_of: Called with the path of a folder. None leaves it out. If symbolic links lead to a
            folder from several places, it is entered once for each number.

    Raises:
        StorageError: A folder cannot be listed, or the uppermost one is gone or is another now.
    """
    try:
        before = _number_of(root)
    except OSError as error:
        raise StorageError(_not_listed(error)) from error

    def require_removed(error: OSError) -> None:
        is_below = error.errno == errno.ENOENT and error.filename != root
        try:
            if is_below and _number_of(root) == before:
                return
        except OSError as of_root:
            raise StorageError(_not_listed(of_root)) from error
        raise StorageError(_not_listed(error)) from error

    seen: set[tuple[tuple[int, int], int | None]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=require_removed):
        try:
            number = _number_of(folder), place_of(folder)
        except OSError as error:
            require_removed(error)
            folders.clear()
            continue
        if number in seen:
            folders.clear()
            continue
        seen.add(number)
        # The order does not depend on the disk, nor does what is a repeat.
        inner = (name for name in folders if place_of(os.path.join(folder, name)) is not None)
        folders[:] = sorted(inner)
        yield folder, sorted(names)


def temporary_files(uri: str) -> Iterator[Stored]:
    """Yields the temporary files below a folder that writers left when they died."""
    for folder, _, names in os.walk(local_path(uri)):
        for name in filter(_TEMPORARY.match, names):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                yield _stored(path, os.stat(path))


def entry_of(path: str) -> Stored | None:
    """Describes a file.

    Returns:
        None if there is none, if it is no regular file, or if it is a temporary file of ours.

    Raises:
        StorageError: The file cannot be looked at.
    """
    if _TEMPORARY.match(os.path.basename(path)):
        return None
    try:
        status = _status_of(path)
    except OSError as error:
        raise StorageError(f"{path!r} cannot be read: {error.strerror}") from error
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return _stored(path, status)


_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""The errors that say that there is nothing of a name, and not that it cannot be known."""


def _status_of(path: str) -> os.stat_result | None:
    """Looks at what a path leads to.

    Returns:
        What the system says of it; None if there is nothing.

    Raises:
        OSError: Whether there is something cannot be known: it is not allowed, or the disk, which
            may be one of a network, does not answer.
    """
    try:
        return os.stat(path)
    except ValueError:  # a NUL in the name
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
"""What a name may lead to that is no regular file."""


def _path_to_open(uri: str) -> str:
    """Returns the path of a file. One with a NUL, as a damaged table may have it, leads nowhere."""
    path = local_path(uri)
    if "\0" in path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return path


def _open_at_once(path: str, flags: int) -> int:
    """Opens a regular file.

    Anything else is refused before a byte is read: a named pipe would wait for a writer for ever,
    and a device may have no end.

    Returns:
        The file's descriptor.

    Raises:
        SourceError: It is no regular file.
        OSError: It cannot be opened.
    """
    try:
        handle = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise SourceError(_no_file(Path(path).as_uri())) from error
        raise
    if not stat.S_ISREG(os.stat(handle).st_mode):
        os.close(handle)
        raise SourceError(_no_file(Path(path).as_uri()))
    return handle


def _no_file(uri: str) -> str:
    """Says why a place cannot be read as a file."""
    try:
        kind = _KINDS.get(stat.S_IFMT(os.stat(local_path(uri)).st_mode))
    except (OSError, ValueError):
        kind = None
    if kind is None:
        return f"{uri} does not exist, or is not a file"
    return f"{uri} is {kind}; only regular files are read, give one"


def _stored(path: str, status: os.stat_result) -> Stored:
    modified = None
    with contextlib.suppress(OverflowError, ValueError):  # of no year that Python knows
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
    return Stored(Path(path).as_uri(), status.st_size, _identity(status), modified)


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


_FOLDER_TRIES = 10


def _write_temporary(path: Path, data: Data) -> str:
    """Writes the bytes to disk beside `path`, under a name that listings leave out."""
    temporary = str(path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with _new_file(temporary) as file:
            for piece in pieces(data):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        _remove_quietly(temporary)
        raise StorageError(_not_written(path, error)) from error
    return temporary


def _new_file(path: str) -> BinaryIO:
    """Opens a new file, and makes the folders that it lies in.

    While these are empty, another process may remove them (see `LocalStore.delete_tree`). Then they
    are made again.

    Returns:
        The file, open for writing.
    """
    for _ in range(_FOLDER_TRIES):
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return open(path, "xb")
    return open(path, "xb")


def _remove_tree(path: str) -> None:
    """Removes a folder and all below it, also if other processes remove there."""
    for _ in range(_FOLDER_TRIES):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:  # it has ended there, and left the rest
            if not os.path.lexists(path):
                raise
    raise OSError(errno.ENOTEMPTY, "other processes write to it", path)


def _link(temporary: str, path: str) -> bool:
    """Gives the file its name. Returns False if another file has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may have lost the answer to a link that it made.
        return os.path.samefile(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise StorageError(
            f"{path}: this file system cannot create a file exclusively ({error.strerror}); put "
            "the catalogue on one with hard links, or on an object store"
        ) from error
    return True


def _remove_quietly(temporary: str) -> None:
    """Removes a temporary file. One that stays is not listed, and `vdna gc` collects it."""
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Makes a new name outlast a crash of the machine."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # does not sync folders at all
            raise StorageError(_not_written(folder, error)) from error


def _not_written(path: str | Path, error: OSError) -> str:
    return f"{path}: cannot be written: {error.strerror}"


def _raise_unless_missing(uri: str, error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise StorageError(f"{uri}: cannot be removed: {error.strerror}") from error


def _not_listed(error: OSError) -> str:
    return f"{error.filename!r} cannot be listed: {error.strerror}"


def _number_of(folder: str) -> tuple[int, int]:
    """Returns the numbers of a folder's disk and of the folder, which no other one has."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
