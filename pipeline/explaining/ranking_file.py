"""What the file of a ranking states of its result, and how a page reads it again.

    >>> read_ranking(Catalogue("dnas"), "near.parquet").nearest                # doctest: +SKIP

The rows of the file are all images. Its metadata states the result that was reported: the totals,
and the images at either end with what it takes to read them again. So no row is read for a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline import storage
from pipeline.catalogue import Catalogue, Version, VersionName, dataset_of
from pipeline.dna import SealedFile, corrupt_if_unreadable
from pipeline.errors import NotFound, SourceError
from pipeline.explaining.rank_result import Ranking
from pipeline.explaining.ranking_order import RANKING, RankedImage, UnrankedImage
from pipeline.sources import SHARED_STORES, Entry


def reported_images(ranking: Ranking) -> dict[str, Any]:
    """States the images that a ranking reports, for its file.

    Args:
        ranking: The ranking.

    Returns:
        The images at either end, some of those without a distance, and the notes, as JSON has them.
    """
    return {
        "nearest": [asdict(image) for image in ranking.nearest],
        "farthest": [asdict(image) for image in ranking.farthest],
        "unranked": [asdict(image) for image in ranking.unranked],
        "notes": ranking.notes,
    }


def read_ranking(catalogue: Catalogue, file: str) -> Ranking:
    """Reads the result of a ranking from its file.

    Args:
        catalogue: The catalogue of the dataset that images were ranked against.
        file: The path or url of the file, which `rank` wrote as `out`.

    Returns:
        The ranking as it was reported, of the newest commit in which the dataset has that DNA.

    Raises:
        CorruptFile: The file is no ranking, or is damaged.
        NotFound: No commit of the catalogue has the DNA that images were ranked against.
        SourceError: The file cannot be read, or lies in a store and names files of this machine.
    """
    uri = storage.canonical(file)
    with storage.open_random(uri) as opened:
        stated = SealedFile(opened, RANKING, file).metadata
    with corrupt_if_unreadable(f"{file}: its metadata is not that of a ranking"):
        name, spec, dna = stated["dataset"], stated["spec_digest"], stated["dna"]
        nearest, farthest = (_images(stated[end]) for end in ("nearest", "farthest"))
        unranked = tuple(UnrankedImage(**image) for image in stated["unranked"])
        layers, notes = tuple(stated["layers"]), tuple(stated["notes"])
        background = {str(name): str(dna) for name, dna in stated["background"].items()}
        totals = [int(stated[total]) for total in ("ranked", "failed", "undefined")]
        source, lens = str(stated["source"]), str(stated["lens"])
    _require_own(uri, file, [image.entry for image in (*nearest, *farthest)])
    commit, version = _version_of(catalogue, name, spec, dna, file)
    return Ranking(
        name=name,
        version=version,
        source=source,
        commit=commit,
        lens=lens,
        layers=layers,
        background=background,
        ranked=totals[0],
        failed=totals[1],
        undefined=totals[2],
        nearest=nearest,
        farthest=farthest,
        unranked=unranked,
        counted_shards=0,
        notes=notes,
    )


def _images(stated: Sequence[Mapping[str, Any]]) -> tuple[RankedImage, ...]:
    return tuple(
        RankedImage(
            int(image["rank"]),
            float(image["score"]),
            float(image["emd"]),
            tuple(image["layers"]),
            Entry(**image["entry"]),
        )
        for image in stated
    )


def _require_own(uri: str, file: str, entries: Sequence[Entry]) -> None:
    """Checks that a file in a store makes this machine read none of its own files."""
    if storage.store_of(uri).is_local:
        return
    for entry in entries:
        if storage.protocol_of(entry.uri) not in (storage.protocol_of(uri), *SHARED_STORES):
            raise SourceError(
                f"{file} lies in a store, and names {storage.spelled(entry.uri)}, which does not; "
                "copy the ranking to this machine if you trust it"
            )


def _version_of(
    catalogue: Catalogue, name: str, spec: str, dna: str, file: str
) -> tuple[int, Version]:
    """Finds the version that has a DNA, as a name such as `photos@-1` may mean another by now.

    Returns:
        The number of the newest commit that holds it, and the version.

    Raises:
        NotFound: There is none.
    """
    again = "name the catalogue of the ranking, or rank the images again"
    if VersionName.parse(name).is_window:
        window = catalogue.resolve(name, spec=spec)
        if window.version.dna == dna:
            return window.commit, window.version
        raise NotFound(
            f"{file} ranks images by {name} of DNA {dna}, and in {catalogue.root} that window is "
            f"of other images now; {again}"
        )
    for commit in catalogue.log():
        version = commit.datasets.get(dataset_of(name), {}).get(spec)
        if version is not None and version.dna == dna:
            return commit.number, version
    raise NotFound(
        f"{file} ranks images by {name} of DNA {dna}, and no commit of {catalogue.root} has that; "
        f"{again}"
    )
