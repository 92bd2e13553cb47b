"""Rank images by how near each is to a dataset."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.build import engine_for
from jobs.shell import (
    AtOption,
    CatalogueOption,
    GpusOption,
    ImageColumnOption,
    JsonOption,
    LensOption,
    LogFormat,
    LogFormatOption,
    NeuronsOption,
    RayOption,
    SpecOption,
    ThreadsOption,
    WorkersOption,
    guarded,
    print_json,
    progress,
    run_alone,
)

if TYPE_CHECKING:
    from pipeline.explaining import RankedImage, Ranking


@guarded
def rank(
    source: Annotated[str, typer.Argument(help="Folder, glob, list, table or archive of images.")],
    to: Annotated[str, typer.Option("--to", help="The dataset of the catalogue to be near to.")],
    catalogue: CatalogueOption,
    lens: LensOption = None,
    neurons: NeuronsOption = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="The distance in this layer beside that in all. Can be repeated."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Write all images, the nearest first, as Parquet.")
    ] = None,
    html: Annotated[
        str | None, typer.Option(help="Write a page of the images at either end (.html).")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Images to print, of either end.")] = 10,
    weights: Annotated[
        str | None, typer.Option(help="Url of the weights, where they were others.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="So many images, the same each run.")] = None,
    include: Annotated[str | None, typer.Option(help="Only names that match this glob.")] = None,
    exclude: Annotated[str | None, typer.Option(help="No names that match this glob.")] = None,
    image_column: ImageColumnOption = None,
    max_failures: Annotated[
        float, typer.Option(help="Unreadable images allowed: a fraction, or a number from 1 up.")
    ] = 0.01,
    shard_images: Annotated[int | None, typer.Option(help="Images a shard.")] = None,
    spec: SpecOption = None,
    at: AtOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    gpus_per_worker: GpusOption = 0.0,
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
    from pipeline.spec import Resources

    if html:
        require_html(html)
        storage.canonical(html)  # what is no place is refused before all the work
    place = Catalogue(catalogue)
    number = commit_of(place, at)
    counted = place.spec(place.find(to, number, spec).spec)
    through = chosen_lens(place, lens, neurons or (), counted)
    resources = Resources(workers=workers, threads=threads, gpus_per_worker=gpus_per_worker)
    with engine_for(resources, ray_address) as engine:
        found = ranked(
            place,
            source,
            to,
            engine,
            lens=through,
            layers=layer or (),
            out=out,
            top=max(top, GALLERY) if html else top,
            at=number,
            spec=counted.digest,
            weights=weights,
            limit=limit,
            include=include,
            exclude=exclude,
            image_column=image_column,
            max_failures=max_failures,
            shard_images=shard_images,
            resources=resources,
            progress=progress(),
        )
    if html:
        write_gallery(place, found, html)
    found = replace(found, nearest=found.nearest[:top], farthest=found.farthest[:top])
    if as_json:
        print_json(summary(found))
        return
    print_ranking(found)
    for note in found.notes:
        print(f"note: {note}")
    for written in filter(None, (out, html)):
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
