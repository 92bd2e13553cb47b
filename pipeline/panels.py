"""What a page tells of datasets beyond their distances, read from the catalogue.

    >>> page = gather(Catalogue("dnas"), [matrix])               # doctest: +SKIP

Provenance and failures of each, a few of its images, made small, and of the nearest pairs the
neurons that differ most. What cannot be read is a note on the page: it never fails for that.
"""

from __future__ import annotations

import base64
import io
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import numpy as np
from PIL import Image

from pipeline import images, storage
from pipeline.archive import Members
from pipeline.arrange import clusters, neighbours
from pipeline.catalogue import Catalogue, Version
from pipeline.dna import DNA, Floats
from pipeline.errors import BadImage, TransientError, UsageError, VdnaError
from pipeline.explain import Overlay, Side, furthest, overlay
from pipeline.folds import FoldCurves, neuron_estimates
from pipeline.lens import Lens
from pipeline.manifest import Entry, count_shards, read_shard
from pipeline.matrix import Matrix
from pipeline.notes import notes_of
from pipeline.page import Neuron, Page, Panel, Sample, Seen, render
from pipeline.progress import Progress, Silent
from pipeline.report import shown
from pipeline.significance import adjusted
from pipeline.spec import Preprocess, Spec, available_cpus

SAMPLES = 4
"""Images of a dataset; fewer where there are many datasets, as all pages are to stay small."""
ALL_SAMPLES = 400
SIDE = 96
THUMBNAIL = Preprocess(
    SIDE, SIDE, (0.0,) * 3, (1.0,) * 3, crop="center", max_bytes=32 * 2**20, max_pixels=50_000_000
)
"""From an image to its small square, by the rules and the decoder of every other image."""
DECODE_SECONDS = 10.0
_ONE_DECODER = Lock()
"""Each more would be a process that takes a second to start, for images of milliseconds."""
SAMPLING_SECONDS = 120.0
"""For all samples together; a store that does not answer must not hold up the page."""
PAIRS, MOST_PAIRS = 66, 300
"""Whose neurons are told: all of 12 datasets; of more, those of each and its nearest, up to as many
as the second, and the next nearest up to the first."""
LENSES = 4
"""Of more on a page, each has the neurons of fewer pairs."""
TESTS = 1_000_000
"""Neurons of pairs that are tested for a page, minutes of a core; but for few datasets."""
NEURONS = 6
FAILURES = 5
NEAR = 64 * 2**20
"""Bytes of a compressed tar that are unpacked for a sample, at most."""
CACHED = 2**30
"""Bytes of what is read of one layer that are kept at a time."""
COMPARED = 4
"""Pairs at a time, where there are as many cores."""
RANKED = ("emd", "emd_corrected")
"""What neurons are ranked by."""


def gather(
    catalogue: Catalogue,
    matrices: Sequence[Matrix],
    *,
    lenses: Sequence[Lens | None] = (),
    apart: Sequence[str] = (),
    at: int | str | None = None,
    samples: int = SAMPLES,
    pairs: int = PAIRS,
    progress: Progress | None = None,
) -> Page:
    """All that a page of these matrices holds. `samples`: images of a dataset; 0 for none.

    `lenses`: one for each matrix, None for all neurons alike. `apart`: datasets that were left out
    unasked. `at`: the commit that was compared; raises `UsageError` where the versions there are
    others than those of the distances.
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

    with ThreadPoolExecutor(8) as pool:
        panels = list(pool.map(panel, versions.items()))
    seen = neurons(catalogue, matrices, lenses, versions, pairs, progress)
    barred = any(of.estimates for of in matrices)
    notes = notes_of(versions, apart=apart, lenses=lenses, barred=barred)
    if some < samples:
        notes.append(f"Of each dataset {some} sample images are shown and not {samples}, for size.")
    about = (
        f"Catalogue {catalogue.root}, commit {commit.number} of {commit.time}; extractor "
        f"{spec.extractor}, {spec.neurons:,} neurons of {len(spec.taps)} layers in {spec.bins} "
        f"bins, spec {spec.digest}; {commit.software}"
    )
    return Page(matrices, panels, seen, about, tuple(notes), shared=tuple(spec_facts(spec)))


def write_page(
    catalogue: Catalogue,
    matrices: Sequence[Matrix],
    out: str,
    *,
    lenses: Sequence[Lens | None] = (),
    apart: Sequence[str] = (),
    at: int | str | None = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> int:
    """The page into a file or an object; its bytes."""
    page = gather(
        catalogue,
        matrices,
        lenses=lenses,
        apart=apart,
        at=at,
        samples=samples,
        progress=progress,
    )
    data = render(page)
    storage.replace(storage.canonical(out), data)
    return len(data)


def _require_same(
    matrices: Sequence[Matrix],
    lenses: Sequence[Lens | None],
    versions: Mapping[str, Version],
    number: int,
) -> None:
    if len(lenses) != len(matrices):
        raise UsageError(f"a page of {len(matrices)} matrices takes as many lenses")
    for matrix, lens in zip(matrices, lenses, strict=True):
        if matrix.lens_digest != (lens.digest if lens else ""):
            raise UsageError(f"the page of a matrix through lens {matrix.lens} takes that lens")
        for name, version in versions.items():
            if matrix.members.get(name) != version.dna:
                raise UsageError(
                    f"{name} at commit {number} is dna {version.dna}, and its distances are of "
                    f"{matrix.members.get(name)}; give the commit that was compared (at)"
                )


def panel_of(
    catalogue: Catalogue, name: str, version: Version, samples: int, deadline: float
) -> Panel:
    """What is known of a dataset, with so many images of it, those that are read in time."""
    notes = list(version.notes)
    failures = []
    if version.failed:
        try:
            failures = catalogue.failures(name, version)
        except VdnaError as error:
            notes.append(f"the failures cannot be read: {error}")
    shown, why = _samples(
        catalogue, name, version, samples, {(f.uri, f.member) for f in failures}, deadline
    )
    failed = f", {version.failed:,} failed" if version.failed else ""
    return Panel(
        f"{version.images:,} {'image' if version.images == 1 else 'images'}{failed}",
        tuple(_facts(version)),
        tuple(Counter(failure.reason for failure in failures).most_common()),
        tuple(str(failure) for failure in failures[:FAILURES]),
        shown,
        (*notes, *why),
    )


def _facts(version: Version) -> Iterator[tuple[str, str]]:
    yield "images", f"{version.images:,}"
    yield "failures", f"{version.failed:,}"
    yield "source", version.source
    yield "built", f"{version.built} by {version.software}"
    yield "dna", version.dna
    yield "manifest", version.manifest or "none: it was imported"
    yield "keeps", ", ".join(version.products)
    for entry in version.numerics:
        numerics = dict(entry["numerics"])
        versions = dict(numerics.pop("versions"))
        fields = ", ".join(f"{key} {value}" for key, value in {**numerics, **versions}.items())
        yield "numerics", f"{entry['images']:,} images: {fields}"
    if version.imported:
        yield "imported", version.provenance


def spec_facts(spec: Spec) -> Iterator[tuple[str, str]]:
    """All that decides what was counted, alike for all datasets of a page."""
    rule = spec.preprocess
    yield "spec", spec.digest
    yield "extractor", f"{spec.extractor}, weights sha256 {spec.weights_sha256}"
    yield "input", f"{rule.height} x {rule.width}, {rule.resize} resize, crop {rule.crop}"
    yield "colour", f"{rule.colour}, EXIF {rule.exif}, mean {list(rule.mean)}, std {list(rule.std)}"
    yield "limits", f"{rule.max_bytes:,} bytes and {rule.max_pixels:,} pixels an image"
    yield "layers", ", ".join(f"{t.name} ({t.neurons} x {t.positions})" for t in spec.taps)
    yield (
        "counted",
        (
            f"{spec.neurons:,} neurons in {spec.bins} bins, {spec.precision}, ranges "
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
    """Images of a dataset, and why there are fewer than `count`."""
    if not count:
        return (), ["no sample images"]
    if version.imported:
        return (), ["no sample images: it was imported, without a list of its images"]
    shown: list[Sample] = []
    try:
        entries = _spread(catalogue, name, version, count, failed)
    except VdnaError as error:
        return (), [f"no sample images: {error}"]
    why: list[str] = []
    for entry in entries:
        if monotonic() > deadline:
            return tuple(shown), [*why, "further samples are left out: reading took too long"]
        try:
            shown.append(Sample(short_name(entry.uri, entry.member), small_image(entry)))
        except BadImage as bad:
            why.append(f"no sample of {short_name(entry.uri, entry.member)}: {bad}")
        except (VdnaError, OSError, MemoryError) as error:
            # The others lie where this one does; a store that is away is asked once.
            return tuple(shown), [*why, f"sample images cannot be read: {error}"]
    if not entries:
        why.append("no sample images: all failed, or lie deep in compressed archives")
    return tuple(shown), why


def _spread(
    catalogue: Catalogue, name: str, version: Version, count: int, failed: set[tuple[str, str]]
) -> list[Entry]:
    """Candidates that were counted, from shards all over the manifest, the same every time."""
    uri = catalogue.uri("manifests", version.spec, name, version.manifest)
    found: list[Entry] = []
    with storage.open_random(uri) as file:
        shards = count_shards(file, uri)
        spread = [shards * k // count for k in range(count)]
        each = -(-count // min(count, shards)) if shards else 0
        for shard in dict.fromkeys([*spread, *range(min(shards, 2 * count))]):
            if len(found) >= count:
                break
            members = [
                entry
                for entry in read_shard(file, shard, uri).members
                if (entry.uri, entry.member) not in failed and not is_far(entry)
            ]
            some = min(each, len(members))
            found += [members[len(members) * i // some] for i in range(some)]
    return found[:count]


def is_far(entry: Entry) -> bool:
    """In a compressed tar, which is read from its start up to the member."""
    return entry.access.startswith("tar ") and entry.position > NEAR


def short_name(uri: str, member: str) -> str:
    return (member or storage.readable(uri)).rpartition("/")[2]


def small_image(entry: Entry) -> str:
    """A candidate's `thumbnail`. Raises `BadImage`, and as reading its store does."""
    if entry.size > THUMBNAIL.max_bytes:
        raise BadImage("too_many_bytes", f"{entry.size} bytes")
    with closing(Members([entry], THUMBNAIL.max_bytes, 1)) as members:
        return thumbnail(members.fetch(entry))


class SmallImages:
    """Reads images once more, from several threads, until a store does not answer or it takes too
    long (`deadline`, of the monotonic clock).
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._away = ""

    def read(self, entry: Entry) -> tuple[str, str]:
        """Its `data:` URI; or none, and why."""
        if self._away:
            return "", self._away
        if monotonic() > self._deadline:
            return "", "not read: reading took too long"
        if is_far(entry):
            return "", "not read: it lies deep in a compressed archive"
        try:
            return small_image(entry), ""
        except BadImage as bad:
            return "", f"cannot be shown: {bad}"
        except (VdnaError, OSError, MemoryError) as error:
            why = f"cannot be read again: {str(error) or type(error).__name__}"
            if isinstance(error, TransientError):
                self._away = f"its store was asked before: {why}"
            return "", why


def thumbnail(data: bytes) -> str:
    """The `data:` URI of an image as a small square. Raises `BadImage`.

    Decoded in a process of its own, within limits of bytes, pixels and seconds.
    """
    with _ONE_DECODER:
        pixels = images.load_isolated(data, THUMBNAIL, DECODE_SECONDS, attempts=1)
    out = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(out, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


# Neurons.


def neurons(
    catalogue: Catalogue,
    matrices: Sequence[Matrix],
    lenses: Sequence[Lens | None],
    versions: Mapping[str, Version],
    pairs: int = PAIRS,
    progress: Progress | None = None,
) -> list[Seen]:
    """Of the nearest pairs (i < j) of each matrix, the neurons that add most to its distance, as
    `explain` has them, tested over all neurons of the pair; and what is said of the others.

    A layer at a time: in memory is what is read of as many datasets as `CACHED` bytes hold.
    """
    spec = catalogue.spec(matrices[0].spec_digest)
    room = MOST_PAIRS * LENSES // max(LENSES, len(matrices))
    most = max(pairs, min(room, TESTS // spec.neurons))
    views = [_View.of(*pair, pairs, most) for pair in zip(matrices, lenses, strict=True)]
    wanted = list(dict.fromkeys(pair for view in views for pair in view.found))
    tested = any(view.tested for view in views)
    layers = list(dict.fromkeys(layer for matrix in matrices for layer in matrix.layers))
    progress = progress or Silent()
    total = sum(spec.tap(layer).neurons for layer in layers) * len(wanted)
    progress.start(images=total, shards=len(layers) if wanted else 0, present=0)
    try:
        for layer in layers if wanted else ():
            ones = np.ones(spec.tap(layer).neurons)
            here = [
                (view, ones if view.lens is None else view.lens.of_layer(layer))
                for view in views
                if layer in view.matrix.layers
            ]
            here = [(view, weights) for view, weights in here if weights.any()]
            if here:
                read = _Reads(catalogue, versions, layer, tested=tested)
                _add(here, wanted, read, layer)
            progress.advance(spec.tap(layer).neurons * len(wanted), 0)
    except VdnaError as error:
        return [Seen({}, f"Histograms cannot be read: {error}", v.weightless) for v in views]
    progress.finish()
    return [Seen(view.told, view.note, view.weightless) for view in views]


def _add(
    views: Sequence[tuple[_View, Floats]],
    wanted: Sequence[tuple[int, int]],
    read: _Reads,
    layer: str,
) -> None:
    """A layer of all pairs. Several are compared at a time; none of them is read twice for it."""

    def compared(pair: tuple[int, int], a: _Read, b: _Read) -> None:
        columns = neuron_estimates(a.folds, b.folds)
        for view, weights in views:
            if pair in view.found:
                view.add(pair, layer, weights, columns, a.dna, b.dna)

    workers = min(COMPARED, available_cpus())
    with ThreadPoolExecutor(workers, "compare") as pool:
        running: deque[Future[None]] = deque()
        for pair in wanted:
            running.append(pool.submit(compared, pair, *(read[i] for i in pair)))
            if len(running) > workers:  # what is read waits for what is compared
                running.popleft().result()
        for one in running:
            one.result()


@dataclass(frozen=True, eq=False)
class _View:
    """A matrix and its lens, and what was `found` of its pairs so far: the first neurons, and `p`
    of all that weigh anything.
    """

    matrix: Matrix
    lens: Lens | None
    found: dict[tuple[int, int], list[_Neuron]]
    p: dict[tuple[int, int], list[Floats]]
    note: str

    @classmethod
    def of(cls, matrix: Matrix, lens: Lens | None, pairs: int, most: int) -> _View:
        overall = shown(matrix, matrix.planes[-1])
        upper = np.argwhere(np.triu(np.isfinite(overall), 1))
        known = [(int(i), int(j)) for i, j in upper]
        chosen = _nearest(overall, known, pairs, most)
        note = "A distance that is not defined has no neurons that differ most."
        if len(chosen) < len(known):
            note = (
                f"For its size, this page has the neurons of {len(chosen)} of {len(known):,} "
                "pairs, the nearest."
            )
        return cls(matrix, lens, {pair: [] for pair in chosen}, {pair: [] for pair in chosen}, note)

    @property
    def weightless(self) -> tuple[str, ...]:
        if self.lens is None:
            return ()
        return tuple(layer for layer in self.matrix.layers if not self.lens.weighs(layer))

    @property
    def tested(self) -> bool:
        """Whether error bars were asked for; a lens with negative weights has them of neurons."""
        signed = self.lens is not None and bool((self.lens.weights < 0).any())
        return bool(self.matrix.estimates) or signed

    def add(
        self,
        pair: tuple[int, int],
        layer: str,
        weights: Floats,
        columns: Mapping[str, Floats],
        a: DNA,
        b: DNA,
    ) -> None:
        """A layer's neurons, those left out that weigh nothing."""
        seen = np.flatnonzero(weights)
        self.p[pair].append(columns["p"][seen])
        best = seen[furthest({name: columns[name][seen] for name in RANKED}, weights[seen])]
        rows = [
            _Neuron.of(layer, at, columns, float(weights[at]), a, b)
            for at in best[:NEURONS].tolist()
            if np.isfinite(columns["emd"][at])
        ]
        both = self.found[pair] + rows
        ranked = {name: np.array([of.columns[name] for of in both]) for name in RANKED}
        order = furthest(ranked, np.array([of.weight for of in both])) if both else ()
        self.found[pair] = [both[at] for at in order[:NEURONS]]

    @property
    def told(self) -> dict[tuple[int, int], list[Neuron]]:
        """With q, now that all layers were looked at."""
        told = {}
        for pair, found in self.found.items():
            p = np.concatenate(self.p[pair] or [np.empty(0)])
            q = dict(zip(p.tolist(), adjusted(p).tolist(), strict=True))  # alike for the same p
            told[pair] = [of.told(q.get(of.columns["p"])) for of in found]
        return told


def _nearest(
    overall: Floats, known: Sequence[tuple[int, int]], pairs: int, most: int
) -> list[tuple[int, int]]:
    """All pairs where they are few, else each dataset's nearest, `most` of them, and as far as
    `pairs` goes the nearest of the others; neighbours in cluster order come one after the other,
    so that a dataset is read once or twice.
    """
    chosen = set(known)
    if len(known) > pairs:
        firsts = (neighbours(overall, i)[:1] for i in range(len(overall)))
        near = {(min(i, j), max(i, j)) for i, first in enumerate(firsts) for j in first}
        chosen = set(sorted(near, key=lambda pair: overall[pair])[:most])
        rest = sorted(set(known) - near, key=lambda pair: overall[pair])
        chosen |= set(rest[: max(0, min(pairs, most) - len(chosen))])
    place = {dataset: at for at, dataset in enumerate(clusters(overall).order)}
    return sorted(chosen, key=lambda pair: sorted(place[i] for i in pair))


@dataclass(frozen=True, eq=False)
class _Read:
    """What is known of a dataset's layer."""

    dna: DNA
    folds: FoldCurves

    @property
    def nbytes(self) -> int:
        return self.folds.nbytes + self.dna.counts.nbytes


class _Reads:
    """Of one layer, by dataset; those used last are kept."""

    def __init__(
        self, catalogue: Catalogue, versions: Mapping[str, Version], layer: str, *, tested: bool
    ) -> None:
        self._catalogue, self._versions = catalogue, list(versions.items())
        self._layer, self._tested = layer, tested
        self._kept: OrderedDict[int, _Read] = OrderedDict()

    def __getitem__(self, dataset: int) -> _Read:
        if dataset not in self._kept:
            side = Side.open(
                self._catalogue, *self._versions[dataset], [self._layer], tested=self._tested
            )
            found = self._kept[dataset] = _Read(*side.read(self._layer))
            while len(self._kept) > max(2, CACHED // found.nbytes):
                self._kept.popitem(last=False)
        self._kept.move_to_end(dataset)
        return self._kept[dataset]


@dataclass(frozen=True, eq=False)
class _Neuron:
    """One of the first, so far: `columns` of it alone, and both histograms."""

    layer: str
    neuron: int
    columns: Mapping[str, float]
    weight: float
    histograms: Overlay

    @classmethod
    def of(
        cls, layer: str, at: int, columns: Mapping[str, Floats], weight: float, a: DNA, b: DNA
    ) -> _Neuron:
        of_it = {name: float(values[at]) for name, values in columns.items()}
        return cls(layer, at, of_it, weight, overlay(a, b, at))

    def told(self, q: float | None) -> Neuron:
        seen, of = self.histograms, self.columns
        interval = of["emd_corrected"], of["low"], of["high"]
        return Neuron(
            self.layer,
            self.neuron,
            of["emd"],
            seen.low,
            seen.high,
            seen.a,
            seen.b,
            self.weight,
            interval if np.isfinite(interval).all() else None,
            q if q is not None and np.isfinite(q) else None,
        )
