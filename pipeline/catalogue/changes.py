"""What a new version changes in a catalogue: from one commit to the next, without any I/O.

>>> with_version(EMPTY, "photos", version, base=None).datasets.keys()    # doctest: +SKIP
dict_keys(['photos'])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.catalogue.commit import Commit, Version
from pipeline.errors import Conflict, UsageError


def with_version(
    head: Commit,
    dataset: str,
    new: Version,
    base: Version | None,
    parts: Mapping[str, Version] | None = None,
) -> Commit:
    """Makes a version the dataset's current one under its spec, with these parts and no others.

    Args:
        head: The newest commit.
        dataset: The dataset's name.
        new: The version.
        base: The version that the new one was built upon; None for the first.
        parts: The dataset's parts, by their names.

    Returns:
        The changed state, or `head` itself if that already holds the version and the parts.

    Raises:
        Conflict: If another writer has committed something other than `base` and `new` meanwhile,
            or has taken one of the names for a part, or a part's name for a dataset.
    """
    parts = parts or {}
    require_own(head, dataset)
    current = head.datasets.get(dataset, {}).get(new.spec)
    same = current is not None and (current.dna, current.by) == (new.dna, new.by)
    present = parts_of(head, dataset, new.spec)
    if (
        current is not None
        and same
        and current.sha256 == new.sha256
        and _identities(present) == _identities(parts)
    ):
        return head
    if current is None and base is not None:
        raise Conflict(
            f"{dataset}: it was taken out of the catalogue, or renamed, while this job built upon "
            f"{base.dna}; `vdna log` says which. Rerun under the name that it is to have"
        )
    if current != base and not same:
        raise Conflict(
            f"{dataset}: another job committed {current.dna if current else 'nothing'} "
            f"while this one built upon {base.dna if base else 'nothing'}; rerun to look "
            "at the source again"
        )
    for name in sorted(parts.keys() - present.keys()):
        require_free(head, name, dataset)
    datasets = {
        name: {s: v for s, v in specs.items() if s != new.spec or name not in present}
        for name, specs in head.datasets.items()
    }
    for name, version in {**parts, dataset: new}.items():
        datasets[name] = {**datasets.get(name, {}), new.spec: version}
    return replace(
        head,
        default_spec=new.spec if takes_default_spec(head, new) else head.default_spec,
        datasets={name: specs for name, specs in datasets.items() if specs},
    )


def without_datasets(head: Commit, names: Sequence[str], spec: str | None = None) -> Commit:
    """Takes datasets away, with their parts.

    Args:
        head: The newest commit.
        names: The datasets. One that is not there is left out.
        spec: The digest of a spec: only versions of it go. None takes all.

    Returns:
        The changed state, or `head` itself if it has none of them. If no dataset is left under the
        default spec, that of the most datasets becomes the default.

    Raises:
        UsageError: If one is a part of a dataset.
    """
    gone = set(names)
    for name in names:
        for version in head.datasets.get(name, {}).values():
            if version.part_of:
                raise UsageError(
                    f"{name} is the part {version.value!r} of {version.part_of}; remove "
                    f"{version.part_of}, or build it without parts"
                )
    left = {
        name: {
            digest: version
            for digest, version in specs.items()
            if not ({name, version.part_of} & gone and spec in (None, digest))
        }
        for name, specs in head.datasets.items()
    }
    datasets = {name: specs for name, specs in left.items() if specs}
    return (
        head if datasets == head.datasets else with_used_default(replace(head, datasets=datasets))
    )


def with_used_default(state: Commit) -> Commit:
    """Makes the spec of the most datasets the default, if no dataset has the default any more.

    Args:
        state: The changed state.

    Returns:
        The state with its default spec.
    """
    under = Counter(sorted(digest for specs in state.datasets.values() for digest in specs))
    if not under or state.default_spec in under:
        return state
    return replace(state, default_spec=under.most_common(1)[0][0])


def _identities(parts: Mapping[str, Version]) -> dict[str, tuple[object, ...]]:
    return {name: (part.sha256, part.by, part.value) for name, part in parts.items()}


def parts_of(commit: Commit, dataset: str, spec: str) -> dict[str, Version]:
    """Finds the parts that a dataset has under a spec.

    Args:
        commit: The commit to look in.
        dataset: The dataset that was divided.
        spec: Digest of the spec.

    Returns:
        The parts' versions, by the names of the parts.
    """
    return {
        name: specs[spec]
        for name, specs in commit.datasets.items()
        if spec in specs and specs[spec].part_of == dataset
    }


def require_free(commit: Commit, name: str, whole: str) -> None:
    """Checks that a dataset may have a part of this name.

    Args:
        commit: The newest commit.
        name: The name of the part.
        whole: The dataset to be divided.

    Raises:
        Conflict: If the name is another dataset's, or the name of a part of one.
    """
    for there in commit.datasets.get(name, {}).values():
        if there.part_of != whole:
            what = f"a part of {there.part_of}" if there.part_of else "a dataset of its own"
            raise Conflict(
                f"{name} is already {what}, so it cannot become a part of {whole}; build {whole} "
                "under another name"
            )


def require_own(commit: Commit, name: str) -> None:
    """Checks that a name may be built as a dataset of its own.

    Args:
        commit: The newest commit.
        name: The dataset's name.

    Raises:
        Conflict: If the name is that of a part, under whatever spec.
    """
    for there in commit.datasets.get(name, {}).values():
        if there.part_of:
            raise Conflict(
                f"{name} is the part {there.value!r} of {there.part_of}; build {there.part_of}, or "
                "give another name"
            )


def require_no_erasure(commit: Commit, name: str, last: int) -> None:
    """Checks that no images were erased since a job looked at them.

    Args:
        commit: The newest commit.
        name: The dataset of the job.
        last: Number of the commit that had erased images last when the job began.

    Raises:
        Conflict: If some were erased.
    """
    if commit.erasure != last:
        raise Conflict(
            f"{name}: commit {commit.erasure} erased images while this job ran, which may have "
            "read them. Run the same `vdna erase` once more, which removes what this job has left "
            "of them; then run this job again"
        )


def takes_default_spec(head: Commit, new: Version) -> bool:
    """Tells whether the spec of a new version becomes the catalogue's default.

    The default is the first spec that something was built under. Until there is one, it is the
    first spec of an import.

    Args:
        head: The newest commit.
        new: The version to be committed.

    Returns:
        Whether it does.
    """
    if head.default_spec is None:
        return True
    under = (specs.get(head.default_spec) for specs in head.datasets.values())
    return not new.imported and all(version is None or version.imported for version in under)
