"""sources.archives.zip: TODO-DOC"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from typing import Any, cast

from pipeline.errors import BadImage
from pipeline.sources.archives.file import ArchiveFile
from pipeline.sources.archives.index import IndexRows, broken_access, printable_member
from pipeline.sources.manifest import Entry

# Zip


LOCAL_HEADER = struct.Struct("<4s22xHH")

_ZIP_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}

_ENCRYPTED, _PATCHED = 0x41, 0x20

LOCAL_EXTRA_BYTES = 1024
"""Room for what a local header holds beyond the directory's name; where it holds more, it is read
again."""


def index_zip(file: ArchiveFile, rows: IndexRows) -> None:
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
                printable_member(name),
                size,
                position,
                _zip_access(info, len(name), end_of[id(info)]),
            )


def _zip_access(info: zipfile.ZipInfo, name_bytes: int, end: int) -> str:
    method, packed, size = info.compress_type, info.compress_size, info.file_size
    if info.flag_bits & (_ENCRYPTED | _PATCHED):
        return broken_access(BadImage("unsupported", "an encrypted or patched member"))
    if method not in _ZIP_METHODS:
        return broken_access(BadImage("unsupported", f"compressed by method {method}"))
    if info.header_offset < 0 or info.header_offset + LOCAL_HEADER.size + packed > end:
        return broken_access(BadImage("corrupt", "it overlaps the next member or the directory"))
    if size >= 2**63 or packed > (size if method == zipfile.ZIP_STORED else 2 * size + 4096):
        return broken_access(
            BadImage("corrupt", f"{size} bytes are said to be {packed} compressed ones")
        )
    return f"zip {packed} {method} {info.CRC}"


def unzip_member(entry: Entry, data: memoryview) -> bytes:
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
