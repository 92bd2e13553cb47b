"""Reads the files of a version, each checked against what its commit states.

>>> Catalogue("dnas").manifest("sunny", version).candidates      # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue.commit import ON_DISK, Footer, Version
from pipeline.catalogue.commit_log import CommitLog
from pipeline.catalogue.version_names import dataset_of
from pipeline.errors import CorruptFile, NoBucket, NotFound, SourceError, UsageError
from pipeline.spec import IMAGE_HASHES, Spec
from pipeline.wording import option

if TYPE_CHECKING:
    from mmap import mmap

    from pipeline.dna import DNA, DnaFile, Exemplars, Failure, HashRows, Ranges
    from pipeline.sources import Manifest


class VersionFiles(CommitLog):
    """Reads the files that the commits of a catalogue name."""

    def load_version(
        self,
        name: str,
        version: Version,
        layers: Sequence[str] | None = None,
        *,
        layer_gaussian: bool = False,
    ) -> DNA:
        """Reads the DNA of a version that was found before.

        Args:
            name: The dataset.
            version: The version.
            layers: The layers to read; None for all.
            layer_gaussian: Whether to read the layers' scatter matrices too.

        Returns:
            The DNA.

        Raises:
            NotFound: If it was built without scatter matrices and they are asked for.
            CorruptFile: If a file is not the one that was committed.
        """
        dna = self.open_file("dna", name, version, layers).read(layers)
        if not layer_gaussian:
            return dna
        return self.open_file("layer_gaussians", name, version, layers).read_gaussians(dna)

    def open_file(
        self,
        kind: str,
        name: str,
        version: Version,
        layers: Sequence[str] | None = None,
        *,
        on_disk: bool = False,
    ) -> DnaFile:
        """Opens a version's DNA, folds or layer Gaussians, to read it layer by layer.

        Args:
            kind: `dna`, `folds` or `layer_gaussians`.
            name: The dataset.
            version: The version.
            layers: The layers that will be read. If they are not all, only these are fetched and
                checked, and they are kept in a temporary file.
            on_disk: Whether to keep a file that is read whole in a temporary file. Layer Gaussians
                are kept in one anyway.

        Returns:
            The file.

        Raises:
            CorruptFile: If the file is not the one that was committed, or is another dataset's or
                version's.
            NotFound: If the version has no such file.
        """
        from pipeline.dna import DnaFile

        uri = self.uri(kind, version.spec, name, version.dna)
        _require_file(kind, name, version)
        footer = version.footers[kind]
        file = None
        if layers is not None:
            with _if_missing(uri, name, version):
                file = _open_part(uri, kind, footer, layers)
        if file is None:
            data = self.read_checked(kind, name, version)
            file = DnaFile(storage.on_disk(data) if on_disk else data, kind, uri)
            _require_footer(uri, Footer.of(data), footer)
        dataset = file.metadata.get("dataset")
        if (dataset, file.spec.digest) != (dataset_of(name), version.spec):
            raise CorruptFile(
                f"{uri} belongs to {dataset} under spec {file.spec.digest}, not to {name} under "
                f"{version.spec}"
            )
        committed = {
            "digest": version.dna,
            "manifest": version.manifest,
            "images": version.images,
            "failed": version.failed,
            "transparent": version.transparent,
            "single_colour": version.single_colour,
        }
        for field, value in committed.items():
            if file.metadata.get(field) != value:
                raise CorruptFile(
                    f"{uri} states {field} {file.metadata.get(field)}; {value} was committed"
                )
        return file

    def manifest(self, name: str, version: Version) -> Manifest:
        """Reads a version's manifest.

        Args:
            name: The dataset.
            version: The version.

        Returns:
            The manifest.

        Raises:
            CorruptFile: If the file is not the one that was committed.
            NotFound: If the version was imported, and so has none.
        """
        uri = self.uri("manifests", version.spec, name, version.digest_in("manifests"))
        data = bytes(self.read_checked("manifests", name, version))
        return decode_manifest(data, uri, version.manifest, self.entries_uri)

    def exemplars(self, name: str, version: Version) -> Exemplars:
        """Reads the images that activate each neuron of a version most.

        Args:
            name: The dataset.
            version: The version.

        Returns:
            The exemplars.

        Raises:
            CorruptFile: If the file is not the one that was committed.
            NotFound: If the version has none.
        """
        from pipeline.dna import Exemplars

        uri = self.uri("exemplars", version.spec, name, version.dna)
        data = self.read_checked("exemplars", name, version)
        return Exemplars.decode(data, uri, self.spec(version.spec))

    def image_hashes(self, name: str, version: Version) -> HashRows:
        """Reads the hashes of a version's images.

        Args:
            name: The dataset.
            version: The version.

        Returns:
            A row of the type `HASH_ROW` for each candidate, in the order of the manifest.

        Raises:
            CorruptFile: If the file is not the one that was committed.
            NotFound: If the version has none.
        """
        from pipeline.dna import READ, decode_image_hashes

        uri = self.uri(IMAGE_HASHES, version.spec, name, version.dna)
        data = self.read_checked(IMAGE_HASHES, name, version)
        rows = decode_image_hashes(data, uri, version.manifest)
        read = int((rows["flags"] & READ).sum())
        if (read, len(rows) - read) != (version.images, version.failed):
            raise CorruptFile(
                f"{uri} has hashes of {read} of {len(rows)} candidates; {version.images} counted "
                f"and {version.failed} failed were committed"
            )
        return rows

    def failures(self, name: str, version: Version) -> list[Failure]:
        """Reads the list of images that a build could not read.

        Args:
            name: The dataset.
            version: The version.

        Returns:
            The failures.

        Raises:
            CorruptFile: If the file is not the one that was committed.
            NotFound: If the version was imported, and so has no list.
        """
        from pipeline.dna import decode_failures

        uri = self.uri("failures", version.spec, name, version.dna)
        failures = decode_failures(self.read_checked("failures", name, version), uri)
        if len(failures) != version.failed:
            raise CorruptFile(
                f"{uri} lists {len(failures)} failures, {version.failed} were committed"
            )
        return failures

    def read_checked(self, kind: str, name: str, version: Version) -> bytes | mmap:
        """Reads one of a version's files and compares its sha256 with the commit's.

        Args:
            kind: One of `VERSION_FILES`; those of `ON_DISK` are read into a temporary file and
                mapped.
            name: The dataset.
            version: The version.

        Returns:
            The file's bytes.

        Raises:
            CorruptFile: If it is not the file that was committed.
            NotFound: If the version has no file of that kind.
            SourceError: If the file is not there any more, or that of another version is.
        """
        _require_file(kind, name, version)
        stated = version.sha256[kind]
        uri = self.uri(kind, version.spec, name, version.digest_in(kind))
        with _if_missing(uri, name, version):
            data = storage.read_on_disk(uri) if kind in ON_DISK else storage.read(uri)
        found = sha256(data)
        if found != stated:
            if self._is_of_another(kind, name, version, found):
                raise SourceError(
                    f"{name}: {uri} is the file of another version of the same images. `vdna gc` "
                    "had removed the files of this one; choose a version that is kept, or build it "
                    f"again from {version.source}"
                )
            raise CorruptFile(
                f"{uri} has sha256 {found}; {stated} was committed. Restore it, or delete it and "
                "build the dataset again"
            )
        return data

    def _is_of_another(self, kind: str, name: str, version: Version, found: str) -> bool:
        """Tells whether a file that lies in a version's place was committed for another one.

        Manifests of the same images lie in the same place. Two of them differ if they point into
        different lists of candidates. An erasure may have replaced the other version since.

        Args:
            kind: The file's kind.
            name: The dataset.
            version: The version.
            found: The sha256 of the file that is there.

        Returns:
            Whether a commit states that file for its version of the dataset.
        """
        place = version.digest_in(kind)
        for commit in self.log_as_made(self.head()):
            other = commit.datasets.get(name, {}).get(version.spec)
            if other and (other.digest_in(kind), other.sha256.get(kind)) == (place, found):
                return True
        return False

    def files(self, name: str, version: Version) -> dict[str, str]:
        """Names the files of a version.

        Args:
            name: The dataset, or the part of one.
            version: The version.

        Returns:
            The url of each file, by its kind.
        """
        return {
            kind: self.uri(kind, version.spec, name, version.digest_in(kind))
            for kind in version.sha256
        }

    def spec(self, digest: str) -> Spec:
        """Reads a spec.

        Args:
            digest: Its whole digest.

        Returns:
            The spec.

        Raises:
            CorruptFile: If the file does not hold the spec of that digest.
        """
        uri = self.spec_uri(digest)
        try:
            spec = Spec.from_json(json.loads(storage.read(uri)))
        except (ValueError, TypeError, CorruptFile, UsageError) as error:
            raise CorruptFile(f"{uri}: not a spec: {error}") from error
        if spec.digest != digest:
            raise CorruptFile(
                f"{uri} should hold spec {digest}, but holds {spec.digest}; restore the file"
            )
        return spec

    def ranges(self, digest: str) -> Ranges:
        """Reads ranges.

        Args:
            digest: Their whole digest.

        Returns:
            The ranges.

        Raises:
            CorruptFile: If the file does not hold the ranges of that digest.
            SourceError: If there is no such file.
        """
        from pipeline.networks import decode_ranges

        uri = self.ranges_uri(digest)
        ranges, _ = decode_ranges(storage.read(uri), uri)
        if ranges.digest != digest:
            raise CorruptFile(
                f"{uri} should hold ranges {digest}, but holds {ranges.digest}; restore the file"
            )
        return ranges


def decode_manifest(data: bytes, uri: str, digest: str, entries_uri: str) -> Manifest:
    """Decodes a manifest and checks its digest; its candidates are in the folder `entries_uri`."""
    from pipeline.sources import Entries, Manifest

    manifest = Manifest.decode(data, uri, Entries(entries_uri))
    if manifest.digest != digest:
        raise CorruptFile(
            f"{uri} should hold manifest {digest}, but holds {manifest.digest}; delete "
            "it and build "
            "the dataset again"
        )
    return manifest


def _require_file(kind: str, name: str, version: Version) -> None:
    if kind not in version.sha256:
        keeps = {
            "layer_gaussians": ("layer_gaussian", True),
            "exemplars": ("exemplars", 8),
            IMAGE_HASHES: (IMAGE_HASHES, True),
        }
        why = "it was imported" if version.imported else f"build it with {option(*keeps[kind])}"
        raise NotFound(f"{name} has no {kind.replace('_', ' ')}: {why}")


@contextmanager
def _if_missing(uri: str, name: str, version: Version) -> Iterator[None]:
    """Says of a file of a version that is not there why that may be."""
    try:
        yield
    except NoBucket:
        raise
    except SourceError as error:
        raise SourceError(
            f"{name}: {uri} is missing. `vdna gc` has removed the files of this version, or they "
            f"were lost; choose a version that is kept, or build it again from {version.source}"
        ) from error


def _open_part(uri: str, kind: str, stated: Footer, layers: Sequence[str]) -> DnaFile | None:
    """Opens a file with these layers only.

    The file is read in two requests. If it is replaced between them, the digests in the footer
    tell, unless the new file is the same.

    Returns:
        The file. None if these are all its layers.
    """
    from pipeline.dna import DnaFile

    tail = storage.read_range(uri, stated.start, stated.size)
    _require_footer(uri, Footer.of(tail, stated.start), stated)
    head = DnaFile(tail, kind, uri, start=stated.start)
    if set(layers) >= set(head.spec.layers):
        return None
    parts = storage.read_spans(uri, [head.span(layer) for layer in layers])
    data = storage.sparse(stated.start + stated.size, chain([(stated.start, tail)], parts))
    return DnaFile(data, kind, uri, layers=layers)


def _require_footer(uri: str, found: Footer, stated: Footer) -> None:
    if found != stated:
        raise CorruptFile(
            f"{uri}: its footer has sha256 {found.sha256}, at {found.start}; {stated.sha256}, at "
            f"{stated.start}, was committed. Restore it, or delete it and build the dataset again"
        )
