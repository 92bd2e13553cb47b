"""Takes datasets out of the catalogue, and brings former versions back.

    >>> remove(catalogue, ["photos"]).number                             # doctest: +SKIP
    12
    >>> roll_back(catalogue, "photos", to=11).number                     # doctest: +SKIP
    13

Each is a commit like any other. No file is removed, so each can be undone until `gc` has run.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.changes import parts_of, with_version, without_datasets
from pipeline.catalogue.commit import Commit
from pipeline.catalogue.kept_versions import KeptVersion, missing_files
from pipeline.errors import CorruptFile, UsageError


def remove(catalogue: Catalogue, names: Sequence[str], spec: str | None = None) -> Commit:
    """Takes datasets with their parts out of the catalogue.

    Args:
        catalogue: The catalogue.
        names: The datasets.
        spec: The beginning of a spec's digest: only versions of that spec go. None takes all.

    Returns:
        The new commit.

    Raises:
        NotFound: If there is no such dataset, or none under that spec. Nothing is removed then.
        UsageError: If one is a part of a dataset.
    """
    chosen = None if spec is None else catalogue.spec_digest(catalogue.at(), spec)
    head = catalogue.at()
    for name in names:
        any_spec = next(iter(head.datasets.get(name, {})), None)
        catalogue.find(name, head.number, chosen or any_spec)
    commit = catalogue.append(
        f"remove {', '.join(names)}", lambda newest: without_datasets(newest, names, chosen)
    )
    for name in names:
        for digest, version in head.datasets[name].items():
            noted = catalogue.noted_plan(name, digest) if chosen in (None, digest) else None
            if noted == (version.manifest, version.products):  # of no build that runs
                storage.delete(catalogue.plan_uri(name, digest))
    return commit


def roll_back(catalogue: Catalogue, name: str, to: int | str, spec: str | None = None) -> Commit:
    """Makes the version that a dataset had at a commit its current one, with its parts.

    Its files are written once more. So a collection of garbage that runs meanwhile, and has listed
    them, finds them young. It may still remove partials, whose images a later build counts again.

    Args:
        catalogue: The catalogue.
        name: The dataset. The newest commit need not have it.
        to: The commit's number, or an ISO time, as `Catalogue.at` takes it.
        spec: The beginning of the spec's digest, as `Catalogue.find` takes it.

    Returns:
        The new commit, or the newest one if that is its current version.

    Raises:
        NotFound: If there is no such commit, or it has no such dataset.
        UsageError: If it is a part of a dataset.
        CorruptFile: If `gc` has removed files of the version.
        Conflict: If a name of a part is another dataset's by now.
    """
    former = catalogue.at(to)
    version = catalogue.find(name, former.number, spec)
    if version.part_of:
        raise UsageError(
            f"{name} was a part of {version.part_of} at commit {former.number}; roll back "
            f"{version.part_of}"
        )
    parts = parts_of(former, name, version.spec)
    wanted = [KeptVersion(n, v, former.number) for n, v in {name: version, **parts}.items()]

    def require_files(instead: str) -> None:
        for kept in wanted:
            if missing := missing_files(catalogue, kept):
                raise CorruptFile(
                    f"{kept.name} cannot go back to commit {former.number}: `vdna gc` has removed "
                    f"its {', '.join(missing)}; {instead}"
                )

    def change(head: Commit) -> Commit:
        current = head.datasets.get(name, {}).get(version.spec)
        return with_version(head, name, version, current, parts)

    build = f"build it again from {version.source}"
    require_files(build)
    for kept in wanted:
        for kind in kept.version.sha256:
            digest = kept.version.digest_in(kind)
            uri = catalogue.uri(kind, version.spec, kept.name, digest)
            storage.replace(uri, storage.read_on_disk(uri))
    if not version.imported:  # parts have their candidates in the files of the whole
        manifest = catalogue.manifest(name, version)
        manifest.entries.renew(manifest.files)
    commit = catalogue.append(f"roll back {name} to commit {former.number}", change)
    # A collection may have run meanwhile.
    require_files(f"take it out of commit {commit.number} by `vdna rm {name}`, and {build}")
    return commit
