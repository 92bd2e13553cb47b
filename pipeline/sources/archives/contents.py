"""Looks into an archive and lists its members.

    >>> found = index_archive(storage.info("s3://bucket/shard-000.tar"))     # doctest: +SKIP
    >>> found.members.column_names                                           # doctest: +SKIP
    ['member', 'size', 'position', 'access']

Errors of storage are raised as always. A defect of the archive becomes a candidate that fails: no
member that was listed is lost, and no archive ends a build. Nothing is unpacked to disk.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage
from pipeline.errors import BadImage, CorruptFile, SourceError
from pipeline.sources.archives.archive_file import ArchiveFile, archive_defects, open_archive
from pipeline.sources.archives.arrow import index_arrow
from pipeline.sources.archives.index import INDEX, ArchiveIndex, IndexBuilder
from pipeline.sources.archives.parquet import index_parquet
from pipeline.sources.archives.tar import index_tar
from pipeline.sources.archives.zip import index_zip
from pipeline.spec import digest_of
from pipeline.storage import Stored

TABLES = ("parquet", "arrow")
"""Kinds of archives whose members are rows."""

_EXTENSIONS = {
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    "zip": (".zip",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
}


def archive_kind(uri: str) -> str | None:
    """Returns "tar", "zip", "parquet" or "arrow" by an object's name. None if it is no archive."""
    name = uri.lower()
    return next((kind for kind, ends in _EXTENSIONS.items() if name.endswith(ends)), None)


def index_archive(
    item: Stored, image_column: str | None = None, labels: Sequence[str] = ()
) -> ArchiveIndex | None:
    """Lists every candidate in an archive.

    A damaged archive has one more candidate, with an empty name, which fails; the members before
    the defect are candidates like others. The sizes of a table's rows are 0, for unknown: they
    stand only beside the images.

    Args:
        item: The archive.
        image_column: The column that holds images, if a table has several.
        labels: Names of labels to read: columns of a table, or of the samples of a tar.

    Returns:
        The index, or None for a table without a column of images.

    Raises:
        SourceError: A table has several columns that may be images, or not the one that is named;
            or a label is not there.
    """
    builder = IndexBuilder(labels)
    with open_archive(item.uri, item.identity) as file:
        try:
            with archive_defects(file):
                if not _add_members(file, builder, image_column):
                    return None
        except BadImage as bad:
            builder.add_broken("", max(file.size, builder.end), bad)
    return builder.index()


def _add_members(file: ArchiveFile, builder: IndexBuilder, image_column: str | None) -> bool:
    """Lists an archive by its kind.

    Returns:
        False for a table without a column of images.

    Raises:
        BadImage: The archive is damaged.
        SourceError: It has no labels, and they are asked for.
    """
    if not file.size:
        raise BadImage("empty", "the archive has no bytes")
    match archive_kind(file.uri):
        case "tar":
            index_tar(file, builder)
        case "zip":
            if builder.labels:
                raise SourceError(
                    f"{file.uri} is a zip, whose files have no labels but their folders; the label "
                    f"{builder.labels[0]!r} may be in a table, a tar or a Parquet file"
                )
            index_zip(file, builder)
        case "parquet":
            return index_parquet(file, builder, image_column)
        case "arrow":
            return index_arrow(file, builder, image_column)
        case _:
            raise BadImage("unsupported", "its name is not that of an archive")
    return True


def encoded_index(
    item: Stored, image_column: str | None, cache: str | None, labels: Sequence[str] = ()
) -> tuple[str, bytes | None]:
    """Lists an archive, or finds what an earlier run has listed.

    Args:
        item: The archive.
        image_column: The column that holds images, if a table has several.
        cache: The uri of a folder that keeps indices by the archive's identity, or None.
        labels: Names of labels to read.

    Returns:
        The archive's uri, and its encoded index (None for a table without a column of images).

    Raises:
        SourceError: See `index_archive`.
    """
    kept_at = ""
    if cache is not None:
        # Indices of tables that earlier versions have kept do not say how large the images are.
        what = "table index" if archive_kind(item.uri) in TABLES else "index"
        name = digest_of(what, INDEX.format, item.uri, item.identity, image_column, *labels)
        kept_at = storage.join(cache, f"{name}.parquet")
        try:
            data = storage.read(kept_at)
            ArchiveIndex.decode(data, kept_at)
            return item.uri, data
        except (SourceError, CorruptFile):
            pass  # not looked into yet, or damaged
    index = index_archive(item, image_column, labels)
    if index is None:
        return item.uri, None
    data = index.encode()
    if kept_at:
        storage.replace(kept_at, data)
    return item.uri, data
