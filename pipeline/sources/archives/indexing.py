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

from pipeline.errors import BadImage
from pipeline.sources.archives.arrow import index_arrow
from pipeline.sources.archives.file import blaming_archive, open_archive
from pipeline.sources.archives.index import Index, IndexRows, broken_access
from pipeline.sources.archives.parquet import index_parquet
from pipeline.sources.archives.tar import index_tar
from pipeline.sources.archives.zip import index_zip
from pipeline.storage import Stored

TABLES = ("parquet", "arrow")

_EXTENSIONS = {
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    "zip": (".zip",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
}


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
    rows = IndexRows()
    with open_archive(item.uri, item.identity) as file:
        try:
            with blaming_archive(file):
                if not file.size:
                    raise BadImage("empty", "the archive has no bytes")
                match kind_of(item.uri):
                    case "tar":
                        index_tar(file, rows)
                    case "zip":
                        index_zip(file, rows)
                    case "parquet":
                        if not index_parquet(file, rows, item.uri, image_column):
                            return None
                    case "arrow":
                        if not index_arrow(file, rows, item.uri, image_column):
                            return None
                    case _:
                        raise BadImage("unsupported", "not the name of an archive")
        except BadImage as bad:
            rows.add("", 0, max(file.size, rows.end), broken_access(bad))
    return rows.index()
