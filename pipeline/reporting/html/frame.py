"""reporting.html.frame: TODO-DOC"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from pipeline.errors import UsageError, redact
from pipeline.reporting.html.page_data import Neuron, Panel

MOST = 9_700_000
"""Bytes of a page; of distances, columns of the least use are left out first."""

FRAME = 100_000
"""Of them, for the script, the style and the names."""


def require_html(out: str) -> None:
    """Raises `UsageError` before anything is computed."""
    if not out.endswith((".html", ".htm")):
        raise UsageError(f"the page is to be {out!r}; name it .html")


def framed(name: str, title: str, data: Mapping[str, Any]) -> bytes:
    """The file of the frame of that name (`page.html`, `page.js`) and its data."""
    script = f"{asset('draw.js')}\n{asset(f'{name}.js')}"
    return document(name, title, asset("page.css"), {"data": as_script(data)}, script)


def document(
    name: str, title: str, style: str, parts: Mapping[str, str], script: str = ""
) -> bytes:
    """The file of `head.html` and the body of that name, `parts` in their places, as markup.

    Its policy allows this style and this script alone, by their sha256, and images in the file.
    """
    scripts = f"script-src '{_sha256_source(script)}'; " if script else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sha256_source(style)}'; {scripts}"
        "base-uri 'none'; form-action 'none'"
    )
    head = {"policy": policy, "title": escape(redact(title)), "style": style, "script": script}
    filled = {**parts, **head}
    frame = f"{asset('head.html')}\n{asset(f'{name}.html')}"
    return re.sub(r"\{(\w+)\}", lambda found: filled[found[1]], frame).encode()


class Packed(str):
    """Base64: nothing to redact, and much to look through."""


def as_script(data: object) -> str:
    """JSON that may stand in a script element: no `<` ends it, nothing begins a comment.

    Every text in it is redacted: errors and sources quote what others wrote.
    """
    text = json.dumps(_redacted(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _redacted(data: Any) -> Any:
    match data:
        case Packed():
            return data
        case str():
            return redact(data)
        case Mapping():
            return {key: _redacted(value) for key, value in data.items()}
        case list() | tuple():
            return [_redacted(value) for value in data]
    return data


def plain(of: Panel | Neuron) -> dict[str, Any]:
    """As JSON has it."""
    fields = dict(vars(of))
    if isinstance(of, Panel):
        fields["samples"] = [{"name": s.name, "image": Packed(s.image)} for s in of.samples]
    return fields


def asset(name: str) -> str:
    """A text beside this module: a part of a page."""
    return (
        resources.files("pipeline.reporting.html")
        .joinpath(name)
        .read_text(encoding="utf-8")
        .strip()
    )


def _sha256_source(text: str) -> str:
    """As a content security policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
