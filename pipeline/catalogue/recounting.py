"""Counts shards again from the source's images, and compares with what a build has stored.

    >>> [f for f in recount(catalogue, ["photos"], engine=InProcess(), sample=3)]  # doctest: +SKIP

`version_checks.py` checks the stored files against each other. This goes back to the images, and so
finds changes that agree with each other: a partial that was altered with its sums, or an image that
was replaced by one of the same size and time. Nothing in the catalogue is changed.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline import storage
from pipeline.catalogue.catalogue import Catalogue
from pipeline.catalogue.commit import Version
from pipeline.catalogue.findings import Finding
from pipeline.catalogue.layout import RECOUNT_FOLDER
from pipeline.catalogue.partial_sums import sum_of_partials
from pipeline.catalogue.verification import chosen_versions, made_earlier, raise_if_unanswered
from pipeline.catalogue.version_checks import same_numbers
from pipeline.catalogue.version_options import RECOUNTED_SHARDS
from pipeline.counting import (
    Recipe,
    ShardJob,
    ShardReceipt,
    choose_backend,
    counted_by,
    device_kind,
    load_partial,
    partial_uri,
)
from pipeline.dna import DNA, INT_COLUMNS, Failure, ImageHashes, Partial
from pipeline.engine import Engine, shards_run
from pipeline.errors import SourceError, TransientError, VdnaError
from pipeline.events import Event, Listener, Said, Started, StepDone, StepFailed, ignore, stage
from pipeline.mapper import map_in_order
from pipeline.networks import network_of
from pipeline.sources import Manifest, Shard
from pipeline.spec import IMAGE_HASHES, Resources
from pipeline.wording import count_of, option

MOVED_BY_ROUNDING = 1e-3
"""The share of activations that may fall into another bin when numerics differ."""


def recount(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    spec: str | None = None,
    *,
    engine: Engine,
    sample: int | None = RECOUNTED_SHARDS,
    seed: int | None = None,
    weights: str | None = None,
    resources: Resources | None = None,
    progress: Listener | None = None,
) -> Generator[Finding, None, None]:
    """Counts shards of the newest versions again, or of the versions that are named.

    Args:
        catalogue: The catalogue.
        names: The datasets, or names of versions; none for all datasets.
        spec: The beginning of a spec's digest; None for all specs.
        engine: Where the shards are counted.
        sample: How many shards of each dataset to count, of those whose partial is kept. None
            counts all, and compares their sum with the DNA too.
        seed: Chooses the sample; random if None.
        weights: The weights' url, for datasets that were not built with their network's own.
        resources: How fast to count.
        progress: Told what is done.

    Yields:
        A finding for each shard, and one for each dataset.

    Raises:
        NotFound: If there is no such dataset, version or spec.
        UsageError: If a name means a window of days.
    """
    seed = secrets.randbelow(10**9) if seed is None else seed
    head = catalogue.head()
    for kept in chosen_versions(catalogue, head, names, spec):
        name, version, at = kept.name, kept.version, made_earlier(kept, head.number)
        if version.imported:
            yield Finding(name, "recount", True, "imported: it has no images to count again", at)
            continue
        try:
            dataset = _DatasetRecount(
                catalogue, name, version, weights, resources or Resources(), progress or ignore
            )
            for finding in dataset.run(engine, sample, seed):
                yield replace(finding, at=at)
        except VdnaError as error:
            raise_if_unanswered(error, f"{name}, recount")
            yield Finding(name, "recount", False, f"not counted again: {error}", at)


def recipe_of(
    catalogue: Catalogue,
    name: str,
    version: Version,
    weights: str | None,
    resources: Resources,
    progress: Listener,
) -> Recipe:
    """Finds out how a version was counted, to count some of its shards again.

    Args:
        catalogue: The catalogue.
        name: The dataset.
        version: The version.
        weights: The url of the weights, if the network has others than its own.
        resources: How fast to count.
        progress: Told what runs the network, if that is another than before.

    Returns:
        What a worker has to load.

    Raises:
        SpecMismatch: If the network is another one here.
    """
    spec = catalogue.spec(version.spec)
    network = network_of(spec, weights)
    before = counted_by(version.numerics)
    chosen = choose_backend(
        resources.backend,
        network,
        spec.precision,
        device_kind(resources),
        before,
        lambda message: progress(Said(message)),
        resources.micro_batch,
    )
    if chosen.note and chosen.backend != before:
        progress(Said(f"{name}: {chosen.note}"))
    return Recipe(
        spec,
        network,
        catalogue.ranges_uri(spec.ranges_digest),
        resources,
        version.products,
        backend=chosen.backend,
    )


class _DatasetRecount:
    """Counts shards of one version again."""

    def __init__(
        self,
        catalogue: Catalogue,
        name: str,
        version: Version,
        weights: str | None,
        resources: Resources,
        progress: Listener,
    ) -> None:
        self._catalogue = catalogue
        self._name = name
        self._version = version
        self._manifest: Manifest = catalogue.manifest(name, version)
        self._keys = self._manifest.keys(version.spec, version.products)
        self._progress = progress
        self._recipe = recipe_of(catalogue, name, version, weights, resources, progress)

    def run(self, engine: Engine, sample: int | None, seed: int) -> Iterator[Finding]:
        """Counts a sample of the shards, or all, and yields the findings."""
        total = len(self._keys)
        chosen = self._choose(sample, seed)
        how = f"seed {seed}" if sample is not None else "all"
        if not chosen:
            detail = (
                f"none of {total} partials is kept; count all shards ({option('sample', 'all')})"
            )
            yield Finding(self._name, "recount", False, detail)
            return
        self._progress(
            Said(
                f"{self._name}: counting {len(chosen)} of {count_of(total, 'shard')} again ({how})"
            )
        )
        wrong = 0
        with self._scratch(engine) as work:
            for finding in self._compare_shards(engine, chosen, work):
                wrong += not finding.ok
                yield finding
            if sample is None and not wrong:
                finding = self._compare_sum(work)
                wrong += not finding.ok
                yield finding
        shards = f"{len(chosen)} of {count_of(total, 'shard')}"
        detail = f"{shards} looked at again ({how}), {count_of(wrong, 'finding')}"
        yield Finding(self._name, "recount", not wrong, detail)

    def _choose(self, sample: int | None, seed: int) -> list[int]:
        """Chooses the shards to count: all, or a sample of those whose partial is kept."""
        order = list(range(len(self._keys)))
        if sample is None:
            return order
        random.Random(seed).shuffle(order)
        kept = (index for index in order if storage.exists(self._kept_uri(index)))
        return sorted(index for index, _ in zip(kept, range(sample), strict=False))

    def _kept_uri(self, index: int) -> str:
        work = self._catalogue.partials_uri(self._name, self._version)
        return partial_uri(work, self._keys[index])

    @contextlib.contextmanager
    def _scratch(self, engine: Engine) -> Iterator[str]:
        """Makes a temporary folder for the new partials, where every worker can write."""
        if engine.in_process:
            with storage.ScratchFolder("recount") as folder:
                yield storage.canonical(folder)
            return
        folder = f"{RECOUNT_FOLDER}{secrets.token_hex(8)}"
        work = storage.join(self._catalogue.root, "_work", folder)
        try:
            yield work
        finally:
            storage.delete_tree(work)

    def _compare_shards(
        self, engine: Engine, chosen: Sequence[int], work: str
    ) -> Iterator[Finding]:
        """Counts the chosen shards and compares each with its partial."""
        version, todo = self._version, []
        digest = version.digest_in("manifests")
        uri = self._catalogue.uri("manifests", version.spec, self._name, digest)
        job = ShardJob(
            self._recipe,
            uri,
            work,
            self._catalogue.entries_uri,
            keeps_cells=False,
            dataset=self._name,
        )
        for index in chosen:
            if changed := _changed_images(self._manifest.shards[index]):
                yield self._finding(
                    index,
                    False,
                    f"cannot be counted again, as {len(changed)} of its images changed since they "
                    f"were counted; refresh the dataset: {'; '.join(changed[:5])}",
                )
            else:
                todo.append((job, index))
        sizes = {index: len(self._manifest.shards[index].members) for _, index in todo}
        with (
            stage(self._progress, Started(sum(sizes.values()), len(todo))),
            shards_run(engine, todo) as receipts,
        ):
            for receipt in receipts:
                self._tell(receipt, sizes[receipt.index])
                yield self._compare_shard(receipt, work)

    def _tell(self, receipt: ShardReceipt, images: int) -> None:
        """Tells of a shard that was counted, or could not be."""
        shard = f"shard {receipt.index}"
        told: Event = StepDone(
            images,
            receipt.failures,
            receipt.seconds,
            shard,
            receipt.ahead,
            self._name,
            receipt.index,
            receipt.work,
        )
        if receipt.error:
            told = StepFailed(
                shard,
                receipt.error,
                receipt.transient,
                self._name,
                receipt.index,
                receipt.seconds,
                receipt.fault,
            )
        self._progress(told)

    def _compare_shard(self, receipt: ShardReceipt, work: str) -> Finding:
        index = receipt.index
        if receipt.error and receipt.transient:
            raise TransientError(
                f"{self._name}, shard {index}: not counted again, as the store did not answer: "
                f"{receipt.error}"
            )
        if receipt.error:
            return self._finding(index, False, f"could not be counted again: {receipt.error}")
        kept = self._kept_uri(index)
        try:
            again = self._counted_now(work, index)
            if not storage.exists(kept):
                return self._finding(
                    index, True, f"{count_of(again.dna.images, 'image')}; its partial is not kept"
                )
            stored = load_partial(kept)
        except VdnaError as error:
            raise_if_unanswered(error, f"{self._name}, shard {index}")
            return self._finding(index, False, str(error))
        ok, detail = compare_partials(stored, again)
        return self._finding(index, ok, detail if ok else f"{self._wrong(index)}: {detail}")

    def _wrong(self, index: int) -> str:
        """Names the partial of a shard, and those that a build would make it of again."""
        shard, version = self._manifest.shards[index], self._version
        work = self._catalogue.partials_uri(self._name, version)
        uris = [self._kept_uri(index)]
        if shard.head.is_merged:
            runs = (run for cell in shard.cell_runs() for run in cell.each_run())
            former = (partial_uri(work, run.key(version.spec, version.products)) for run in runs)
            uris += filter(storage.exists, former)
        return ", ".join(uris)

    def _counted_now(self, work: str, index: int) -> Partial:
        try:
            return load_partial(partial_uri(work, self._keys[index]))
        except SourceError as error:
            raise SourceError(_removed(error)) from error

    def _compare_sum(self, work: str) -> Finding:
        """Compares the sum over all shards with the DNA that was committed."""
        scattered = "layer_gaussians" in self._version.sha256
        dna = self._catalogue.load_version(self._name, self._version, layer_gaussian=scattered)
        failures = tuple(sorted(self._catalogue.failures(self._name, self._version)))
        try:
            again = sum_of_partials(self._manifest, work, self._version)
        except SourceError as error:
            raise SourceError(_removed(error)) from error
        named, kept = (self._name, self._version), self._version.sha256
        exemplars = self._catalogue.exemplars(*named) if "exemplars" in kept else None
        hashes = None
        if IMAGE_HASHES in kept:
            sizes = [head.candidates for head in self._manifest.heads]
            hashes = ImageHashes.cut(self._catalogue.image_hashes(*named), self._keys, sizes)
        stored = Partial(dna, again.shards, failures, exemplars, hashes)
        ok, detail = compare_partials(stored, again)
        return Finding(self._name, "recounted sum", ok, detail)

    def _finding(self, index: int, ok: bool, detail: str) -> Finding:
        return Finding(self._name, f"shard {index}", ok, detail)


def _removed(error: SourceError) -> str:
    """Says why a sum is gone that was counted just now."""
    return (
        f"{error}. The sum was counted just now, and removed by another job, as `vdna erase` does; "
        "run the same command again"
    )


def _changed_images(shard: Shard) -> list[str]:
    """Finds the images of a shard that have another identity now, or are gone."""
    changed = []
    identities = {entry.uri: entry.identity for entry in shard.members}
    for (uri, identity), found in zip(
        identities.items(), map_in_order(_identity_now, identities), strict=True
    ):
        if found != identity:
            changed.append(f"{uri} ({identity} counted, {found} now)")
    return changed


def _identity_now(uri: str) -> str:
    try:
        return storage.info(uri).identity
    except SourceError:
        return "gone"


def compare_partials(stored: Partial, again: Partial) -> tuple[bool, str]:
    """Compares a stored partial with one that was counted again.

    Equal numerics must give equal numbers, to the last bit. Other numerics may move a share of
    `MOVED_BY_ROUNDING` of the activations to another bin.

    Args:
        stored: What the build stored.
        again: What was counted now.

    Returns:
        Whether the stored one is right, and what to tell people.
    """
    images = count_of(again.dna.images, "image")
    if stored.dna.images != again.dna.images or _odd_failures(stored, again):
        return False, (
            f"{count_of(stored.dna.images, 'image')} and "
            f"{count_of(len(stored.failures), 'failure')} are stored, "
            f"{again.dna.images} and {len(again.failures)} were found{_first_odd(stored, again)}"
        )
    if same_numbers(again.dna, stored.dna):
        if stored.exemplars != again.exemplars:
            return False, f"{images}: all numbers are equal, but other exemplars are stored"
        if stored.image_hashes != again.image_hashes:
            return False, f"{images}: all numbers are equal, but other image hashes are stored"
        return True, f"{images}, all numbers are equal"
    moved = _moved(stored.dna, again.dna)
    share = sum(moved.values()) / max(1, again.dna.images * int(again.dna.positions.sum()))
    recorded = {numerics for numerics, _ in stored.dna.numerics}
    here = {numerics for numerics, _ in again.dna.numerics}
    worst = max(moved, key=lambda layer: moved[layer])
    what = "all bins are equal, but means, squares or extremes differ"
    if number := sum(moved.values()):
        where = "is in another bin," if number == 1 else "are in other bins, most of them"
        what = f"{count_of(number, 'activation')} ({share:.1e} of all) {where} in layer {worst}"
    if recorded == here:
        return False, f"{images}: {what}; numerics are the same, so nothing should differ"
    ok = share <= MOVED_BY_ROUNDING
    return ok, (
        f"{images}, counted under other numerics than were recorded: {what}; rounding explains up "
        f"to {MOVED_BY_ROUNDING:g}"
    )


def _moved(a: DNA, b: DNA) -> dict[str, int]:
    """Counts the activations of each layer that are in another bin."""
    change = np.abs(a.counts - b.counts).sum(axis=1)
    for column in INT_COLUMNS:
        change = change + np.abs(getattr(a, column) - getattr(b, column))
    return {layer: int(change[a.slice_of(layer)].sum()) // 2 for layer in a.layers}


def _first_odd(stored: Partial, again: Partial) -> str:
    """Names the first failure that only one of the two has."""
    odd = _odd_failures(stored, again)
    return f"; first: {odd[0]}" if odd else ""


def _odd_failures(stored: Partial, again: Partial) -> list[Failure]:
    """Finds the failures that only one of the two has.

    A decoder of another version may say the same in other words.

    Returns:
        The failures, sorted.
    """
    these, those = (
        {(failure.uri, failure.member, failure.reason): failure for failure in of.failures}
        for of in (stored, again)
    )
    return sorted((these | those)[key] for key in these.keys() ^ those.keys())
