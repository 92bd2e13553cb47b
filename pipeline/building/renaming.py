"""Gives a dataset another name.

    >>> rename_dataset(catalogue, "photos", "city/photos").number        # doctest: +SKIP
    15

The files of its current versions are written once more under the new name, and one commit puts
that name in the place of the old one. The old files stay, so earlier commits, and the versions and
tags that they name, are read under the old name as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline import storage
from pipeline.buffers import Data, sha256
from pipeline.building.storing import store_manifest, store_version
from pipeline.catalogue import (
    Catalogue,
    Commit,
    KeptVersion,
    Version,
    check_name,
    footers_of,
    part_name,
    parts_of,
    require_files,
    require_no_erasure,
)
from pipeline.counting import cells_uri, partial_uri
from pipeline.dna import restate_dataset
from pipeline.errors import Conflict, UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import map_in_order
from pipeline.sources import Manifest

STATING = ("dna", "folds", "layer_gaussians", "exemplars")
"""The kinds of files that state which dataset they belong to."""


@dataclass(frozen=True)
class _Renaming:
    """What becomes of a dataset and its parts.

    Attributes:
        old: The name that the dataset has.
        new: The name that it gets.
        before: Its versions and those of its parts, by name and spec, as they are.
        erasure: Number of the commit that had erased images last.
    """

    old: str
    new: str
    before: Mapping[str, Mapping[str, Version]]
    erasure: int

    @classmethod
    def of(cls, head: Commit, old: str, new: str) -> _Renaming:
        """Finds what a commit has of a dataset."""
        found = {old: dict(head.datasets.get(old, {}))}
        for spec in found[old]:
            for part, version in parts_of(head, old, spec).items():
                found.setdefault(part, {})[spec] = version
        return cls(old, new, found, head.erasure)

    def name_of(self, name: str) -> str:
        """Returns the new name of the dataset, or of one of its parts."""
        if name == self.old:
            return self.new
        return part_name(self.new, next(iter(self.before[name].values())).value)

    def require_free_names(self, head: Commit) -> None:
        """Checks that no dataset has one of the new names.

        Raises:
            Conflict: If one has.
        """
        for name in map(self.name_of, self.before):
            if name in head.datasets:
                raise Conflict(f"there is a dataset {name} already; choose another name")

    def over(self, head: Commit, after: Mapping[str, Mapping[str, Version]]) -> Commit:
        """Puts the versions under the new names in the place of those under the old ones.

        Args:
            head: The newest commit.
            after: The versions under their new names.

        Returns:
            The changed state.

        Raises:
            Conflict: If a new name is taken, or another job has changed the dataset or erased
                images, which what was copied may count.
        """
        require_no_erasure(head, self.old, self.erasure)
        self.require_free_names(head)
        if self != _Renaming.of(head, self.old, self.new):
            raise Conflict(
                f"{self.old}: another job has changed it while it was renamed. Nothing was "
                "renamed, so run the same command again"
            )
        left = {
            name: {spec: v for spec, v in specs.items() if spec not in self.before.get(name, {})}
            for name, specs in head.datasets.items()
        }
        return replace(head, datasets={n: of for n, of in {**left, **after}.items() if of})


def rename_dataset(catalogue: Catalogue, old: str, new: str, progress: Listener = ignore) -> Commit:
    """Gives a dataset another name, with its parts, under all specs.

    The partials that the next build may use are written once more, too. This takes as long as
    reading and writing all these files does.

    Args:
        catalogue: The catalogue.
        old: The dataset.
        new: The name that it gets.
        progress: Told which files are written.

    Returns:
        The new commit.

    Raises:
        NotFound: If there is no such dataset.
        UsageError: If it is a part of a dataset, or the new name is not allowed.
        Conflict: If there is a dataset of the new name, or of that of a part, or if another job
            changed the dataset or erased images meanwhile. Nothing is renamed then.
        CorruptFile: If one of its files is damaged, or was removed meanwhile.
    """
    head = catalogue.at()
    any_spec = next(iter(head.datasets.get(check_name(old), {})), None)
    version = catalogue.find(old, head.number, any_spec)
    if version.part_of:
        raise UsageError(
            f"{old} is the part {version.value!r} of {version.part_of}; rename {version.part_of}, "
            "and its parts follow"
        )
    renaming = _Renaming.of(head, old, check_name(new))
    renaming.require_free_names(head)
    after = {
        renaming.name_of(name): {
            spec: _stored_as(catalogue, name, version, renaming)
            for spec, version in versions.items()
        }
        for name, versions in renaming.before.items()
    }
    copies = [
        copy
        for spec, version in renaming.before[old].items()
        for copy in _work_copies(catalogue, old, new, spec, version)
    ]
    with stage(progress, Started(len(copies), len(copies), unit="objects", step="objects")):
        for _ in map_in_order(_copy, copies):
            progress(StepDone(1))
    commit = catalogue.append(f"rename {old} to {new}", lambda newest: renaming.over(newest, after))
    for spec, version in renaming.before[old].items():
        _copy((catalogue.plan_uri(old, spec), catalogue.plan_uri(new, spec)))
        if catalogue.noted_plan(old, spec) == (version.manifest, version.products):
            storage.delete(catalogue.plan_uri(old, spec))  # of no build that runs
    written = [
        KeptVersion(name, version, commit.number)
        for name, versions in after.items()
        for version in versions.values()
    ]
    instead = f"bring {old} back by `vdna rollback {old} --to {head.number}`"
    require_files(catalogue, written, f"was renamed by commit {commit.number}", instead)
    return commit


def _stored_as(catalogue: Catalogue, name: str, version: Version, renaming: _Renaming) -> Version:
    """Stores the files of a version under its new name, and returns the version to commit."""
    target, spec = renaming.name_of(name), version.spec
    files: dict[str, Data] = {}
    for kind in version.sha256.keys() - {"manifests"}:
        data = catalogue.read_checked(kind, name, version)
        uri = catalogue.uri(kind, spec, name, version.dna)
        files[kind] = restate_dataset(data, kind, target, uri) if kind in STATING else data
    stored = store_version(catalogue, target, spec, version.dna, files)
    if not version.imported:
        uri = catalogue.uri("manifests", spec, target, version.manifest)
        stored["manifests"] = store_manifest(uri, catalogue.manifest(name, version))
    return replace(
        version,
        sha256={kind: sha256(data) for kind, data in stored.items()},
        footers=footers_of(stored),
        part_of=renaming.new if version.part_of else "",
        manifest_file="",
    )


def _work_copies(
    catalogue: Catalogue, old: str, new: str, spec: str, version: Version
) -> Iterator[tuple[str, str]]:
    """Yields what the next build may use: where each object is, and where it is to be."""
    wanted: list[tuple[Manifest, tuple[str, ...]]] = []
    if not version.imported:
        wanted.append((catalogue.manifest(old, version), version.products))
    planned = catalogue.planned(old, spec)
    if planned is not None:
        wanted.append(planned)
        digest = planned[0].digest
        if digest != version.manifest:  # that of the version is stored, as the commit states it
            place = catalogue.uri("manifests", spec, old, digest)
            yield place, catalogue.uri("manifests", spec, new, digest)
    work, target = catalogue.work_uri(old, spec), catalogue.work_uri(new, spec)
    keys = {key for manifest, products in wanted for key in manifest.keys(spec, products)}
    for key in sorted(keys):
        for uri_of in (partial_uri, cells_uri):
            yield uri_of(work, key), uri_of(target, key)


def _copy(places: tuple[str, str]) -> None:
    """Copies an object, if it is there: a build may have no cells, or no plan."""
    source, target = places
    if storage.exists(source):
        storage.replace(target, storage.read_on_disk(source))
