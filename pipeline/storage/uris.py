"""Spells the names of places: one canonical uri for each, and how people read it.

>>> canonical("S3://bucket/photos/")
's3://bucket/photos'
>>> join("s3://bucket", "dna", "a.parquet")
's3://bucket/dna/a.parquet'
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from pipeline.errors import (
    QUERY_VARIABLE,
    SourceError,
    UsageError,
    looks_secret,
    redact,
)
from pipeline.wording import option
from pipeline.wording import readable as readable
from pipeline.wording import spelled as spelled

WEB_PROTOCOLS = ("http", "https")

_REFERENCE = re.compile(r"\$\{(\w*)\}")
"""A reference to a variable of the environment, in the query of a url."""

_OTHER_FILE_URL = re.compile(r"\Afile:(?://localhost)?(?=/(?!/))", re.IGNORECASE)
"""How the url of a file of this machine begins, if it does not begin with `file:///` (RFC 8089)."""


def canonical(url: str | os.PathLike[str], *, queries: Collection[str] = ()) -> str:
    """Gives the one spelling of a place.

    Args:
        url: A path (relative, absolute or below `~`) or a url of any scheme.
        queries: Names of the parameters that the query of a url may have. See `--allow-query`.

    Returns:
        `file:///abs/path`, percent-encoded, for a local path; `scheme://path` for anything else.

    Raises:
        UsageError: It is empty, as of a shell's variable that is not set. Or it is the url of a
            local file, and its path does not start from the root. Or the url may carry a secret: a
            user name or a password, or a query or a fragment that `queries` does not allow.
    """
    text = os.fspath(url)
    if not text:
        raise UsageError("a path or url is empty; name the place, such as . for this folder")
    text = with_plain_scheme(text)
    protocol = protocol_of(text)
    if protocol != "file":
        _require_no_secret(text, protocol, queries)
    if protocol == "file":
        path = text if "://" not in text else local_path(text)
        if "://" in text and not path.startswith(("/", "~")):
            raise UsageError(
                f"{text} is no url of a local file; write the plain path, or file:/// and the path "
                "from the root of the disk"
            )
        return Path(absolute(os.path.expanduser(path))).as_uri()
    head, rest = text.split("://", 1)
    if protocol == "memory":
        rest = rest.lstrip("/")
    if protocol not in WEB_PROTOCOLS:  # a web server may answer /a and /a/ with different things
        rest = rest.rstrip("/")
    return f"{head.lower()}://{rest}"


def absolute(path: str) -> str:
    """Makes a path absolute and takes the `.` and `..` out of it.

    A `..` behind a symbolic link leads above the folder that the link names, as for the operating
    system. `os.path.abspath` would lead to the folder that holds the link, and to other files.

    Args:
        path: A path, or a pattern of paths.

    Returns:
        The path. Its links are kept, except those before such a `..`.
    """
    plain = os.path.abspath(path)
    parts = os.path.join(os.getcwd(), path).split("/")
    if ".." not in parts:
        return plain
    end = len(parts) - parts[::-1].index("..")
    climbed = "/".join(parts[:end])
    if (real := os.path.realpath(climbed)) == os.path.realpath(os.path.abspath(climbed)):
        return plain
    return os.path.normpath("/".join([real, *parts[end:]]))


def with_plain_scheme(text: str) -> str:
    """Writes the other urls of a local file, `file:/a` and `file://localhost/a`, as `file:///a`.

    Args:
        text: A path, a pattern or a url.

    Returns:
        The text, with that beginning if it is such a url.
    """
    return _OTHER_FILE_URL.sub("file://", text)


def _require_no_secret(text: str, protocol: str, queries: Collection[str]) -> None:
    plain, mark, rest = _cut(text, protocol)
    shown = redact(unquote(redact(plain)))
    if shown != unquote(plain):
        raise UsageError(
            f"{shown}{mark and mark + '…'} carries a user name, a token or a password, which would "
            "expire or leak into the catalogue; give the plain url, and credentials by the store's "
            "own settings"
        )
    for parameter in re.split("[&;]", rest) if mark else ():
        name, _, value = parameter.partition("=")
        wrong = [v for v in _REFERENCE.findall(value) if not v.startswith(QUERY_VARIABLE)]
        if wrong:
            raise UsageError(
                f"{plain}?{name}=… refers to the variable {wrong[0]}; only variables whose names "
                f"begin with {QUERY_VARIABLE} may be sent"
            )
        if mark == "#" or "#" in parameter or name not in queries or looks_secret(name, value):
            raise UsageError(
                f"{plain}{mark}… has a query or a fragment, which may hold a secret and would be "
                "kept in the catalogue. Leave it out. If the images of a source need it, allow its "
                f"parameters by name ({option('allow_query', 'id,key')}), and write a secret as "
                f"key=${{{QUERY_VARIABLE}KEY}}, with its value in that variable of the environment"
            )


def _cut(text: str, protocol: str) -> tuple[str, str, str]:
    """Cuts a url before its query or fragment.

    A `?` or `#` in the key of an object, or in a pattern, begins neither.

    Returns:
        What comes before, the `?` or `#` or nothing, and what comes after.
    """
    found = re.search(r"[?#]" if protocol in WEB_PROTOCOLS else r"[?#](?=[^/?#]*=)", text)
    if found is None:
        return text, "", ""
    return text[: found.start()], found[0], text[found.end() :]


def with_query(uri: str) -> str:
    """Puts the values of variables into the query of a url, to send a request.

    Returns:
        The url with its secrets. It must not be kept or shown.

    Raises:
        SourceError: A variable is not set on this machine.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if not name.startswith(QUERY_VARIABLE) or not os.environ.get(name):
            raise SourceError(
                f"{uri} needs the variable {name}, which is not set on this machine; set it "
                "wherever images are read"
            )
        return os.environ[name]

    plain, mark, rest = _cut(uri, protocol_of(uri))
    return plain + mark + _REFERENCE.sub(value, rest) if mark == "?" else uri


def lies_in(place: str, folder: str) -> bool:
    """Tells whether a place is a folder, or is found by searching it.

    Args:
        place: A canonical uri.
        folder: A canonical uri.

    Returns:
        Whether it does, as it is written or once symbolic links are followed.
    """
    if _begins(place, folder):
        return True
    if protocol_of(place) != "file":
        return False
    real = resolved(folder)
    above = Path(local_path(place)).parents  # one of them may be a link to the folder
    return _begins(resolved(place), real) or any(resolved(p.as_uri()) == real for p in above)


def resolved(uri: str) -> str:
    """Gives the uri with symbolic links followed, if it is local."""
    return Path(os.path.realpath(local_path(uri))).as_uri() if protocol_of(uri) == "file" else uri


def _begins(uri: str, folder: str) -> bool:
    return f"{uri}/".startswith(f"{folder.rstrip('/')}/")


def protocol_of(url: str) -> str:
    """Gives the scheme of a url in lower case.

    Returns:
        `file` for a plain path and for `local://`, which is fsspec's other name for it.
    """
    head, mark, _ = url.partition("://")
    protocol = head.lower() if mark else "file"
    return "file" if protocol == "local" else protocol


def local_path(uri: str) -> str:
    """Gives the path of a `file://` uri. It may hold any bytes that a file name may hold."""
    return os.fsdecode(unquote_to_bytes(uri.split("://", 1)[1]))


def join(root: str, *parts: str) -> str:
    """Gives the uri of a place below a canonical root.

    Args:
        root: A canonical uri.
        parts: Names that this program chose or has validated; they are not encoded.

    Returns:
        The names, joined by slashes.
    """
    return "/".join([root.rstrip("/"), *parts])


def parquet_uri(out: str, what: str) -> str:
    """Gives the canonical uri of a Parquet file that a user asked for.

    Args:
        out: The path or url, as the user gave it.
        what: What is written there, for the message.

    Returns:
        The canonical uri.

    Raises:
        UsageError: The name does not end in .parquet.
    """
    if not out.endswith(".parquet"):
        raise UsageError(f"out is {out!r}; {what} written as Parquet (.parquet)")
    return canonical(out)
