"""Finds out by trying what a store is like: its clock, and whether it creates exclusively."""

from __future__ import annotations

import secrets
from datetime import datetime

from pipeline.errors import StorageError
from pipeline.storage.objects import create, delete, info, read
from pipeline.storage.uris import join, protocol_of


def clock(root: str) -> datetime:
    """Asks a store for the time by which it stamps objects. Other clocks may differ from it.

    Args:
        root: Below it an object is made, and removed again.

    Returns:
        The time, in the precision of the store.

    Raises:
        StorageError: The store does not tell when an object was made.
    """
    uri = _probe_below(root)
    create(uri, uri.encode())
    modified = info(uri).modified
    delete(uri)
    if modified is None:
        raise StorageError(f"{root}: {protocol_of(root)}:// does not tell when an object was made")
    return modified


def require_exclusive(root: str) -> None:
    """Checks that creating an object below `root` really is exclusive.

    Some servers take the condition and ignore it. Exact counts rest on it, so no catalogue is
    written there.

    Raises:
        StorageError: A second writer overwrote the object of the first.
    """
    uri = _probe_below(root)
    mine, other = secrets.token_bytes(16), secrets.token_bytes(16)
    first = create(uri, mine)
    second = create(uri, other)
    held = read(uri)
    delete(uri)
    if (first, second, held) != (True, False, mine):
        raise StorageError(
            f"{root}: this endpoint overwrites an object that a conditional PUT should have left "
            "alone; two jobs could corrupt a catalogue there. Use a store with If-None-Match (Ceph "
            "has it only in buckets without versioning)"
        )


def _probe_below(root: str) -> str:
    return join(root, "_work", f"probe-{secrets.token_hex(8)}")
