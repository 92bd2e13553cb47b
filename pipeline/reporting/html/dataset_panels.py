"""Gathers what a page says about datasets beside their distances.

    >>> page = gather_matrix_page(Catalogue("dnas"), [matrix])               # doctest: +SKIP

These are the provenance and failures of each dataset, a few small images of it, and the neurons
that differ most in the nearest pairs. What cannot be read becomes a note on the page; a page never
fails for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from pipeline.catalogue import Catalogue, Version
from pipeline.comparing import Matrix, notes_of
from pipeline.dna import Lens
from pipeline.errors import BadImage, UsageError, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining import (
    PAIRS,
    NearestPairs,
    drawn_images,
    find_pair_neurons,
    network_layers,
)
from pipeline.images import fingerprint, is_one_photograph
from pipeline.reporting.html.page_data import Page, Panel, Sample, Seen
from pipeline.reporting.html.thumbnails import (
    SAMPLING_SECONDS,
    encoded,
    rule_of,
    short_name,
    small_pixels,
)
from pipeline.reporting.noted_images import image_notes
from pipeline.reporting.overlap_words import overlap_lines
from pipeline.reporting.report_options import SHOWN_IMAGES
from pipeline.spec import Spec, flat_numerics
from pipeline.wording import count_of

ALL_SAMPLES = 600
"""The most images of all datasets together, so that a page stays small."""

PANEL_FAILURES = 5

TRIED = 2
"""How many images are read for one that is shown, so that it can be of another photograph."""


def gather_matrix_page(
    catalogue: Catalogue,
    matrices: Sequence[Matrix],
    *,
    lenses: Sequence[Lens | None] = (),
    apart: Sequence[str] = (),
    at: int | str | None = None,
    samples: int = SHOWN_IMAGES,
    pairs: int = PAIRS,
    progress: Listener | None = None,
    keep: bool = True,
) -> Page:
    """Gathers all that the page of some matrices shows.

    Args:
        catalogue: The catalogue of the datasets.
        matrices: Matrices of the same datasets, through different lenses.
        lenses: One for each matrix; None counts all neurons alike.
        apart: Datasets that were left out of the comparison unasked.
        at: The commit that was compared.
        samples: Images per dataset; 0 for none.
        pairs: How many pairs get their neurons.
        progress: Is told how far the work is.
        keep: Whether the pairs' neurons are kept in the catalogue. If not, nothing is written.

    Returns:
        The page's data.

    Raises:
        UsageError: The versions at that commit are not those that the distances are between.
    """
    matrix = matrices[0]
    lenses = lenses or [None] * len(matrices)
    commit = catalogue.at(at)
    versions = catalogue.find_all(matrix.names, commit.number, matrix.spec_digest)
    _require_same(matrices, lenses, versions, commit.number)
    spec = catalogue.spec(matrix.spec_digest)
    some = min(samples, ALL_SAMPLES // len(versions))
    deadline = monotonic() + SAMPLING_SECONDS

    def panel(item: tuple[str, Version]) -> Panel:
        return panel_of(catalogue, *item, some, deadline)

    progress = progress or ignore
    panels = []
    started = Started(len(versions), len(versions), unit="datasets", step="datasets")
    with stage(progress, started), ThreadPoolExecutor(8) as pool:
        for made in pool.map(panel, versions.items()):
            panels.append(made)
            progress(StepDone(1))
    seen = _seen(catalogue, matrices, lenses, versions, pairs, progress, keep=keep)
    barred = any(of.estimates for of in matrices)
    notes = notes_of(versions, apart=apart, lenses=lenses, barred=barred, paired=matrix.paired())
    if matrix.overlaps is not None:
        notes += [f"{line}." for line in overlap_lines(matrix.overlaps)]
    if some < samples:
        notes.append(f"Of each dataset {some} sample images are shown and not {samples}, for size.")
    about = (
        f"Catalogue {catalogue.root}, commit {commit.number} of {commit.time}; extractor "
        f"{spec.extractor}, {count_of(spec.neurons, 'neuron')} of "
        f"{count_of(len(spec.taps), 'layer')} in {spec.bins} "
        f"bins, spec {spec.digest}; {commit.software}"
    )
    snapshot = ["--at", str(commit.number), "--catalogue", catalogue.root]
    if spec.digest != commit.default_spec:
        snapshot = ["--spec", spec.digest, *snapshot]
    return Page(
        matrices,
        panels,
        seen,
        about,
        tuple(notes),
        shared=tuple(spec_facts(spec)),
        snapshot=tuple(snapshot),
        network=network_layers(spec.extractor),
    )


def _seen(
    catalogue: Catalogue,
    matrices: Sequence[Matrix],
    lenses: Sequence[Lens | None],
    versions: Mapping[str, Version],
    pairs: int,
    progress: Listener,
    *,
    keep: bool,
) -> list[Seen]:
    """Finds what each matrix shows of its pairs' neurons. What cannot be read becomes a note."""
    weightless = [
        tuple(layer for layer in matrix.layers if lens and not lens.has_positive_weight(layer))
        for matrix, lens in zip(matrices, lenses, strict=True)
    ]
    try:
        found = find_pair_neurons(catalogue, matrices, lenses, versions, pairs, progress, keep=keep)
    except VdnaError as error:
        return [Seen({}, f"Histograms cannot be read: {error}", layers) for layers in weightless]
    return [
        Seen(nearest.neurons, _note_of_pairs(nearest), layers)
        for nearest, layers in zip(found, weightless, strict=True)
    ]


def _note_of_pairs(nearest: NearestPairs) -> str:
    """Says why a pair has no neurons on the page."""
    shown = len(nearest.neurons)
    if shown < nearest.pairs:
        return (
            f"To keep this page small, it has the neurons of only the {shown} nearest of "
            f"{nearest.pairs:,} pairs."
        )
    return "A pair whose distance is not defined has no neurons that differ most."


def _require_same(
    matrices: Sequence[Matrix],
    lenses: Sequence[Lens | None],
    versions: Mapping[str, Version],
    number: int,
) -> None:
    if len(lenses) != len(matrices):
        raise UsageError(
            f"a page of {len(matrices)} matrices has {len(lenses)} lenses; it needs one for each"
        )
    for matrix, lens in zip(matrices, lenses, strict=True):
        if matrix.lens_digest != (lens.digest if lens else ""):
            raise UsageError(
                f"the matrix was computed through lens {matrix.lens}; give the page that lens"
            )
        for name, version in versions.items():
            if matrix.members.get(name) != version.dna:
                raise UsageError(
                    f"{name} at commit {number} is dna {version.dna}, and its distances are of "
                    f"{matrix.members.get(name)}; give the commit that was compared (at)"
                )


def panel_of(
    catalogue: Catalogue,
    name: str,
    version: Version,
    samples: int,
    deadline: float,
    *,
    failures: int = PANEL_FAILURES,
) -> Panel:
    """Gathers what is known about one dataset.

    Args:
        catalogue: The dataset's catalogue.
        name: The dataset.
        version: The version that is shown.
        samples: How many of its images to show.
        deadline: When to stop reading images, by the monotonic clock.
        failures: How many failures to name.

    Returns:
        The dataset's panel.
    """
    alpha = catalogue.spec(version.spec).preprocess.alpha
    notes = [*version.notes, *image_notes(version, alpha)]
    failed = []
    if version.failed:
        try:
            failed = catalogue.failures(name, version)
        except VdnaError as error:
            notes.append(f"the failures cannot be read: {error}")
    shown, why = _samples(
        catalogue, name, version, samples, {(f.uri, f.member) for f in failed}, deadline
    )
    but = f", {version.failed:,} failed" if version.failed else ""
    return Panel(
        f"{count_of(version.images, 'image')}{but}",
        tuple(_facts(version)),
        tuple(Counter(failure.reason for failure in failed).most_common()),
        tuple(str(failure) for failure in failed[:failures]),
        shown,
        (*notes, *why),
    )


def _facts(version: Version) -> Iterator[tuple[str, str]]:
    yield "images", f"{version.images:,}"
    yield "failures", f"{version.failed:,}"
    if version.transparent is not None:
        yield "transparent", f"{version.transparent:,}"
        yield "of a single colour", f"{version.single_colour:,}"
    yield "source", version.source
    yield "built", f"{version.built} by {version.software}"
    yield "dna", version.dna
    yield "manifest", version.manifest or "none: it was imported"
    yield "keeps", ", ".join(version.products)
    for entry in version.numerics:
        numerics = flat_numerics(entry["numerics"])
        fields = ", ".join(f"{key} {value}" for key, value in numerics.items())
        yield "numerics", f"{count_of(entry['images'], 'image')}: {fields}"
    if version.imported:
        yield "imported", version.provenance


def spec_facts(spec: Spec) -> Iterator[tuple[str, str]]:
    """Lists all that decides what was counted. It is the same for all datasets of a page."""
    rule = spec.preprocess
    yield "spec", spec.digest
    yield "extractor", f"{spec.extractor}, weights sha256 {spec.weights_sha256}"
    yield "input", f"{rule.height} x {rule.width}, {rule.resize} resize, crop {rule.crop}"
    jpeg = ", JPEGs scaled" if rule.jpeg == "scaled" else ""
    yield (
        "decoder",
        f"{rule.decoder or 'built in'}, EXIF {rule.exif}, transparency {rule.alpha}{jpeg}",
    )
    yield "colour", f"{rule.colour}, mean {list(rule.mean)}, std {list(rule.std)}"
    yield "limits", f"{rule.max_bytes:,} bytes and {rule.max_pixels:,} pixels an image"
    yield "layers", ", ".join(f"{t.name} ({t.neurons} x {t.positions})" for t in spec.taps)
    yield (
        "counted",
        (
            f"{count_of(spec.neurons, 'neuron')} in {spec.bins} bins, {spec.precision}, ranges "
            f"{spec.ranges_digest}, rule {spec.counting}"
        ),
    )
    if spec.bf16_numerics is not None:
        yield "bf16 numerics", str(spec.bf16_numerics.to_json())


# Samples.


def _samples(
    catalogue: Catalogue,
    name: str,
    version: Version,
    count: int,
    failed: set[tuple[str, str]],
    deadline: float,
) -> tuple[tuple[Sample, ...], list[str]]:
    """Reads images of a dataset.

    Images that look like one photograph are shown only if there are not enough others.

    Returns:
        The images, and why there are fewer than `count`.
    """
    if not count:
        return (), ["no sample images"]
    if version.imported:
        return (), ["no sample images: it was imported, without a list of its images"]
    try:
        entries = drawn_images(catalogue, name, version, TRIED * count, failed)
    except VdnaError as error:
        return (), [f"no sample images: {error}"]
    shown: list[Sample] = []
    again: list[Sample] = []
    seen: list[int] = []
    why: list[str] = []
    rule = rule_of(catalogue, version)
    for entry in entries:
        if len(shown) >= count:
            break
        if monotonic() > deadline:
            why.append("further samples are left out: reading took too long")
            break
        try:
            pixels = small_pixels(entry, rule)
        except BadImage as bad:
            why.append(f"no sample of {short_name(entry.uri, entry.member)}: {bad}")
            continue
        except (VdnaError, OSError, MemoryError) as error:
            # The others lie where this one does; a store that is away is asked once.
            why.append(f"sample images cannot be read: {error}")
            break
        own = fingerprint(pixels)
        known = any(is_one_photograph(own, other) for other in seen)
        (again if known else shown).append(
            Sample(short_name(entry.uri, entry.member), encoded(pixels))
        )
        seen.append(own)
    if not entries:
        why.append("no sample images: all failed, or lie deep in compressed archives")
    return tuple([*shown, *again][:count]), why
