"""The lenses of a catalogue, by name: the newest of a name is the one that is used.

>>> keep_lens(Catalogue("dnas"), lens)                           # doctest: +SKIP
>>> find_lens(Catalogue("dnas"), "no-fog", spec)                 # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.names import check_name
from pipeline.dna import UNIFORM, Lens
from pipeline.errors import CorruptFile, NotFound, SourceError, UsageError
from pipeline.spec import Spec

MAX_LENS_BYTES = 2**26
"""The largest file of a lens that is read. A million neurons take less than half of it."""


def check_lens_name(name: str) -> str:
    """Checks the name under which a lens is to be kept.

    Args:
        name: The name.

    Returns:
        The name.

    Raises:
        UsageError: If it ends like a file's name, is reserved, or has characters that no name may
            have.
    """
    if name.endswith(".parquet"):
        raise UsageError(f"lens name {name!r} looks like a file's; leave .parquet out")
    if name == UNIFORM:
        raise UsageError(f"lens name {name!r} is reserved for comparing without a lens; rename it")
    return check_name(name, "lens")


def keep_lens(catalogue: Catalogue, lens: Lens) -> str:
    """Stores a lens in the catalogue, as the newest of its name.

    Args:
        catalogue: The catalogue.
        lens: The lens.

    Returns:
        The url of its file.

    Raises:
        UsageError: If no lens may have its name.
    """
    uri = storage.join(catalogue.lenses_uri(check_lens_name(lens.name)), f"{lens.digest}.parquet")
    written, before = datetime.now(UTC), newest_lenses(catalogue).get(lens.name)
    if before is not None:  # its time may be of a clock that runs ahead of ours
        written = max(written, _age(before)[1] + timedelta(microseconds=1))
    storage.replace(uri, lens.encode(written=written))
    return uri


def find_lens(catalogue: Catalogue, name: str, spec: Spec) -> Lens:
    """Reads a lens for DNAs of one spec.

    Args:
        catalogue: The catalogue.
        name: The name of a lens of the catalogue, of which the newest is taken; or the path or url
            of a file, which ends in `.parquet`.
        spec: The spec of the DNAs to look at.

    Returns:
        The lens.

    Raises:
        NotFound: If there is no such lens.
        CorruptFile: If its file is torn.
        UsageError: If it has weights for other layers or neurons than the spec has.
        SpecMismatch: If it was fitted to a network with other weights.
    """
    lens = Lens.decode(*_read(catalogue, name), spec)
    lens.require_fit(spec)
    return lens


def spec_of_lens(catalogue: Catalogue, name: str) -> Spec:
    """Finds the spec that a lens belongs to.

    Args:
        catalogue: The catalogue.
        name: As in `find_lens`.

    Returns:
        The spec that the lens was fitted under, if it is in the catalogue; else one with the same
        layers and neurons; else the default spec.

    Raises:
        NotFound: If there is no such lens, or no dataset.
        CorruptFile: If its file is torn.
    """
    stated = Lens.read_description(*_read(catalogue, name))
    fitted_under = stated["provenance"].get("spec")
    if isinstance(fitted_under, str) and storage.exists(catalogue.spec_uri(fitted_under)):
        return catalogue.spec(fitted_under)
    head = catalogue.head()
    for digest in sorted({digest for specs in head.datasets.values() for digest in specs}):
        spec = catalogue.spec(digest)
        if [[tap.name, tap.neurons] for tap in spec.taps] == stated.get("taps"):
            return spec
    return catalogue.spec(catalogue.spec_digest(head))


def _read(catalogue: Catalogue, name: str) -> tuple[bytes, str]:
    """Reads the file of a lens, and returns it with the name that errors give it."""
    if name.endswith(".parquet"):
        data = storage.read(storage.canonical(name), most=MAX_LENS_BYTES)
        return data, name.rpartition("/")[2].removesuffix(".parquet")
    newest = newest_lenses(catalogue)
    if check_name(name, "lens") not in newest:
        raise NotFound(
            f"{catalogue.root} has no lens {name!r}; it has {', '.join(sorted(newest)) or 'none'}. "
            "The name of a file must end in .parquet"
        )
    uri = newest[name].uri
    return storage.read(uri), uri


def newest_lenses(catalogue: Catalogue) -> dict[str, storage.Stored]:
    """Finds the newest lens of each name in the catalogue.

    Args:
        catalogue: The catalogue.

    Returns:
        The lenses' files, by name.
    """
    root = catalogue.lenses_uri()
    by_name: defaultdict[str, list[storage.Stored]] = defaultdict(list)
    try:
        for item in storage.walk(root):
            if item.uri.endswith(".parquet"):
                by_name[item.uri.removeprefix(f"{root}/").rpartition("/")[0]].append(item)
    except SourceError:
        return {}
    return {name: _newest(items) for name, items in by_name.items()}


def lenses_fitted_on(catalogue: Catalogue, is_one: Callable[[str, str], bool]) -> tuple[str, ...]:
    """Finds the lenses of the catalogue that were fitted on one of some DNAs, also older ones.

    Args:
        catalogue: The catalogue.
        is_one: Tells by the name of a dataset, as it was given, and the digest of its DNA whether
            it is one of these.

    Returns:
        The urls of their files.
    """
    found = []
    with contextlib.suppress(SourceError):
        for item in storage.walk(catalogue.lenses_uri()):
            if item.uri.endswith(".parquet") and any(
                is_one(name, dna) for name, dna in _fitted_on_dnas(item.uri)
            ):
                found.append(item.uri)
    return tuple(sorted(found))


def _fitted_on_dnas(uri: str) -> Iterator[tuple[str, str]]:
    """Yields each dataset that a lens was fitted on, with its DNA's digest; none of other files."""
    with contextlib.suppress(CorruptFile, SourceError):
        stated = Lens.read_description(storage.read(uri), uri)["provenance"]
        sample = stated.get("sample")
        for of in (stated, sample):
            members = of.get("members") if isinstance(of, dict) else None
            if isinstance(members, dict):
                yield from ((str(name), str(dna)) for name, dna in members.items())


def _newest(items: Sequence[storage.Stored]) -> storage.Stored:
    return items[0] if len(items) == 1 else max(items, key=lambda item: (*_age(item), item.uri))


def _age(item: storage.Stored) -> tuple[bool, datetime]:
    """Returns a key that sorts lenses by age, first those that state no time of writing.

    The stated time comes before the file's, because a copied catalogue has the times of copying.
    """
    with contextlib.suppress(CorruptFile, SourceError):
        stated = Lens.read_description(storage.read(item.uri), item.uri)
        if written := stated.get("written"):
            return True, written
    return False, item.modified or datetime.min.replace(tzinfo=UTC)
