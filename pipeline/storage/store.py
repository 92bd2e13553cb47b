"""Declares what each kind of store must be able to do, and what it says of an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from pipeline.buffers import Data
from pipeline.errors import SourceError


class Stored(NamedTuple):
    """An object as a store lists it. A tuple, because a listing makes many of them.

    Attributes:
        uri: Its canonical uri.
        size: Its length in bytes.
        identity: A text that changes when the content changes, such as an ETag.
        modified: When it was written, by the store's clock. None if the store does not tell.
    """

    uri: str
    size: int
    identity: str
    modified: datetime | None


@dataclass(frozen=True)
class Answer:
    """Bytes, and what the same answer says about the whole object.

    Attributes:
        data: The bytes that were asked for, fewer if the object ends before.
        identity: The identity of the object that they come from.
        size: The length of the whole object in bytes, -1 if the answer does not tell.
        is_too_long: Whether the object is longer than what was wanted whole; `data` is empty then.
    """

    data: bytes
    identity: str
    size: int
    is_too_long: bool = False


class Store(Protocol):
    """One kind of place. It has no state: each method takes the uri.

    `info`, `exists`, `is_folder`, `get`, `put` and `delete` make one try: the caller tries again
    (`pipeline.storage.objects`). `walk`, `glob`, `delete_all` and `delete_tree` make many requests,
    and try each of them again by themselves.

    Attributes:
        is_local: Its objects are files of this machine, so a uri is a path.
        is_shared: Other processes see what this one writes.
        lists_in_key_order: A listing is in order of the keys, and can go on from any key.
        answers_ranges: A request for a part brings that part alone, from every server of the kind.
        loses_answers: A write may succeed although its answer never arrives.
    """

    is_local: bool
    is_shared: bool
    lists_in_key_order: bool
    answers_ranges: bool
    loses_answers: bool

    def info(self, uri: str) -> Stored:
        """Describes an object. Raises if there is none, or if it is a folder."""

    def exists(self, uri: str) -> bool:
        """Tells whether there is an object. May raise instead of returning False."""

    def is_folder(self, uri: str) -> bool:
        """Tells whether there is a folder, and no object. May raise instead of returning False."""

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        """Reads `length` bytes from `start` on; all that follow if `length` is None.

        Args:
            uri: The object.
            start: Where to begin.
            length: How many bytes to read.
            most: The longest object that is wanted whole. Of a longer one nothing is kept, and
                hardly more than this is read.

        Returns:
            The bytes, and what they are of.
        """

    def put(self, uri: str, data: Data, *, exclusive: bool) -> bool:
        """Writes an object. Returns False if `exclusive` and there is one of that name."""

    def delete(self, uri: str) -> None:
        """Removes an object. May raise if there is none."""

    def delete_all(self, uris: Sequence[str]) -> None:
        """Removes objects, of which some may not be there."""

    def delete_tree(self, uri: str) -> None:
        """Removes everything below a folder or prefix. May raise if there is nothing."""

    def walk(self, uri: str) -> Iterator[Stored]:
        """Yields every object below a folder or prefix, or the object of that name."""

    def glob(self, pattern: str) -> Iterator[Stored]:
        """Yields the objects that match a shell pattern, in order of their uris."""


def require_identity(uri: str, identity: str | None, found: str) -> None:
    """Checks that what was read is what was listed.

    Args:
        uri: The object, for the message.
        identity: The identity that was listed. None accepts any.
        found: The identity that was read.

    Raises:
        SourceError: The two differ.
    """
    if identity is not None and found != identity:
        raise SourceError(
            f"{uri} changed between listing and reading ({identity} listed, {found} read); rerun "
            "the same command to list again and go on. If a table states its identity, correct it "
            "there; if a report of S3 Inventory does, wait for the next one"
        )
