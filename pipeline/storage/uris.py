"""Spells the names of places: one canonical uri for each, and how people read it.

>>> canonical("S3://bucket/photos/")
's3://bucket/photos'
>>> join("s3://bucket", "dna", "a.parquet")
's3://bucket/dna/a.parquet'
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from pipeline.errors import UsageError, printable, redact


def canonical(url: str | os.PathLike[str]) -> str:
    """Gives the one spelling of a place.

    Args:
        url: A path (relative, absolute or below `~`) or a url of any scheme.

    Returns:
        `file:///abs/path`, percent-encoded, for a local path; `scheme://path` for anything else.

    Raises:
        UsageError: The url carries a secret: a password, or the signature of a presigned url, which
            changes with every run.
    """
    text = os.fspath(url)
    shown = redact(text)
    protocol = protocol_of(text)
    if protocol != "file" and (shown != text or redact(unquote(text)) != unquote(text)):
        bare = shown.split("?", 1)[0]
        raise UsageError(
            f"{bare}{'?…' if '?' in text else ''} carries a signature, a token, a name or a "
            "password, which would expire or leak into the catalogue; give the plain url, and "
            "credentials by the store's own settings"
        )
    if protocol == "file":
        path = text if "://" not in text else local_path(text)
        return Path(os.path.abspath(os.path.expanduser(path))).as_uri()
    head, rest = text.split("://", 1)
    if protocol == "memory":
        rest = rest.lstrip("/")
    return f"{head.lower()}://{rest.rstrip('/')}"


def protocol_of(url: str) -> str:
    """Gives the scheme of a url in lower case.

    Returns:
        `file` for a plain path and for `local://`, which is fsspec's other name for it.
    """
    protocol = url.split("://", 1)[0].lower() if "://" in url else "file"
    return "file" if protocol == "local" else protocol


def local_path(uri: str) -> str:
    """Gives the path of a `file://` uri. It may hold any bytes that a file name may hold."""
    return os.fsdecode(unquote_to_bytes(uri.split("://", 1)[1]))


def readable(uri: str) -> str:
    """Gives the uri as people write it: a plain path for a `file://` uri."""
    if protocol_of(uri) == "file":
        return local_path(uri).encode("utf-8", "backslashreplace").decode()
    return uri


def spelled(uri: str, member: str = "") -> str:
    """Gives the name of an image as people read it, safe to print on a terminal.

    Args:
        uri: The object that holds the image.
        member: The name of the image inside it, if it is an archive.

    Returns:
        `uri::member`, with what would command a terminal written out.
    """
    return printable(f"{readable(uri)}{'::' + member if member else ''}")


def join(root: str, *parts: str) -> str:
    """Gives the uri of a place below a canonical root.

    Args:
        root: A canonical uri.
        parts: Names that this program chose or has validated; they are not encoded.

    Returns:
        The names, joined by slashes.
    """
    return "/".join([root.rstrip("/"), *parts])
