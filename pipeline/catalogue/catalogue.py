"""The catalogue: datasets and their files, by the name of the dataset.

    >>> catalogue = Catalogue("s3://bucket/dnas")                        # doctest: +SKIP
    >>> catalogue.load("cityscapes").images, catalogue.names()

`version_lookup.py` finds a version by its name, `version_files.py` reads its files, `commit_log.py`
reads and appends the commits, and `layout.py` says where objects lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, get_args

from pipeline import storage
from pipeline.catalogue.changes import require_no_erasure, with_version
from pipeline.catalogue.commit import Commit, Version, canonical_json
from pipeline.catalogue.version_files import decode_manifest
from pipeline.catalogue.version_lookup import VersionLookup
from pipeline.errors import SourceError
from pipeline.spec import Backend

if TYPE_CHECKING:
    from pipeline.dna import DNA
    from pipeline.sources import Manifest

_DIGEST = re.compile(r"[0-9a-f]{32}")


class Catalogue(VersionLookup):
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
        planned_after: int | None = None,
    ) -> Commit:
        """Commits a version as the dataset's current one under its spec.

        Args:
            dataset: The dataset's name.
            new: The version; its files must be stored already.
            base: The version that the new one was built upon; None for the first.
            action: What was done, for the log.
            parts: All parts that the dataset has, by their names.
            planned_after: Number of the commit that had erased images last when the images of the
                version were listed; None for a version that was not counted here.

        Returns:
            The new commit, or the newest one if it already holds the version.

        Raises:
            Conflict: If another writer has committed a version other than `base` and `new`
                meanwhile, or if a name is taken: see `with_version`. Or if images were erased
                since those of the version were listed, which may be among them.
        """

        def change(head: Commit) -> Commit:
            if planned_after is not None:
                require_no_erasure(head, dataset, planned_after)
            return with_version(head, dataset, new, base, parts)

        return self.append(f"{action} {dataset}", change)

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
            name: The dataset, or the name of a version, as in `find`.
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
        folded = reduce(HeldFolds.__add__, held, HeldFolds())
        return replace(dna, folds=replace(folded, pairs=file.pairs))

    def note_plan(
        self,
        dataset: str,
        spec: str,
        manifest: str,
        products: Sequence[str],
        backend: Backend,
        selection: Mapping[str, str | int] | None = None,
        base: str = "",
        *,
        ahead: bool = False,
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
            ahead: Whether the build counts images by plans of some shards meanwhile, and still
                lists. The manifest is that of the plan before then; empty if there is none.
        """
        plan = {
            "manifest": manifest,
            "products": list(products),
            "backend": backend,
            "selection": dict(selection or {}),
            "base": base,
            "ahead": ahead,
        }
        storage.replace(self.plan_uri(dataset, spec), canonical_json(plan))

    def counts_ahead(self, dataset: str, spec: str) -> bool:
        """Tells whether a build counts images and still lists, beside the plan that is noted.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.

        Returns:
            Whether the note says so (see `note_plan`).
        """
        try:
            return bool(json.loads(storage.read(self.plan_uri(dataset, spec)))["ahead"])
        except (SourceError, ValueError, TypeError, KeyError):
            return False

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

    def selection(self, dataset: str, version: Version) -> dict[str, str | int]:
        """Reads which options chose the images of a version.

        Args:
            dataset: The dataset.
            version: The version.

        Returns:
            The options by their names, with those that grouped the images, and the source if that
            may be a glob. Empty if a build with another plan has begun since.
        """
        try:
            plan = json.loads(storage.read(self.plan_uri(dataset, version.spec)))
            return dict(plan["selection"]) if plan["manifest"] == version.manifest else {}
        except (SourceError, ValueError, TypeError, KeyError):
            return {}

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

    def planned_products(self, dataset: str, spec: str) -> tuple[str, ...] | None:
        """Reads what the build of a dataset that began last keeps beside the histograms.

        Args:
            dataset: The dataset.
            spec: Digest of the spec.

        Returns:
            The products, or None if no readable plan is noted.
        """
        try:
            plan = json.loads(storage.read(self.plan_uri(dataset, spec)))
            return tuple(map(str, plan["products"]))
        except (SourceError, ValueError, TypeError, KeyError):
            return None

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
        try:
            data = storage.read(uri)
        except SourceError:
            return None
        return decode_manifest(data, uri, digest, self.entries_uri), products
