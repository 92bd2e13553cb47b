"""Finds out that every shard of a dataset meets the same error, before all of them are tried.

>>> found = CommonError(has_landed=False, workers=lambda: 1)
>>> receipts = [ShardReceipt("m", at, error=f"KeyError: shard {at}") for at in range(8)]
>>> [found.is_suspected_after(str(one.index), one, given_up=True) for one in receipts].index(True)
7
>>> found.is_certain
True

A dependency that is broken fails every shard. If none of many shards can be counted, and all have
failed alike, hours of tries would end with the same error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from pipeline.counting import ShardReceipt
from pipeline.errors import TransientError

FIRST_SHARDS = 8
"""How many shards must fail alike, at least, before the rest are left untried."""

SHARDS_OF_WORKER = 3
"""At least so many shards for each worker must fail alike. So a sound worker has had some, even if
a broken one fails fast and takes most."""

_NUMBERS = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b|\d+",
    re.IGNORECASE,
)
"""What may differ between errors that are alike: numbers, addresses, ids and the keys of shards."""


class CommonError:
    """Judges one dataset by the errors of its shards.

    Once a shard is stored, whoever counted it and whenever, no error is common to all.

    Args:
        has_landed: Whether a shard of the dataset is stored already.
        workers: Tells how many workers have shards at a time.
    """

    def __init__(self, *, has_landed: bool, workers: Callable[[], int]) -> None:
        self.has_landed = has_landed
        self._workers = workers
        self._alike: defaultdict[str, dict[str, bool]] = defaultdict(dict)
        self._words_of: dict[str, str] = {}

    def landed(self) -> None:
        """Takes note that a shard is stored."""
        self.has_landed = True
        self._alike.clear()
        self._words_of.clear()

    def is_suspected_after(self, shard: str, receipt: ShardReceipt, *, given_up: bool) -> bool:
        """Takes note of an error, and tells whether many shards have failed with it.

        A source that has changed is no such error: it is listed again, or the error names its
        images. Nor is a store that does not answer for a while.

        Args:
            shard: An id of the shard.
            receipt: What its last try returned.
            given_up: Whether it is not tried again.

        Returns:
            Whether the shards that failed so should be tried again before any other.
        """
        if self.has_landed:
            return False
        self._alike[self._words_of.pop(shard, "")].pop(shard, None)
        if not _may_be_common(receipt):
            return False
        words = self._words_of[shard] = _words_of(receipt)
        self._alike[words][shard] = given_up
        return self._are_enough(len(self._alike[words]))

    @property
    def is_certain(self) -> bool:
        """Whether so many shards have failed for good, all of them alike."""
        return any(self._are_enough(sum(shards.values())) for shards in self._alike.values())

    def _are_enough(self, shards: int) -> bool:
        # Nodes may have come since the last look, and their workers are to get a shard, too.
        return shards >= FIRST_SHARDS and shards >= SHARDS_OF_WORKER * self._workers()


def alike(receipts: Sequence[ShardReceipt]) -> list[ShardReceipt]:
    """Returns those receipts that have the error which most shards met.

    Args:
        receipts: Receipts of shards that failed. Some have an error that may be common to all.

    Returns:
        The receipts of the error that most of these have, in their order.
    """
    of_words = defaultdict(list)
    for receipt in filter(_may_be_common, receipts):
        of_words[_words_of(receipt)].append(receipt)
    return max(of_words.values(), key=len)


def _may_be_common(receipt: ShardReceipt) -> bool:
    return not receipt.changed and receipt.kind != TransientError.__name__


def _words_of(receipt: ShardReceipt) -> str:
    # That of a crash names the machines, which differ.
    return receipt.fault if receipt.fault == "crash" else _NUMBERS.sub("0", receipt.error)
