"""One HTML file of a snapshot: it opens offline, and asks for nothing.

    >>> Path("report.html").write_bytes(render(Page([matrix], panels)))      # doctest: +SKIP

`head.html`, `page.html`, `page.css`, `draw.js` and `page.js` beside this module are its frame, and
are all that runs: the policy in its head allows that one style and that one script, by their
sha256, and no connection. The data are one JSON text, in which no `<` stands; the script makes text
of them, never markup.

It draws with a thousand lines of its own and not with plotly, whose script alone is 4.8 MB, knows
no keyboard in a heatmap, and sets styles that a strict policy forbids.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from pipeline.arrange import clusters, plane_map
from pipeline.dna import Floats
from pipeline.errors import UsageError, redact
from pipeline.matrix import Distance, Estimate, Matrix
from pipeline.report import any_corrected, no_test, plain_note, shown, through
from pipeline.significance import FALSE_DISCOVERY_RATE

MOST = 9_700_000
"""Bytes of a page; of distances, columns of the least use are left out first."""
FRAME = 100_000
"""Of them, for the script, the style and the names."""
LEAST_NUMBERS = 1_000_000
"""What distances may take all the same, on a page that is full without them."""
COLUMNS: tuple[Distance | Estimate, ...] = (
    *("emd", "q", "emd_corrected", "low", "high", "se", "nfd", "fd", "floor", "p"),
)
"""In the order in which they get room."""
EXACT = 60
"""Datasets up to which distances keep all of float32; beyond, so many significant bits."""
BITS = 12
BITS_OF_A_TEST = 7
"""Of p and q."""
RATES = (0.01, 0.05, 0.1)
"""False discovery rates to choose from, beside the one that the page opens with."""


@dataclass(frozen=True)
class Sample:
    """An image of a dataset, small: `image` is its `data:` URI."""

    name: str
    image: str


@dataclass(frozen=True)
class Panel:
    """What the page tells of one dataset. `line`: its heading, after its name.

    `reasons`: how many images failed for which; `failures`: some of them. `notes`: what is not
    there, and why.
    """

    line: str
    facts: tuple[tuple[str, str], ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    failures: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neuron:
    """A neuron and its distance, in bins, between a pair; shares of activations in equal parts.

    `a`, `b`: of either dataset, 0 to 999 of the larger's most; from `low` to `high`, a part of the
    neuron's range that leaves out next to nothing. `weight`: what the lens gives it. `corrected`:
    the distance for the sizes of the samples, with the ends of its 95% interval; `q`: over all
    neurons of the pair; None where that is not known.
    """

    layer: str
    neuron: int
    emd: float
    low: float
    high: float
    a: tuple[int, ...]
    b: tuple[int, ...]
    weight: float = 1.0
    corrected: tuple[float, float, float] | None = None
    q: float | None = None


@dataclass(frozen=True)
class Seen:
    """What one matrix's lens shows. `neurons`: pairs (i < j) -> the neurons that differ most;
    `note` stands where a pair has none. `weightless`: layers that the lens gives no weight.
    """

    neurons: Mapping[tuple[int, int], Sequence[Neuron]] = field(default_factory=dict)
    note: str = "No histograms were read for this page."
    weightless: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Page:
    """`matrices`: of the same datasets, through different lenses; `seen`: of each, or none.
    `shared`: facts that are the same for every dataset.
    """

    matrices: Sequence[Matrix]
    panels: Sequence[Panel]
    seen: Sequence[Seen] = ()
    about: str = ""
    notes: tuple[str, ...] = ()
    title: str = ""
    shared: tuple[tuple[str, str], ...] = ()


def require_html(out: str) -> None:
    """Raises `UsageError` before anything is computed."""
    if not out.endswith((".html", ".htm")):
        raise UsageError(f"the page is to be {out!r}; name it .html")


def render(page: Page, *, rate: float = FALSE_DISCOVERY_RATE, room: int | None = None) -> bytes:
    """The file. Raises `UsageError` for matrices of different datasets.

    `room`: bytes for distances; for None those that the rest leaves of `MOST`.
    """
    names = page.matrices[0].names
    for matrix in page.matrices:
        if matrix.names != names or matrix.bins != page.matrices[0].bins:
            raise UsageError("a page shows matrices of the same datasets and bins only")
    if len(page.panels) != len(names):
        raise UsageError(f"a page of {len(names)} datasets takes as many panels")
    seen = page.seen or [Seen()] * len(page.matrices)
    if len(seen) != len(page.matrices):
        raise UsageError(f"a page of {len(page.matrices)} matrices takes as many lenses")
    datasets = [plain(panel) for panel in page.panels]
    told = [_told(*of) for of in zip(page.matrices, seen, strict=True)]
    if room is None:
        taken = len(as_script([datasets, told, page.notes]))
        room = max(LEAST_NUMBERS, MOST - FRAME - taken)
    rates = sorted({*RATES, rate})
    numbers = [_columns(matrix, room // len(told), rates) for matrix in page.matrices]
    lenses = [
        of | {"columns": held, "left_out": left}
        for (of, _), (held, left, _) in zip(told, numbers, strict=True)
    ]
    said = [note for of, held in zip(told, numbers, strict=True) for note in (*held[2], *of[1])]
    notes = [*page.notes, *dict.fromkeys(said)]
    title = page.title or f"Visual DNA of {len(names)} datasets{_through_all(page.matrices)}"
    data = {
        "title": title,
        "about": page.about,
        "notes": notes,
        "names": names,
        "bins": page.matrices[0].bins,
        "rate": rate,
        "rates": rates,
        "matrices": lenses,
        "shared": page.shared,
        "datasets": datasets,
    }
    return framed("page", title, data)


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


def _through_all(matrices: Sequence[Matrix]) -> str:
    """The lens, where all is seen through one."""
    return f" {through(matrices[0])}".rstrip() if len(matrices) == 1 else ""


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
    return resources.files("pipeline").joinpath(name).read_text(encoding="utf-8").strip()


def _sha256_source(text: str) -> str:
    """As a content security policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _told(matrix: Matrix, seen: Seen) -> tuple[dict[str, Any], list[str]]:
    """A matrix's part of the data, but for its numbers; and what is to be said of it."""
    planes = matrix.planes
    arranged = [clusters(shown(matrix, plane)) for plane in planes]
    maps = [plane_map(shown(matrix, plane)) for plane in planes]
    content = {
        "lens": matrix.lens,
        "through": through(matrix),
        "no_test": no_test(matrix),
        "weightless": seen.weightless,
        "neurons": {
            f"{i}-{j}": [plain(n) for n in found] for (i, j), found in seen.neurons.items()
        },
        "neurons_note": seen.note,
        "planes": planes,
        "arranged": [
            {
                "order": found.order,
                "merges": _rounded(found.merges),
                "corrected": any_corrected(matrix, plane),
            }
            for plane, found in zip(planes, arranged, strict=True)
        ],
        "maps": [
            {"points": _rounded(found.points), "stress": round(found.stress, 6)} for found in maps
        ],
    }
    plain_ones = plain_note(matrix, planes[-1])
    notes = [plain_ones] if plain_ones else []
    for plane, found in zip(planes, arranged, strict=True):
        if found.undefined and plane not in seen.weightless:
            lacking = ", ".join(matrix.names[i] for i in found.undefined[:5])
            notes.append(
                f"{lacking} {'and others ' if len(found.undefined) > 5 else ''}"
                f"at no distance that is defined in {plane}; last in order."
            )
    return content, notes


def _columns(
    matrix: Matrix, room: int, rates: Sequence[float]
) -> tuple[dict[str, dict[int, str]], dict[str, list[str]], list[str]]:
    """A matrix's numbers, the layers whose are left out for want of room, and what is to be said.

    Where a layer's distances find none, nothing else of it is looked for.
    """
    planes = matrix.planes
    packed: dict[str, dict[int, str]] = {}
    left: dict[str, list[str]] = {}
    *others, last = range(len(planes))  # the last is what the page opens with
    wanted = [(column, last) for column in COLUMNS]
    wanted += [(column, plane) for column in COLUMNS for plane in others]
    for column, plane in wanted:
        values = matrix.stacked(column)[plane]
        text = pack(values, BITS_OF_A_TEST, rates) if column in "pq" else pack(values)
        if not text:
            continue
        if len(text) <= room and planes[plane] not in left.get("emd", ()):
            room -= len(text)
            packed.setdefault(column, {})[plane] = Packed(text)
        else:
            left.setdefault(column, []).append(planes[plane])
    notes = []
    if left:
        columns = ", ".join(
            f"{column} of {len(of)} {'layer' if len(of) == 1 else 'layers'}"
            for column, of in left.items()
        )
        notes.append(
            f"Left out of this page for its size, and in the file that vdna compare --out writes: "
            f"{columns}."
        )
    if len(matrix.names) > EXACT:
        notes.append(f"Distances are rounded to {BITS} significant bits, more than three digits.")
    return packed, left, notes


def _rounded(rows: Floats) -> list[Any]:
    """Five digits are finer than a screen; a row with a NaN is null."""
    return [
        [float(f"{value:.5g}") for value in row] if np.isfinite(row).all() else None
        for row in rows.tolist()
    ]


def pack(distances: Floats, bits: int = BITS, borders: Sequence[float] = ()) -> str:
    """(D, D) -> base64 of the upper triangle, row by row: float32, little-endian, the first bytes
    of all, then the second ones and so on, by zlib. Empty where nothing is known.

    The page undoes it in `unpack`. Sorted by weight, bytes that say little are packed well.
    `borders`: that no value is rounded across.
    """
    exact = distances[np.triu_indices(len(distances), 1)]
    if not np.isfinite(exact).any():
        return ""
    upper = exact.astype("<f4")
    if len(distances) > EXACT:
        upper = _cut(upper, bits)
    for border in borders:
        wide = upper.astype(np.float64)
        upper = np.where((exact >= border) & (wide < border), _least_from(border), upper)
        upper = np.where((exact < border) & (wide >= border), _most_below(border), upper)
    planes = upper.view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)).decode()


def _least_from(border: float) -> np.float32:
    """The least float32 that is no less."""
    near = np.float32(border)
    return near if float(near) >= border else np.nextafter(near, np.float32(np.inf))


def _most_below(border: float) -> np.float32:
    near = np.float32(border)
    return near if float(near) < border else np.nextafter(near, np.float32(-np.inf))


def _cut(values: Any, bits: int) -> Any:
    """Rounded to so many significant bits. NaN stays NaN."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(fraction * 2**bits) / 2**bits, exponent).astype("<f4")
