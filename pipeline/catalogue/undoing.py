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
from pipeline.catalogue.changes import parts_of, require_no_erasure, with_version, without_datasets
from pipeline.catalogue.commit import Commit
from pipeline.catalogue.kept_versions import KeptVersion, missing_files
from pipeline.catalogue.names import check_name
from pipeline.catalogue.version_names import VersionName, name_of_version, require_no_window
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
    for name in map(check_name, names):
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
    """Makes a former version of a dataset its current one, with its parts.

    Its files are written once more. So a collection of garbage that runs meanwhile, and has listed
    them, finds them young. It may still remove partials, whose images a later build counts again.

    Args:
        catalogue: The catalogue.
        name: The dataset. The newest commit need not have it.
        to: What stands after the `@` in the name of a version: see `VersionName.parse`. It may
            begin with an `@`.
        spec: The beginning of the spec's digest, as `Catalogue.find` takes it.

    Returns:
        The new commit, or the newest one if that is its current version.

    Raises:
        NotFound: If there is no such version.
        UsageError: If it is a part of a dataset.
        CorruptFile: If `gc` has removed files of the version.
        Conflict: If a name of a part is another dataset's by now, or images were erased meanwhile.
    """
    erasure = catalogue.at().erasure
    former_name = require_no_window(name_of_version(check_name(name), to))
    named = catalogue.resolve(former_name, spec=spec)
    former, version = catalogue.commit(named.commit), named.version
    if version.part_of:
        raise UsageError(
            f"{name} was a part of {version.part_of} at commit {former.number}; roll back "
            f"{version.part_of}"
        )
    parts = parts_of(former, name, version.spec)
    wanted = [KeptVersion(n, v, former.number) for n, v in {name: version, **parts}.items()]

    def change(head: Commit) -> Commit:
        require_no_erasure(head, name, erasure)
        current = head.datasets.get(name, {}).get(version.spec)
        return with_version(head, name, version, current, parts)

    number, which = former.number, VersionName.parse(former_name).which
    if not isinstance(which, int) or which < 0:
        number = catalogue.commit_that_made(name, version, number)
    task, build = (
        f"cannot go back to commit {number}",
        f"build it again from {version.source}",
    )
    require_files(catalogue, wanted, task, build)
    renew_files(catalogue, wanted)
    commit = catalogue.append(f"roll back {name} to commit {number}", change)
    instead = f"take it out of commit {commit.number} by `vdna rm {name}`, and {build}"
    require_files(catalogue, wanted, task, instead)  # a collection may have run meanwhile
    return commit


def require_files(
    catalogue: Catalogue, wanted: Sequence[KeptVersion], task: str, instead: str
) -> None:
    """Checks that versions have all their files.

    Args:
        catalogue: The catalogue.
        wanted: The versions.
        task: What cannot be done without the files, for the error.
        instead: What to do instead, for the error.

    Raises:
        CorruptFile: If a file is missing.
    """
    for kept in wanted:
        if missing := missing_files(catalogue, kept):
            raise CorruptFile(
                f"{kept.name} {task}: `vdna gc` has removed its {', '.join(missing)}; {instead}"
            )


def renew_files(catalogue: Catalogue, wanted: Sequence[KeptVersion]) -> None:
    """Writes the files of versions once more, so that a collection of garbage finds them young.

    Args:
        catalogue: The catalogue.
        wanted: A version and its parts, which have their candidates in the files of the whole.
    """
    for kept in wanted:
        version = kept.version
        for uri in catalogue.files(kept.name, version).values():
            storage.replace(uri, storage.read_on_disk(uri))
        if not (version.imported or version.part_of):
            manifest = catalogue.manifest(kept.name, version)
            manifest.entries.renew(manifest.files)
