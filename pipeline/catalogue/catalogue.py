"""The catalogue: datasets and their files, by the name of the dataset.

    >>> catalogue = Catalogue("s3://bucket/dnas")                        # doctest: +SKIP
    >>> catalogue.load("cityscapes").images, catalogue.names()

`log.py` reads and appends its commits, `layout.py` says where its objects lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue.changes import with_version
from pipeline.catalogue.commit import ON_DISK, Commit, Footer, Version, canonical_json
from pipeline.catalogue.commit_log import CommitLog
from pipeline.errors import CorruptFile, NotFound, SourceError, UsageError
from pipeline.spec import Spec

if TYPE_CHECKING:
    from mmap import mmap

    from pipeline.dna import DNA, DnaFile, Exemplars, Failure, Ranges
    from pipeline.sources import Manifest

_DIGEST = re.compile(r"[0-9a-f]{32}")


class Catalogue(CommitLog):
    """A place for DNAs. Making one does no I/O; its first commit creates it.

    Attributes:
        root: The canonical url of the catalogue.
    """

    def put_version(
        self,
        dataset: str,
        new: Version,
        base: Version | None,
        action: str = "build",
        parts: Mapping[str, Version] | None = None,
    ) -> Commit:
        """Commits a version as the dataset's current one under its spec.

        Args:
            dataset: The dataset's name.
            new: The version; its files must be stored already.
            base: The version that the new one was built upon; None for the first.
            action: What was done, for the log.
            parts: All parts that the dataset has, by their names.

        Returns:
            The new commit, or the newest one if it already holds the version.

        Raises:
            Conflict: If another writer has committed a version other than `base` and `new`
                meanwhile, or if a name is taken: see `with_version`.
        """
        return self.append(
            f"{action} {dataset}", lambda head: with_version(head, dataset, new, base, parts)
        )

    def names(self, at: int | str | None = None, spec: str | None = None) -> list[str]:
        """Lists the datasets that have a version under a spec.

        Args:
            at: The state to look in, as `at` takes it.
            spec: The beginning of the spec's digest; None for the default spec.

        Returns:
            Their names, sorted.

        Raises:
            NotFound: If there is no such state or spec.
        """
        commit = self.at(at)
        if not commit.datasets:
            return []
        chosen = self.spec_digest(commit, spec)
        return sorted(name for name, specs in commit.datasets.items() if chosen in specs)

    def spec_digest(self, commit: Commit, prefix: str | None = None) -> str:
        """Completes the digest of a spec.

        Args:
            commit: The commit to look in.
            prefix: The beginning of the digest; None for the catalogue's default spec.

        Returns:
            The digest.

        Raises:
            NotFound: If no spec, or several, begin so.
        """
        if prefix is None:
            if commit.default_spec is None:
                raise NotFound(f"{self.root} holds no dataset yet")
            return commit.default_spec
        known = sorted({spec for specs in commit.datasets.values() for spec in specs})
        found = [spec for spec in known if spec.startswith(prefix)]
        if len(found) != 1:
            raise NotFound(
                f"{len(found)} specs of {self.root} begin with {prefix!r}; there are: "
                f"{', '.join(known) or 'none'}"
            )
        return found[0]

    def find(self, name: str, at: int | str | None = None, spec: str | None = None) -> Version:
        """Finds a dataset's version.

        Args:
            name: The dataset.
            at: The state to look in, as `at` takes it.
            spec: The beginning of the spec's digest; None for the dataset's only spec, or else the
                catalogue's default.

        Returns:
            The version.

        Raises:
            NotFound: If there is none. The message names what there is.
        """
        return self._find(self.at(at), name, spec)

    def find_all(
        self, names: Iterable[str], at: int | str | None = None, spec: str | None = None
    ) -> dict[str, Version]:
        """Finds the versions of many datasets in one commit, which is read once.

        Args:
            names: The datasets.
            at: As in `find`.
            spec: As in `find`.

        Returns:
            The versions, by dataset.

        Raises:
            NotFound: If one of them has none.
        """
        commit = self.at(at)
        return {name: self._find(commit, name, spec) for name in names}

    def _find(self, commit: Commit, name: str, spec: str | None) -> Version:
        if name not in commit.datasets:
            raise NotFound(
                f"{self.root} has no dataset {name!r}; it has: "
                f"{', '.join(sorted(commit.datasets)) or 'none'}"
            )
        versions = commit.datasets[name]
        if spec is None and len(versions) == 1:
            return next(iter(versions.values()))
        digest = self.spec_digest(commit, spec)
        if digest not in versions:
            raise NotFound(
                f"{name} has no version under spec {digest}; it has one under: "
                f"{', '.join(sorted(versions))} (choose with --spec)"
            )
        return versions[digest]

    def load(
        self,
        name: str,
        *,
        at: int | str | None = None,
        spec: str | None = None,
        layers: Sequence[str] | None = None,
        layer_gaussian: bool = False,
    ) -> DNA:
        """Reads a dataset's DNA and checks what is read of its file.

        Args:
            name: The dataset.
            at: As in `find`.
            spec: As in `find`.
            layers: The layers to read; None for all.
            layer_gaussian: Whether to read the layers' scatter matrices too, which are a file of
                their own.

        Returns:
            The DNA.

        Raises:
            NotFound: If there is no such dataset, or it was built without scatter matrices.
            CorruptFile: If a file is not the one that was committed.
        """
        version = self.find(name, at, spec)
        return self.load_version(name, version, layers, layer_gaussian=layer_gaussian)

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
            layers: As in `load`.
            layer_gaussian: As in `load`.

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
        file = None if layers is None else _open_part(uri, kind, footer, layers)
        if file is None:
            data = self.read_checked(kind, name, version)
            file = DnaFile(storage.on_disk(data) if on_disk else data, kind, uri)
            _require_footer(uri, Footer.of(data), footer)
        dataset = file.metadata.get("dataset")
        if (dataset, file.spec.digest) != (name, version.spec):
            raise CorruptFile(
                f"{uri} is of {dataset} under spec {file.spec.digest}, not of {name} under "
                f"{version.spec}"
            )
        committed = {
            "digest": version.dna,
            "manifest": version.manifest,
            "images": version.images,
            "failed": version.failed,
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
        uri = self.uri("manifests", version.spec, name, version.manifest)
        return _manifest(self.read_checked("manifests", name, version), uri, version.manifest)

    def note_plan(self, dataset: str, spec: str, manifest: str, products: Sequence[str]) -> None:
        """Notes the plan of a build that begins, for `planned`.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.
            manifest: Digest of the manifest, which must be stored already.
            products: What the build keeps beside the histograms.
        """
        plan = {"manifest": manifest, "products": list(products)}
        storage.replace(self.plan_uri(dataset, spec), canonical_json(plan))

    def planned(self, dataset: str, spec: str) -> tuple[Manifest, tuple[str, ...]] | None:
        """Reads the plan of the build of a dataset that began last, committed or not.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.

        Returns:
            The manifest and the products. None if no readable plan is noted.

        Raises:
            CorruptFile: If the manifest is not the one that the plan names.
        """
        try:
            plan = json.loads(storage.read(self.plan_uri(dataset, spec)))
            digest, products = str(plan["manifest"]), tuple(map(str, plan["products"]))
        except (SourceError, ValueError, TypeError, KeyError):
            return None
        uri = self.uri("manifests", spec, dataset, digest)
        if not _DIGEST.fullmatch(digest) or not storage.exists(uri):
            return None
        return _manifest(storage.read_on_disk(uri), uri, digest), products

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
            kind: One of `KINDS`; those of `ON_DISK` are read into a temporary file and mapped.
            name: The dataset.
            version: The version.

        Returns:
            The file's bytes.

        Raises:
            CorruptFile: If it is not the file that was committed.
            NotFound: If the version has no file of that kind.
        """
        _require_file(kind, name, version)
        stated = version.sha256[kind]
        uri = self.uri(kind, version.spec, name, version.digest_in(kind))
        data = storage.read_on_disk(uri) if kind in ON_DISK else storage.read(uri)
        found = sha256(data)
        if found != stated:
            raise CorruptFile(
                f"{uri} has sha256 {found}; {stated} was committed. Restore it, or delete it and "
                "build the dataset again"
            )
        return data

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
            raise CorruptFile(f"{uri} holds spec {spec.digest}; restore the file")
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


def _manifest(data: bytes | mmap, uri: str, digest: str) -> Manifest:
    from pipeline.sources import Manifest

    manifest = Manifest.decode(data, uri)
    if manifest.digest != digest:
        raise CorruptFile(
            f"{uri} holds the manifest {manifest.digest}; delete it and build the dataset again"
        )
    return manifest


def _require_file(kind: str, name: str, version: Version) -> None:
    if kind not in version.sha256:
        option = {"layer_gaussians": "--layer-gaussian", "exemplars": "--exemplars 8"}
        why = "it was imported" if version.imported else f"build it with {option[kind]}"
        raise NotFound(f"{name} has no {kind.replace('_', ' ')}: {why}")


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
