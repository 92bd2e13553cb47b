"""Renders why two datasets differ: layers, neurons and images, in one HTML file.

    >>> render_explanation(gather_explanation(Catalogue("dnas"), explain(…)))  # doctest: +SKIP

The page is made like the page of a matrix (see `matrix_page`): it opens offline and asks for
nothing. A catalogue names the images that a neuron reacts to most and keeps none of them. They are
read from where they lie when the page is made. An image that is gone, or has changed since it was
counted, is named on the page with the reason.
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
from pipeline.reporting.html.dataset_panels import panel_of, spec_facts
from pipeline.reporting.html.frame import FRAME, MOST, Packed, as_script, framed, plain
from pipeline.reporting.html.page_data import Link, Panel
from pipeline.reporting.html.thumbnails import SAMPLING_SECONDS, SmallImages, rule_of, short_name
from pipeline.reporting.report_options import SHOWN_IMAGES
from pipeline.reporting.terminal import lacking_exemplars
from pipeline.sources import Entry, find_entries
from pipeline.wording import count_of

MOST_NEURONS = 100
"""The most neurons on a page, which are the first ones. The file of --out has all of them."""

MOST_IMAGES = 8
"""The most images that are shown for a neuron and a dataset."""

IMAGE_READERS = 8

LONGEST_URI = 300
"""The most characters of an image's uri, which may have thousands, or of an error."""

Key = tuple[str, str]
"""An image's uri and member."""


@dataclass(frozen=True)
class ShownImage:
    """An image that is named on the page.

    Attributes:
        name: The last part of its name.
        place: Its whole name.
        image: Its `data:` URI, or empty.
        why: Why there is no image, or empty.
    """

    name: str
    place: str
    image: str = ""
    why: str = ""


@dataclass(frozen=True, eq=False)
class Why:
    """All that the page of an explanation shows.

    Attributes:
        found: The explanation.
        bins: Bins of a neuron's range.
        panels: One panel for each of the two datasets.
        pictures: The images of the first neurons.
        about: Where all of it comes from.
        notes: What a reader should know first.
        shared: Facts that are the same for both datasets.
    """

    found: Explanation
    bins: int
    panels: Sequence[Panel]
    pictures: Mapping[Key, ShownImage]
    about: str
    notes: tuple[str, ...]
    shared: tuple[tuple[str, str], ...]


def gather_explanation(
    catalogue: Catalogue,
    found: Explanation,
    *,
    lens: Lens | None = None,
    samples: int = SHOWN_IMAGES,
) -> Why:
    """Gathers the images of the first neurons, and some of each dataset.

    An image that cannot be read becomes a `ShownImage` that says why; nothing is raised for it.

    Args:
        catalogue: The catalogue of the datasets.
        found: The explanation.
        lens: The lens of the explanation.
        samples: Images per dataset; 0 for none.

    Returns:
        The page's data.
    """
    deadline = monotonic() + SAMPLING_SECONDS
    versions = found.versions
    panels = [panel_of(catalogue, *of, samples, deadline) for of in versions.items()]
    spec = catalogue.spec(next(iter(versions.values())).spec)
    notes = notes_of(versions, lenses=[lens])
    if len(found.reactions) > MOST_NEURONS:
        notes.append(
            f"To keep this page small, it has the first {MOST_NEURONS} of {len(found.reactions)} "
            "neurons that were asked for; vdna explain --out writes them all."
        )
    about = (
        f"Catalogue {catalogue.root}; extractor {spec.extractor}, "
        f"{count_of(spec.neurons, 'neuron')} of {count_of(len(spec.taps), 'layer')} in "
        f"{spec.bins} bins, spec {spec.digest}"
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


# Images.


def _shown(reactions: Reactions) -> list[tuple[Key, float]]:
    """Returns the first images of a neuron in one dataset, with the neuron's reaction to each."""
    return [((of.uri, of.member), of.reaction) for of in (reactions or ())[:MOST_IMAGES]]


def _pictures(catalogue: Catalogue, found: Explanation, deadline: float) -> dict[Key, ShownImage]:
    """Reads each image once, those of the first neurons first."""
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
    rule = rule_of(catalogue, next(iter(found.versions.values())))  # both have one spec
    reader = SmallImages(deadline, rule)

    def read(key: Key) -> ShownImage:
        name, place = _cut(short_name(*key)), _cut(storage.spelled(*key))
        image, why = reader.read(entries[key]) if key in entries else ("", lost[key])
        return ShownImage(name, place, image, _cut(why))

    with ThreadPoolExecutor(IMAGE_READERS, "read") as pool:
        return dict(zip(order, pool.map(read, order), strict=True))


def _entries(
    catalogue: Catalogue, name: str, version: Version, wanted: set[Key], deadline: float
) -> dict[Key, Entry]:
    uri = catalogue.uri("manifests", version.spec, name, version.manifest)
    with storage.open_random(uri) as file:
        return find_entries(file, wanted, uri, lambda: monotonic() < deadline)


def _cut(text: str) -> str:
    """Shortens a long text in its middle, because the end tells images apart."""
    half = LONGEST_URI // 2
    return text if len(text) <= LONGEST_URI else f"{text[:half]}…{text[-half:]}"


# The file.


def render_explanation(why: Why, links: Sequence[Link] = ()) -> bytes:
    """Renders the page. It stays below `frame.MOST` bytes: images without room are named only.

    Args:
        why: What to show.
        links: Other pages of the same report.

    Returns:
        The bytes of the HTML file.
    """
    found, places = why.found, {key: at for at, key in enumerate(why.pictures)}
    a, b = found.versions
    of = "" if found.lens == UNIFORM else f" through lens {found.lens}"
    title = f"Why {a} and {b} differ{of}"
    data = {
        "title": title,
        "links": [(of.text, of.href) for of in links],
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

    pictures = {"pictures": _embedded(why.pictures.values(), fits)}
    return framed("explained", ["explained.js"], title, data | pictures)


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


def _embedded(pictures: Iterable[ShownImage], fits: Callable[[str], bool]) -> list[dict[str, str]]:
    rows = []
    for picture in pictures:
        image, why = picture.image, picture.why
        if image and not fits(image):
            image, why = "", "left out for the size of this page"
        rows.append(
            {"name": picture.name, "place": picture.place, "image": Packed(image), "why": why}
        )
    return rows
