"""Gives versions names of their own: tags. `gc` keeps what has a tag for ever.

    >>> tag_version(catalogue, "photos@-1", "release").number            # doctest: +SKIP
    14
    >>> catalogue.find("photos@release").images                          # doctest: +SKIP

A tag names the number of a commit, and so the version that the dataset had then: the commit that
made the version, or a later one, if the dataset had another version under another spec before that.
Each tag is given and taken away by a commit of its own.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.changes import parts_of, require_no_erasure
from pipeline.catalogue.commit import Commit
from pipeline.catalogue.kept_versions import KeptVersion
from pipeline.catalogue.names import check_name
from pipeline.catalogue.undoing import renew_files, require_files
from pipeline.catalogue.version_names import check_tag, dataset_of, require_no_window
from pipeline.errors import Conflict, NotFound, UsageError


def tag_version(catalogue: Catalogue, name: str, tag: str, spec: str | None = None) -> Commit:
    """Gives a version of a dataset a tag.

    The files of a former version are written once more, as `roll_back` does.

    Args:
        catalogue: The catalogue.
        name: The dataset, or the name of a version of it.
        tag: The tag.
        spec: The beginning of the spec's digest, as `Catalogue.find` takes it.

    Returns:
        The new commit, or the newest one if the version has the tag already.

    Raises:
        NotFound: If there is no such version.
        UsageError: If the tag is not allowed, or if it is for a part of a dataset.
        CorruptFile: If `gc` has removed files of the version.
        Conflict: If another version of the dataset has the tag, or images were erased meanwhile.
    """
    check_tag(tag)
    dataset = check_name(dataset_of(require_no_window(name)))
    newest = catalogue.at()
    named = catalogue.resolve(name, newest.number, spec)
    version = named.version
    if version.part_of:
        raise UsageError(
            f"{dataset} is a part of {version.part_of}; tag {version.part_of}, and its parts have "
            "the tag, too"
        )
    tagged = catalogue.commit(named.commit)
    made = catalogue.commit(catalogue.commit_that_made(dataset, version, named.commit))
    if made.datasets[dataset] == tagged.datasets[dataset]:  # under all specs
        tagged = made
    held = {dataset: version, **parts_of(tagged, dataset, version.spec)}
    wanted = [KeptVersion(each, of, tagged.number) for each, of in held.items()]

    renewed = False

    def renew_unless_current(state: Commit) -> None:
        """Writes the files once more if `gc` may be about to remove them."""
        nonlocal renewed
        if not renewed and version not in state.datasets.get(dataset, {}).values():
            renew_files(catalogue, wanted)
            renewed = True

    def change(head: Commit) -> Commit:
        require_no_erasure(head, dataset, newest.erasure)
        renew_unless_current(head)  # a build may have replaced it meanwhile
        tags = head.tags.get(dataset, {})
        if tag not in tags:
            return replace(head, tags={**head.tags, dataset: {**tags, tag: tagged.number}})
        if catalogue.commit(tags[tag]).datasets[dataset].get(version.spec) == version:
            return head
        raise Conflict(
            f"{dataset}@{tag} is the version of commit {tags[tag]} already; take that tag away "
            "first, or choose another"
        )

    task, instead = f"cannot be tagged {tag}", f"build it again from {version.source}"
    require_files(catalogue, wanted, task, instead)
    renew_unless_current(newest)
    commit = catalogue.append(f"tag {dataset}, commit {tagged.number}, as {tag}", change)
    require_files(catalogue, wanted, task, f"take the tag {tag} away, and {instead}")
    return commit


def remove_tag(catalogue: Catalogue, dataset: str, tag: str) -> Commit:
    """Takes a tag away. The version stays as long as `gc` keeps it.

    Args:
        catalogue: The catalogue.
        dataset: The dataset, which need not be there any more.
        tag: The tag.

    Returns:
        The new commit.

    Raises:
        NotFound: If the dataset has no such tag, or there is no such dataset.
    """
    check_name(dataset)

    def change(head: Commit) -> Commit:
        tags = head.tags.get(dataset, {})
        if not tags:
            catalogue.look_up(dataset, head)  # says of an unknown name what there is
        if tag not in tags:
            there = ", ".join(sorted(tags)) or "none"
            raise NotFound(f"{dataset} has no tag {tag!r}; it has: {there}")
        left = {name: number for name, number in tags.items() if name != tag}
        others = {name: of for name, of in head.tags.items() if name != dataset}
        return replace(head, tags={**others, dataset: left} if left else others)

    return catalogue.append(f"take the tag {tag} from {dataset}", change)
