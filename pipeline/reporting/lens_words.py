"""Says what a lens was fitted to and how it does on other images: as lines, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.dna import Lens, neuron_name
from pipeline.errors import VdnaError
from pipeline.explaining import FittedLens, Score
from pipeline.reporting.conclusions import format_number
from pipeline.storage import Stored
from pipeline.wording import count_of, option, some_of

HEAVIEST = 20
"""How many neurons of a lens are shown."""

TOLERANCE = 0.2
"""How far a score may be from what was asked for."""

WISHES = {"focus": "should see", "ignored": "should ignore", "kept": "should keep"}

LENS_COLUMNS = ("name", "kind", "neurons", "written", "fitted on", "held out: through / plain")


def lens_json(lens: Lens) -> dict[str, Any]:
    """Returns what a lens is and where it comes from, for JSON."""
    return {
        "name": lens.name,
        "digest": lens.digest,
        "neurons": int((lens.weights != 0).sum()),
        "negative": int((lens.weights < 0).sum()),
        **lens.provenance,
    }


def fit_lines(fitted: FittedLens) -> list[str]:
    """Returns how a lens does on images that it was not fitted to, and what to do if not well."""
    lines = [*_held_out_lines(fitted.lens, fitted.scores), *_advice(fitted)]
    seen = {score.role for score in fitted.scores if score.seen}
    if all(score.role == "focus" for score in fitted.scores):
        return lines
    if "ignored" not in seen:
        return [*lines, "no attribute that is to be ignored is seen: the lens is of no use"]
    kept = "no attribute that is to be kept is seen"
    if "kept" in seen:
        kept = f"what is kept changes by {fitted.change:.1%}"
    gone = f"{fitted.suppression:.1%} of what is ignored is gone"
    return [*lines, f"held out: {gone}, {kept} (means of the attributes that are seen)"]


def _held_out_lines(lens: Lens, scores: Sequence[Score]) -> list[str]:
    """Says how a lens does on each attribute, and which numbers these are."""
    if not scores:
        return []
    pairs = {":" in score.attribute for score in scores}  # else the same images, or a change
    how = "corrected for the sizes of the samples"
    if pairs == {False}:
        how = "plain, as both sides are the same images"
    elif False in pairs:
        how = f"{how}, and plain where both sides are the same images"
    other = "goes by all images"
    if (lens.weights < 0).any():
        other += ", and corrects nothing where weights are below 0"
    return [
        *map(_score_line, scores),
        f"these distances are {how}, each of half of the images; vdna compare --lens {lens.name} "
        f"{other}, so that its numbers differ from these",
    ]


def _advice(fitted: FittedLens) -> list[str]:
    """Says what to do about scores that are not as wished."""
    missed = [score for score in fitted.scores if score.seen and not _is_as_wished(score)]
    if not missed:
        return []
    how, ways = fitted.lens.provenance, ["more images of both sides"]
    if missed[0].role == "focus":
        ways += [f"more neurons ({option('top', 2 * how['top'])})"]
    else:
        ways += ["fewer attributes to ignore and to keep at once"]
        ways += [f"no {option('non_negative', True)}"] if how["non_negative"] else []
        ways += [f"no {option('by_layer', True)}"] if how["by"] == "layer" else []
    which = some_of([score.attribute for score in missed])
    return [
        f"not as wished: {which}. Fit again with {', or '.join(ways)}. As it is, do not rely on "
        "what the lens shows of it"
    ]


def _score_line(score: Score) -> str:
    wish = WISHES[score.role]
    if not score.seen:
        is_pair = any(sign in score.attribute for sign in ":=")
        why = "the two datasets are" if is_pair else "with the change and without, images are"
        return (
            f"{score.attribute}, which the lens {wish}: {why} no farther apart than chance makes "
            "so few images"
        )
    through = score.through * score.plain
    return (
        f"{score.attribute}, which the lens {wish}: {format_number(score.plain)} bins without the "
        f"lens, and about {format_number(through)} with it, on images that it was not fitted to"
        f"{'' if _is_as_wished(score) else ' - NOT as wished'}"
    )


def _is_as_wished(score: Score) -> bool:
    if score.role == "focus":
        return score.through > 1
    return abs(score.through - (score.role == "kept")) < TOLERANCE


def heaviest_neurons(lens: Lens) -> dict[str, float]:
    """Returns the neurons of the largest weights, by magnitude, and their weights."""
    order = np.argsort(-np.abs(lens.weights), kind="stable")[:HEAVIEST].tolist()
    weights = {neuron_name(lens.taps, at): float(lens.weights[at]) for at in order}
    return {neuron: weight for neuron, weight in weights.items() if weight}


def lens_lines(lens: Lens) -> list[str]:
    """Returns what a lens was fitted to, how it does, and the neurons that it weighs most."""
    stated, origin = lens_json(lens), lens.provenance
    weighed = f"{count_of(stated['neurons'], 'neuron')} weighed, {stated['negative']:,} below 0"
    lines = [f"{lens.name}: {weighed}"]
    if origin:
        how = [f"{key} {origin[key]}" for key in ("by", "top") if origin.get(key)]
        lines.append(f"fitted to {origin['kind']}, {', '.join(how)}, by {origin['software']}")
        lines += [
            f"  {dataset}: {count_of(origin['images'][dataset], 'image')} (dna {dna[:12]})"
            for dataset, dna in origin["members"].items()
        ]
        lines += [f"  {text}" for text in _sample_lines(origin.get("sample") or {})]
    lines += _held_out_lines(lens, [Score(**score) for score in origin.get("held_out", ())])
    return lines + [f"  {name}  {weight:+.3g}" for name, weight in heaviest_neurons(lens).items()]


def _sample_lines(sample: Mapping[str, Any]) -> list[str]:
    """Returns which changes a lens was fitted to, and of which images; nothing if of none."""
    if not sample:
        return []
    images = count_of(sum(sample["images"].values()), "image")
    grouped = ", grouped by the stems of their names" if sample["group_by"] == "stem" else ""
    changes = (
        f"{word} {', '.join(f'{each:g}' for each in strengths)}"
        for word, strengths in sample["changes"].items()
    )
    return [
        f"{images} of {some_of(list(sample['images']))}{grouped}, as they are and with these "
        f"changes: {'; '.join(changes)}"
    ]


def listed_lens(name: str, stored: Stored) -> dict[str, Any]:
    """Returns what the file of a lens says of itself, or why it cannot be read, for JSON."""
    row: dict[str, Any] = {"name": name, "uri": stored.uri, "written": stored.modified}
    try:
        stated = Lens.read_description(storage.read(stored.uri), stored.uri)
        provenance = stated["provenance"]
        return {
            **row,
            "written": stated.get("written", stored.modified),
            "kind": str(provenance.get("kind", "weights")),
            "neurons": stated["neurons"],
            "fitted_on": {name: int(n) for name, n in _fitted_on(provenance).items()},
            "held_out": [asdict(Score(**score)) for score in provenance.get("held_out", ())],
        }
    except VdnaError as error:
        return {**row, "problem": str(error)}
    except (AttributeError, TypeError, ValueError) as error:
        return {**row, "problem": f"{stored.uri}: its provenance is none of ours: {error}"}


def _fitted_on(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the images of each dataset that a lens was fitted on: all, or those of a sample."""
    sampled: Mapping[str, Any] = provenance.get("sample", {}).get("images", {})
    return {**sampled, **provenance.get("images", {})}


def lens_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines of a table of lenses, as `listed_lens` describes each."""
    cells = [LENS_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(LENS_COLUMNS))]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    written = f"{row['written']:%Y-%m-%d %H:%M}" if row["written"] else ""
    if "problem" in row:
        return row["name"], "unreadable", "", written, row["problem"], ""
    fitted = [f"{name} ({images:,})" for name, images in row["fitted_on"].items()]
    scores = [
        f"{score['role']} {score['attribute']} {score['through']:.2f}"
        if score["seen"]
        else f"{score['role']} {score['attribute']} not seen"
        for score in row["held_out"]
    ]
    neurons = f"{row['neurons']:,}"
    return row["name"], row["kind"], neurons, written, some_of(fitted), some_of(scores)
