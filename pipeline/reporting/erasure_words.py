"""Says what an erasure would do, and what it has done.

>>> for line in erased_lines(erased):                                          # doctest: +SKIP
...     print(line)
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.building import Erased, ErasurePreview
from pipeline.wording import count_of, option, some_of

ERASURE_LIMITS = (
    "Not reached from here: backups, older versions of objects in a versioned bucket, pages and "
    "files that were exported, and temporary files of running jobs"
)
"""What an erasure cannot remove."""


def preview_lines(preview: ErasurePreview, *, drop_unreadable: bool = False) -> list[str]:
    """Returns what an erasure would do, as lines.

    Args:
        preview: What was found.
        drop_unreadable: Whether the erasure is to remove versions that cannot be counted again.
    """
    lines = [f"{count_of(preview.images, 'image')} to erase"]
    lines += _unknown(preview.unknown)
    listed = (
        "write only the list of images anew, which is in one file with that of a version that has "
        "such an image; the counts stay"
    )
    for what, of in (("count again", preview.recounted), (listed, preview.restated)):
        lines += [f"  {what}: {_versions(name, at)}" for name, at in of.items()]
    lines += [f"  remove: {why}" for of in preview.emptied.values() for why in of]
    unreadable = [why for of in preview.unreadable.values() for why in of]
    tags = [*preview.lost_tags, *(preview.unreadable_tags if drop_unreadable else ())]
    if drop_unreadable:
        lines += [f"  remove, as it cannot be counted again: {why}" for why in unreadable]
    elif unreadable:
        lines += [f"  cannot be counted again: {why}" for why in unreadable]
        named = some_of(preview.unreadable_tags)
        lines += [
            "  so that nothing would be erased, until these images are as they were listed.",
            f"  With {option('drop_unreadable', True)}, these versions are removed"
            + (f", and their tags with them: {named}" if named else ""),
        ]
    if tags:
        lines.append(f"  tags that go with removed versions: {some_of(tags)}")
    lines.append(f"  {preview.cost}")
    if preview.stated:
        lines.append(
            "  refused, as the log names it for ever as the source of a version: "
            f"{some_of(preview.stated)}"
        )
    if preview.held:
        lines.append(
            f"  still in their source, so that the next build brings them back: "
            f"{some_of(preview.held)}"
        )
    return [*lines, *_copies(preview.copies), *_alike(preview.alike)]


def erased_lines(erased: Erased) -> list[str]:
    """Returns what an erasure has done, as lines."""
    done = f"{count_of(erased.images, 'image')} erased, by commit {erased.commit}"
    lines = [done, *_unknown(erased.unknown)]
    for name, number in erased.recounted.items():
        lines.append(f"  {name}: {count_of(number, 'version')} counted again")
    for name, number in erased.restated.items():
        lines.append(
            f"  {name}: of {count_of(number, 'version')} only the list of images was written anew, "
            "which was in one file with that of a version that had such an image; the counts stay"
        )
    for of_dataset in erased.dropped.values():
        lines += [f"  removed: {why}" for why in of_dataset]
    if erased.lost_tags:
        lines.append(f"  tags of removed versions, gone with them: {some_of(erased.lost_tags)}")
    lines.append(
        f"  {count_of(erased.removed, 'object')} removed; {count_of(erased.searched, 'object')} "
        "searched, and none names an erased image"
    )
    lines += [*_copies(erased.copies), *_alike(erased.alike)]
    lines += [*_running(erased.running), *_fitted(erased.lenses)]
    return [*lines, ERASURE_LIMITS]


def _versions(name: str, commits: Sequence[int]) -> str:
    return some_of([f"{name}@{number}" for number in commits])


def _unknown(names: Sequence[str]) -> list[str]:
    return [f"  not in any version: {some_of(names)}"] if names else []


def _running(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"  being built now from a list with an erased image: {some_of(names)}. That build ends "
        "with an",
        "  error, and may leave sums that count the image. When it has ended, run the same command "
        "again,",
        "  and then the build",
    ]


def _fitted(uris: Sequence[str]) -> list[str]:
    if not uris:
        return []
    return [
        f"  fitted on sums that had an erased image: {count_of(len(uris), 'lens', 'lenses')}.",
        "  Such a file names and shows no image, but the image had a part in its weights. Delete",
        "  the file, and fit the lens again if it is still needed:",
        *(f"    {uri}" for uri in uris),
    ]


def _copies(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    one = len(names) == 1
    under = "copy under another name" if one else "copies under other names"
    return [
        f"  warning: {len(names):,} {under}, with equal bytes, {'stays' if one else 'stay'}: "
        f"{some_of(names)}.",
        f"  To erase {'it' if one else 'them'}, too, run vdna erase with "
        f"{'its name' if one else 'their names (--json lists them all)'}",
    ]


def _alike(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"  of the same size and time, or ETag, and so perhaps copies; they stay: {some_of(names)}"
    ]
