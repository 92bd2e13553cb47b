"""Sums partials into folds and a DNA: a tree over committed objects, with checks.

    >>> levels, folds = plan_folds(manifest, work_uri, spec.digest, PRODUCTS)    # doctest: +SKIP
    >>> for level in levels: list(engine.map(add_up, level))
    >>> compose(folds, manifest, PRODUCTS, "photos").digest

Nodes are named by a hash of their inputs and created exclusively, so the tree resumes, and two jobs
that reduce the same partials share it. Children are added in the order of the manifest, so float
sums repeat to the last bit. The sum is over the manifest's list of shards, never over whatever lies
under a prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce as fold_left
from itertools import repeat
from mmap import mmap
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.counting.hash_sums import file_of_hashes
from pipeline.counting.worker import partial_uri
from pipeline.dna import (
    DNA,
    EXEMPLAR_COLUMN,
    NOTED,
    DnaFile,
    Exemplars,
    ExemplarSettings,
    Failure,
    LayersWriter,
    Partial,
    add_kept,
    dna_metadata,
    hash_numbers,
    shards_and_failures,
    to_gaussian_table,
    to_table,
)
from pipeline.errors import ConservationError, CorruptFile, OverlapError, SourceError
from pipeline.events import Listener, StepDone, ignore
from pipeline.mapper import Mapper
from pipeline.sources import Manifest, pairs_of
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN, Spec, available_cpus, digest_of

FAN_IN = 16

FOLD_TOTALS = ("images", "failed", "numerics", *NOTED)
"""What the file of folds states of each fold."""

HASHED_IN_MEMORY = 1 << 23
"""Parts with the hashes of more images than this, 17 bytes each, wait on disk to be summed."""

LAST_SUMMANDS = 4
"""How many objects of each fold are left for the last sum, which has all of them in memory."""


@dataclass(frozen=True)
class Node:
    """A sum to be made.

    Attributes:
        uri: Where the sum goes.
        children: The objects that are added.
        shards: The keys of the shards that they hold.
    """

    uri: str
    children: tuple[str, ...]
    shards: tuple[str, ...]


Leaf = tuple[str, tuple[str, ...]]
"""The uri of an object, and the keys of the shards that it holds."""


def tree(work_uri: str, leaves: Sequence[Leaf]) -> tuple[list[list[Node]], list[Leaf]]:
    """Plans the sums from the leaves up.

    Args:
        work_uri: The folder of the sums.
        leaves: The objects to add, with the shards that each holds.

    Returns:
        Levels of sums, and the few objects that they end in, which `compose` adds. A small dataset
        needs no level at all.
    """
    levels: list[list[Node]] = []
    current = list(leaves)
    while len(current) > LAST_SUMMANDS:
        level: list[Node] = []
        sums: list[Leaf] = []
        for start in range(0, len(current), FAN_IN):
            group = current[start : start + FAN_IN]
            if len(group) > 1:
                level.append(node := _node(work_uri, group))
                sums.append((node.uri, node.shards))
            else:
                sums += group
        levels.append(level)
        current = sums
    return levels, current


def _node(work_uri: str, group: Sequence[Leaf]) -> Node:
    children = tuple(uri for uri, _ in group)
    digest = digest_of("node", [uri.rpartition("/")[2] for uri in children])
    uri = storage.join(work_uri, "nodes", f"{digest}.parquet")
    return Node(uri, children, tuple(key for _, keys in group for key in keys))


def add_up(node: Node) -> str:
    """Makes one node, unless it is there.

    Args:
        node: The sum to make.

    Returns:
        Where it is.

    Raises:
        OverlapError: If two children hold the same shard.
        CorruptFile: If a child is damaged, or the shards are not those planned.
    """
    if not storage.exists(node.uri):
        total = fold_left(Partial.__add__, _of_one_spec(node.children))
        if total.shards != tuple(sorted(node.shards)):
            raise CorruptFile(
                f"{', '.join(node.children)} hold {len(total.shards)} shards, not the "
                f"{len(node.shards)} that they should"
            )
        storage.create(node.uri, total.encode())
    return node.uri


def _of_one_spec(uris: Sequence[str]) -> Iterator[Partial]:
    """Yields partials of one spec.

    Yields:
        The partials, in order.

    Raises:
        SpecMismatch: If two were not made the same way; the message names them.
    """
    spec: Spec | None = None
    for uri in uris:
        partial = load_partial(uri)
        spec = spec or partial.dna.spec
        spec.require_same(partial.dna.spec, uris[0], uri)
        yield partial


def load_partial(uri: str) -> Partial:
    """Loads a shard's partial, or a node.

    Args:
        uri: Where it is.

    Returns:
        The partial.

    Raises:
        CorruptFile: If it is not what its name says.
    """
    partial = Partial.decode(storage.read(uri), uri)
    *_, folder, name = uri.removesuffix(".parquet").split("/")
    if folder == "partials" and partial.shards != (name,):
        raise CorruptFile(f"{uri} holds shards {partial.shards}, not the one it is named for")
    return partial


@dataclass(frozen=True)
class Fold:
    """A fold, as objects to add.

    Attributes:
        index: Its number.
        parts: The objects that add up to it, in order.
        candidates: How many candidates they account for.
    """

    index: int
    parts: tuple[Leaf, ...]
    candidates: int


def plan_folds(
    manifest: Manifest, work_uri: str, spec_digest: str, products: Sequence[str]
) -> tuple[list[list[Node]], list[Fold]]:
    """Plans the sums of all folds.

    Args:
        manifest: The manifest of the dataset.
        work_uri: Where its partials and sums are.
        spec_digest: The digest of the spec.
        products: What is kept of each shard.

    Returns:
        The levels of all folds' trees side by side, and the folds that they end in.
    """
    levels: list[list[Node]] = []
    folds = []
    for index, shards in manifest.folds().items():
        keys = [shard.key(spec_digest, products) for shard in shards]
        mine, parts = tree(work_uri, [(partial_uri(work_uri, key), (key,)) for key in keys])
        for depth, level in enumerate(mine):
            if depth == len(levels):
                levels.append([])
            levels[depth].extend(level)
        folds.append(Fold(index, tuple(parts), sum(shard.candidates for shard in shards)))
    return levels, folds


@dataclass(frozen=True)
class Composed:
    """A dataset version, ready to be stored.

    Attributes:
        digest: The digest of the DNA.
        images: How many images were counted.
        failures: The images that could not be read.
        numerics: How many images were counted with which numerics.
        files: The files, by kind.
        transparent: How many images have a pixel that is less than opaque, as the DNA has it.
        single_colour: How many images are of one colour, as the DNA has it.
    """

    digest: str
    images: int
    failures: tuple[Failure, ...]
    numerics: tuple[dict[str, Any], ...]
    files: dict[str, bytes | mmap]
    transparent: int | None
    single_colour: int | None


def compose(
    folds: Sequence[Fold],
    manifest: Manifest,
    products: Sequence[str],
    dataset: str,
    mapper: Mapper | None = None,
    progress: Listener = ignore,
) -> Composed:
    """Adds the folds' parts up to the files of a dataset version.

    These are the DNA, its folds and, if the products have them, its exemplars, its image hashes and
    its layers' Gaussians. One layer is encoded while the next is read and summed. Parts with
    scatter matrices, or with many image hashes, are large: they wait on this machine's disk.

    Args:
        folds: The folds, as `plan_folds` planned them, all levels summed.
        manifest: The manifest of the dataset.
        products: What is kept of each shard.
        dataset: The name of the dataset.
        mapper: Where the names of a large dataset's images are read. None reads them here.
        progress: Told of each layer that is summed, as a step.

    Returns:
        The files and their digest.

    Raises:
        ConservationError: If a shard of the manifest is not in exactly one part, or a candidate is
            neither counted nor listed as a failure.
        OverlapError: If two folds hold the same shard.
        CorruptFile: If a part does not hold what it should.
    """
    large = LAYER_GAUSSIAN in products or (
        IMAGE_HASHES in products and manifest.candidates > HASHED_IN_MEMORY
    )
    keep = storage.on_disk if large else lambda data: data
    files = {
        uri: DnaFile(keep(_read(uri)), "partial", uri) for fold in folds for uri, _ in fold.parts
    }
    heads, failures = _totals(folds, files, manifest, products, dataset)
    total = _add_all(heads.values())
    content = ContentDigest(total)
    kinds = ["dna", "folds", *(["layer_gaussians"] if LAYER_GAUSSIAN in products else [])]
    writers = {kind: LayersWriter(kind) for kind in kinds}

    def write(summed: DNA, parts: Sequence[tuple[int, DNA]]) -> None:
        writers["dna"].add(to_table(replace(summed, scatter=None)))
        writers["folds"].add(
            pa.concat_tables(to_table(replace(dna, scatter=None), index) for index, dna in parts)
        )
        if "layer_gaussians" in writers:
            writers["layer_gaussians"].add(to_gaussian_table(summed))

    with ThreadPoolExecutor(1, "encode") as encoder:
        written: Future[None] | None = None
        for layer, parts in _layers(total.spec.layers, folds, files):
            summed = _add_all(dna for _, dna in parts)
            if (summed.scatter is not None) != (LAYER_GAUSSIAN in products):
                raise CorruptFile(
                    f"{dataset}: the partials' products are not {', '.join(products)}"
                )
            summed.check(f"{dataset}, layer {layer}")
            content.add(summed)
            if written:  # no more than two layers are in memory
                written.result()
            written = encoder.submit(write, summed, parts)
            progress(StepDone(1, name=layer))
        if written:
            written.result()
    digest = dna_digest(content, manifest.digest, products)
    shared = {
        "dataset": dataset,
        "digest": digest,
        "manifest": manifest.digest,
        "products": list(products),
    }
    folds_of: dict[str, Any] = dict.fromkeys(kinds, len(folds))
    folds_of["folds"] = {
        str(index): {key: stated[key] for key in FOLD_TOTALS if key in stated}
        for index, stated in ((index, dna_metadata(dna)) for index, dna in heads.items())
    }
    pairs = pairs_of(manifest, mapper)
    named = {} if pairs is None else {"folds": {"pairs": pairs.to_json()}}
    kept: dict[str, bytes | mmap] = {}
    if (exemplars := _exemplars(files, products, dataset)) is not None:
        kept[EXEMPLAR_COLUMN] = exemplars.encode(dataset, digest)
    if (hashes := file_of_hashes(files.values(), manifest, products, dataset)) is not None:
        kept[IMAGE_HASHES] = hashes
    return Composed(
        digest,
        total.images,
        tuple(sorted(failures)),
        tuple(dna_metadata(total)["numerics"]),
        kept
        | {
            kind: writer.finish(
                dna_metadata(total, folds=folds_of[kind], **shared, **named.get(kind, {}))
            )
            for kind, writer in writers.items()
        },
        total.transparent,
        total.single_colour,
    )


def _totals(
    folds: Sequence[Fold],
    files: Mapping[str, DnaFile],
    manifest: Manifest,
    products: Sequence[str],
    dataset: str,
) -> tuple[dict[int, DNA], list[Failure]]:
    """Checks that the parts account for each candidate once.

    Returns:
        The totals of each fold, as a DNA without layers; and all images that could not be read.

    Raises:
        ConservationError: If a shard of the manifest is not in exactly one part, or a candidate is
            neither counted nor listed as a failure.
        OverlapError: If two folds hold the same shard.
        CorruptFile: If a part does not hold the shards that it should.
    """
    if not files:
        raise ConservationError(f"{dataset} has no folds")
    spec = next(iter(files.values())).spec
    failures: list[Failure] = []
    held: list[str] = []
    heads: dict[int, DNA] = {}
    for fold in folds:
        failed = 0
        for uri, keys in fold.parts:
            spec.require_same(files[uri].spec, next(iter(files)), uri)
            shards, listed = shards_and_failures(files[uri].metadata, uri)
            if shards != tuple(sorted(keys)):
                raise CorruptFile(f"{uri} does not hold the {len(keys)} shards that it should")
            held.extend(shards)
            failures.extend(listed)
            failed += len(listed)
        head = _add_all(files[uri].totals for uri, _ in fold.parts)
        if head.failed != failed or head.images + failed != fold.candidates:
            raise ConservationError(
                f"fold {fold.index} of {dataset}: {head.images} counted and {failed} listed as "
                f"failed of {fold.candidates} candidates"
            )
        heads[fold.index] = head
    if len(set(held)) != len(held):
        raise OverlapError(f"{dataset}: two folds hold the same shard")
    if set(held) != set(manifest.keys(spec.digest, products)):
        raise ConservationError(f"{dataset}: the folds' shards are not those of the manifest")
    images = sum(head.images for head in heads.values())
    if images + len(failures) != manifest.candidates:
        raise ConservationError(
            f"{dataset}: {images} counted and {len(failures)} failed of "
            f"{manifest.candidates} candidates"
        )
    return heads, failures


def _exemplars(
    files: Mapping[str, DnaFile], products: Sequence[str], dataset: str
) -> Exemplars | None:
    """Adds the exemplars of all parts.

    Returns:
        The exemplars, or None if none are kept.

    Raises:
        CorruptFile: If they are not what the products say.
    """
    wanted = ExemplarSettings.from_products(products)
    found = [Exemplars.from_partial(file) for file in files.values()]
    if any((None if one is None else one.settings) != wanted for one in found):
        raise CorruptFile(f"{dataset}: the partials' exemplars are not {wanted}")
    return fold_left(lambda a, b: add_kept(EXEMPLAR_COLUMN, a, b), found)


def _layers(
    layers: Sequence[str], folds: Sequence[Fold], files: Mapping[str, DnaFile]
) -> Iterator[tuple[str, list[tuple[int, DNA]]]]:
    """Sums each layer of each fold. Folds are read at once: each has files of its own.

    Yields:
        Each layer, with the index and the sum of each fold.
    """

    def summed(fold: Fold, layer: str) -> tuple[int, DNA]:
        return fold.index, _sum_layer(fold, files, layer)

    with ThreadPoolExecutor(available_cpus(), "fold") as pool:
        for layer in layers:
            yield layer, list(pool.map(summed, folds, repeat(layer)))


def _sum_layer(fold: Fold, files: Mapping[str, DnaFile], layer: str) -> DNA:
    return _add_all(files[uri].read([layer]) for uri, _ in fold.parts)


def _add_all(parts: Iterable[DNA]) -> DNA:
    return fold_left(DNA.__add__, parts)


class ContentDigest:
    """The sha256 of a DNA's numbers, layer by layer in the spec's order, and of its totals."""

    def __init__(self, head: DNA) -> None:
        numerics = [[numerics.to_json(), count] for numerics, count in head.numerics]
        unknown = [list(head.unknown)] if head.unknown else []
        text = digest_of("content", head.spec.digest, head.images, head.failed, numerics, *unknown)
        self._hash = hashlib.sha256(text.encode())

    def add(self, dna: DNA) -> None:
        """Takes in the numbers of the next layer."""
        hash_numbers(self._hash, dna)

    def hexdigest(self) -> str:
        """Returns the digest of all that was taken in, hex."""
        return self._hash.hexdigest()


def dna_digest(content: ContentDigest, manifest_digest: str, products: Sequence[str]) -> str:
    """Names a dataset version by its numbers, and by the candidates that they are of.

    Args:
        content: The digest of the numbers.
        manifest_digest: The digest of the manifest.
        products: What is kept.

    Returns:
        The digest, hex.
    """
    return digest_of("dna", content.hexdigest(), manifest_digest, list(products))


def digest_of_dna(dna: DNA, manifest_digest: str, products: Sequence[str]) -> str:
    """Computes the same digest of a DNA that is loaded whole.

    Args:
        dna: The DNA.
        manifest_digest: The digest of the manifest.
        products: What is kept.

    Returns:
        The digest, hex.
    """
    content = ContentDigest(dna)
    for layer in dna.layers:
        content.add(dna.select([layer]))
    return dna_digest(content, manifest_digest, products)


def _read(uri: str) -> bytes:
    try:
        return storage.read(uri)
    except SourceError as error:
        raise SourceError(
            f"{uri} is gone, though it was committed; was `gc` run with a short grace period? "
            "Rerun the same command to count it again"
        ) from error
