"""Give a version of a dataset a name of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.catalogue import SpecOptions
from pipeline.errors import UsageError


@guarded
def tag(
    options: SpecOptions,
    catalogue: CatalogueOption,
    name: Annotated[
        str, typer.Argument(help="Dataset, or a version of it, such as photos@-1 or photos@7.")
    ],
    tag: Annotated[
        str | None, typer.Argument(help="The tag: begins with a letter.", show_default=False)
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the tag away from the dataset.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Give a version of a dataset a tag, which names it wherever a dataset is named.

    vdna gc keeps what has a tag, whatever --keep says.
    """
    from pipeline.catalogue import Catalogue, dataset_of, remove_tag, tag_version

    tag = _given(tag, name, options, remove=remove)
    place = Catalogue(catalogue)
    before = place.at().number
    commit = remove_tag(place, name, tag) if remove else tag_version(place, name, tag, options.spec)
    dataset = dataset_of(name)
    tagged = commit.tags.get(dataset, {}).get(tag)
    if as_json:
        print_json({"commit": commit.number, "changed": commit.number != before, "tagged": tagged})
        return
    if remove:
        say(f"{dataset}: the tag {tag} is taken away by commit {commit.number}")
    elif commit.number == before:
        say(f"{dataset}@{tag}: nothing to do, it is the version of commit {tagged}")
    else:
        say(f"{dataset}@{tag}: the version of commit {tagged}, by commit {commit.number}")


def _given(tag: str | None, name: str, options: SpecOptions, *, remove: bool) -> str:
    """Returns the tag; if there is none, or it stands in the name, the error says what to write."""
    if remove and options.spec is not None:
        raise UsageError("a tag is taken away for all specs; leave --spec out")
    if tag is not None:
        return tag
    dataset, mark, named = name.partition("@")
    if remove and mark:
        right = f"write the tag {named} after the dataset: vdna tag {dataset} {named} --remove"
    else:
        end = " --remove" if remove else ""
        right = f"there is no tag; write it after the name: vdna tag {name} TAG{end}"
    raise UsageError(right)


if __name__ == "__main__":
    run_alone(tag)
