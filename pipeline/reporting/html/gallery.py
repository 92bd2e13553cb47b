"""Renders images with captions as one HTML file that opens offline and asks for nothing.

    >>> row = Row("nearest", look([(entry, ("1", "7.8 bins"))]))                 # doctest: +SKIP
    >>> Path("near.html").write_bytes(render_gallery(Gallery("Photos", (row,))))  # doctest: +SKIP

No script runs: the policy in its head allows its one style, by its sha256, and images that are in
the file. All text is escaped and redacted. It looks like the page of a snapshot (`page.css`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from time import monotonic

from pipeline import storage
from pipeline.reporting.html.frame import asset, document, shown_text
from pipeline.reporting.html.page_data import Link
from pipeline.reporting.html.thumbnails import SAMPLING_SECONDS, THUMBNAIL, SmallImages
from pipeline.sources import Entry
from pipeline.spec import Preprocess


@dataclass(frozen=True)
class GalleryImage:
    """An image and its caption.

    Attributes:
        name: The image's name.
        lines: The lines of the caption.
        image: Its `data:` URI, or empty.
        missing: Why there is no image, or empty.
    """

    name: str
    lines: tuple[str, ...] = ()
    image: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Row:
    """Pictures under a heading.

    Attributes:
        title: The heading.
        pictures: The pictures.
        about: A sentence below the heading, or none.
    """

    title: str
    pictures: Sequence[GalleryImage]
    about: str = ""


@dataclass(frozen=True)
class Gallery:
    """All that the page shows.

    Attributes:
        title: The title.
        rows: Rows of pictures.
        about: A sentence below the title, or none.
        notes: What a reader should know first.
        facts: Where all of it comes from.
        links: Other pages of the same report.
    """

    title: str
    rows: Sequence[Row]
    about: str = ""
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    links: Sequence[Link] = ()


def look(
    captioned: Iterable[tuple[Entry, tuple[str, ...]]], rule: Preprocess = THUMBNAIL
) -> list[GalleryImage]:
    """Reads images again and makes them small.

    A store that does not answer is not asked again, and nothing is read after `SAMPLING_SECONDS`.

    Args:
        captioned: Images with the lines of their captions.
        rule: The rule by which the images are read.

    Returns:
        The pictures. One that cannot be read any more says why.
    """
    reader = SmallImages(monotonic() + SAMPLING_SECONDS, rule)
    pictures = []
    for entry, lines in captioned:
        image, missing = reader.read(entry)
        pictures.append(
            GalleryImage(storage.spelled(entry.uri, entry.member), lines, image, missing)
        )
    return pictures


def render_gallery(gallery: Gallery) -> bytes:
    """Renders the page.

    Args:
        gallery: What to show.

    Returns:
        The bytes of the HTML file.
    """
    links = "".join(
        f'<a href="{shown_text(of.href)}">{shown_text(of.text)}</a>' for of in gallery.links
    )
    parts = {
        "back": f'<nav id="back" aria-label="Other pages">{links}</nav>' if links else "",
        "about": shown_text(gallery.about),
        "notes": "".join(f"<li>{shown_text(note)}</li>" for note in gallery.notes),
        "rows": "\n".join(_row(at, row) for at, row in enumerate(gallery.rows)),
        "facts": "".join(
            f"<dt>{shown_text(name)}</dt><dd>{shown_text(value)}</dd>"
            for name, value in gallery.facts
        ),
    }
    return document("gallery", gallery.title, f"{asset('page.css')}\n{asset('gallery.css')}", parts)


def _row(at: int, row: Row) -> str:
    pictures = "\n".join(f"<li>{_figure(picture)}</li>" for picture in row.pictures)
    about = f'<p class="quiet">{shown_text(row.about)}</p>' if row.about else ""
    return (
        f'<section aria-labelledby="row-{at}"><h2 id="row-{at}">{shown_text(row.title)}</h2>{about}'
        f'<ul class="pictures">\n{pictures}\n</ul></section>'
    )


def _figure(picture: GalleryImage) -> str:
    name = shown_text(picture.name)
    shown = (
        f'<img src="{escape(picture.image)}" alt="{name}" width="96" height="96">'
        if picture.image
        else f'<div class="missing">{shown_text(picture.missing)}</div>'
    )
    first, *others = picture.lines or ("",)
    told = "".join(f"<div>{shown_text(line)}</div>" for line in others)
    return (
        f'<figure tabindex="0">{shown}<figcaption><strong>{shown_text(first)}</strong>{told}'
        f'<span class="name" title="{name}">{name}</span></figcaption></figure>'
    )
