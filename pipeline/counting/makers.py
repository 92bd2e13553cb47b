"""Keeps what workers have loaded, and loads it with fewer images at a time where memory runs out.

    >>> makers = Makers(load, batch_of)                                      # doctest: +SKIP
    >>> makers.make(recipe, shard, key, isolated=False)

How many images a network sees at a time is part of the numerics. In float32 it moves a count only
by rounding, and every partial states it, so half as many may be taken. In bfloat16 the spec states
the number, and a ranking mixes no numerics, so there it stays.
"""

from __future__ import annotations

import gc
import logging
import socket
import sys
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.counting.stream import Made
from pipeline.errors import UnexpectedError
from pipeline.sources import Shard
from pipeline.wording import count_of

logger = logging.getLogger(__name__)

W = TypeVar("W", bound=Hashable)


class ShardMaker(Protocol):
    """Makes the one object that a worker commits for a shard."""

    def make(
        self, shard: Shard, key: str, *, isolated: bool, kept: Mapping[str, bytes] | None = None
    ) -> Made:
        """Makes the object of a shard; see `Makers.make`."""

    def close(self) -> None:
        """Ends its threads."""


@dataclass
class _InUse:
    """A maker, and who uses it.

    Attributes:
        maker: The maker.
        batch: The images that it takes at a time.
        users: How many shards it makes now.
        given_up: Whether the last of them is to end it.
    """

    maker: ShardMaker
    batch: int
    users: int = 0
    given_up: bool = False


MOST_IDLE = 2
"""How many recipes stay loaded that make no shard. Shards come dataset by dataset, and two datasets
may take turns."""


class Makers(Generic[W]):
    """Makes shards by any recipe, several at a time; loads each recipe once while it is in use.

    Args:
        load: Loads a recipe, to take so many images at a time.
        batch_of: Returns how many images a recipe takes at a time, and whether fewer may be taken.
    """

    def __init__(
        self, load: Callable[[W, int], ShardMaker], batch_of: Callable[[W], tuple[int, bool]]
    ) -> None:
        self._load = load
        self._batch_of = batch_of
        self._loaded: dict[W, _InUse] = {}
        self._batches: dict[W, int] = {}
        self._ending: set[W] = set()  # a smaller one may be loaded when it has ended
        self._times_freed = 0
        self._changed = threading.Condition()

    def make(
        self,
        recipe: W,
        shard: Shard,
        key: str,
        *,
        isolated: bool,
        kept: Mapping[str, bytes] | None = None,
    ) -> Made:
        """Makes the object of a shard.

        Args:
            recipe: What to load, unless it is loaded.
            shard: The shard.
            key: Its key.
            isolated: Whether its images are decoded in a process apart.
            kept: What an earlier build has kept of the shard's cells, as `find_cells` returns it.

        Returns:
            What it came to.

        Raises:
            UnexpectedError: If a device's memory is too small, and fewer images may not be taken.
        """
        while True:
            loaded, tried, freed = None, self._batch(recipe), self._times_freed
            try:
                loaded = self._take(recipe)
                tried = loaded.batch
                return loaded.maker.make(shard, key, isolated=isolated, kept=kept)
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                why = f"{type(error).__name__}: {error}"
            finally:
                if loaded is not None:
                    self._give_back(loaded)
            # Here the error is gone, whose trace holds tensors of the device.
            self._take_fewer(recipe, tried, freed, loaded, why)

    def give_up(self, recipe: W) -> None:
        """Forgets what was loaded, which may be broken. Another thread may still be using it."""
        with self._changed:
            loaded = self._loaded.pop(recipe, None)
            if loaded is not None:
                loaded.given_up = True
                if not loaded.users:
                    loaded.maker.close()

    def close(self) -> None:
        """Ends the threads of all that was loaded; shards under way end by an error."""
        with self._changed:
            ended = [*self._loaded.values()]
            self._loaded.clear()
        for loaded in ended:
            loaded.maker.close()

    def _take(self, recipe: W) -> _InUse:
        with self._changed:
            self._changed.wait_for(lambda: recipe not in self._ending)
            loaded = self._loaded.pop(recipe, None)
            if loaded is None:
                self._end_idle(recipe, MOST_IDLE)
                batch = self._batch(recipe)
                loaded = _InUse(self._load(recipe, batch), batch)
            self._loaded[recipe] = loaded  # the one that was used last is last
            loaded.users += 1
            return loaded

    def _end_idle(self, recipe: W, most: int) -> int:
        """Ends other recipes that make no shard, but for the last ones that did.

        Args:
            recipe: The recipe that may have their memory.
            most: How many stay.

        Returns:
            How many it has ended.
        """
        idle = [of for of, loaded in self._loaded.items() if of != recipe and not loaded.users]
        ended = idle[: max(0, len(idle) - most)]
        for other in ended:
            self._loaded.pop(other).maker.close()
        return len(ended)

    def _give_back(self, loaded: _InUse) -> None:
        with self._changed:
            loaded.users -= 1
            if loaded.given_up and not loaded.users:
                loaded.maker.close()
            self._changed.notify_all()

    def _batch(self, recipe: W) -> int:
        return self._batches.get(recipe) or self._batch_of(recipe)[0]

    def _take_fewer(
        self, recipe: W, tried: int, freed: int, loaded: _InUse | None, why: str
    ) -> None:
        """Has half the images taken that were tried, unless something else may help.

        Args:
            recipe: The recipe.
            tried: How many images were tried.
            freed: How often memory had been freed before that.
            loaded: What was tried; None if it could not be loaded.
            why: The error.

        Raises:
            UnexpectedError: If fewer images may not be taken.
        """
        with self._changed:
            batch = self._batch(recipe)
            if tried > batch or freed != self._times_freed:
                return  # another thread has seen to it
            if self._end_idle(recipe, 0):  # with their memory there may be enough
                self._times_freed += 1
                _free_memory()
                return
            images = f"{count_of(batch, 'image')} at a time"
            if batch == 1 or not self._batch_of(recipe)[1]:
                stated = "" if batch == 1 else ", as is stated for all workers"
                fewer = "" if batch == 1 else ", or state fewer"
                raise UnexpectedError(
                    f"the device's memory is too small for {images}{stated}; use devices with more "
                    f"memory{fewer}. {why}"
                )
            self._batches[recipe] = batch // 2
            self._ending.add(recipe)
        try:
            if loaded is not None:
                self._end(recipe, loaded)
            _free_memory()
        finally:
            with self._changed:
                self._ending.discard(recipe)
                self._changed.notify_all()
        logger.warning(
            "on %s a device's memory was too small for %s; from now on it takes %d there, as the "
            "numerics of the dataset state",
            *(socket.gethostname(), images, batch // 2),
        )

    def _end(self, recipe: W, loaded: _InUse) -> None:
        """Ends a network that is too large, when no shard uses it, and leaves nothing of it."""
        with self._changed:
            if self._loaded.get(recipe) is loaded:
                del self._loaded[recipe]
            while loaded.users:
                self._changed.wait()
            loaded.maker.close()
            del loaded.maker  # those that used it still hold `loaded`


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Tells whether a device's memory ran out. If torch was never imported, none has."""
    torch = sys.modules.get("torch")
    if torch is None or error is None:
        return False
    return isinstance(error, torch.OutOfMemoryError) or _is_out_of_memory(error.__cause__)


def _free_memory() -> None:
    """Gives back what the device's allocator keeps of a network that nobody has any more."""
    gc.collect()
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
