"""Checks one version of a dataset against all that is stored of it.

>>> checks = VersionChecks(catalogue, kept).checks                             # doctest: +SKIP
>>> checks["spec"]()                                                           # doctest: +SKIP
'spec 53e1… and its ranges are what their digests say'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.changes import parts_of
from pipeline.catalogue.kept_versions import KeptVersion
from pipeline.catalogue.listed_once import (
    are_among,
    hashes_of,
    require_each_once,
    sorted_hashes,
)
from pipeline.catalogue.names import part_name
from pipeline.catalogue.partial_sums import present_partials, read_partials, sum_of_partials
from pipeline.counting import digest_of_dna, partial_uri
from pipeline.dna import (
    DNA,
    FLOAT_SUMS,
    NOTED,
    SCALAR_COLUMNS,
    SCATTER,
    SINGLE_COLOUR,
    Exemplars,
    ExemplarSettings,
    Failure,
    HashRows,
    ImageHashes,
    Ranges,
    neuron_name,
)
from pipeline.errors import ConservationError, CorruptFile
from pipeline.events import Listener, ignore
from pipeline.mapper import Mapper
from pipeline.sources import Manifest, label_of
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN
from pipeline.wording import count_of


class VersionChecks:
    """The checks of one version. Each keeps what it has read for those that follow.

    Args:
        catalogue: The catalogue.
        kept: The version.
        mapper: Where candidates and partials are read; None for this process.
        progress: Told of what is read.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        kept: KeptVersion,
        mapper: Mapper | None = None,
        progress: Listener = ignore,
    ) -> None:
        self._catalogue = catalogue
        self._mapper = mapper
        self._progress = progress
        self._name = kept.name
        self._version = kept.version
        self._commit = kept.commit
        self._ranges: Ranges | None = None
        self._hashes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._dna: DNA | None = None
        self._manifest: Manifest | None = None
        self._failures: list[Failure] | None = None
        self._exemplars: Exemplars | None = None
        self._image_hashes: HashRows | None = None

    @property
    def checks(self) -> dict[str, Callable[[], str]]:
        """The checks that the version's files allow, by name, in the order to run them in."""
        version = self._version
        checks: dict[str, Callable[[], str]] = {
            "spec": self._check_spec,
            "counts": self._check_dna,
        }
        if version.imported:
            return checks
        checks |= {
            "manifest": self._check_manifest,
            "failures": self._check_failures,
            "folds": self._check_folds,
        }
        settings = ExemplarSettings.from_products(version.products)
        if settings is not None:
            checks["exemplars"] = partial(self._check_exemplars, settings)
        if IMAGE_HASHES in version.products:
            checks["image hashes"] = self._check_image_hashes
        checks["partials"] = self._check_partials
        if version.by and not version.part_of:
            checks["parts"] = self._check_parts
        return checks

    def _check_spec(self) -> str:
        """Checks that spec and ranges are what their digests say."""
        spec = self._catalogue.spec(self._version.spec)
        if self._version.origin.get("assumed"):
            return (
                f"spec {spec.digest} is what its digest says; it is assumed, and so are its ranges"
            )
        stored = storage.exists(self._catalogue.ranges_uri(spec.ranges_digest))
        if self._version.imported and not stored:
            return f"spec {spec.digest} is what its digest says; its ranges are not here"
        self._ranges = self._catalogue.ranges(spec.ranges_digest)
        return f"spec {spec.digest} and its ranges are what their digests say"

    def _check_dna(self) -> str:
        """Checks the DNA's digest, sums, numerics and ranges."""
        version = self._version
        file = self._catalogue.open_file("dna", self._name, version)
        file.check_bytes()
        uri, dna = file.name, file.read()
        if LAYER_GAUSSIAN in version.products:
            gaussians = self._catalogue.open_file("layer_gaussians", self._name, version)
            gaussians.check_bytes()
            dna = gaussians.read_gaussians(dna)
        digest = digest_of_dna(dna, version.manifest, version.products)
        if digest != version.dna:
            raise CorruptFile(f"{uri}: its numbers have digest {digest}, not {version.dna}")
        if file.metadata["numerics"] != list(version.numerics):
            raise CorruptFile(f"{uri} states other numerics than were committed")
        self._require_ranges(dna, uri)
        self._dna = dna
        neurons = count_of(len(dna.low), "neuron")
        if version.imported:
            return f"{count_of(dna.images, 'image')}, imported, for {neurons}"
        return f"{count_of(dna.images, 'image')} x positions = activations counted, for {neurons}"

    def _require_ranges(self, dna: DNA, uri: str) -> None:
        """Checks that every neuron was counted in its range."""
        if self._ranges is None:  # an imported DNA's ranges may not be known
            return
        taps = [(layer, dna.spec.tap(layer).neurons) for layer in dna.layers]
        ranges = self._ranges.select(taps)
        wrong = np.flatnonzero((dna.low != ranges.low) | (dna.high != ranges.high))
        if len(wrong):
            at = int(wrong[0])
            raise CorruptFile(
                f"{uri}: neuron {neuron_name(taps, at)} was counted in [{dna.low[at]}, "
                f"{dna.high[at]}]; its range is [{ranges.low[at]}, {ranges.high[at]}]"
            )

    def _check_manifest(self) -> str:
        """Checks that the manifest lists each image once, and as many as were counted."""
        self._manifest = manifest = self._catalogue.manifest(self._name, self._version)
        self._hashes = sorted_hashes(manifest, self._mapper, self._progress)
        counted = self._version.images + self._version.failed
        if manifest.candidates != counted:
            raise ConservationError(
                f"{count_of(manifest.candidates, 'candidate')} listed; "
                f"{self._version.images} counted and {self._version.failed} failed"
            )
        require_each_once(manifest, self._hashes, self._mapper)
        shards = count_of(len(manifest.heads), "shard")
        return f"{count_of(manifest.candidates, 'candidate')}, each once, in {shards}"

    def _check_failures(self) -> str:
        """Checks that each failure is of an image of the manifest."""
        failures = self._catalogue.failures(self._name, self._version)
        self._known_manifest()
        names = {(failure.uri, failure.member) for failure in failures}
        listed = are_among(_hashes_of_failures(failures), self._hashes)
        if len(names) != len(failures) or not listed.all():
            raise ConservationError(
                "failures are listed twice, or of images that the manifest does not list"
            )
        self._failures = sorted(failures)
        return f"{count_of(len(failures), 'failure')}, each of a candidate and with its reason"

    def _check_folds(self) -> str:
        """Checks that the folds hold the images planned for them, and sum to the DNA."""
        version, dna = self._version, self._known_dna()
        file = self._catalogue.open_file("folds", self._name, version)
        file.check_bytes()
        uri = file.name
        sizes = {
            int(index): int(fold["images"]) + int(fold["failed"])
            for index, fold in file.metadata["folds"].items()
        }
        if self._manifest is not None:
            planned: Counter[int] = Counter()
            for head in self._manifest.heads:
                planned[head.fold] += head.candidates
            if wrong := sorted(f for f in planned | sizes if planned[f] != sizes.get(f, 0)):
                raise ConservationError(
                    f"{uri}: fold {wrong[0]} holds {sizes.get(wrong[0], 0)} candidates, the "
                    f"manifest {planned[wrong[0]]}"
                )
        for layer in dna.layers:
            parts = file.read_folds(layer).values()
            counted = replace(dna.select([layer]), scatter=None)
            if not same_numbers(reduce(DNA.__add__, parts), counted):
                raise ConservationError(f"{uri}: the folds of layer {layer} do not sum to the DNA")
        least, most = min(sizes.values()), max(sizes.values())
        sums = "sums" if len(file.folds) == 1 else "sum"
        size = f"{least} to {most} candidates" if least < most else count_of(most, "candidate")
        return f"{count_of(len(file.folds), 'fold')} of {size} {sums} to the DNA"

    def _check_exemplars(self, settings: ExemplarSettings) -> str:
        """Checks that every neuron has its exemplars, each an image that was counted."""
        version, dna = self._version, self._known_dna()
        self._known_manifest()
        self._exemplars = held = self._catalogue.exemplars(self._name, version)
        uri = self._catalogue.uri("exemplars", version.spec, self._name, version.dna)
        if held.settings != settings:
            raise CorruptFile(
                f"{uri} holds {held.settings.product}; {settings.product} was committed"
            )
        counts = np.bincount(held.rows["neuron"].to_numpy(), minlength=len(dna.low))
        finite = (dna.nonfinite == 0) & np.isin(np.arange(len(dna.low)), settings.neurons(dna.spec))
        wrong = np.flatnonzero(finite & (counts != min(settings.number, dna.images)))
        if len(wrong):
            at = int(wrong[0])
            neuron = neuron_name(dna.spec.shape, at)
            raise ConservationError(
                f"{uri}: neuron {neuron} has {counts[at]} exemplars for {dna.images} images"
            )
        named = held.rows.group_by(["uri", "member"]).aggregate([])
        shown = hashes_of(named["uri"], named["member"])
        failed = np.sort(_hashes_of_failures(self._failures or ()))
        if not are_among(shown, self._hashes).all() or are_among(shown, failed).any():
            raise ConservationError(f"{uri} names exemplars that are not counted images")
        neurons = count_of(int(np.count_nonzero(counts)), "neuron")
        return f"{held.rows.num_rows:,} names for {neurons}, all of images that were counted"

    def _check_image_hashes(self) -> str:
        """Checks that each candidate has its hashes, and that they say what the DNA says."""
        version, manifest = self._version, self._known_manifest()
        uri = self._catalogue.uri(IMAGE_HASHES, version.spec, self._name, version.dna)
        rows = self._catalogue.image_hashes(self._name, version)
        single = int(np.count_nonzero(rows["flags"] & SINGLE_COLOUR))
        if (len(rows), single) != (manifest.candidates, version.single_colour):
            raise ConservationError(
                f"{uri}: {single} of {count_of(len(rows), 'image')} are of a single colour; the "
                f"DNA has {version.single_colour} of {manifest.candidates}"
            )
        self._image_hashes = rows
        return f"hashes of {count_of(version.images, 'image')}"

    def _hashes_by_shard(self) -> ImageHashes | None:
        """Returns the stored hashes as partials have them, if they were read."""
        if self._image_hashes is None:
            return None
        version, manifest = self._version, self._known_manifest()
        sizes = [head.candidates for head in manifest.heads]
        keys = manifest.keys(version.spec, version.products)
        return ImageHashes.cut(self._image_hashes, keys, sizes)

    def _check_partials(self) -> str:
        """Checks that the partials that are kept are whole, and, if all are, sum to the DNA."""
        version, manifest, dna = self._version, self._known_manifest(), self._known_dna()
        work = self._catalogue.partials_uri(self._name, version)
        uris = [partial_uri(work, key) for key in manifest.keys(version.spec, version.products)]
        present = present_partials(uris, listed=not version.part_of)
        if not present:
            return "none is kept"
        if len(present) < len(uris):
            read_partials(present, self._mapper, self._progress)
            return f"{len(present)} of {len(uris)} are kept; each is whole"
        total = sum_of_partials(manifest, work, version, self._mapper, self._progress)
        listed = self._failures if self._failures is not None else list(total.failures)
        shown = self._exemplars if self._exemplars is not None else total.exemplars
        hashes = self._hashes_by_shard() or total.image_hashes
        same = (total.exemplars, total.image_hashes, list(total.failures)) == (
            shown,
            hashes,
            listed,
        )
        if not same or not same_numbers(total.dna, dna):
            raise ConservationError(f"the partials under {work} do not sum to the DNA")
        sums = "sums" if len(present) == 1 else "sum"
        return f"{count_of(len(present), 'partial')} {sums} to the DNA"

    def _check_parts(self) -> str:
        """Checks that every part has the shards of its value, and no others."""
        version, manifest = self._version, self._known_manifest()
        label = label_of(version.by)
        if label not in manifest.labels:
            raise CorruptFile(f"the manifest has no label {label}, by which the parts are made")
        commit = self._catalogue.commit(self._commit)
        parts = parts_of(commit, self._name, version.spec)
        failed = {(failure.uri, failure.member) for failure in self._failures or ()}
        for value, indices in manifest.parts(label).items():
            name = part_name(self._name, value)
            shards = [(manifest.heads[i].fold, manifest.heads[i].digest) for i in indices]
            if (part := parts.pop(name, None)) is None:
                members = [e for i in indices for e in manifest.shards[i].members]
                if any((e.uri, e.member) not in failed for e in members):
                    raise ConservationError(
                        f"{name}: there is no such part, though images have {label} {value!r}"
                    )
                continue
            manifest_of_part = self._catalogue.manifest(name, part)
            found = [(head.fold, head.digest) for head in manifest_of_part.heads]
            if part.value != value or shards != found:
                raise ConservationError(
                    f"{name}: its shards are not those where {label} is {value!r}"
                )
        if parts:
            raise ConservationError(f"{min(parts)}: the manifest has no image of this part")
        return f"each shard is in the part of its {label}, and in no other"

    def _known_dna(self) -> DNA:
        if self._dna is None:
            raise CorruptFile("not checked, since the DNA itself could not be read")
        return self._dna

    def _known_manifest(self) -> Manifest:
        if self._manifest is None:
            raise CorruptFile("not checked, since the manifest itself could not be read")
        return self._manifest


def _hashes_of_failures(failures: Sequence[Failure]) -> NDArray[np.uint64]:
    columns = ([failure.uri for failure in failures], [failure.member for failure in failures])
    return hashes_of(*(pa.chunked_array([column], pa.string()) for column in columns))


def same_numbers(a: DNA, b: DNA) -> bool:
    """Compares two DNAs to the last bit, except for their numerics.

    Args:
        a: One DNA.
        b: The other; scatter matrices are compared if it has them.

    Returns:
        Whether all numbers are equal.
    """
    columns = ("counts", *SCALAR_COLUMNS, *(() if b.scatter is None else SCATTER))
    totals = ("images", "failed", *NOTED)
    return all(getattr(a, total) == getattr(b, total) for total in totals) and all(
        np.array_equal(getattr(a, c), getattr(b, c), equal_nan=c in FLOAT_SUMS) for c in columns
    )
