"""Counts a sample of datasets' images as they are, and altered copies of each.

    >>> sample = count_altered(catalogue, versions, digest, ["blur"], options)   # doctest: +SKIP
    >>> sample.folds["blur 0.01"].read("blocks.3.1")[0].images                  # doctest: +SKIP
    13

The images are read again from where they were listed. They and their copies are counted by the
datasets' spec and ranges. An image and its copies are in one fold. So a lens that is fitted to some
folds has not seen the images of the others, in no copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import PIL
from PIL import Image

from pipeline import images, storage
from pipeline.altered_pictures import PICTURE_CHANGES, altered
from pipeline.catalogue import Catalogue, Version, recipe_of
from pipeline.counting import Counter as ShardCounter
from pipeline.counting import Extractor, exact_switches
from pipeline.dna import DNA, HeldFolds, Ranges
from pipeline.errors import BadImage, ConservationError, SourceError, UsageError
from pipeline.events import Listener, Said, Started, StepDone, stage
from pipeline.explaining.attribute import UNCHANGED, copies_named
from pipeline.explaining.explain_options import SampleGrouping
from pipeline.explaining.sample_draw import SampledImage, draw_sample
from pipeline.sources import Entry, Members, Shard
from pipeline.spec import Resources, Spec, available_cpus
from pipeline.wording import count_of, option, some_of

SAMPLED_IMAGES = 200
"""How many images a sample has unless another number is asked for."""

HELD_IMAGES = 8
"""How many images are held at a time, decoded at their own size: those of a micro-batch."""

Copy = tuple[str, float] | None
"""A change and its strength; None for images as they are."""


@dataclass(frozen=True, eq=False)
class AlteredSample:
    """Images of datasets, and altered copies of each.

    Attributes:
        spec: Digest of their spec.
        folds: The folds of the images as they are, by the name `UNCHANGED`, and of each set of
            copies, by its name. All have the same images.
        images: How many images of each dataset are in it.
        members: Digest of the DNA of each dataset.
        lost: How many of the images that were drawn could not be read any more.
        changes: The strengths of each change.
        group_by: What kept images in one fold.
    """

    spec: str
    folds: Mapping[str, HeldFolds]
    images: Mapping[str, int]
    members: Mapping[str, str]
    lost: int
    changes: Mapping[str, Sequence[float]]
    group_by: SampleGrouping

    @property
    def provenance(self) -> dict[str, Any]:
        """What a lens states that was fitted to it."""
        return {
            "images": dict(self.images),
            "members": dict(self.members),
            "lost": self.lost,
            "changes": {word: list(strengths) for word, strengths in self.changes.items()},
            "group_by": self.group_by,
            "pillow": PIL.__version__,
        }


def count_altered(
    catalogue: Catalogue,
    versions: Mapping[str, Version],
    words: Sequence[str],
    progress: Listener,
    *,
    count: int | None,
    group_by: SampleGrouping,
    weights: str | None,
    least_folds: int,
) -> AlteredSample:
    """Draws images, reads them again, and counts them and altered copies of them.

    Args:
        catalogue: Where the datasets are.
        versions: The versions to draw from, of one spec.
        words: What is done to the images, words of `PICTURE_CHANGES`.
        progress: Is told of each fold.
        count: The most images to draw; None for `SAMPLED_IMAGES`.
        group_by: What keeps images in one fold.
        weights: Path or url of the network's weights, if they are not its own.
        least_folds: The fewest folds that are of use.

    Returns:
        The sample.

    Raises:
        UsageError: If there are too few images, or groups of them.
        SourceError: If most of the images cannot be read any more.
        SpecMismatch: If the network is another one here.
        TransientError: If a store does not answer.
    """
    count = count or SAMPLED_IMAGES
    drawn = draw_sample(catalogue, versions, count, group_by)
    _require_folds(drawn, least_folds, group_by)
    name, version = next(iter(versions.items()))
    resources = Resources(threads=available_cpus())
    recipe = recipe_of(catalogue, name, version, weights, resources, progress)
    copies = [(word, each) for word in words for each in PICTURE_CHANGES[word].strengths]
    progress(
        Said(
            f"{count_of(len(drawn), 'image')} of {some_of(list(versions))}, each as it is and in "
            f"{count_of(len(copies), 'altered copy', 'altered copies')}"
        )
    )
    with exact_switches():
        spec, threads = recipe.spec, resources.threads or 1
        extractor = Extractor(
            recipe.network, spec.precision, recipe.device, recipe.backend, threads
        )
        ranges = catalogue.ranges(spec.ranges_digest)
        counting = _SampleCount(extractor, spec, ranges, resources, copies)
        with closing(counting):
            counting.count_all(drawn, progress)
    if counting.lost:
        _tell_lost(counting.lost, drawn, progress)
        kept = [image for image in drawn if image.entry not in counting.lost]
        _require_folds(kept, least_folds, group_by)
        drawn = kept
    of_each = dict(sorted(Counter(image.dataset for image in drawn).items()))
    return AlteredSample(
        version.spec,
        counting.folds,
        of_each,
        {dataset: versions[dataset].dna for dataset in of_each},
        len(counting.lost),
        {word: PICTURE_CHANGES[word].strengths for word in words},
        group_by,
    )


def _require_folds(drawn: Sequence[SampledImage], least: int, group_by: SampleGrouping) -> None:
    folds = len({image.fold for image in drawn})
    if folds >= least:
        return
    few = f"the sample has {count_of(len(drawn), 'image')} in {count_of(folds, 'fold')}"
    needed = f"a lens takes {least} folds, to be fitted to half of them and scored on the others"
    more = f"Draw more, as by {option('sample', SAMPLED_IMAGES)}, or of more datasets"
    if group_by == "stem":
        stems = sorted({image.stem for image in drawn})
        few += f", as the names of their files have {count_of(len(stems), 'stem')}"
        few += f" ({some_of(stems)})"
        more = f"Leave {option('group_by', 'stem')} out, or draw from more datasets"
    raise UsageError(f"{few}; {needed}. {more}")


def _are_most(lost: Sized, drawn: Sized) -> bool:
    return 2 * len(lost) > len(drawn)


def _tell_lost(lost: Mapping[Entry, str], drawn: Sized, progress: Listener) -> None:
    """Says that some images are left out, or refuses a sample that has lost most of its images."""
    first = lost[min(lost, key=lambda entry: entry.sort_key)]
    told = f"{len(lost):,} of {count_of(len(drawn), 'image')} cannot be read any more ({first})"
    if _are_most(lost, drawn):
        raise SourceError(
            f"{told}; a change is made to the datasets' own images. Draw from datasets whose "
            f"images are still there, as by {option('sample_of', ['photos'])}, or build them again"
        )
    progress(Said(f"{told}; they are left out"))


class _SampleCount:
    """Counts images and their copies, fold by fold.

    Attributes:
        folds: What was counted, by the names of `AlteredSample.folds`.
        lost: Why images could not be read.
    """

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources,
        copies: Sequence[tuple[str, float]],
    ) -> None:
        self._counter = ShardCounter(extractor, spec, ranges, resources, ())
        self._rule = images.without_nvjpeg(spec.preprocess)
        self._copies: dict[str, Copy] = {UNCHANGED: None}
        self._copies |= {copies_named(*copy): copy for copy in copies}
        self._readers = ThreadPoolExecutor(HELD_IMAGES, "read")
        self._counters = ThreadPoolExecutor(resources.threads, "copies")  # each holds a table
        self.folds = {name: HeldFolds() for name in self._copies}
        self.lost: dict[Entry, str] = {}

    def close(self) -> None:
        """Ends the threads."""
        self._readers.shutdown(cancel_futures=True)
        self._counters.shutdown(cancel_futures=True)
        self._counter.close()

    def count_all(self, drawn: Sequence[SampledImage], progress: Listener) -> None:
        """Counts all images, which are in the order of their folds; ends if most are lost."""
        by_fold = [(fold, list(of)) for fold, of in groupby(drawn, key=lambda image: image.fold)]
        sets = len(self._copies)
        with stage(progress, Started(len(drawn) * sets, len(by_fold), step="folds")):
            for fold, members in by_fold:
                before = len(self.lost)
                self._count(fold, [image.entry for image in members])
                lost = len(self.lost) - before
                progress(StepDone(len(members) * sets, failures=lost * sets))
                if _are_most(self.lost, drawn):
                    return

    def _count(self, fold: int, entries: Sequence[Entry]) -> None:
        """Counts the images of a fold, a few at a time."""
        sums: dict[str, DNA] = {}
        with closing(Members(entries, self._rule.max_bytes, len(entries))) as source:
            for start in range(0, len(entries), HELD_IMAGES):
                run = entries[start : start + HELD_IMAGES]
                read = zip(run, self._readers.map(partial(self._pixels, source), run), strict=True)
                if not (pixels := {entry: found for entry, found in read if found is not None}):
                    continue
                counted = self._counters.map(
                    partial(self._dna, fold, pixels), self._copies.values()
                )
                for name, dna in zip(self._copies, counted, strict=True):
                    sums[name] = sums[name] + dna if name in sums else dna
        for name, dna in sums.items():
            self.folds[name] += HeldFolds.of([(fold, dna)])

    def _pixels(self, source: Members, entry: Entry) -> images.Decoded | None:
        """Reads an image again; returns None if that is not possible any more."""
        try:
            return images.decode(source.fetch(entry), self._rule)
        except SourceError as error:
            self.lost[entry] = str(error)
        except BadImage as error:
            self.lost[entry] = f"{storage.spelled(entry.uri, entry.member)}: {error}"
        return None

    def _dna(self, fold: int, pixels: Mapping[Entry, images.Decoded], copy: Copy) -> DNA:
        """Counts images as they are, or copies of them.

        Returns:
            Their DNA.

        Raises:
            ConservationError: If not every image was counted.
        """

        def fetch(entry: Entry) -> images.Decoded:
            found = pixels[entry]
            if copy is None:
                return found
            name = storage.spelled(entry.uri, entry.member)
            made = altered(Image.fromarray(found.pixels), *copy, name)
            return images.Decoded(np.asarray(made), found.transparent)

        counted = self._counter.count(Shard(fold, fold, tuple(pixels)), "", fetch=fetch)
        if counted.dna.images != len(pixels):
            raise ConservationError(
                f"{counted.dna.images} of {count_of(len(pixels), 'image')} were counted, of "
                f"{copies_named(*copy) if copy else UNCHANGED}: {counted.failures}"
            )
        return counted.dna
