"""The lenses of a catalogue, by name: the newest of a name is the one that is used.

>>> keep(Catalogue("dnas"), lens)                                # doctest: +SKIP
>>> find_lens(Catalogue("dnas"), "no-fog", spec)                 # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.names import check_name
from pipeline.dna import UNIFORM, Lens
from pipeline.errors import CorruptFile, NotFound, SourceError, SpecMismatch, UsageError
from pipeline.spec import Spec


def check_lens(name: str) -> str:
    """The name of a lens to keep. Raises `UsageError` for one that is a file's, or no lens's."""
    if name.endswith(".parquet"):
        raise UsageError(f"lens is named {name!r}, as a file is; leave .parquet out")
    if name == UNIFORM:
        raise UsageError(f"lens is named {name!r}, which says that there is none; rename it")
    return check_name(name, "lens")


def keep(catalogue: Catalogue, lens: Lens) -> str:
    """Store it in the catalogue, under its name; its uri."""
    uri = storage.join(catalogue.lenses_uri(check_lens(lens.name)), f"{lens.digest}.parquet")
    written, before = datetime.now(UTC), newest_lenses(catalogue).get(lens.name)
    if before is not None:  # which another clock may have told
        written = max(written, _age(before)[1] + timedelta(microseconds=1))
    storage.replace(uri, lens.encode(written=written))
    return uri


def find_lens(catalogue: Catalogue, name: str, spec: Spec) -> Lens:
    """A file's, or the newest of that name in the catalogue, to look at what is of this spec.

    Raises `NotFound`, `CorruptFile`, `UsageError` where its neurons are others, and `SpecMismatch`
    where it was fitted to those of other weights.
    """
    lens = Lens.decode(*_read(catalogue, name), spec)
    weights = lens.provenance.get("weights_sha256", spec.weights_sha256)
    if weights != spec.weights_sha256:
        raise SpecMismatch(
            f"lens {lens.name} was fitted to neurons with the weights {weights} (spec "
            f"{lens.provenance.get('spec')}), and these are of {spec.extractor} with "
            f"{spec.weights_sha256} (spec {spec.digest})"
        )
    return lens


def spec_of_lens(catalogue: Catalogue, name: str) -> Spec:
    """The spec that it was fitted under; of another lens any with its layers. Raises as above."""
    stated = Lens.stated(*_read(catalogue, name))
    of = stated["provenance"].get("spec")
    if isinstance(of, str) and storage.exists(catalogue.spec_uri(of)):
        return catalogue.spec(of)
    head = catalogue.head()
    for digest in sorted({digest for specs in head.datasets.values() for digest in specs}):
        spec = catalogue.spec(digest)
        if [[tap.name, tap.neurons] for tap in spec.taps] == stated.get("taps"):
            return spec
    return catalogue.spec(catalogue.spec_digest(head))


def _read(catalogue: Catalogue, name: str) -> tuple[bytes, str]:
    """Its file, and how that is named."""
    if name.endswith(".parquet"):
        data = storage.read(storage.canonical(name))
        return data, name.rpartition("/")[2].removesuffix(".parquet")
    there = newest_lenses(catalogue)
    if check_name(name, "lens") not in there:
        raise NotFound(
            f"{catalogue.root} has no lens {name!r}; it has {', '.join(sorted(there)) or 'none'}, "
            "and a file's name ends in .parquet"
        )
    uri = there[name].uri
    return storage.read(uri), uri


def newest_lenses(catalogue: Catalogue) -> dict[str, storage.Stored]:
    """The newest of each name in the catalogue."""
    root = catalogue.lenses_uri()
    by_name: defaultdict[str, list[storage.Stored]] = defaultdict(list)
    try:
        for item in storage.walk(root):
            if item.uri.endswith(".parquet"):
                by_name[item.uri.removeprefix(f"{root}/").rpartition("/")[0]].append(item)
    except SourceError:
        return {}
    return {name: _newest(items) for name, items in by_name.items()}


def _newest(items: Sequence[storage.Stored]) -> storage.Stored:
    return items[0] if len(items) == 1 else max(items, key=lambda item: (*_age(item), item.uri))


def _age(item: storage.Stored) -> tuple[bool, datetime]:
    """When a lens says that it was written; before those that do, by its file's time, any other.

    A catalogue's copy has the times of the copying.
    """
    with contextlib.suppress(CorruptFile, SourceError):
        stated = Lens.stated(storage.read(item.uri), item.uri)
        if written := stated.get("written"):
            return True, written
    return False, item.modified or datetime.min.replace(tzinfo=UTC)
