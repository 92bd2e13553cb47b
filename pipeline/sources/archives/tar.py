"""Lists and reads the members of a tar, packed or not."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from pipeline.errors import BadImage
from pipeline.sources.archives.archive_file import (
    CHUNK_BYTES,
    ArchiveFile,
    Contents,
    archive_defects,
)
from pipeline.sources.archives.index import IndexBuilder, printable_name
from pipeline.sources.archives.sample_labels import SampleLabels
from pipeline.sources.archives.tar_stream import ForwardStream, packing_of
from pipeline.sources.entry import Entry

_GNU_OTHER = (b"D", b"N", b"V")
"""Types that are no files although no standard names them: a dumped directory, old long names, and
the label of a volume."""


def index_tar(file: ArchiveFile, builder: IndexBuilder) -> None:
    """Lists the members of a tar.

    If a packed tar is damaged anywhere, no member counts: one checksum covers them all.

    Args:
        file: The archive.
        builder: Gets the members.

    Raises:
        BadImage: The archive is damaged; the members before the defect have been added.
    """
    packing = packing_of(file)
    labels = SampleLabels(builder.labels, file.uri)
    builder.take_labels(labels.arrays)
    try:
        with archive_defects(file):
            access = f"tar {packing}".rstrip()
            stream = ForwardStream(file, packing)
            _list_members(stream, access, builder, labels)
            _require_end(stream, packing)
    except BadImage as bad:
        if packing and bad.reason == "corrupt":
            builder.mark_all_broken(BadImage(bad.reason, f"the archive is damaged: {bad.detail}"))
        raise


def _list_members(
    stream: ForwardStream, access: str, builder: IndexBuilder, labels: SampleLabels
) -> None:
    """Reads the headers with `tarfile`, which takes a defect for the end; here it is told apart.

    Raises:
        BadImage: The archive is damaged.
    """
    tar = tarfile.TarFile(fileobj=cast(Any, stream), encoding="utf-8", errors="surrogateescape")
    while (info := tar.next()) is not None:
        cast(Any, tar).members.clear()  # it keeps every member
        kind = _kind(info)
        name = printable_name(info.name.encode("utf-8", "surrogateescape"))
        if kind == "folder":
            continue
        if kind != "file":
            builder.ignored[kind] += 1
        elif info.issparse():
            builder.add_broken(name, info.offset_data, BadImage("unsupported", "a sparse member"))
        else:
            if info.size >= 0 and stream.skip(info.offset_data):
                labels.offer(name, info.size, partial(stream.read_content, info.size))
            if info.size < 0 or not stream.skip(info.offset_data + info.size):
                reason = "corrupt" if info.size < 0 else "truncated"
                raise BadImage(reason, f"{name} states {info.size} bytes, which are not there")
            builder.add(name, info.size, info.offset_data, access)
        stream.begin_header()
    if stream.last != b"\0" * tarfile.BLOCKSIZE:
        raise BadImage(
            "corrupt" if len(stream.last) == tarfile.BLOCKSIZE else "truncated",
            f"the end marker is missing at byte {stream.tell()}",
        )


def _require_end(stream: ForwardStream, packing: str) -> None:
    """Checks that nothing follows the end marker.

    Raises:
        BadImage: More data follows. Or the checksum of a packed tar, which comes last, is wrong.
    """
    is_more = False
    while tail := stream.read_content(CHUNK_BYTES):
        is_more |= bool(tail.strip(b"\0"))
        if is_more and not packing:
            break
    if is_more:
        raise BadImage(
            "unsupported", "more data, such as a second tar, follows the end marker; it is not read"
        )


def _kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder"
    if info.issym() or info.islnk():
        return "link"
    if info.isfifo():
        return "fifo"
    if info.isdev():
        return "device"
    return "other" if info.type in _GNU_OTHER else "file"


def members_of_packed_tar(file: ArchiveFile, entries: Sequence[Entry]) -> Contents:
    """Reads members of a packed tar in one pass from its start.

    Args:
        file: The archive.
        entries: The members, in order of position.

    Yields:
        Each member with its bytes.

    Raises:
        BadImage: The archive is damaged. Listing read all of it, so a second pass would not help.
    """
    stream = ForwardStream(file, packing_of(file))
    for entry in entries:
        with archive_defects(file):
            stream.skip(entry.position)
            content = stream.read_content(entry.size)
            require_all_bytes(len(content), entry.size)
        yield entry, content


def require_all_bytes(found: int, size: int) -> None:
    """Checks that a member is whole.

    Args:
        found: How many of its bytes were found.
        size: How many bytes it has.

    Raises:
        BadImage: Bytes are missing.
    """
    if found < size:
        raise BadImage("truncated", f"only {found} of its {size} bytes are in the archive")
