"""Lists the members of a zip, and unpacks one."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from typing import Any, cast

from pipeline.errors import BadImage
from pipeline.sources.archives.access import broken_access, zip_access, zip_details
from pipeline.sources.archives.archive_file import ArchiveFile
from pipeline.sources.archives.index import IndexBuilder, printable_name
from pipeline.sources.entry import Entry

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""The layout of a local header: magic number, length of the name, length of the extra fields."""

LOCAL_EXTRA_BYTES = 1024
"""Room for what a local header holds beyond the name. If it holds more, it is read again."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_ENCRYPTED, _PATCHED, _UTF8_NAME = 0x41, 0x20, 0x800

_UNICODE_PATH = 0x7075
"""The kind of the extra field that holds a name in UTF-8."""


def index_zip(file: ArchiveFile, builder: IndexBuilder) -> None:
    """Lists the members of a zip by its central directory.

    `zipfile` keeps an object for each member while the directory is read.

    Args:
        file: The archive.
        builder: Gets the members.

    Raises:
        BadImage: The archive was cut short.
        BadZipFile: The archive is no zip.
    """
    starts = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    try:
        archive = zipfile.ZipFile(cast(Any, file))
    except zipfile.BadZipFile as error:
        if starts and "not a zip file" in str(error):
            detail = "a zip without its directory, which stands at its end"
            raise BadImage("truncated", detail) from error
        raise
    ordered = sorted(archive.filelist, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), cast(Any, archive).start_dir]
    end_of = {id(info): end for info, end in zip(ordered, ends, strict=False)}
    for info in archive.filelist:
        name = _name(info)
        of_windows = name.endswith(b"\\") and not info.file_size
        if name.endswith(b"/") or of_windows:
            continue
        if info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16):
            builder.ignored["link"] += 1
        else:
            size = info.file_size if info.file_size < 2**63 else 0
            position = info.header_offset if 0 <= info.header_offset < 2**63 else 0
            bad = _defect(info, end_of[id(info)])
            packed = zip_access(info.compress_size, info.compress_type, info.CRC)
            builder.add(printable_name(name), size, position, broken_access(bad) if bad else packed)


def _name(info: zipfile.ZipInfo) -> bytes:
    """Returns the name of a member in UTF-8.

    Info-ZIP's `zip` writes a name that is not ASCII twice: in the code page of the machine, and in
    UTF-8 in an extra field. The field counts only if it has the CRC-32 of the other name. See
    section 4.6.9 of PKWARE's APPNOTE.
    """
    # The decoded name as it is stored: `filename` stops at a NUL.
    name = info.orig_filename.encode("utf-8", "surrogatepass")
    if info.flag_bits & _UTF8_NAME:
        return name
    stored = zlib.crc32(info.orig_filename.encode("cp437", "replace"))
    left = info.extra
    while len(left) >= 4:
        kind, length = struct.unpack_from("<HH", left)
        value, left = left[4 : 4 + length], left[4 + length :]
        if kind == _UNICODE_PATH and value[:5] == struct.pack("<BI", 1, stored) and value[5:]:
            return value[5:]
    return name


def _defect(info: zipfile.ZipInfo, end: int) -> BadImage | None:
    """Returns why a member cannot be read. `end` is where the next one or the directory starts."""
    method, packed, size = info.compress_type, info.compress_size, info.file_size
    if info.flag_bits & (_ENCRYPTED | _PATCHED):
        return BadImage("unsupported", "an encrypted or patched member")
    if method not in _METHODS:
        return BadImage("unsupported", f"compressed by method {method}")
    if info.header_offset < 0 or info.header_offset + LOCAL_HEADER.size + packed > end:
        return BadImage("corrupt", "it overlaps the next member or the directory")
    if size >= 2**63 or packed > (size if method == zipfile.ZIP_STORED else 2 * size + 4096):
        return BadImage("corrupt", f"{size} bytes are said to be {packed} compressed ones")
    return None


def unzip_member(entry: Entry, data: memoryview) -> bytes:
    """Returns the bytes of a member, and never unpacks more than the size that it states.

    Args:
        entry: The member.
        data: Its packed bytes.

    Raises:
        BadImage: The size or the checksum is not the one that is stated.
    """
    _, method, crc = zip_details(entry)
    content = bytes(data)
    if method == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflater.decompress(content, entry.size + 1)
        except zlib.error as error:
            raise BadImage("corrupt", f"{error}") from error
    if len(content) != entry.size:
        more = len(content) > entry.size
        found = f"over {entry.size}" if more else str(len(content))
        raise BadImage("corrupt", f"it holds {found} bytes, and states {entry.size}")
    if zlib.crc32(content) != crc:
        raise BadImage("corrupt", "its checksum is not the one that is stated")
    return content
