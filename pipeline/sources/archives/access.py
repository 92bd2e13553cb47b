r"""Writes and reads an entry's `access`: how a member is read from its archive.

A member is addressed by its place, so that a shard reads only what it needs.

    tar                                      a range of bytes at `position`
    tar gz | tar bz2 | tar xz                the same, in the unpacked stream
    zip <bytes> <method> <crc32>             a local header and compressed bytes at `position`
    parquet <row group> <column>             row `position`; the column's name is percent-encoded
    arrow <offset> <first row> <column>      row `position`, in the record batch that begins there
    broken <reason> <detail>                 cannot be read, and is listed as a failure

    >>> access_kind(Entry("s3://b/a.zip", "cat.jpg", 9, "etag", access="zip 7 8 123"))
    'zip'
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from pipeline.errors import BadImage
from pipeline.sources.entry import Entry

_DETAIL_CHARACTERS = 200


def access_kind(entry: Entry) -> str:
    """Returns the first word of an entry's access; for a compressed tar the first two."""
    kind, _, details = entry.access.partition(" ")
    return f"{kind} {details}" if kind == "tar" and details else kind


def broken_access(bad: BadImage) -> str:
    """Returns the access of a member that cannot be read, with the reason."""
    detail = bad.detail[:_DETAIL_CHARACTERS].encode("utf-8", "backslashreplace")
    return f"broken {bad.reason} {quote(detail, safe='')}"


def broken_reason(access: str) -> BadImage:
    """Returns why a member cannot be read, from its access."""
    _, reason, detail = access.split(" ")
    return BadImage(reason, unquote(detail))


def zip_access(packed_bytes: int, method: int, crc: int) -> str:
    """Returns the access of a member of a zip."""
    return f"zip {packed_bytes} {method} {crc}"


def zip_details(entry: Entry) -> tuple[int, int, int]:
    """Returns the packed size in bytes, the method and the CRC-32 of a member of a zip."""
    packed_bytes, method, crc = map(int, entry.access.split(" ")[1:])
    return packed_bytes, method, crc


def column_access(kind: str, *numbers: int, column: str) -> str:
    """Returns the access of a row: numbers that say where it is, and the column's name."""
    return " ".join([kind, *map(str, numbers), quote(column, safe="")])


def column_details(access: str) -> tuple[list[int], str]:
    """Returns the numbers and the column's name in the access of a row."""
    _, *numbers, column = access.split(" ")
    return [int(number) for number in numbers], unquote(column)
