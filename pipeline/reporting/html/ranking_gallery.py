"""Shows the images at either end of a ranking on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.catalogue import Catalogue, software
from pipeline.dna import UNIFORM
from pipeline.explaining import RankedImage, Ranking
from pipeline.reporting.html.dataset_panels import spec_facts
from pipeline.reporting.html.gallery import Gallery, GalleryImage, Row, look
from pipeline.reporting.html.links import ranking_title
from pipeline.reporting.html.page_data import Link
from pipeline.reporting.html.thumbnails import rule_of
from pipeline.reporting.outcomes import background_sentence
from pipeline.sources import Entry
from pipeline.spec import Preprocess
from pipeline.wording import count_of


def gallery_of(catalogue: Catalogue, ranking: Ranking, links: Sequence[Link] = ()) -> Gallery:
    """Reads the images at either end again.

    An image that is at both ends is shown among the nearest only.

    Args:
        catalogue: The catalogue of the ranking.
        ranking: The ranking. All images that it names are shown.
        links: Other pages of the same report.

    Returns:
        The page's data.
    """
    version, nearest = ranking.version, ranking.nearest
    farthest = [image for image in ranking.farthest if image.rank > len(nearest)]
    rule = rule_of(catalogue, version)
    rows = [Row(f"Nearest to {ranking.name}", _pictures(nearest, ranking, rule))]
    if farthest:
        rows.append(Row(f"Farthest from {ranking.name}", _pictures(farthest, ranking, rule)))
    through = "" if ranking.lens == UNIFORM else f" through lens {ranking.lens}"
    totals = [
        ("ranked", f"{ranking.ranked:,}"),
        ("could not be read", f"{ranking.failed:,}"),
        ("at no distance", f"{ranking.undefined:,}"),
        *(("not ranked", str(unranked)) for unranked in ranking.unranked),
    ]
    facts = [
        ("source", ranking.source),
        ("dataset", f"{ranking.name}: {count_of(version.images, 'image')} of {version.source}"),
        ("catalogue", f"{catalogue.root}, commit {ranking.commit}"),
        ("dna", version.dna),
        ("lens", ranking.lens),
        ("background", ", ".join(ranking.background) or "none"),
        ("layers asked for", ", ".join(ranking.layers) or "none"),
        *totals,
        *spec_facts(catalogue.spec(version.spec)),
        ("software", software()),
    ]
    about = (
        f"Earth Mover's Distance of each image's own DNA to that of {ranking.name}{through}: mean "
        f"over neurons, in bins. {ranking.ranked:,} images are ranked."
    )
    if ranking.background:
        about += f" They are {background_sentence(ranking.name, list(ranking.background))}."
    return Gallery(ranking_title(ranking), rows, about, ranking.notes, facts, links)


def _pictures(
    images: Sequence[RankedImage], ranking: Ranking, rule: Preprocess
) -> list[GalleryImage]:
    """Reads images again. Each is named as it lies in the source, which the title names."""
    inside = f"{ranking.source.rstrip('/')}/"
    return [
        replace(picture, name=picture.name.removeprefix(inside))
        for picture in look(_captioned(images, ranking), rule)
    ]


def _captioned(
    images: Sequence[RankedImage], ranking: Ranking
) -> Iterator[tuple[Entry, tuple[str, ...]]]:
    for image in images:
        own = zip(ranking.layers, image.layers, strict=True)
        layers = (f"{layer}: {distance:.3g}" for layer, distance in own)
        distance = f"{image.emd:.2f} bins"  # the order is that of the scores, if there are any
        first = (f"score {image.score:.2f}", distance) if ranking.background else (distance,)
        yield image.entry, (f"#{image.rank:,}: {first[0]}", *first[1:], *layers)
