"""What is asked of an engine by rooms that map a function over items: archives, sums, tiles.

>>> list(SerialMapper().map(abs, [-1, 2]))
[1, 2]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Calls a function on many items: in this process, or on the workers of a cluster."""

    @property
    def in_process(self) -> bool:
        """Whether the work is done in this process, which alone sees `memory://` files."""

    @property
    def workers(self) -> int:
        """How many calls run at a time."""

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Calls the function on each item.

        Args:
            function: What is called. It and its results must pickle.
            items: Its arguments, which must pickle, too.

        Returns:
            The results, as they come; their order may be another than that of the items.
        """


class SerialMapper:
    """Calls the function in this process, on one item after the other."""

    in_process = True
    workers = 1

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Calls the function on each item, when its result is asked for.

        Args:
            function: What is called.
            items: Its arguments.

        Returns:
            The results, in the order of the items.
        """
        return map(function, items)
