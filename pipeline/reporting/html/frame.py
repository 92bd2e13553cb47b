"""Makes self-contained HTML files: a frame, its data, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from pipeline import storage
from pipeline.errors import UsageError, redact, redact_all
from pipeline.explaining import PairNeuron
from pipeline.reporting.html.page_data import Panel

MOST = 9_700_000
"""The most bytes of a page. If distances do not fit, the least useful columns are left out."""

FRAME = 100_000
"""The bytes of a page that are kept free for the script, the style and the names."""

_POLICY = "default-src 'none'; img-src data:; style-src '"


def require_html(out: str) -> None:
    """Checks the name of a page before anything is computed.

    Args:
        out: The name of the page to write.

    Raises:
        UsageError: The name does not end in `.html` or `.htm`.
    """
    if not out.endswith((".html", ".htm")):
        raise UsageError(f"the page is written as HTML, so the name {out!r} must end in .html")


def save_page(page: bytes, out: str) -> int:
    """Writes a page to a file or an object.

    Args:
        page: The bytes of the page.
        out: The path or url to write.

    Returns:
        The page's size in bytes.
    """
    storage.replace(storage.canonical(out), page)
    return len(page)


def is_page(uri: str) -> bool:
    """Tells whether a file begins as every page of `document` does."""
    start = f"{asset('head.html').partition('{policy}')[0]}{_POLICY}".encode()
    return storage.read_range(uri, 0, len(start)) == start


def framed(name: str, scripts: Sequence[str], title: str, data: Mapping[str, Any]) -> bytes:
    """Fills the page of a name (such as `page.html`) with data.

    Args:
        name: The name of the page's file in this folder.
        scripts: The files of its script after `draw.js`, in the order in which they run.
        title: The title of the page.
        data: What the script shows. All texts in it are redacted.

    Returns:
        The bytes of the HTML file.
    """
    script = "\n\n".join(asset(file) for file in ("draw.js", *scripts))
    return document(name, title, asset("page.css"), {"data": as_script(data)}, script)


def document(
    name: str,
    title: str,
    style: str,
    parts: Mapping[str, str],
    script: str = "",
    *,
    asks: bool = False,
) -> bytes:
    """Puts parts into the body of a name, below the common head.

    The policy in the head allows this style and this script alone, by their sha256, and images that
    are inside the file.

    Args:
        name: The name of the body's file in this folder.
        title: The title of the page.
        style: The style sheet.
        parts: The markup for each place of the body.
        script: The script, or none.
        asks: Whether the script may ask the server that the page came from.

    Returns:
        The bytes of the HTML file.
    """
    asked = "connect-src 'self'; " if asks else ""
    scripts = f"script-src '{_sha256_source(script)}'; " if script else ""
    policy = (
        f"{_POLICY}{_sha256_source(style)}'; {scripts}{asked}base-uri 'none'; form-action 'none'"
    )
    head = {"policy": policy, "title": escape(redact(title)), "style": style, "script": script}
    filled = {**parts, **head}
    frame = f"{asset('head.html')}\n{asset(f'{name}.html')}"
    return re.sub(r"\{(\w+)\}", lambda found: filled[found[1]], frame).encode()


class Packed(str):
    """A base64 text. It holds no secret, and would take long to search for one."""


def as_script(data: object) -> str:
    """Encodes data as JSON that may stand in a script element.

    No `<` can end the element, and nothing begins a comment. Every text is redacted, because errors
    and sources quote what others wrote.

    Args:
        data: The data.

    Returns:
        The JSON text.
    """
    safe = redact_all(data, Packed)
    text = json.dumps(safe, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def shown_text(text: str) -> str:
    """Makes a text fit to stand in markup: no tag in it counts, and no secret shows."""
    return escape(redact(text))


def plain(of: Panel | PairNeuron) -> dict[str, Any]:
    """Returns the fields of a panel or a neuron as JSON has them."""
    fields = dict(vars(of))
    if isinstance(of, Panel):
        fields["samples"] = [{"name": s.name, "image": Packed(s.image)} for s in of.samples]
    return fields


def asset(name: str) -> str:
    """Reads a part of a page that lies beside this module."""
    return (
        resources.files("pipeline.reporting.html")
        .joinpath(name)
        .read_text(encoding="utf-8")
        .strip()
    )


def _sha256_source(text: str) -> str:
    """Names a style or script as a content security policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
