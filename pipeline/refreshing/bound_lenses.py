"""Checks, before anything is built, that bounds can be judged through their lenses.

>>> BoundLenses(catalogue).require(bound, [network])                        # doctest: +SKIP
UsageError: gate {…'lens': 'no-fog', 'layer': 'head'…}: lens no-fog gives the neurons of head no …
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline import storage
from pipeline.catalogue import Catalogue, find_lens, newest_lenses, spec_of_lens
from pipeline.dna import Lens
from pipeline.errors import CorruptFile, NotFound, SpecMismatch, UsageError
from pipeline.networks import Network
from pipeline.refreshing.bound_kinds import DistanceBound


class BoundLenses:
    """The lenses that bounds name, each of which is read once.

    Args:
        catalogue: The catalogue.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._read: dict[str, Lens | None] = {}

    def require(self, bound: DistanceBound, networks: Iterable[Network]) -> None:
        """Checks the lens of a bound, if it has one.

        Args:
            bound: The bound.
            networks: Those that its datasets are about to be counted with.

        Raises:
            UsageError: There is no such lens, its file is damaged, it gives the layer no weight, or
                it was fitted to another network. The message has the bound.
        """
        if bound.lens is None:
            return
        lens = self._found(bound, bound.lens)
        if lens is None:
            return
        if not lens.has_positive_weight(bound.layer):
            raise UsageError(
                f"{bound}: lens {lens.name} gives the neurons of {bound.layer} no weight in sum, "
                "so that there are no distances in it; take another layer, or leave it out"
            )
        for network in networks:
            try:
                lens.require_weights(network.weights_sha256, network.name)
            except SpecMismatch as error:
                raise UsageError(f"{bound}: {error}") from error

    def _found(self, bound: DistanceBound, name: str) -> Lens | None:
        """Reads a lens; returns None if its layers are not known before there are datasets."""
        if name not in self._read:
            self._require_there(bound, name)
            try:
                spec = spec_of_lens(self._catalogue, name)
                self._read[name] = find_lens(self._catalogue, name, spec)
            except CorruptFile as error:
                raise UsageError(f"{bound}: {error}") from error
            except (NotFound, SpecMismatch, UsageError):  # the spec may be another after the builds
                self._read[name] = None
        return self._read[name]

    def _require_there(self, bound: DistanceBound, name: str) -> None:
        lenses = newest_lenses(self._catalogue)
        is_file = name.endswith(".parquet")
        if storage.exists(storage.canonical(name)) if is_file else name in lenses:
            return
        present = ", ".join(sorted(lenses)) or "none"
        raise UsageError(
            f"{bound}: there is no lens {name!r}; {self._catalogue.root} has {present}. The "
            "name of a file must end in .parquet"
        )
