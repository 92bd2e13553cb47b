"""The catalogue: datasets and their files, by the name of the dataset.

    >>> catalogue = Catalogue("s3://bucket/dnas")                        # doctest: +SKIP
    >>> catalogue.load("cityscapes").images, catalogue.names()

`version_files.py` reads the files of a version, `commit_log.py` reads and appends the commits, and
`layout.py` says where objects lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import reduce
from typing import TYPE_CHECKING, get_args

from pipeline import storage
from pipeline.catalogue.changes import with_version
from pipeline.catalogue.commit import Commit, Version, canonical_json
from pipeline.catalogue.version_files import VersionFiles, decode_manifest
from pipeline.errors import NotFound, SourceError
from pipeline.spec import Backend
from pipeline.wording import option

if TYPE_CHECKING:
    from pipeline.dna import DNA
    from pipeline.sources import Manifest

_DIGEST = re.compile(r"[0-9a-f]{32}")


class Catalogue(VersionFiles):
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
        commit = self.head() if at is None else self.at(at)
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
                raise self._absent()
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
            near = get_close_matches(name, commit.datasets, 1)
            raise NotFound(
                f"{self.root} has no dataset {name!r}; it has: "
                f"{', '.join(sorted(commit.datasets)) or 'none'}"
                + (f". Did you mean {near[0]}?" if near else "")
            )
        versions = commit.datasets[name]
        if spec is None and len(versions) == 1:
            return next(iter(versions.values()))
        digest = self.spec_digest(commit, spec)
        if digest not in versions:
            raise NotFound(
                f"{name} has no version under spec {digest}; it has one under: "
                f"{', '.join(sorted(versions))} (choose with {option('spec')})"
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
        folds: bool = False,
    ) -> DNA:
        """Reads a dataset's DNA and checks what is read of its file.

        Args:
            name: The dataset.
            at: As in `find`.
            spec: As in `find`.
            layers: The layers to read; None for all.
            layer_gaussian: Whether to read the layers' scatter matrices too, which are a file of
                their own.
            folds: Whether to read the folds too, a larger file of their own. `emd` of two DNAs with
                folds has error bars.

        Returns:
            The DNA.

        Raises:
            NotFound: If there is no such dataset, or it was built without scatter matrices, or
                imported without folds.
            CorruptFile: If a file is not the one that was committed.
        """
        version = self.find(name, at, spec)
        dna = self.load_version(name, version, layers, layer_gaussian=layer_gaussian)
        if not folds:
            return dna
        from pipeline.dna import HeldFolds

        file = self.open_file("folds", name, version, layers)
        held = (HeldFolds.of(file.read_folds(layer).items()) for layer in dna.layers)
        return replace(dna, folds=reduce(HeldFolds.__add__, held, HeldFolds()))

    def note_plan(
        self,
        dataset: str,
        spec: str,
        manifest: str,
        products: Sequence[str],
        backend: Backend,
        selection: Mapping[str, str | int] | None = None,
        base: str = "",
    ) -> None:
        """Notes the plan of a build that begins, for `planned`.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.
            manifest: Digest of the manifest, which must be stored already.
            products: What the build keeps beside the histograms.
            backend: What runs the network.
            selection: The options that chose the images, and those that grouped them.
            base: Digest of the manifest of the version that the build began with, if there is one.
        """
        plan = {
            "manifest": manifest,
            "products": list(products),
            "backend": backend,
            "selection": dict(selection or {}),
            "base": base,
        }
        storage.replace(self.plan_uri(dataset, spec), canonical_json(plan))

    def planned_backend(self, dataset: str, spec: str) -> Backend | None:
        """Reads what ran the network in the build of a dataset that began last.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.

        Returns:
            The backend, or None if no readable plan is noted.
        """
        try:
            noted = json.loads(storage.read(self.plan_uri(dataset, spec)))["backend"]
        except (SourceError, ValueError, TypeError, KeyError):
            return None
        return next((each for each in get_args(Backend) if each == noted), None)

    def planned_selection(self, dataset: str, spec: str) -> tuple[dict[str, str | int], str] | None:
        """Reads which options chose the images of the plan that was noted last, and its base.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.

        Returns:
            The options, and the digest of the manifest of the version that the build began with.
            None if no readable plan is noted.
        """
        try:
            plan = json.loads(storage.read(self.plan_uri(dataset, spec)))
            return dict(plan["selection"]), str(plan["base"])
        except (SourceError, ValueError, TypeError, KeyError):
            return None

    def notes_plan(
        self,
        dataset: str,
        spec: str,
        manifest: str,
        products: Sequence[str],
        selection: Mapping[str, str | int],
    ) -> bool:
        """Tells whether the plan that was noted last is this one (see `note_plan`)."""
        try:
            plan = json.loads(storage.read(self.plan_uri(dataset, spec)))
            noted = plan["manifest"], plan["products"], plan["selection"]
        except (SourceError, ValueError, TypeError, KeyError):
            return False
        return noted == (manifest, list(products), dict(selection))

    def noted_plan(self, dataset: str, spec: str) -> tuple[str, tuple[str, ...]] | None:
        """Reads what `note_plan` noted last of the manifest and the products.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.

        Returns:
            The digest of the manifest, and the products. None if no readable plan is noted.
        """
        try:
            plan = json.loads(storage.read(self.plan_uri(dataset, spec)))
            digest, products = str(plan["manifest"]), tuple(map(str, plan["products"]))
        except (SourceError, ValueError, TypeError, KeyError):
            return None
        return (digest, products) if _DIGEST.fullmatch(digest) else None

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
        noted = self.noted_plan(dataset, spec)
        if noted is None:
            return None
        digest, products = noted
        uri = self.uri("manifests", spec, dataset, digest)
        if not storage.exists(uri):
            return None
        return decode_manifest(storage.read(uri), uri, digest, self.entries_uri), products
