"""Archives as sources: which images lie in one and where, and their bytes, without unpacking it.

    >>> found = index(storage.info("s3://bucket/shard-000.tar"))             # doctest: +SKIP
    >>> found.members.column_names
    ['member', 'size', 'position', 'access']

A member is addressed by its place, so that a shard reads only what it needs; `access` says how:

    tar                                      a range of bytes at `position`
    tar gz | tar bz2 | tar xz                the same, in the stream as it is unpacked
    zip <bytes> <method> <crc32>             a local header and compressed bytes at `position`
    parquet <row group> <column>             row `position`; the column's name is percent-encoded
    arrow <offset> <first row> <column>      row `position`, in the record batch that begins there
    broken <reason> <detail>                 cannot be read, and is listed as a failure

What storage does wrong raises as always. What an archive does wrong becomes a candidate that fails:
nothing that was listed vanishes, and no archive ends a job. Nothing is extracted to disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any, cast
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import BadImage, CorruptFile, SourceError, VdnaError
from pipeline.manifest import Entry
from pipeline.storage import Stored

FORMAT = 1
"""Of an encoded index; of how archives are looked into, too: another one looks again."""
TABLES = ("parquet", "arrow")
SPAN_BYTES = 8 * 2**20
"""Adjacent members are read together, up to so many bytes a request."""
GAP_BYTES = 128 * 2**10
"""What lies between two members is read along, where it is less than another request costs."""
SPANS_AHEAD = 4
ROWS_AT_ONCE = 65_536

_EXTENSIONS = {
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    "zip": (".zip",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
}
_SCHEMA = pa.schema(
    [
        ("member", pa.string()),
        ("size", pa.int64()),
        ("position", pa.int64()),
        ("access", pa.string()),
    ]
)
Contents = Generator[tuple[Entry, bytes | BadImage], None, None]

_CHUNK = 2**20
_DETAIL_CHARACTERS = 200


@dataclass(frozen=True, eq=False)
class Index:
    """`members`: member, size, position, access, in order of position; a member's name only once.

    `ignored`: what lies in the archive and is no file, by kind. `duplicates`: earlier members of a
    name that occurs again, which extracting would overwrite.
    """

    members: pa.Table
    ignored: Mapping[str, int]
    duplicates: int

    def encode(self) -> bytes:
        """A Parquet file."""
        notes = {"format": FORMAT, "ignored": self.ignored, "duplicates": self.duplicates}
        sink = pa.BufferOutputStream()
        table = self.members.replace_schema_metadata({"vdna": json.dumps(notes)})
        pq.write_table(
            table, sink, compression="zstd", write_statistics=False, write_page_checksum=True
        )
        return bytes(sink.getvalue().to_pybytes())

    @classmethod
    def decode(cls, data: bytes, name: str) -> Index:
        """Raises `CorruptFile` with `name`."""
        try:
            source = pa.BufferReader(data)
            table = pq.read_table(source, page_checksum_verification=True)
            notes = json.loads(table.schema.metadata[b"vdna"])
            if notes["format"] != FORMAT:
                raise CorruptFile(f"{name}: an index of format {notes['format']}, not {FORMAT}")
            members = table.replace_schema_metadata(None).cast(_SCHEMA)
            return cls(members, notes["ignored"], notes["duplicates"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: torn, or not the index of an archive: {error}") from error


def kind_of(uri: str) -> str | None:
    """ "tar", "zip", "parquet", "arrow", by the name; None for an object of its own."""
    name = uri.lower()
    return next((kind for kind, ends in _EXTENSIONS.items() if name.endswith(ends)), None)


def index(item: Stored, image_column: str | None = None) -> Index | None:
    """Every candidate in the archive; None for a table without a column of images.

    An archive that is torn, or none, is one candidate more, of the name "", which fails; the whole
    members before the defect are candidates as ever. A table's sizes are 0, for unknown: they stand
    nowhere but beside the images.

    Raises `SourceError` where a table has several columns that may be images, or not the one named.
    """
    rows = _Rows()
    with _opened(item.uri, item.identity) as file:
        try:
            with _blame(file):
                if not file.size:
                    raise BadImage("empty", "the archive has no bytes")
                match kind_of(item.uri):
                    case "tar":
                        _index_tar(file, rows)
                    case "zip":
                        _index_zip(file, rows)
                    case "parquet":
                        if not _index_parquet(file, rows, item.uri, image_column):
                            return None
                    case "arrow":
                        if not _index_arrow(file, rows, item.uri, image_column):
                            return None
                    case _:
                        raise BadImage("unsupported", "not the name of an archive")
        except BadImage as bad:
            rows.add("", 0, max(file.size, rows.end), _broken(bad))
    return rows.index()


class Members:
    """Reads the members of one shard, from any thread, at best in about their order.

    Every entry may be asked for once at little cost; again, it is read again. At most `ahead`
    members that were come by and not asked for yet are kept.
    """

    def __init__(self, entries: Sequence[Entry], max_bytes: int, ahead: int) -> None:
        wanted = [e for e in entries if e.access and e.size <= max_bytes]
        self._spans = _spans([e for e in wanted if _kind(e) in ("tar", "zip")])
        self._span_of = {e.place: i for i, span in enumerate(self._spans) for e in span.entries}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(SPANS_AHEAD, "span")
        self._pass_of: dict[str, _Pass] = {}
        in_passes = [e for e in wanted if _kind(e) in _PASSES]
        for uri, group in groupby(sorted(in_passes, key=lambda e: e.place), lambda e: e.uri):
            self._pass_of[uri] = _Pass(tuple(group), ahead)

    def fetch(self, entry: Entry) -> bytes:
        """The bytes of the candidate, exactly those that were listed; of a single object too.

        Raises `BadImage` for a defect of the member or its archive, `SourceError` where the archive
        is not what was listed.
        """
        if not entry.access:
            return storage.read(entry.uri, entry.identity)
        kind = _kind(entry)
        if kind == "broken":
            _, reason, detail = entry.access.split(" ")
            raise BadImage(reason, unquote(detail))
        if kind in _PASSES:
            return self._pass_of[entry.uri].fetch(entry)
        if kind not in ("tar", "zip"):
            raise SourceError(
                f"{entry.uri}::{entry.member} is to be read by {entry.access!r}, which this "
                "version of vdna does not know"
            )
        span = self._spans[self._span_of[entry.place]]
        return span.take(entry, self._begin(entry))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for each in self._pass_of.values():
            each.close()

    def _begin(self, entry: Entry) -> Future[bytes]:
        """The reading of the entry's span; those of the next ones begin too."""
        at = self._span_of[entry.place]
        with self._lock:
            first, *others = self._spans[at : at + SPANS_AHEAD]
            reading = first.begin(self._pool)
            for span in others:
                if span.untouched:
                    span.begin(self._pool)
        return reading


# What archives are read through.


class _File:
    """A seekable file that keeps in mind what storage raised, whatever a library makes of it."""

    mode = "rb"
    closed = False

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file = file
        self._uri = uri
        self._at = 0
        self.error: Exception | None = None
        self.size = file.seek(0, io.SEEK_END)

    def read(self, length: int | None = -1) -> bytes:
        left = max(0, self.size - self._at)
        length = left if length is None or length < 0 else min(length, left)
        try:
            self._file.seek(self._at)
            data = self._file.read(length)
            if len(data) < length:
                raise SourceError(f"{self._uri} became shorter while it was read; rerun")
        except Exception as error:
            self.error = error
            raise
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise OSError(f"position {at} of a file")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Libraries close what they are given; the file is closed by who opened it."""


@contextmanager
def _opened(uri: str, identity: str) -> Iterator[_File]:
    with storage.open_random(uri, identity) as file:
        yield _File(file, uri)


@contextmanager
def _blame(file: _File) -> Iterator[None]:
    """What a library raises is the archive's fault, a `BadImage`, unless it was storage's."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # readers of archives raise nearly anything on hostile bytes
        if file.error is not None:
            raise file.error from None
        if isinstance(error, VdnaError):
            raise
        short = isinstance(error, EOFError) or "unexpected end of data" in str(error)
        unknown = isinstance(error, NotImplementedError)
        reason = "truncated" if short else "unsupported" if unknown else "corrupt"
        raise BadImage(reason, f"{type(error).__name__}: {error}") from error
    if file.error is not None:
        raise file.error


class _Rows:
    """An index in the making: plain rows are turned into Arrow's as soon as they are many."""

    def __init__(self) -> None:
        self.ignored: Counter[str] = Counter()
        self.end = 0
        """A position behind all rows."""
        self._rows: list[tuple[str, int, int, str]] = []
        self._tables: list[pa.Table] = []

    def add(self, member: str, size: int, position: int, access: str) -> None:
        self._rows.append((member, size, position, access))
        self.end = max(self.end, position + 1)
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def add_numbered(self, first: int, count: int, access: str) -> None:
        """Rows of a table, named by their number."""
        self._flush()
        numbers = pa.array(np.arange(first, first + count, dtype=np.int64))
        columns = [
            numbers.cast(pa.string()),
            pa.array(np.zeros(count, np.int64)),
            numbers,
            pa.repeat(pa.scalar(access, pa.string()), count),
        ]
        self._tables.append(pa.table(columns, schema=_SCHEMA))
        self.end = max(self.end, first + count)

    def condemn(self, bad: BadImage) -> None:
        """All rows so far fail."""
        self._flush()
        access = pa.scalar(_broken(bad), pa.string())
        self._tables = [t.set_column(3, "access", pa.repeat(access, len(t))) for t in self._tables]

    def index(self) -> Index:
        self._flush()
        table = pa.concat_tables([_SCHEMA.empty_table(), *self._tables])
        numbered = table.select(["member"]).append_column("row", pa.array(np.arange(len(table))))
        last = numbered.group_by("member").aggregate([("row", "max")])["row_max"].to_numpy()
        kept = np.zeros(len(table), bool)
        kept[last] = True
        duplicates = len(table) - len(last)
        table = table.filter(pa.array(kept))
        positions = table["position"].to_numpy()
        if (positions[1:] < positions[:-1]).any():
            table = table.sort_by("position")
        return Index(table, dict(self.ignored), duplicates)

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._tables.append(pa.table(columns, schema=_SCHEMA))
            self._rows.clear()


def _broken(bad: BadImage) -> str:
    detail = bad.detail[:_DETAIL_CHARACTERS].encode("utf-8", "backslashreplace")
    return f"broken {bad.reason} {quote(detail, safe='')}"


def _kind(entry: Entry) -> str:
    """As in `access`; of a compressed tar "tar gz" and so on."""
    kind, _, details = entry.access.partition(" ")
    return f"{kind} {details}" if kind == "tar" and details else kind


def _printable(raw: bytes) -> str:
    r"""A name in UTF-8 as it is; others with `\xff` for a byte that is none; no two alike.

    A backslash is doubled in the latter, and in a name that looks like one of them.
    """
    if not raw:
        return "\\x"
    try:
        name = raw.decode()
        if "\\x" not in name:
            return name
    except UnicodeDecodeError:
        pass
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


# Tar


MAX_HEADER_BYTES = 2**20
"""Of one member: its long name, extended attributes and the map of a sparse file."""
_DIGITS = re.compile(rb"\d{256}")
"""No real number or file name; older versions of Python search such a run in quadratic time."""
_GNU_OTHER = (b"D", b"N", b"V")
"""A dumped directory, old long names, a volume's label: no files, though of no standard type."""
_MAX_RATIO = 1100
"""gzip's own limit; bzip2 and xz have none."""
_XZ_MEMORY = 256 * 2**20


def _index_tar(file: _File, rows: _Rows) -> None:
    """Of a packed tar that is damaged anywhere, no member counts: all have one checksum."""
    packing = _packing(file)
    try:
        with _blame(file):
            _walk_tar(_Forward(file, packing), f"tar {packing}".rstrip(), rows)
    except BadImage as bad:
        if packing and bad.reason == "corrupt":
            rows.condemn(BadImage(bad.reason, f"the archive is damaged: {bad.detail}"))
        raise


def _walk_tar(stream: _Forward, access: str, rows: _Rows) -> None:
    """Headers only, as `tarfile` reads them; it takes a defect for the end, which is told here."""
    tar = tarfile.TarFile(fileobj=cast(Any, stream), encoding="utf-8", errors="surrogateescape")
    while (info := tar.next()) is not None:
        cast(Any, tar).members.clear()  # it keeps every member
        kind = _tar_kind(info)
        name = _printable(info.name.encode("utf-8", "surrogateescape"))
        if kind != "file":
            rows.ignored[kind] += 1
        elif info.issparse():
            sparse = BadImage("unsupported", "a sparse member")
            rows.add(name, 0, info.offset_data, _broken(sparse))
        else:
            if info.size < 0 or not stream.skip(info.offset_data + info.size):
                reason = "corrupt" if info.size < 0 else "truncated"
                raise BadImage(reason, f"{name} states {info.size} bytes, which are not there")
            rows.add(name, info.size, info.offset_data, access)
        stream.allow()
    if stream.last != b"\0" * tarfile.BLOCKSIZE:
        raise BadImage(
            "corrupt" if len(stream.last) == tarfile.BLOCKSIZE else "truncated",
            f"the end marker is missing at byte {stream.tell()}",
        )
    while tail := stream.read_unchecked(_CHUNK):
        if tail.strip(b"\0"):
            raise BadImage(
                "unsupported",
                "after the end marker more follows, such as a second tar; it is not read",
            )


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder"
    if info.issym() or info.islnk():
        return "link"
    if info.isfifo():
        return "fifo"
    if info.isdev():
        return "device"
    return "other" if info.type in _GNU_OTHER else "file"


def _packing(file: _File) -> str:
    head = file.read(6)
    file.seek(0)
    magic = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    return next((name for start, name in magic.items() if head.startswith(start)), "")


class _Forward:
    """A tar as a stream: only forwards, and between two members never much is read at once."""

    def __init__(self, file: _File, packing: str) -> None:
        self._file = file
        self._stream = _unpacked(file, packing) if packing else None
        self._at = 0
        self._allowed = MAX_HEADER_BYTES
        self.last = b""
        """What was read last."""

    def allow(self) -> None:
        self._allowed = MAX_HEADER_BYTES

    def tell(self) -> int:
        return self._at

    def read(self, length: int) -> bytes:
        self._allowed -= length
        if length < 0 or self._allowed < 0:
            raise BadImage("corrupt", f"a header at byte {self._at} of over {MAX_HEADER_BYTES}")
        self.last = self.read_unchecked(length)
        if length > tarfile.BLOCKSIZE and _DIGITS.search(self.last):
            raise BadImage("corrupt", f"a header at byte {self._at} with a number of 256 digits")
        return self.last

    def read_unchecked(self, length: int) -> bytes:
        data = self._stream.read(length) if self._stream else self._file.read(length)
        self._at += len(data)
        return data

    def seek(self, position: int) -> None:
        if position < self._at:
            raise BadImage("corrupt", f"a member before byte {self._at} leads back to {position}")
        self.skip(position)

    def skip(self, position: int) -> bool:
        """Whether the stream reaches so far."""
        if self._stream is None:
            self._at = self._file.seek(min(position, self._file.size))
        while self._at < position and self.read_unchecked(min(_CHUNK, position - self._at)):
            pass
        return self._at == position


def _unpacked(file: _File, packing: str) -> IO[bytes]:
    if packing == "gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=cast(Any, file), mode="rb"))
    return cast(IO[bytes], io.BufferedReader(_Unpacked(file, packing), _CHUNK))


class _Unpacked(io.RawIOBase):
    """bzip2 or xz, in bounded memory; the standard library's files set xz no limit."""

    def __init__(self, file: _File, packing: str) -> None:
        self._file = file
        self._packing = packing
        self._decompressor = self._new()
        self._left = _MAX_RATIO * file.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise BadImage("too_many_bytes", f"it unpacks to over {_MAX_RATIO} times its size")
        buffer[: len(data)] = data
        return len(data)

    def _new(self) -> Any:
        if self._packing == "bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def _next(self, most: int) -> bytes:
        while True:
            packed = b""
            if self._decompressor.eof:
                packed = self._decompressor.unused_data or self._file.read(_CHUNK)
                if not packed.strip(b"\0"):
                    return b""
                self._decompressor = self._new()
            elif self._decompressor.needs_input:
                packed = self._file.read(_CHUNK)
                if not packed:
                    raise EOFError("the compressed stream ends early")
            data = cast(bytes, self._decompressor.decompress(packed, most))
            if data:
                return data


# Zip


_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ZIP_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_ENCRYPTED, _PATCHED = 0x41, 0x20
_LOCAL_EXTRA_BYTES = 1024
"""Room for what a local header holds beyond the directory's name; where it holds more, it is read
again."""


def _index_zip(file: _File, rows: _Rows) -> None:
    """The central directory. `zipfile` keeps an object for each member while it is read."""
    starts = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    try:
        archive = zipfile.ZipFile(cast(Any, file))
    except zipfile.BadZipFile as error:
        if starts and "not a zip file" in str(error):
            raise BadImage(
                "truncated", "a zip without its directory, which stands at its end"
            ) from (error)
        raise
    ordered = sorted(archive.filelist, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), cast(Any, archive).start_dir]
    end_of = {id(info): end for info, end in zip(ordered, ends, strict=False)}
    for info in archive.filelist:
        # The decoded name as it is stored: `filename` stops at a NUL.
        name = info.orig_filename.encode("utf-8", "surrogatepass")
        if name.endswith(b"/"):
            rows.ignored["folder"] += 1
        elif info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16):
            rows.ignored["link"] += 1
        else:
            size = info.file_size if info.file_size < 2**63 else 0
            position = info.header_offset if 0 <= info.header_offset < 2**63 else 0
            rows.add(
                _printable(name), size, position, _zip_access(info, len(name), end_of[id(info)])
            )


def _zip_access(info: zipfile.ZipInfo, name_bytes: int, end: int) -> str:
    method, packed, size = info.compress_type, info.compress_size, info.file_size
    if info.flag_bits & (_ENCRYPTED | _PATCHED):
        return _broken(BadImage("unsupported", "an encrypted or patched member"))
    if method not in _ZIP_METHODS:
        return _broken(BadImage("unsupported", f"compressed by method {method}"))
    if info.header_offset < 0 or info.header_offset + _LOCAL_HEADER.size + packed > end:
        return _broken(BadImage("corrupt", "it overlaps the next member or the directory"))
    if size >= 2**63 or packed > (size if method == zipfile.ZIP_STORED else 2 * size + 4096):
        return _broken(BadImage("corrupt", f"{size} bytes are said to be {packed} compressed ones"))
    return f"zip {packed} {method} {info.CRC}"


def _unzipped(entry: Entry, data: memoryview) -> bytes:
    """Never more than the size that is stated, and checked by its CRC."""
    _, _, method, crc = entry.access.split(" ")
    content = bytes(data)
    if int(method) == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflater.decompress(content, entry.size + 1)
        except zlib.error as error:
            raise BadImage("corrupt", f"{error}") from error
    if len(content) != entry.size:
        more = len(content) > entry.size
        found = f"over {entry.size}" if more else str(len(content))
        raise BadImage("corrupt", f"it holds {found} bytes, and states {entry.size}")
    if zlib.crc32(content) != int(crc):
        raise BadImage("corrupt", "its checksum is not the one that is stated")
    return content


# Spans of a tar or a zip


class _Span:
    """Adjacent members, read by one request, and dropped when each was taken."""

    def __init__(self, first: Entry) -> None:
        self.entries = [first]
        self._uri = first.uri
        self._identity = first.identity
        self._start, self._end = first.position, _reach(first)
        self._lock = threading.Lock()
        self._left = {first.place}
        self._reading: Future[bytes] | None = None

    def join(self, entry: Entry) -> bool:
        """Whether the entry follows closely enough; if so, it is read along."""
        end = _reach(entry)
        if (
            entry.uri != self._uri
            or not self.entries[-1].position <= entry.position <= self._end + GAP_BYTES
            or end - self._start > SPAN_BYTES
        ):
            return False
        self.entries.append(entry)
        self._left.add(entry.place)
        self._end = max(self._end, end)
        return True

    @property
    def untouched(self) -> bool:
        return self._reading is None and len(self._left) == len(self.entries)

    def begin(self, pool: ThreadPoolExecutor) -> Future[bytes]:
        with self._lock:
            if self._reading is None:
                self._reading = pool.submit(
                    storage.read_range,
                    self._uri,
                    self._start,
                    self._end - self._start,
                    self._identity,
                )
            return self._reading

    def take(self, entry: Entry, reading: Future[bytes]) -> bytes:
        try:
            return self._member(entry, reading.result())
        finally:
            with self._lock:
                self._left.discard(entry.place)
                if not self._left:
                    self._reading = None

    def _member(self, entry: Entry, data: bytes) -> bytes:
        view = memoryview(data)
        at = entry.position - self._start
        if _kind(entry) == "tar":
            return bytes(_whole(view[at : at + entry.size], entry.size))
        header = _whole(view[at : at + _LOCAL_HEADER.size], _LOCAL_HEADER.size)
        magic, name, extra = _LOCAL_HEADER.unpack(header)
        if magic != b"PK\x03\x04":
            raise BadImage("corrupt", "there is no header where the directory says")
        packed = int(entry.access.split(" ")[1])
        at += _LOCAL_HEADER.size + name + extra
        if at + packed > self._end - self._start:
            start = self._start + at
            view = memoryview(storage.read_range(self._uri, start, packed, self._identity))
            at = 0
        return _unzipped(entry, _whole(view[at : at + packed], packed))


def _whole(data: memoryview, size: int) -> memoryview:
    if len(data) < size:
        raise BadImage("truncated", f"{len(data)} of its {size} bytes are in the archive")
    return data


def _reach(entry: Entry) -> int:
    """Where the entry ends, at the latest as a rule."""
    if _kind(entry) == "tar":
        return entry.position + entry.size
    name = len(entry.member.encode())
    packed = int(entry.access.split(" ")[1])
    return entry.position + _LOCAL_HEADER.size + name + _LOCAL_EXTRA_BYTES + packed


def _spans(entries: Iterable[Entry]) -> list[_Span]:
    spans: list[_Span] = []
    for entry in entries:
        if not spans or not spans[-1].join(entry):
            spans.append(_Span(entry))
    return spans


# Tables


_MAX_SPARE_ROWS = 1_000_000
"""A table that states more rows than this and than it has bytes is lying."""
_MAX_BATCH_BYTES = 2**31
_SCHEMA_MESSAGE, _BATCH_MESSAGE = 1, 3


def _image_column(schema: pa.Schema, named: str | None, uri: str) -> str | None:
    found = [field.name for field in schema if _holds_bytes(field.type)]
    if not found:
        return None
    listed = ", ".join(sorted(found))
    if named is None and len(found) > 1:
        raise SourceError(
            f"{uri} has {len(found)} columns that may be images: {listed}; name one by "
            "--image-column"
        )
    if named is not None and found.count(named) != 1:
        raise SourceError(
            f"{uri} has no single column {named!r} of bytes, as --image-column names it; it has "
            f"{listed}"
        )
    return named or found[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind.fields)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(pa.types, test)(kind) for test in tests)


def _require_rows(rows: int, file: _File) -> None:
    if not 0 <= rows <= max(_MAX_SPARE_ROWS, file.size):
        raise BadImage("corrupt", f"it states {rows} rows in {file.size} bytes")


def _contents(
    file: _File, wanted: Sequence[Entry], row: int, columns: Iterable[pa.Array]
) -> Contents:
    """The wanted rows out of consecutive pieces of the column, the first of them starting at `row`.

    A defect fails all that follow.
    """
    left = deque(wanted)
    try:
        with _blame(file):
            for column in columns:
                while left and left[0].position < row + len(column):
                    yield left[0], _value(column[left[0].position - row])
                    left.popleft()
                row += len(column)
                if not left:
                    return
        bad = BadImage("truncated", "the table ends before this row")
    except BadImage as error:
        bad = error
    for entry in left:
        yield entry, BadImage(bad.reason, bad.detail)


def _value(scalar: pa.Scalar) -> bytes | BadImage:
    if scalar.is_valid and isinstance(scalar, pa.StructScalar):
        scalar = scalar["bytes"]
    return cast(bytes, scalar.as_py()) if scalar.is_valid else BadImage("empty", "the row is null")


def _index_parquet(file: _File, rows: _Rows, uri: str, named: str | None) -> bool:
    table = _parquet(file)
    column = _image_column(table.schema_arrow, named, uri)
    if column is None:
        return False
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        _require_rows(rows.end + count if count >= 0 else count, file)
        rows.add_numbered(rows.end, count, f"parquet {group} {quote(column, safe='')}")
    return True


def _parquet(file: _File) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_CHUNK)


def _rows_of_parquet(file: _File, entries: Sequence[Entry]) -> Contents:
    with _blame(file):
        table = _parquet(file)
        counts = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        kinds = {field.name: field.type for field in table.schema_arrow}
    for access, group in groupby(entries, lambda entry: entry.access):
        number, column = int(access.split(" ")[1]), unquote(access.split(" ")[2])
        leaf = f"{column}.bytes" if pa.types.is_struct(kinds[column]) else column
        batches = table.iter_batches(  # one row a batch: never two images in memory
            batch_size=1, row_groups=[number], columns=[leaf], use_threads=False
        )
        pieces = (batch.column(column) for batch in batches)
        yield from _contents(file, tuple(group), sum(counts[:number]), pieces)


def _index_arrow(file: _File, rows: _Rows, uri: str, named: str | None) -> bool:
    """Walks the messages of a file or a stream of Arrow's IPC; bodies are passed over."""
    column = None
    for at, metadata, kind, header in _messages(file):
        if kind == _SCHEMA_MESSAGE:
            column = _image_column(_arrow_schema(file, at), named, uri)
            if column is None:
                return False
        elif kind == _BATCH_MESSAGE:
            if column is None:
                raise BadImage("corrupt", "there are rows before the schema")
            place = _field(metadata, header, 0)
            count = struct.unpack_from("<q", metadata, place)[0] if place else 0
            _require_rows(rows.end + count if count >= 0 else count, file)
            access = f"arrow {at} {rows.end} {quote(column, safe='')}"
            rows.add_numbered(rows.end, count, access)
    if column is None:
        raise BadImage("corrupt", "there is no schema")
    return True


def _messages(file: _File) -> Iterator[tuple[int, bytes, int, int]]:
    """(offset in the file, metadata, type, place of the header in the metadata) of each message.

    https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
    """
    magic = b"ARROW1"
    at, end = 0, file.size
    if file.read(len(magic)) == magic:
        file.seek(max(0, end - 10))
        length, tail = struct.unpack("<i6s", file.read(10).rjust(10, b"\0"))
        if tail != magic:
            raise BadImage("truncated", "a file of Arrow's without its end")
        at, end = 8, end - 10 - length
    while at != end:
        file.seek(at)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadImage("truncated", "the stream ends without its end marker")
        mark, length = struct.unpack("<Ii", prefix)
        if mark != 0xFFFFFFFF or length < 0 or length > file.size:
            raise BadImage("corrupt", f"there is no message of Arrow's at byte {at}")
        if length == 0:
            if at + 8 < end:
                raise BadImage("corrupt", "after the end marker more follows; it is not read")
            return
        metadata = file.read(length)
        (root,) = struct.unpack_from("<I", metadata)
        kind_at, header_at, body_at = (_field(metadata, root, i) for i in (1, 2, 3))
        body = struct.unpack_from("<q", metadata, body_at)[0] if body_at else 0
        if body < 0 or at + 8 + length + body > end:
            raise BadImage("truncated", f"the message at byte {at} is not whole")
        header = header_at + struct.unpack_from("<I", metadata, header_at)[0]
        yield at, metadata, metadata[kind_at], header
        at += 8 + length + body
    if file.size == end:
        raise BadImage("truncated", "the stream ends without its end marker")


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table of Flatbuffers lies; 0 where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (length,) = struct.unpack_from("<H", data, vtable)
    slot = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + slot)[0] if slot + 2 <= length else 0
    return table + offset if offset else 0


def _arrow_schema(file: _File, at: int) -> pa.Schema:
    """With the indices of dictionaries in their place: their values are of no interest."""
    file.seek(at)
    schema = pa.ipc.read_schema(pa.ipc.read_message(file))
    return pa.schema(
        [f.with_type(f.type.index_type) if pa.types.is_dictionary(f.type) else f for f in schema]
    )


def _rows_of_arrow(file: _File, entries: Sequence[Entry]) -> Contents:
    with _blame(file):
        schema = _arrow_schema(file, next(_messages(file))[0])
    for access, group in groupby(entries, lambda entry: entry.access):
        _, at, first, column = access.split(" ")
        piece = _arrow_column(file, int(at), schema, unquote(column))
        yield from _contents(file, tuple(group), int(first), piece)


def _arrow_column(file: _File, at: int, schema: pa.Schema, name: str) -> Iterator[pa.Array]:
    """A record batch is read whole: it is what can be read of a stream."""
    file.seek(at)
    message = pa.ipc.read_message(file)
    size = _unpacked_bytes(message)
    if size > _MAX_BATCH_BYTES:
        raise BadImage(
            "too_many_bytes",
            f"a record batch of {size} bytes; write smaller ones (the limit is {_MAX_BATCH_BYTES})",
        )
    column = pa.ipc.read_record_batch(message, schema).column(name)
    column.validate(full=True)
    yield column


def _unpacked_bytes(message: pa.Message) -> int:
    """Of the body, or what its compressed buffers state."""
    metadata, body = message.metadata.to_pybytes(), message.body
    (root,) = struct.unpack_from("<I", metadata)
    header = _field(metadata, root, 2)
    header += struct.unpack_from("<I", metadata, header)[0]
    buffers = _field(metadata, header, 2)
    if not _field(metadata, header, 3) or not buffers:
        return int(body.size)
    buffers += struct.unpack_from("<I", metadata, buffers)[0]
    (count,) = struct.unpack_from("<I", metadata, buffers)
    places = struct.iter_unpack("<qq", metadata[buffers + 4 : buffers + 4 + 16 * count])
    stated = [int(*struct.unpack_from("<q", body, at)) for at, length in places if length >= 8]
    return int(body.size) + sum(size for size in stated if size > 0)


# One pass over what cannot be read in part


def _packed_members(file: _File, entries: Sequence[Entry]) -> Contents:
    """Listing passed all of it before: a defect here would be met again by a pass of its own."""
    stream = _Forward(file, _packing(file))
    for entry in entries:
        with _blame(file):
            stream.skip(entry.position)
            content = stream.read_unchecked(entry.size)
            _whole(memoryview(content), entry.size)
        yield entry, content


_PASSES: dict[str, Callable[[_File, Sequence[Entry]], Contents]] = {
    "tar gz": _packed_members,
    "tar bz2": _packed_members,
    "tar xz": _packed_members,
    "parquet": _rows_of_parquet,
    "arrow": _rows_of_arrow,
}


class _Pass:
    """Reads an archive once, from its start, for the members asked for in about their order."""

    def __init__(self, entries: Sequence[Entry], keep: int) -> None:
        self._entries = entries
        self._keep = keep
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, str], bytes | BadImage] = OrderedDict()
        self._contents: Contents | None = None
        self._passed: tuple[str, int, str] | None = None

    def fetch(self, entry: Entry) -> bytes:
        with self._lock:
            if entry.place not in self._kept:
                self._pass_until(entry)
            content = self._kept.pop(entry.place)
        if isinstance(content, BadImage):
            raise content
        return content

    def close(self) -> None:
        with self._lock:
            if self._contents is not None:
                self._contents.close()
            self._kept.clear()

    def _pass_until(self, entry: Entry) -> None:
        if self._contents is None or self._passed is None or self._passed >= entry.place:
            self._contents = self._begin()
        try:
            for found, content in self._contents:
                self._passed = found.place
                self._kept[found.place] = content
                while len(self._kept) > self._keep:
                    self._kept.popitem(last=False)
                if found == entry:
                    return
        except BaseException:
            self._contents = None
            raise

    def _begin(self) -> Contents:
        first = self._entries[0]
        with _opened(first.uri, first.identity) as file:
            yield from _PASSES[_kind(first)](file, self._entries)
