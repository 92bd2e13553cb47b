"""Renders why two datasets differ: layers, neurons and images, in one HTML file.

    >>> render_explanation(gather_explanation(Catalogue("dnas"), explain(…)))  # doctest: +SKIP

The page is made like the page of a matrix (see `matrix_page`): it opens offline and asks for
nothing. A catalogue names the images that a neuron reacts to most and keeps none of them. They are
read from where they lie when the page is made. An image that is gone, or has changed since it was
counted, is named on the page with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from time import monotonic
from typing import Any

from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.comparing import ALL, FALSE_DISCOVERY_RATE, notes_of
from pipeline.dna import UNIFORM, Lens
from pipeline.explaining import Explanation, NamedImage, NeuronGroup, Reaction, TellingImage
from pipeline.reporting.captions import caption, look_notes, shares_told
from pipeline.reporting.conclusions import explanation_sentence
from pipeline.reporting.html.dataset_panels import panel_of, spec_facts
from pipeline.reporting.html.frame import FRAME, MOST, Packed, as_script, framed, plain
from pipeline.reporting.html.page_data import Link, Panel
from pipeline.reporting.html.thumbnails import (
    SAMPLING_SECONDS,
    Key,
    SmallImages,
    entries_named,
    rule_of,
    short_name,
)
from pipeline.reporting.report_options import SHOWN_IMAGES
from pipeline.sources import Entry
from pipeline.wording import count_of

MOST_NEURONS = 100
"""The most groups of neurons on a page, and the most neurons in its table: the first ones."""

MOST_IMAGES = 8
"""The most images that are shown for a neuron and a dataset."""

IMAGE_READERS = 8

LONGEST_URI = 300
"""The most characters of an image's uri, which may have thousands, or of an error."""


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
        pictures: The images of the groups of neurons, and those most unlike the other dataset.
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
    """Gathers the images of the groups of neurons, and some of each dataset.

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
    notes = notes_of(versions, lenses=[lens], paired=found.paired())
    if len(found.groups) > MOST_NEURONS:
        notes.append(
            f"To keep this page small, it has the first {MOST_NEURONS} of {len(found.groups)} "
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
        pictures_of(catalogue, found, deadline),
        about,
        tuple(notes),
        tuple(spec_facts(spec)),
    )


# Images.


def _sides_of(group: NeuronGroup) -> Sequence[Sequence[Reaction | TellingImage] | None]:
    """Returns the images of either dataset that are shown: of the difference, or else those kept.

    None stands for a dataset that keeps none.
    """
    sides = group.exemplars if group.images is None else group.images
    return [None if side is None else side[:MOST_IMAGES] for side in sides]


def _named(found: Explanation) -> list[list[Key]]:
    """Returns the images of either dataset that are named on the page, the first ones first."""
    sides: list[list[NamedImage]] = [[], []]
    for group in found.groups[:MOST_NEURONS]:
        for side, images in zip(sides, _sides_of(group), strict=True):
            side += images or ()
    for side, unlike in zip(sides, found.look.unlike if found.look else (), strict=False):
        side += unlike
    return [[(of.uri, of.member) for of in side] for side in sides]


def pictures_of(catalogue: Catalogue, found: Explanation, deadline: float) -> dict[Key, ShownImage]:
    """Reads each image that is named on a page once, those of the first groups first.

    Args:
        catalogue: The catalogue of the datasets.
        found: The explanation that names the images.
        deadline: When to stop reading, by the monotonic clock.

    Returns:
        The images by uri and member. One that cannot be read says why.
    """
    shown = _named(found)
    order = list(dict.fromkeys(key for keys in zip_longest(*shown) for key in keys if key))
    entries: dict[Key, Entry] = {}
    lost: dict[Key, str] = {}
    for at, (name, version) in enumerate(found.versions.items()):
        wanted = set(shown[at]) - entries.keys()
        if not wanted:
            continue
        listed, missing = entries_named(catalogue, name, version, wanted, deadline)
        entries |= listed
        lost |= missing
    rule = rule_of(catalogue, next(iter(found.versions.values())))  # both have one spec
    reader = SmallImages(deadline, rule)

    def read(key: Key) -> ShownImage:
        name, place = _cut(short_name(*key)), _cut(storage.spelled(*key))
        image, why = reader.read(entries[key]) if key in entries else ("", lost[key])
        return ShownImage(name, place, image, _cut(why))

    with ThreadPoolExecutor(IMAGE_READERS, "read") as pool:
        return dict(zip(order, pool.map(read, order), strict=True))


def _cut(text: str) -> str:
    """Shortens a long text in its middle, because the end tells images apart."""
    half = LONGEST_URI // 2
    return text if len(text) <= LONGEST_URI else f"{text[:half]}…{text[-half:]}"


# The file.


def render_explanation(
    why: Why, links: Sequence[Link] = (), dataset_pages: Sequence[str] = ()
) -> bytes:
    """Renders the page. It stays below `frame.MOST` bytes: images without room are named only.

    Args:
        why: What to show.
        links: Other pages of the same report.
        dataset_pages: The addresses of the two datasets' own pages, or nothing.

    Returns:
        The bytes of the HTML file.
    """
    found, places = why.found, {key: at for at, key in enumerate(why.pictures)}
    a, b = found.versions
    of = "" if found.lens == UNIFORM else f" through lens {found.lens}"
    rows = {row["layer"]: row for row in found.layers.to_pylist()}
    q = rows[ALL]["q"] if ALL in rows else None
    alike = q is not None and q >= FALSE_DISCOVERY_RATE
    title = (f"{a} and {b} compared" if alike else f"Why {a} and {b} differ") + of
    data = {
        "title": title,
        "links": [(of.text, of.href) for of in links],
        "about": why.about,
        "summary": explanation_sentence(found),
        "notes": [*look_notes(found), *why.notes],
        "names": [a, b],
        "dataset_pages": dataset_pages,
        "through": of.strip(),
        "bins": why.bins,
        "rate": FALSE_DISCOVERY_RATE,
        "layers": list(rows.values()),
        "stages": dict(found.stages),
        "groups": list(_groups(found, places)),
        "unlike": _unlike(found, places),
        "looked": found.look.images if found.look else None,
        "neurons": found.neurons.slice(0, min(MOST_NEURONS, len(found.reactions))).to_pylist(),
        "shared": why.shared,
        "datasets": [plain(panel) for panel in why.panels],
    }
    room = MOST - FRAME - len(as_script([data, _embedded(why.pictures.values(), lambda _: False)]))

    def fits(image: str) -> bool:
        nonlocal room
        room -= len(image)
        return room >= 0

    pictures = {"pictures": _embedded(why.pictures.values(), fits)}
    return framed("explained", ["stages.js", "explained.js"], title, data | pictures)


def _groups(found: Explanation, places: Mapping[Key, int]) -> Iterator[dict[str, Any]]:
    a, b = found.versions
    for group in found.groups[:MOST_NEURONS]:
        (row,) = found.neurons.slice(group.place, 1).to_pylist()
        yield row | {
            "stage": group.stage,
            "others": group.others,
            "histogram": vars(group.histogram),
            "parting": vars(group.parting) | {"told": shares_told(*group.parting.above)},
            "caption": caption(group, a, b),
            "telling": group.images is not None,
            "images": [
                None
                if side is None
                else [[places[of.uri, of.member], _number_of(of)] for of in side]
                for side in _sides_of(group)
            ],
            "description": group.description,
            "failure": group.failure,
        }


def _number_of(image: Reaction | TellingImage) -> float:
    return image.reaction if isinstance(image, Reaction) else image.above


def _unlike(found: Explanation, places: Mapping[Key, int]) -> list[list[list[float]]]:
    """Lists the images most unlike the other side, with the distances to it and to their own."""
    sides = found.look.unlike if found.look else ()
    return [
        [[places[of.uri, of.member], of.to_other, of.to_own] for of in images] for images in sides
    ]


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
