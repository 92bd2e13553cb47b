"""Rank images by how near each is to a dataset."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.build import engine_for
from jobs.shell import (
    AtOption,
    CatalogueOption,
    JsonOption,
    LensOption,
    LogFormat,
    LogFormatOption,
    NeuronsOption,
    RayOption,
    SpecOption,
    guarded,
    print_json,
    progress,
    run_alone,
)
from pipeline.explaining import RankRequest
from pipeline.spec import Resources

if TYPE_CHECKING:
    from pipeline.explaining import RankedImage, Ranking


@guarded
def rank(
    request: RankRequest,
    resources: Resources,
    catalogue: CatalogueOption,
    lens: LensOption = None,
    neurons: NeuronsOption = None,
    html: Annotated[
        str | None, typer.Option(help="Write a page of the images at either end (.html).")
    ] = None,
    spec: SpecOption = None,
    at: AtOption = None,
    ray_address: RayOption = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Order images by the distance of their own DNA to a dataset's, the nearest first.

    The same command again does only what is missing.
    """
    from jobs.compare import chosen_lens, commit_of
    from pipeline import storage
    from pipeline.catalogue import Catalogue
    from pipeline.explaining import rank as ranked
    from pipeline.reporting import GALLERY, require_html, write_gallery

    if html:
        require_html(html)
        storage.canonical(html)  # what is no place is refused before all the work
    place = Catalogue(catalogue)
    number = commit_of(place, at)
    counted = place.spec(place.find(request.to, number, spec).spec)
    with engine_for(resources, ray_address) as engine:
        found = ranked(
            place,
            replace(request, top=max(request.top, GALLERY)) if html else request,
            engine,
            lens=chosen_lens(place, lens, neurons or (), counted),
            at=number,
            spec=counted.digest,
            resources=resources,
            progress=progress(),
        )
    if html:
        write_gallery(place, found, html)
    top = request.top
    found = replace(found, nearest=found.nearest[:top], farthest=found.farthest[:top])
    if as_json:
        print_json(summary(found))
        return
    print_ranking(found)
    for note in found.notes:
        print(f"note: {note}")
    for written in filter(None, (request.out, html)):
        print(f"written to {written}")


def summary(found: Ranking) -> dict[str, object]:
    return {
        "source": found.source,
        "to": found.name,
        "dna": found.version.dna,
        "spec": found.version.spec,
        "commit": found.commit,
        "lens": found.lens,
        "layers": found.layers,
        "ranked": found.ranked,
        "failed": found.failed,
        "undefined": found.undefined,
        "nearest": [row_of(image, found) for image in found.nearest],
        "farthest": [row_of(image, found) for image in found.farthest],
        "errors": [vars(image) for image in found.unranked],
        "counted_shards": found.counted_shards,
        "ignored": dict(found.ignored),
        "duplicates": found.duplicates,
        "notes": found.notes,
    }


def row_of(image: RankedImage, found: Ranking) -> dict[str, Any]:
    """The columns of the file."""
    from pipeline.explaining import column_of

    named = zip(found.layers, image.layers, strict=True)
    return {
        "uri": image.entry.uri,
        "member": image.entry.member,
        "rank": image.rank,
        "emd": image.emd,
        **{column_of(layer): distance for layer, distance in named},
    }


def print_ranking(found: Ranking) -> None:
    wide = len(f"{found.ranked:,}") + 2
    own = f" ({', '.join(('in all', *found.layers))})" if found.layers else ""
    rest = [image for image in found.farthest if image.rank > len(found.nearest)]
    for end, images in (("nearest to", found.nearest), ("farthest from", rest)):
        if images:
            print(f"{end} {found.name}, in bins{own}:")
        for image in images:
            distances = "".join(f"  {each:8.2f}" for each in (image.emd, *image.layers))
            print(f"{image.rank:>{wide},}{distances}  {image.name}")
    print(sentence(found))
    for unranked in found.unranked:
        print(f"  not ranked: {unranked}")


def sentence(found: Ranking) -> str:
    from pipeline.dna import UNIFORM

    ignored = sum(found.ignored.values())
    of = f"{found.name} (dna {found.version.dna[:12]})"
    through = f" through lens {found.lens}" if found.lens != UNIFORM else ""
    notes = [f"{found.ranked:,} images ranked by their distance to {of}{through}"]
    notes += [f"{found.failed:,} could not be read"] if found.failed else []
    notes += [f"{found.undefined:,} at no distance"] if found.undefined else []
    notes += [f"{ignored:,} files of other kinds ignored"] if ignored else []
    notes += [f"{found.duplicates:,} duplicates dropped"] if found.duplicates else []
    return ", ".join(notes)


if __name__ == "__main__":
    run_alone(rank)
