"""Says what became of a build, a calibration, a ranking or a matrix: as lines, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pipeline.building import LISTED
from pipeline.dna import UNIFORM
from pipeline.reporting.noted_images import image_notes
from pipeline.sources import label_of
from pipeline.spec import Alpha
from pipeline.wording import count_of, in_units, option, some_of

if TYPE_CHECKING:  # a command that builds does not wait for what compares
    from pipeline.building import Calibration, Result
    from pipeline.comparing import Matrix
    from pipeline.explaining import RankedImage, Ranking

JSON_ROWS = 4096
"""How many rows of a matrix are turned into dictionaries at a time."""


def build_json(result: Result) -> dict[str, object]:
    """Returns what became of a build, for JSON."""
    return {
        "name": result.name,
        "changed": result.changed,
        "counted_shards": result.counted_shards,
        "ignored": result.ignored,
        "duplicates": result.duplicates,
        "failures": [asdict(failure) for failure in result.failures],
        "parts": {name: asdict(version) for name, version in result.parts.items()},
        "replaced": asdict(result.replaced) if result.replaced else None,
        "changes": asdict(result.changes) if result.changes else None,
        "image_changes": asdict(result.image_changes) if result.image_changes else None,
        "read": result.read,
        "read_bytes": result.read_bytes,
        "reused": result.reused,
        "seconds": result.seconds,
        "requests": result.requests,
        "worker_seconds": result.worker_seconds,
        "commit": result.commit,
        "moved": {"from": result.former_version, **asdict(result.moved)} if result.moved else None,
        "unmeasured": result.unmeasured or None,
        "untested": result.untested or None,
        **asdict(result.version),
    }


def build_sentence(result: Result) -> str:
    """Returns what became of a build in one line."""
    version, parts = result.version, result.parts
    notes = [count_of(version.images, "image")]
    notes += [f"{version.failed:,} could not be read"] if version.failed else []
    notes += [f"{version.transparent:,} transparent"] if version.transparent else []
    notes += [f"{version.single_colour:,} of a single colour"] if version.single_colour else []
    notes += _left_out(result.ignored, result.duplicates)
    notes += [f"{count_of(len(parts), 'part')} by {label_of(version.by)}"] if parts else []
    notes += [f"of the change list: {result.changes}"] if result.changes else []
    same = "source has not changed" if result.changes is None else "images are the same"
    state = "committed" if result.changed else f"nothing to do, the {same}"
    return f"{result.name}: {', '.join(notes)}; {state} (dna {version.dna[:12]})"


def work_lines(result: Result) -> list[str]:
    """Says what a build that committed something did: what changed and moved, and what it read."""
    if not result.changed:
        return []
    words = [] if result.image_changes is None else [f"{result.image_changes} images"]
    size = f" ({in_units(result.read_bytes)})" if result.read_bytes else ""
    words.append(f"{result.read:,} read{size}")
    if result.reused:
        words.append(f"{result.reused:,} not, as their sums were stored already")
    return [f"  {', '.join(words)}, in {result.seconds:,.1f} s", *_movement_lines(result)]


def _movement_lines(result: Result) -> list[str]:
    """Says how far a version that was committed now has moved, or why that is not known."""
    moved, why = result.moved, result.unmeasured
    if moved is None:
        return [f"  how far it moved is not known: {why}"] if why else []
    why = "; ".join(filter(None, (why, result.untested)))
    return [f"  moved from {result.former_version} by {moved}{f' ({why})' if why else ''}"]


def build_lines(result: Result, alpha: Alpha) -> list[str]:
    """Returns what became of a build by a rule of transparency, with first failures and parts."""
    lines = [build_sentence(result), *work_lines(result)]
    lines += [*replacement_lines(result), *failure_lines(result)]
    parts = list(result.parts.items())
    for name, version in parts[:LISTED]:
        lines.append(f"  {name}: {count_of(version.images, 'image')}")
        if name != f"{result.name}/{version.value}":
            lines[-1] += f", of {version.value!r}; a dash stands for what a name cannot hold"
    if len(parts) > LISTED:
        lines.append(f"  … and {len(parts) - LISTED:,} more (`vdna ls`)")
    return lines + [f"note: {note}" for note in image_notes(result.version, alpha)]


def replacement_lines(result: Result) -> list[str]:
    """Says which version a build replaced, and where the former one is."""
    new, old = result.version, result.replaced
    if old is None:
        return []
    former = count_of(old.images, "image")
    change = f"{former} by {new.images:,}"
    if old.source != new.source:
        change = f"{former} of {old.source or 'an import'} by {new.images:,} of {new.source}"
    options = " ".join(option(name, value) for name, value in result.former_options.items())
    reads = "reads" if len(result.former_options) == 1 else "read"
    kept = f"is kept until `vdna gc --keep N` finds N newer ones ({options} {reads} it)"
    return [f"  replaces {change}; the former version {kept}"]


def failure_lines(result: Result) -> list[str]:
    """Returns the first images that a build could not read, and why."""
    lines = [f"  not counted: {failure}" for failure in result.failures[:LISTED]]
    if len(result.failures) > LISTED:
        more = f"{len(result.failures) - LISTED:,} more"
        lines.append(f"  … and {more} (`vdna show {result.name} --failures N`)")
    return lines


def calibration_json(measured: Calibration) -> dict[str, object]:
    """Returns what a calibration measured, for JSON."""
    return {
        "digest": measured.ranges.digest,
        "images": measured.images,
        "failed": len(measured.failures),
        "failures": [asdict(failure) for failure in measured.failures],
        "ignored": measured.ignored,
        "duplicates": measured.duplicates,
        "nonfinite": measured.nonfinite,
        "quantile": measured.quantile,
        **(measured.found.stated if measured.found else {}),
    }


def calibration_sentence(measured: Calibration) -> str:
    """Returns what a calibration measured in one line."""
    notes = [f"{len(measured.failures):,} could not be read"]
    notes += _left_out(measured.ignored, measured.duplicates)
    notes += (
        [f"{count_of(measured.nonfinite, 'activation')} not finite"] if measured.nonfinite else []
    )
    if found := measured.found:
        notes += [f"from quantile {measured.quantile:g}, to {found.resolution:.1%} of the range"]
        notes += (
            [f"{count_of(found.unresolved, 'neuron')} less closely"] if found.unresolved else []
        )
    images = count_of(measured.images, "image")
    return f"ranges {measured.ranges.digest} of {images} ({', '.join(notes)})"


def ranking_json(ranking: Ranking) -> dict[str, object]:
    """Returns a ranking for JSON, with the images that it holds of either end."""
    return {
        "source": ranking.source,
        "to": ranking.name,
        "dna": ranking.version.dna,
        "spec": ranking.version.spec,
        "commit": ranking.commit,
        "lens": ranking.lens,
        "layers": ranking.layers,
        "background": dict(ranking.background),
        "ranked": ranking.ranked,
        "failed": ranking.failed,
        "undefined": ranking.undefined,
        "nearest": [_ranked_row(image, ranking) for image in ranking.nearest],
        "farthest": [_ranked_row(image, ranking) for image in ranking.farthest],
        "errors": [vars(image) for image in ranking.unranked],
        "counted_shards": ranking.counted_shards,
        "ignored": dict(ranking.ignored),
        "duplicates": ranking.duplicates,
        "notes": ranking.notes,
    }


def _ranked_row(image: RankedImage, ranking: Ranking) -> dict[str, Any]:
    """Returns the columns of the ranking's file."""
    from pipeline.explaining import column_of

    named = zip(ranking.layers, image.layers, strict=True)
    return {
        "uri": image.entry.uri,
        "member": image.entry.member,
        "rank": image.rank,
        "score": image.score,
        "emd": image.emd,
        **{column_of(layer): distance for layer, distance in named},
    }


def ranking_lines(ranking: Ranking) -> list[str]:
    """Returns the images of either end, and how many were ranked."""
    width = len(f"{ranking.ranked:,}") + 2
    has_score = bool(ranking.background)
    named = ["score"] if has_score else []
    named += ["distance"] if has_score else ["in all"]
    columns = f" ({', '.join((*named, *ranking.layers))})" if has_score or ranking.layers else ""
    rest = [image for image in ranking.farthest if image.rank > len(ranking.nearest)]
    lines = []
    for end, images in (("nearest to", ranking.nearest), ("farthest from", rest)):
        lines += [f"{end} {ranking.name}, in bins{columns}:"] if images else []
        for image in images:
            shown = (*([image.score] if has_score else []), image.emd, *image.layers)
            distances = "".join(f"  {each:8.2f}" for each in shown)
            lines.append(f"{image.rank:>{width},}{distances}  {image.name}")
    lines.append(ranking_sentence(ranking))
    alone = option("order", "emd")
    by_score = background_sentence(ranking.name, list(ranking.background))
    lines += [f"{by_score}; {alone} orders by the distance alone"] * has_score
    lines += [f"  not ranked: {image}" for image in ranking.unranked]
    return lines + [f"note: {note}" for note in ranking.notes]


def ranking_sentence(ranking: Ranking) -> str:
    """Returns how many images were ranked, and how many were not, in one line."""
    dataset = f"{ranking.name} (dna {ranking.version.dna[:12]})"
    through = f" through lens {ranking.lens}" if ranking.lens != UNIFORM else ""
    images, its = count_of(ranking.ranked, "image"), "its" if ranking.ranked == 1 else "their"
    notes = [f"{images} ranked by {its} distance to {dataset}{through}"]
    notes += [f"{ranking.failed:,} could not be read"] if ranking.failed else []
    notes += [f"{ranking.undefined:,} without a distance"] if ranking.undefined else []
    return ", ".join(notes + _left_out(ranking.ignored, ranking.duplicates))


def background_sentence(name: str, others: Sequence[str]) -> str:
    """Returns what the score of images is that are ranked by a dataset, held against others."""
    together = "" if len(others) == 1 else ", taken together"
    return (
        f"in the order of the score: the distance to {name}, less three quarters of the "
        f"distance to {some_of(others)}{together}"
    )


def _left_out(ignored: Mapping[str, int], duplicates: int) -> list[str]:
    others = sum(ignored.values())
    notes = [f"{count_of(others, 'file')} of other kinds ignored"] if others else []
    return notes + ([f"{count_of(duplicates, 'duplicate')} dropped"] if duplicates else [])


def pair_rows(matrix: Matrix, layers: Sequence[str], near: str | None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a matrix's table that say something new: each pair once.

    Args:
        matrix: The matrix.
        layers: The layers whose rows are wanted, or `ALL`.
        near: The dataset whose pairs are wanted, which is then `a`; None for all pairs.

    Yields:
        The rows, as dictionaries, in the order of the table.
    """
    place = {name: at for at, name in enumerate(matrix.names)}
    for row in matrix_rows(matrix, layers):
        a, b = row["a"], row["b"]
        if (place[a] < place[b]) if near is None else (a == near != b):
            yield row


def matrix_rows(matrix: Matrix, layers: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a matrix's table, in its order, for JSON; of some layers, or of all.

    All of them may be gigabytes, so only some are dictionaries at a time.
    """
    for at, plane in enumerate(matrix.planes):
        if layers is not None and plane not in layers:
            continue
        here = matrix.mapped(itemgetter(slice(at, at + 1)), layers=(plane,))
        for batch in here.table.to_batches(max_chunksize=JSON_ROWS):
            yield from batch.to_pylist()
