"""Tells how many images of two datasets are in pairs, from a sample of their images' names.

    >>> a = Pairs.of({n * 2**50: n % 16 for n in range(2000)}, 2000)
    >>> b = Pairs.of({n * 2**50: n % 16 for n in range(1500, 3500)}, 2000)
    >>> a.shared(b)
    Shared(of_smaller=0.25, of_larger=0.25)

An image has a number, the hash of the name by which it is paired (`pipeline.sources.pair_names`). A
dataset keeps the numbers of all its images, or if it has many, those below a limit: about
`SAMPLED`, with the fold of each. Any two datasets then have sampled the same names, those below the
smaller limit. Of 2,048 numbers, the share of pairs has a standard error of 1.1 points at most.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLED = 2048
"""About how many names of a dataset are kept. If it has fewer, all are."""

LEAST_SAMPLED = 32
"""With fewer sampled names, the share of pairs is not known. That is so only if one dataset is over
fifty times as large as the other. Then its noise is small beside the other's, pairs or not."""

NUMBERS = 2**64
"""Numbers of names are below this."""


class Shared(NamedTuple):
    """How many images two datasets have in pairs, both of a pair in one fold; NaN if not known.

    Attributes:
        of_smaller: As a share of the images of the smaller dataset.
        of_larger: As a share of those of the larger one.
    """

    of_smaller: float
    of_larger: float


UNKNOWN = Shared(nan, nan)


@dataclass(frozen=True, eq=False)
class Pairs:
    """A sample of the names by which a dataset's images are paired.

    Attributes:
        numbers: (N,) uint64 numbers of names, in order.
        folds: (N,) int8, the fold of each.
        limit: All numbers below this are there.
    """

    numbers: NDArray[np.uint64]
    folds: NDArray[np.int8]
    limit: int

    @staticmethod
    def limit_of(images: int) -> int:
        """Returns below which limit the numbers of so many images are sampled."""
        return NUMBERS if images <= SAMPLED else NUMBERS * SAMPLED // images

    @classmethod
    def of(cls, fold_of: Mapping[int, int], images: int) -> Pairs:
        """Makes the sample.

        Args:
            fold_of: The fold of each number below the limit of so many images.
            images: How many images the dataset has.

        Returns:
            The sample.
        """
        found = sorted(fold_of.items())
        return cls(
            np.array([number for number, _ in found], np.uint64),
            np.array([fold for _, fold in found], np.int8),
            cls.limit_of(images),
        )

    def shared(self, other: Pairs) -> Shared:
        """Estimates how many images two datasets have in pairs.

        Args:
            other: The sample of the other dataset.

        Returns:
            The shares. They are exact if neither dataset has more than `SAMPLED` images.
        """
        limit = min(self.limit, other.limit)
        sides = (self, other)
        ends = [int(np.searchsorted(side.numbers, np.uint64(limit - 1), "right")) for side in sides]
        (one, folds), (two, others) = (
            (side.numbers[:end], side.folds[:end]) for side, end in zip(sides, ends, strict=True)
        )
        smaller, larger = sorted(ends)
        if not smaller or (limit < NUMBERS and smaller < LEAST_SAMPLED):
            return UNKNOWN
        _, at, there = np.intersect1d(one, two, assume_unique=True, return_indices=True)
        together = int((folds[at] == others[there]).sum())
        return Shared(together / smaller, together / larger)

    def to_json(self) -> dict[str, Any]:
        """Returns the sample as values of JSON."""
        return {
            "limit": str(self.limit),
            "numbers": b64encode(self.numbers.astype("<u8").tobytes()).decode(),
            "folds": b64encode(self.folds.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Pairs:
        """Returns the sample that `to_json` made values of."""
        numbers = np.frombuffer(b64decode(values["numbers"]), "<u8").astype(np.uint64)
        folds = np.frombuffer(b64decode(values["folds"]), np.int8)
        if len(numbers) != len(folds):
            raise ValueError(f"{len(numbers)} numbers of names, and {len(folds)} folds")
        return cls(numbers, folds, int(values["limit"]))
