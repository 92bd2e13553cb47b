"""Why two datasets differ, in one HTML file: layers, neurons, and the images of either.

    >>> write_page(Catalogue("dnas"), explain(…), "why.html")                # doctest: +SKIP

It is made as the page of a matrix is (see `pipeline.page`): it opens offline, and asks for nothing.
A catalogue names the images that a neuron reacts to most and keeps none of them: they are read from
where they lie as the page is made. One that is gone, or has changed since it was counted, is named
on the page with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pipeline import storage
from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import FALSE_DISCOVERY_RATE, notes_of
from pipeline.dna import UNIFORM, Lens
from pipeline.errors import VdnaError
from pipeline.explaining import Explanation, Reactions
from pipeline.reporting.conclusions import explanation_sentence
from pipeline.reporting.html.dataset_panels import SAMPLES, panel_of, spec_facts
from pipeline.reporting.html.frame import FRAME, MOST, Packed, as_script, framed, plain
from pipeline.reporting.html.page_data import Panel
from pipeline.reporting.html.thumbnails import SAMPLING_SECONDS, SmallImages, short_name
from pipeline.reporting.terminal import lacking_exemplars
from pipeline.sources import Entry, find_entries

MOST_NEURONS = 100
"""On a page, the first ones; the file that --out writes has them all."""

MOST_IMAGES = 8
"""Of a neuron and a dataset, those that it reacts to most."""

READERS = 8

LONGEST = 300
"""Characters of an image's place, and of why it is not shown: a store's keys may have thousands."""

Key = tuple[str, str]
"""An image's uri and member."""


@dataclass(frozen=True)
class Picture:
    """An image that is named. `image`: its `data:` URI; where there is none, `why`."""

    name: str
    place: str
    image: str = ""
    why: str = ""


@dataclass(frozen=True, eq=False)
class Why:
    """All that the page of an explanation holds. `pictures`: of the images of its first neurons."""

    found: Explanation
    bins: int
    panels: Sequence[Panel]
    pictures: Mapping[Key, Picture]
    about: str
    notes: tuple[str, ...]
    shared: tuple[tuple[str, str], ...]


def gather_explanation(
    catalogue: Catalogue, found: Explanation, *, lens: Lens | None = None, samples: int = SAMPLES
) -> Why:
    """With the images of the first neurons, and `samples` of each dataset, as far as they are read.

    `lens`: that of the explanation.
    Raises nothing for an image: what cannot be read is a `Picture` that says why.
    """
    deadline = monotonic() + SAMPLING_SECONDS
    versions = found.versions
    panels = [panel_of(catalogue, *of, samples, deadline) for of in versions.items()]
    spec = catalogue.spec(next(iter(versions.values())).spec)
    notes = notes_of(versions, lenses=[lens])
    if len(found.reactions) > MOST_NEURONS:
        notes.append(
            f"For its size, this page has the first {MOST_NEURONS} of {len(found.reactions)} "
            "neurons that were asked for; vdna explain --out writes them all."
        )
    about = (
        f"Catalogue {catalogue.root}; extractor {spec.extractor}, {spec.neurons:,} neurons of "
        f"{len(spec.taps)} layers in {spec.bins} bins, spec {spec.digest}"
    )
    return Why(
        found,
        spec.bins,
        panels,
        _pictures(catalogue, found, deadline),
        about,
        tuple(notes),
        tuple(spec_facts(spec)),
    )


def write_explanation_page(
    catalogue: Catalogue,
    found: Explanation,
    out: str,
    *,
    lens: Lens | None = None,
    samples: int = SAMPLES,
) -> int:
    """The page into a file or an object; its bytes."""
    page = render_explanation(gather_explanation(catalogue, found, lens=lens, samples=samples))
    storage.replace(storage.canonical(out), page)
    return len(page)


# Images.


def _shown(reactions: Reactions) -> list[tuple[Key, float]]:
    """The first images of a neuron and a dataset; none where it keeps none."""
    return [((of.uri, of.member), of.reaction) for of in (reactions or ())[:MOST_IMAGES]]


def _pictures(catalogue: Catalogue, found: Explanation, deadline: float) -> dict[Key, Picture]:
    """Each image once, those of the first neurons first."""
    shown = [[_shown(side) for side in sides] for sides in found.reactions[:MOST_NEURONS]]
    order = list(dict.fromkeys(key for sides in shown for side in sides for key, _ in side))
    entries: dict[Key, Entry] = {}
    lost: dict[Key, str] = {}
    for at, (name, version) in enumerate(found.versions.items()):
        wanted = {key for sides in shown for key, _ in sides[at]} - entries.keys()
        if not wanted:
            continue
        try:
            listed = _entries(catalogue, name, version, wanted, deadline)
            why = "reading took too long" if monotonic() > deadline else "its manifest lacks it"
        except (VdnaError, OSError) as error:
            listed, why = {}, f"the manifest cannot be read: {error}"
        entries |= listed
        lost |= dict.fromkeys(wanted - listed.keys(), why)
    reader = SmallImages(deadline)

    def read(key: Key) -> Picture:
        name, place = _cut(short_name(*key)), _cut(storage.spelled(*key))
        image, why = reader.read(entries[key]) if key in entries else ("", lost[key])
        return Picture(name, place, image, _cut(why))

    with ThreadPoolExecutor(READERS, "read") as pool:
        return dict(zip(order, pool.map(read, order), strict=True))


def _entries(
    catalogue: Catalogue, name: str, version: Version, wanted: set[Key], deadline: float
) -> dict[Key, Entry]:
    uri = catalogue.uri("manifests", version.spec, name, version.manifest)
    with storage.open_random(uri) as file:
        return find_entries(file, wanted, uri, lambda: monotonic() < deadline)


def _cut(text: str) -> str:
    """With its end, which tells images apart."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"


# The file.


def render_explanation(why: Why) -> bytes:
    """The file, below `pipeline.page.MOST` bytes: images for which there is no room are named."""
    found, places = why.found, {key: at for at, key in enumerate(why.pictures)}
    a, b = found.versions
    of = "" if found.lens == UNIFORM else f" through lens {found.lens}"
    title = f"Why {a} and {b} differ{of}"
    data = {
        "title": title,
        "about": why.about,
        "summary": explanation_sentence(found),
        "notes": [*lacking_exemplars(found).values(), *why.notes],
        "names": [a, b],
        "through": of.strip(),
        "bins": why.bins,
        "rate": FALSE_DISCOVERY_RATE,
        "layers": found.layers.to_pylist(),
        "neurons": list(_neurons(found, places)),
        "shared": why.shared,
        "datasets": [plain(panel) for panel in why.panels],
    }
    room = MOST - FRAME - len(as_script([data, _embedded(why.pictures.values(), lambda _: False)]))

    def fits(image: str) -> bool:
        nonlocal room
        room -= len(image)
        return room >= 0

    return framed("explained", title, data | {"pictures": _embedded(why.pictures.values(), fits)})


def _neurons(found: Explanation, places: Mapping[Key, int]) -> Iterable[dict[str, Any]]:
    rows = found.neurons.slice(0, min(MOST_NEURONS, len(found.reactions))).to_pylist()
    for at, (row, sides) in enumerate(zip(rows, found.reactions, strict=False)):
        if at < len(found.shown):
            row["histogram"] = vars(found.shown[at])
        row["images"] = [
            None if side is None else [[places[key], reaction] for key, reaction in _shown(side)]
            for side in sides
        ]
        yield row


def _embedded(pictures: Iterable[Picture], fits: Callable[[str], bool]) -> list[dict[str, str]]:
    rows = []
    for picture in pictures:
        image, why = picture.image, picture.why
        if image and not fits(image):
            image, why = "", "left out for the size of this page"
        rows.append(
            {"name": picture.name, "place": picture.place, "image": Packed(image), "why": why}
        )
    return rows
