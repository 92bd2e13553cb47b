"""What is asked of an erasure, and what it found and did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

from pipeline.options import Option, Options
from pipeline.wording import count_of, in_units

NOTHING_LEFT = "no image is left that can be read"
"""Why a version is removed in whose place nothing can be put."""


@dataclass(frozen=True, kw_only=True)
class EraseOptions(Options):
    """The options of an erasure.

    Attributes:
        reason: Why the images are erased.
        by: Who erases them.
        source_keeps: Whether to erase images that their source still holds.
        drop_unreadable: Whether to remove versions that cannot be counted again.
        weights: The files of weights that versions were counted with, other than those of their
            networks. Each version takes the file of the sha256 that its spec states.
    """

    reason: Annotated[
        str,
        Option(
            "Why the images are erased. It stays in the log for ever, so it must not name them."
        ),
    ] = ""
    by: Annotated[
        str | None,
        Option("Who erases them, for the log (default: the name of the user on this machine)."),
    ] = None
    source_keeps: Annotated[
        bool,
        Option(
            "Erase images that their source still holds, too. The next build of that source "
            "brings them back."
        ),
    ] = False
    drop_unreadable: Annotated[
        bool,
        Option(
            "Remove versions that cannot be counted again without the images, because others of "
            "their images have changed or are gone."
        ),
    ] = False
    weights: Annotated[
        Sequence[str],
        Option(
            "File or url of weights that versions were counted with, instead of their networks' "
            "own. Can be repeated: each version takes those that its spec states."
        ),
    ] = ()


class EraseKeywords(TypedDict, total=False):
    """The options of `EraseOptions` as keywords of a function, for type checkers.

    A test holds it equal to `EraseOptions`; defaults and help are there.
    """

    reason: str
    by: str | None
    source_keeps: bool
    drop_unreadable: bool
    weights: Sequence[str]


@dataclass(frozen=True)
class ErasureCost:
    """What an erasure will read and write.

    Attributes:
        shards: How many shards are counted again.
        images: How many images of theirs are read.
        image_bytes: The bytes of these images, where the source states their sizes.
        lists: How many files that list images are written anew.
        objects: How many objects the catalogue has. All are searched.
        object_bytes: Their bytes. Of large tables, only the columns of text are read.
    """

    shards: int
    images: int
    image_bytes: int
    lists: int
    objects: int
    object_bytes: int

    def __str__(self) -> str:
        counted = f"{count_of(self.shards, 'shard')} to count again"
        if self.images:
            counted += f", with {count_of(self.images, 'other image')} to read"
            counted += f" ({in_units(self.image_bytes)})" if self.image_bytes else ""
        return (
            f"{counted}; {count_of(self.lists, 'list')} of images to write anew; "
            f"{count_of(self.objects, 'object')} to search ({in_units(self.object_bytes)})"
        )


@dataclass(frozen=True)
class ErasurePreview:
    """What an erasure would do.

    Attributes:
        images: How many of the catalogue's images are named.
        unknown: The names that no list of images has.
        held: Those images that their source still holds.
        stated: Versions whose source is named, so that the erasure is refused: the log states it.
        alike: Other images with the identity of an erased one, which may be copies of it.
        recounted: For each dataset, the numbers of commits that made versions with the images,
            those that are counted again.
        restated: For each dataset, those of versions that only share a list of images with them.
        cost: What it will read and write.
        copies: Other images whose files are equal to an erased one's, as image hashes tell.
        unreadable: For each dataset, which of these versions cannot be counted again, and why: an
            image that has to be read for it is gone, or has changed. With `drop_unreadable` they
            are removed; without it, nothing is erased.
        emptied: For each dataset, which versions are removed as all their images are erased.
        lost_tags: The tags that name only such versions, and go with them.
        unreadable_tags: The tags that go, too, if the versions of `unreadable` are removed.
    """

    images: int
    unknown: tuple[str, ...]
    held: tuple[str, ...]
    stated: tuple[str, ...]
    alike: tuple[str, ...]
    recounted: Mapping[str, tuple[int, ...]]
    restated: Mapping[str, tuple[int, ...]]
    cost: ErasureCost
    copies: tuple[str, ...] = ()
    unreadable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    emptied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost_tags: tuple[str, ...] = ()
    unreadable_tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Erased:
    """What an erasure has done.

    Attributes:
        images: How many of the catalogue's images were erased.
        unknown: The names that no list of images had.
        alike: Other images with the identity of an erased one. They stay.
        commit: Number of the commit with the receipt.
        recounted: For each dataset, how many versions were counted again.
        restated: For each dataset, of how many versions only the list of images was stored anew.
        dropped: For each dataset, why each version was removed.
        lost_tags: The tags that named removed versions, and are gone with them.
        removed: How many objects were removed.
        searched: How many objects were searched in the end. None of them names an image.
        running: Datasets that are being built by a plan with the images. Such a build ends with an
            error, and may leave sums that count them until the same images are erased once more.
        lenses: Urls of the lenses in the catalogue that were fitted on sums with erased images, of
            this erasure or an earlier one. They stay.
        copies: Other images whose files are equal to an erased one's, as image hashes tell. They
            stay.
    """

    images: int
    unknown: tuple[str, ...]
    alike: tuple[str, ...]
    commit: int
    recounted: Mapping[str, int] = field(default_factory=dict)
    restated: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost_tags: tuple[str, ...] = ()
    removed: int = 0
    searched: int = 0
    running: tuple[str, ...] = ()
    lenses: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
