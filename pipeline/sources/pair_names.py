"""Names what pairs an image with those of other datasets: its path below the source.

    >>> Pairing("s3://b/dark").name()                                 # doctest: +SKIP
    "regexp_replace(case when starts_with(uri, 's3://b/dark/') …"

A set and its altered copy have images of the same paths, in two places. So have two sets that share
images of one folder, and the versions of one dataset. Folds are dealt by the hash of these names,
so that the images of a pair are in the same fold. The suffix of an image's name is left out: a copy
may be of another format.
"""

from __future__ import annotations

from dataclasses import dataclass

BY_STEM = "stem"
"""What pairs images by the names of their files alone."""

IMAGE_SUFFIXES = (
    "avif", "bmp", "gif", "heic", "heif", "ico", "jp2", "jpe", "jpeg", "jpg", "jxl", "pgm", "png",
    "ppm", "tif", "tiff", "webp",
)  # fmt: skip
"""Suffixes that a copy may have another of. Other suffixes may be a number, as in `frame.0001`."""


@dataclass(frozen=True)
class Pairing:
    """How images are named for pairing.

    Attributes:
        root: The place that paths are relative to; empty to take whole uris.
        by: What names an image: `stem`, which is the name of its file without the suffix, or the
            label that has its name. None takes its path.
    """

    root: str = ""
    by: str | None = None

    @property
    def label(self) -> str | None:
        """The label that has the names; None if no label has."""
        return None if self.by == BY_STEM else self.by

    def name(self, label: str = "") -> str:
        """Returns SQL for the name of a candidate, of its columns `uri` and `member`.

        Args:
            label: The column of the label that has the names, quoted. An image without a value has
                its path for a name.
        """
        ends = rf"'\.({'|'.join(IMAGE_SUFFIXES)})$', '', 'i'"
        path = self.below("uri")
        if self.by == BY_STEM:
            file = "case when member = '' then uri else member end"
            return f"regexp_replace(regexp_extract({file}, '[^/]*$'), {ends})"
        name = (
            f"case when member = '' then regexp_replace({path}, {ends}) "
            f"else {path} || chr(0) || regexp_replace(member, {ends}) end"
        )
        return name if self.by is None else f"coalesce(nullif({label}, ''), {name})"

    def below(self, column: str) -> str:
        """Returns SQL for the path of a uri below the root; uris elsewhere stay as they are.

        Args:
            column: The column of the uri, quoted if need be.
        """
        if not self.root:
            return column
        root = self.root.rstrip("/").replace("'", "''")
        return (
            f"case when {column} = '{root}' then '' when starts_with({column}, '{root}/') "
            f"then substr({column}, {len(self.root.rstrip('/')) + 2}) else {column} end"
        )


def name_number(name: str) -> str:
    """Returns SQL for the number, below 2^64, that decides an image's fold by its name.

    Args:
        name: SQL for the name.
    """
    return f"md5_number_lower({name})"
