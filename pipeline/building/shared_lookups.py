"""Looks up once what the plans of many datasets share: the newest commit, networks, ranges.

>>> shared.head().number, shared.network(request).ranges.digest         # doctest: +SKIP

Its methods may be called from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from pipeline import storage
from pipeline.building.request import Request
from pipeline.catalogue import Catalogue, Commit
from pipeline.dna import Ranges
from pipeline.errors import SourceError
from pipeline.networks import Network, describe, find_ranges, require_loadable

T = TypeVar("T")

COMMIT_SECONDS = 5.0
"""How old a commit may be that a plan begins with. Another job may commit at any time anyway."""


@dataclass(frozen=True)
class NetworkAndRanges:
    """What a request counts with.

    Attributes:
        network: The network; its weights can be loaded.
        ranges: The ranges.
        provenance: Where the ranges come from.
    """

    network: Network
    ranges: Ranges
    provenance: Mapping[str, Any]


class SharedLookups:
    """Looks things up in a catalogue, each once.

    Args:
        catalogue: The catalogue.
        plans: How many datasets are planned.
    """

    def __init__(self, catalogue: Catalogue, plans: int) -> None:
        self._catalogue = catalogue
        self._plans = plans
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._found: dict[Hashable, Future[Any]] = {}
        self._head: tuple[float, Commit] | None = None
        self._head_lock = threading.Lock()

    def head(self) -> Commit:
        """Returns the newest commit, as it was some seconds ago at most."""
        with self._head_lock:
            if self._head is None or monotonic() - self._head[0] > COMMIT_SECONDS:
                self._head = monotonic(), self._catalogue.head()
            return self._head[1]

    def network(self, request: Request) -> NetworkAndRanges:
        """Finds the network and the ranges of a request.

        Args:
            request: The request.

        Returns:
            Both, with where the ranges come from.

        Raises:
            VdnaError: As `describe` and `find_ranges` do.
        """
        asked = request.extractor, request.weights, request.taps, request.ranges
        return self._once(asked, lambda: self._find_network(request))

    def require_exclusive(self) -> None:
        """Checks that creating an object of the catalogue is exclusive, by writing one there.

        Raises:
            StorageError: If it is not.
        """
        self._once("exclusive", lambda: storage.require_exclusive(self._catalogue.root))

    def store_once(self, uri: str, made: Callable[[], bytes]) -> None:
        """Stores an object unless it is there. Its name stands for its content.

        Args:
            uri: Where it belongs.
            made: Makes its bytes.
        """

        def store() -> None:
            if not storage.exists(uri):
                storage.create(uri, made())

        self._once(uri, store)

    def has_parts(self, folder: str) -> bool:
        """Tells whether an interrupted listing may have left parts in a folder.

        If many datasets are planned, the folders of all listings are looked at with one request.

        Args:
            folder: The folder of a listing.

        Returns:
            Whether it may. It may be wrong for a listing that another job begins meanwhile.
        """
        with self._lock:
            again = folder in self._asked
            self._asked.add(folder)
        if again or self._plans == 1:
            return True
        parent = folder.rpartition("/")[0]
        return folder in self._once(("listings", parent), lambda: _folders_in(parent))

    def _find_network(self, request: Request) -> NetworkAndRanges:
        network = describe(request.extractor, request.weights, request.taps)
        if network.weights_uri:
            require_loadable(network)  # wrong weights are found before anything is listed
        asked, known = request.ranges, {}
        uri = self._catalogue.ranges_uri(asked) if asked and asked.isalnum() else None
        if asked and uri and storage.exists(uri):
            known = {asked: uri}
        return NetworkAndRanges(network, *find_ranges(network, asked, known))

    def _once(self, key: Hashable, look: Callable[[], T]) -> T:
        """Returns what the first call for a key has found; those that wait share its error."""
        with self._lock:
            future: Future[T] | None = self._found.get(key)
            mine = future is None
            if future is None:
                future = self._found[key] = Future()
        if mine:
            try:
                future.set_result(look())
            except BaseException as error:
                with self._lock:
                    self._found.pop(key, None)  # another dataset tries again
                future.set_exception(error)
                raise
        return future.result()


def _folders_in(parent: str) -> set[str]:
    """Returns the folders that hold objects, directly below another one."""
    try:
        uris = [item.uri for item in storage.walk(parent)]
    except SourceError:
        return set()
    return {f"{parent}/{uri.removeprefix(f'{parent}/').split('/')[0]}" for uri in uris}
