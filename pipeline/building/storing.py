"""Stores the files of a version, each under a name made of its content."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from pipeline import storage
from pipeline.buffers import Data, sha256
from pipeline.catalogue import Catalogue
from pipeline.errors import CorruptFile
from pipeline.sources import Manifest


def store_manifest(uri: str, manifest: Manifest) -> Data:
    """Stores a manifest, unless a sound one of the same digest is there.

    The one that is there is kept because it may hold other notes on the listing, which no digest
    covers. Its candidates may be in other files, if another release of a library wrote them.

    Args:
        uri: Where the manifest belongs.
        manifest: The manifest; its candidates are stored already.

    Returns:
        The bytes that are stored now.
    """

    def is_sound(existing: Data) -> bool:
        try:
            found = Manifest.decode(bytes(existing), uri, manifest.entries)
        except CorruptFile:
            return False
        others = sorted(set(found.files).difference(manifest.files))
        if found.digest != manifest.digest or manifest.entries.missing(others):
            return False
        manifest.entries.renew(others)
        return True

    return _store(uri, manifest.data, is_sound)


def store_version(
    catalogue: Catalogue, name: str, spec: str, digest: str, files: Mapping[str, Data]
) -> dict[str, Data]:
    """Stores the files of a version, and keeps those that a commit refers to.

    A dataset may come back to an earlier state, or be imported again. Another release of a library
    may then write the same numbers in other bytes, but earlier commits state the sha256 of the old
    bytes.

    Args:
        catalogue: Where to store them.
        name: Name of the dataset.
        spec: Digest of its spec.
        digest: Digest of its DNA.
        files: Their bytes, by kind (`dna`, `folds`, ...).

    Returns:
        The bytes that are stored now, by kind.
    """

    @functools.cache
    def committed() -> Mapping[str, str]:
        for commit in catalogue.log():
            version = commit.datasets.get(name, {}).get(spec)
            if version is not None and version.dna == digest:
                return version.sha256
        return {}

    def store(kind: str, data: Data) -> Data:
        def is_committed(existing: Data) -> bool:
            found = sha256(existing)
            return found != sha256(data) and found == committed().get(kind)

        return _store(catalogue.uri(kind, spec, name, digest), data, is_committed)

    return {kind: store(kind, data) for kind, data in files.items()}


def _store(uri: str, data: Data, is_kept: Callable[[Data], bool]) -> Data:
    """Returns the bytes that are at `uri` now: what was there if `is_kept`, else `data`.

    Bytes that are kept are written again all the same. So the object is young, and a garbage
    collection that runs beside this build leaves it.
    """
    # What `create` finds of the same bytes may count as written now, and be old.
    if not storage.exists(uri) and storage.create(uri, data):
        return data
    existing = storage.read_on_disk(uri)
    kept = existing if is_kept(existing) else data
    storage.replace(uri, kept)
    return kept
