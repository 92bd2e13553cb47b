"""Counts the images that datasets have in common, by the hashes of their files.

>>> find_overlaps(Catalogue("dnas"), ["train", "test"]).to_pandas()   # doctest: +SKIP

No image is read, and no two datasets are compared with each other: all distinct hashes are sorted
once, and only those that several datasets have are counted for pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue, SnapshotKeywords, SnapshotOptions, Version
from pipeline.comparing.selection import Selection
from pipeline.dna import READ, Ints
from pipeline.mapper import map_in_order
from pipeline.notebook import arrow_data_frame, arrow_polars, html_table
from pipeline.spec import IMAGE_HASHES
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

OVERLAP_SCHEMA = pa.schema(
    [("a", pa.string()), ("b", pa.string()), ("shared", pa.int64()), ("share", pa.float64())]
)

READERS = 4
"""How many datasets' hashes are read at a time."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How many images of each of D datasets have a file that another one has, too.

    Attributes:
        names: The datasets whose hashes are known.
        images: (D,) how many images each has.
        shared: (D, D) how many images of the first have a file that the second has, too. On the
            diagonal are all images.
        unknown: The datasets of which it is not known, as their builds have kept no hashes.
    """

    names: tuple[str, ...]
    images: Ints
    shared: Ints
    unknown: tuple[str, ...]

    @property
    def table(self) -> pa.Table:
        """One row for each ordered pair of two datasets, with the columns `OVERLAP_SCHEMA`.

        `share` is that of the images of `a`.
        """
        a, b = np.nonzero(~np.eye(len(self.names), dtype=bool))
        names = pa.array(self.names, pa.string())
        shared = self.shared[a, b]
        columns = [names.take(pa.array(a)), names.take(pa.array(b)), shared]
        return pa.table([*columns, shared / np.maximum(1, self.images[a])], schema=OVERLAP_SCHEMA)

    def to_pandas(self) -> pd.DataFrame:
        """Returns the table in pandas."""
        return arrow_data_frame(self.table)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table in Polars."""
        return arrow_polars(self.table)

    def pairs(self) -> list[tuple[str, str]]:
        """Finds the datasets that have files in common.

        Returns:
            Each two once. The largest share comes first, and the dataset that has more of its
            images in the other one.
        """
        share = self.shared / np.maximum(1, self.images)[:, None]
        a, b = np.nonzero(np.triu(self.shared, 1))
        a, b = np.where(share[a, b] >= share[b, a], (a, b), (b, a))
        order = np.lexsort((b, a, -share[a, b]))
        return [(self.names[i], self.names[j]) for i, j in zip(a[order], b[order], strict=True)]

    def of(self, a: str, b: str) -> tuple[int, float]:
        """Returns how many images of `a` have a file that `b` has, too, and their share.

        Args:
            a: A dataset of `names`.
            b: Another one.

        Returns:
            The number, and the share of the images of `a`.
        """
        i, j = self.names.index(a), self.names.index(b)
        return int(self.shared[i, j]), float(self.shared[i, j] / max(1, self.images[i]))

    def in_matrix(self, names: Sequence[str]) -> pa.Table:
        """Makes the columns that these numbers are in the table of a matrix.

        Args:
            names: The datasets of the matrix.

        Returns:
            One row for each ordered pair and the diagonal, as in a plane of the matrix: `a_in_b`,
            how many images of `a` have a file that `b` has, too, and `b_in_a`. Null where that is
            not known.
        """
        at = {name: place for place, name in enumerate(self.names)}
        known = [place for place, name in enumerate(names) if name in at]
        places = [at[names[place]] for place in known]
        there = np.full((len(names), len(names)), -1, np.int64)
        there[np.ix_(known, known)] = self.shared[np.ix_(places, places)]
        columns = {}
        for column, counts in (("a_in_b", there), ("b_in_a", there.T)):
            flat = counts.reshape(-1)
            columns[column] = pa.array(flat, pa.int64(), mask=flat < 0)
        return pa.table(columns)

    def __repr__(self) -> str:
        return f"<Overlaps of {count_of(len(self.names), 'dataset')}: {len(self.pairs())} pairs>"

    def _repr_html_(self) -> str:
        rows = [(a, b, f"{self.of(a, b)[0]:,}", f"{self.of(a, b)[1]:.2%}") for a, b in self.pairs()]
        return html_table("Images in common", ("of", "in", "images", "share"), rows)


def find_overlaps(
    catalogue: Catalogue, names: Sequence[str] = (), **options: Unpack[SnapshotKeywords]
) -> Overlaps:
    """Counts the images that datasets have in common: those whose files have equal bytes.

    It takes about 40 bytes of memory for each distinct file of a dataset. Their number decides how
    long it takes, and that of the files that several datasets have.

    Args:
        catalogue: The catalogue.
        names: The datasets; none for all.
        **options: The options of `SnapshotOptions`.

    Returns:
        The numbers of each two.

    Raises:
        NotFound: A name is unknown.
        UsageError: There are fewer than two datasets.
        CorruptFile: A file of a version is damaged.
    """
    chosen = SnapshotOptions(**options)
    versions = Selection.of(catalogue, names, chosen.at, chosen.spec).versions
    known = {name: of for name, of in versions.items() if IMAGE_HASHES in of.sha256}

    def read(member: tuple[str, Version]) -> tuple[NDArray[np.uint64], Ints]:
        rows = catalogue.image_hashes(*member)
        return np.unique(rows["content"][(rows["flags"] & READ) > 0], return_counts=True)

    found = list(map_in_order(read, list(known.items()), READERS))
    return Overlaps(
        tuple(known),
        np.array([int(times.sum()) for _, times in found], np.int64),
        _shared(found),
        tuple(name for name in versions if name not in known),
    )


def _shared(found: Sequence[tuple[NDArray[np.uint64], Ints]]) -> Ints:
    """Counts for each two datasets the images of the first whose content the second has, too."""
    from scipy.sparse import csr_array

    shared = np.diag([int(times.sum()) for _, times in found]).astype(np.int64)
    if len(found) < 2:
        return shared
    contents = np.concatenate([values for values, _ in found])
    owners = np.repeat(np.arange(len(found)), [len(values) for values, _ in found])
    times = np.concatenate([times for _, times in found])
    _, number, holders = np.unique(contents, return_inverse=True, return_counts=True)
    several = holders[number] > 1
    place = (owners[several], number[several])
    shape = (len(found), len(holders))
    counted = csr_array((times[several].astype(np.int64), place), shape)
    there = csr_array((np.ones(len(place[0]), np.int64), place), shape)
    product = (counted @ there.T).toarray()
    np.fill_diagonal(product, shared.diagonal())
    return np.asarray(product, np.int64)
