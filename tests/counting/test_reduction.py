"""Tests the tree of sums: it is exact, repeatable and resumable, and refuses wrong inputs."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, reduce

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.counting import (
    Composed,
    add_up,
    compose,
    digest_of_dna,
    partial_uri,
    plan_folds,
    reduction,
)
from pipeline.counting.reduction import FAN_IN, LAST_SUMMANDS, Leaf, Node, load_partial, tree
from pipeline.counting.top_images import TopImages
from pipeline.dna import (
    DNA,
    HASH_ROW,
    READ,
    DnaFile,
    Exemplars,
    ExemplarSettings,
    Failure,
    HashRows,
    ImageHashes,
    Moments,
    Partial,
    decode_image_hashes,
    encode_dna,
)
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    OverlapError,
    SourceError,
    SpecMismatch,
    VdnaError,
)
from pipeline.events import Event, StepDone
from pipeline.sources import Manifest, Shard, pairs_of, plan
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN, PRODUCTS, Tap
from tests.golden.handmade import (
    RANGES,
    SPEC,
    entries,
    hand_made,
    put_partials,
    reduce_all,
    with_failures,
)
from tests.support.builders import (
    NUMERICS,
    OTHER_NUMERICS,
    all_shards,
    decode_dna,
    random_dna,
    tiny_spec,
)

INTEGER_LIKE = ("counts", "underflow", "overflow", "nonfinite", "min", "max", "low", "high")


@cache
def leaf_partial(index: int) -> Partial:
    numerics = NUMERICS if index % 3 else OTHER_NUMERICS
    dna = random_dna(SPEC, RANGES, index % 5 + (index == 0), index, numerics)
    failures = tuple(Failure(f"s3://b/{index}-{i}", "", "empty", "") for i in range(index % 2))
    return with_failures(dna, (f"shard-{index:04d}",), failures)


@cache
def leaf_bytes(index: int) -> bytes:
    return leaf_partial(index).encode()


def new_work() -> str:
    return f"memory://{uuid.uuid4().hex}/_work/photos/spec"


def put_leaves(work: str, count: int) -> list[Leaf]:
    leaves = []
    for index in range(count):
        (key,) = leaf_partial(index).shards
        storage.create(partial_uri(work, key), leaf_bytes(index))
        leaves.append((partial_uri(work, key), (key,)))
    return leaves


def run(work: str, leaves: list[Leaf]) -> tuple[list[list[Node]], list[Leaf]]:
    levels, last = tree(work, leaves)
    for level in levels:
        for node in level:
            assert add_up(node) == node.uri
    return levels, last


def total_of(last: list[Leaf]) -> Partial:
    return reduce(Partial.__add__, (Partial.decode(storage.read(uri), uri) for uri, _ in last))


def same_integers(a: DNA, b: DNA) -> bool:
    return (a.images, a.failed, a.numerics) == (b.images, b.failed, b.numerics) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in INTEGER_LIKE
    )


# The tree.


@settings(max_examples=3)
@example(FAN_IN * LAST_SUMMANDS + 1)  # the fewest that need two levels
@given(st.integers(1, 2 * FAN_IN + 1))
def test_a_tree_of_any_size_sums_to_the_flat_sum(count: int) -> None:
    work = new_work()
    levels, last = run(work, put_leaves(work, count))
    assert 1 <= len(last) <= LAST_SUMMANDS
    assert [key for _, keys in last for key in keys] == [f"shard-{i:04d}" for i in range(count)]
    total = total_of(last)
    flat = reduce(Partial.__add__, map(leaf_partial, range(count)))
    assert (total.shards, total.failures) == (flat.shards, flat.failures)
    assert same_integers(total.dna, flat.dna)
    assert np.allclose(total.dna.mean, flat.dna.mean, rtol=1e-12, atol=1e-15)
    assert np.allclose(total.dna.m2, flat.dna.m2, rtol=1e-12, atol=1e-15)
    other = new_work()
    assert total_of(run(other, put_leaves(other, count))[1]).identical(total)
    made = [node for level in levels for node in level]
    assert all(2 <= len(node.children) <= FAN_IN for node in made)
    assert len({node.uri for node in made}) == len(made)


@pytest.mark.parametrize("count", [LAST_SUMMANDS + 1, FAN_IN * LAST_SUMMANDS + 2])
def test_floats_are_added_in_the_order_of_the_leaves(count: int) -> None:
    """They equal, to the last bit, sums of groups of FAN_IN from the left, level by level."""
    work = new_work()
    _, last = run(work, put_leaves(work, count))
    sums = [leaf_partial(i) for i in range(count)]
    while len(sums) > LAST_SUMMANDS:
        groups = [sums[start : start + FAN_IN] for start in range(0, len(sums), FAN_IN)]
        sums = [reduce(Partial.__add__, group) for group in groups]
    found = [Partial.decode(storage.read(uri), uri) for uri, _ in last]
    assert len(found) == len(sums)
    for one, expected in zip(found, sums, strict=True):
        assert one.identical(expected)
    backwards = reduce(Partial.__add__, [leaf_partial(i) for i in reversed(range(count))])
    assert not backwards.identical(total_of(last))


@settings(max_examples=4)
@given(st.integers(LAST_SUMMANDS + 1, 70), st.randoms(use_true_random=False))
def test_a_tree_resumes_to_the_same_bytes(count: int, rng: random.Random) -> None:
    work = new_work()
    leaves = put_leaves(work, count)
    levels, _ = run(work, leaves)
    nodes = [node for level in levels for node in level]
    before = {node.uri: storage.read(node.uri) for node in nodes}
    for node in rng.sample(nodes, rng.randint(1, len(nodes))):
        storage.delete(node.uri)
    again, _ = run(work, leaves)
    assert again == levels
    assert {node.uri: storage.read(node.uri) for node in nodes} == before


def test_a_tree_that_is_interrupted_half_way_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    work = new_work()
    leaves = put_leaves(work, 3 * FAN_IN)
    levels, last = tree(work, leaves)
    assert len(levels) == 1
    add_up(levels[0][0])
    reads: list[str] = []
    real = storage.read
    monkeypatch.setattr(storage, "read", lambda uri, *a: (reads.append(uri), real(uri, *a))[1])
    run(work, leaves)
    assert not set(reads) & set(levels[0][0].children)
    assert total_of(last).shards == tuple(f"shard-{i:04d}" for i in range(3 * FAN_IN))


def test_jobs_over_the_same_leaves_share_nodes() -> None:
    work = new_work()
    leaves = put_leaves(work, 40)
    levels, _ = tree(work, leaves)
    longer, _ = tree(work, put_leaves(work, 48))
    assert [node.uri for node in levels[0][:2]] == [node.uri for node in longer[0][:2]]
    assert levels[0][2].uri != longer[0][2].uri
    assert [n.uri for n in tree(work, list(leaves))[0][0]] == [n.uri for n in levels[0]]
    other_order, _ = tree(work, leaves[::-1])
    assert not {n.uri for n in other_order[0]} & {n.uri for n in levels[0]}


@pytest.mark.parametrize("count", [1, 2, LAST_SUMMANDS])
def test_few_leaves_need_no_tree(count: int) -> None:
    leaves = [(f"memory://w/partials/{i}.parquet", (str(i),)) for i in range(count)]
    assert tree("memory://w", leaves) == ([], leaves)


@pytest.mark.parametrize(
    ("count", "children"),
    [
        (LAST_SUMMANDS + 1, [[LAST_SUMMANDS + 1]]),
        (FAN_IN + 1, [[FAN_IN]]),  # the last one is passed on
        (FAN_IN + 2, [[FAN_IN, 2]]),
        (5 * FAN_IN, [[FAN_IN] * 5, [5]]),
    ],
)
def test_each_level_adds_groups_of_what_the_one_before_left(
    count: int, children: list[list[int]]
) -> None:
    leaves = [(f"memory://w/partials/{i}.parquet", (str(i),)) for i in range(count)]
    levels, last = tree("memory://w", leaves)
    assert [[len(node.children) for node in level] for level in levels] == children
    assert [key for _, keys in last for key in keys] == [str(i) for i in range(count)]


# Bad leaves of a node.


def tampered(partial: Partial) -> bytes:
    """Returns a file whose counts do not add up (`encode` does not check; reading must)."""
    counts = partial.dna.counts.copy()
    counts[1, 2] += 1
    return replace(partial, dna=replace(partial.dna, counts=counts)).encode()


def flipped(data: bytes) -> bytes:
    return data[: len(data) - 20] + bytes([data[-20] ^ 255]) + data[len(data) - 19 :]


def other_spec_partial(shards: tuple[str, ...]) -> bytes:
    spec, ranges = tiny_spec(bins=7)
    return Partial(random_dna(spec, ranges, 3, 1), shards, ()).encode()


BAD_LEAVES: dict[str, tuple[Callable[[Partial], bytes | None], type[VdnaError]]] = {
    "missing": (lambda p: None, SourceError),
    "holding another shard": (lambda p: replace(p, shards=("zzz",)).encode(), CorruptFile),
    "holding one shard more": (
        lambda p: replace(p, shards=(*p.shards, "zzz")).encode(),
        CorruptFile,
    ),
    "holding no shard": (lambda p: replace(p, shards=()).encode(), CorruptFile),
    "torn": (lambda p: p.encode()[:-30], CorruptFile),
    "corrupted": (lambda p: flipped(p.encode()), CorruptFile),
    "empty": (lambda p: b"", CorruptFile),
    "a dna": (lambda p: encode_dna(p.dna), CorruptFile),
    "counts tampered": (tampered, ConservationError),
}


def spoil(uri: str, change: Callable[[Partial], bytes | None]) -> None:
    data = change(Partial.decode(storage.read(uri), uri))
    storage.delete(uri)
    if data is not None:
        storage.create(uri, data)


@pytest.mark.parametrize("kind", BAD_LEAVES)
def test_a_node_refuses_a_bad_leaf_by_its_name(kind: str) -> None:
    change, error = BAD_LEAVES[kind]
    work = new_work()
    leaves = put_leaves(work, 9)
    (level,), _ = tree(work, leaves)
    spoil(leaves[7][0], change)
    with pytest.raises(error, match=re.escape(leaves[7][0])):
        add_up(level[0])
    assert not storage.exists(level[0].uri)


def test_a_partial_holds_the_shard_that_it_is_named_for() -> None:
    work = new_work()
    ((uri, _), (other, _)) = put_leaves(work, 2)
    assert load_partial(uri).identical(leaf_partial(0))
    storage.replace(uri, storage.read(other))
    with pytest.raises(CorruptFile, match=f"{uri} holds .*shard-0001.*not the one it is named for"):
        load_partial(uri)


def test_a_node_is_loaded_wherever_its_catalogue_lies() -> None:
    work = f"{new_work()}/partials/catalogue"
    leaves = put_leaves(work, 9)
    node = tree(work, leaves)[0][0][0]
    add_up(node)
    assert load_partial(node.uri).shards == tuple(f"shard-{at:04d}" for at in range(9))


def test_a_node_refuses_leaves_that_overlap() -> None:
    work = new_work()
    leaves = put_leaves(work, 9)
    twice = [*leaves[:8], leaves[3]]
    with pytest.raises(OverlapError, match="shard-0003"):
        add_up(tree(work, twice)[0][0][0])


def test_a_node_refuses_a_leaf_of_another_spec() -> None:
    work = new_work()
    leaves = put_leaves(work, 9)
    spoil(leaves[7][0], lambda p: other_spec_partial(p.shards))
    (level,), _ = tree(work, leaves)
    both = f"{leaves[0][0]} and {leaves[7][0]} were not made the same way: bins: 5 against 7"
    with pytest.raises(SpecMismatch, match=re.escape(both)):
        add_up(level[0])


def test_a_node_refuses_nodes_that_hold_something_else() -> None:
    work = new_work()
    leaves = put_leaves(work, FAN_IN * LAST_SUMMANDS + 2)
    levels, _ = run(work, leaves)
    top, below = levels[1][0], levels[0]
    storage.delete(top.uri)
    storage.replace(below[0].uri, storage.read(below[1].uri))
    with pytest.raises(VdnaError):
        add_up(top)
    storage.delete(below[0].uri)
    storage.create(below[0].uri, leaf_bytes(0))
    with pytest.raises(CorruptFile, match=re.escape(below[0].uri)):
        add_up(top)
    assert not storage.exists(top.uri)


def test_a_flipped_bit_in_a_leaf_changes_no_number() -> None:
    """Later files have their sha256 in the commit; partials do not."""
    whole = leaf_partial(4)
    data = leaf_bytes(4)
    changed = []
    for at in range(0, len(data), 7):
        try:
            read = Partial.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "leaf")
        except VdnaError:
            continue
        if not read.identical(whole):
            changed.append(at)
    assert changed == []


# Composing.


@cache
def planned(count: int = 40, bad: int = 0, shard_images: int = 2) -> Manifest:
    found = entries("photos", count)
    found[:bad] = [replace(e, uri=e.uri.replace("photos/", "photos/bad-")) for e in found[:bad]]
    return plan(found, shard_images=shard_images)


def composed(manifest: Manifest, work: str | None = None) -> Composed:
    work = work or new_work()
    put_made(work, manifest)
    return reduce_all(manifest, work, "photos")


FILES: dict[str, bytes] = {}
"""The partials that were made, by the keys of their shards."""


def put_made(work: str, manifest: Manifest) -> None:
    """Puts what `hand_made` makes of each shard, which is made once."""
    for shard, key in zip(all_shards(manifest), manifest.keys(SPEC.digest), strict=True):
        if key not in FILES:
            FILES[key] = hand_made(shard).encode()
        storage.create(partial_uri(work, key), FILES[key])


@settings(max_examples=4)
@example(40, 3, 2)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 4))
def test_folds_sum_to_the_dna_and_both_to_the_partials(
    count: int, bad: int, shard_images: int
) -> None:
    manifest = planned(count, min(bad, count), shard_images)
    made = composed(manifest)
    dna, metadata = decode_dna(made.files["dna"], "dna")
    flat = reduce(Partial.__add__, [hand_made(shard) for shard in all_shards(manifest)])
    assert same_integers(dna, flat.dna)
    assert np.allclose(dna.m2, flat.dna.m2, rtol=1e-12, atol=1e-15)
    assert (made.images, made.failures) == (flat.dna.images, flat.failures)
    assert dna.failed == len(made.failures) == min(bad, count)
    assert made.images + len(made.failures) == count
    assert metadata["digest"] == made.digest
    assert (metadata["dataset"], metadata["manifest"]) == ("photos", manifest.digest)
    assert metadata["products"] == list(PRODUCTS)
    assert metadata["folds"] == len(manifest.folds())
    folds = folds_of(made.files["folds"])
    assert list(folds) == list(manifest.folds())
    assert reduce(DNA.__add__, folds.values()).identical(dna)
    for index, heads in manifest.folds().items():
        shards = [manifest.shards[head.index] for head in heads]
        expected = reduce(Partial.__add__, [hand_made(shard) for shard in shards])
        assert same_integers(folds[index], expected.dna)


def folds_of(data: bytes) -> dict[int, DNA]:
    from pipeline.dna import DnaFile

    file = DnaFile(data, "folds", "folds")
    layers = [file.read_folds(layer) for layer in SPEC.layers]
    joined = {}
    for index in file.folds:
        stem, head = (layer[index] for layer in layers)
        arrays = {
            name: np.concatenate([getattr(stem, name), getattr(head, name)])
            for name in (*INTEGER_LIKE, "mean", "m2")
        }
        joined[index] = replace(stem, layers=SPEC.layers, **arrays)
    return joined


def test_composing_through_trees_repeats_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    manifest = planned(35, bad=3, shard_images=1)
    levels, _ = plan_folds(manifest, new_work(), SPEC.digest, PRODUCTS)
    assert len(levels) == 1
    assert len(levels[0]) == 16
    assert composed(manifest) == composed(manifest)


def test_the_trees_of_all_folds_share_their_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "FAN_IN", 4)
    manifest = plan(entries("photos", 16 * 25), shard_images=1)
    levels, folds = plan_folds(manifest, new_work(), SPEC.digest, PRODUCTS)
    sizes = [len(shards) for shards in manifest.folds().values()]  # some six fours each
    sums = [count for size in sizes if (count := -(-size // 4)) > LAST_SUMMANDS]
    made = [sum(n // 4 + (n % 4 > 1) for n in some) for some in (sizes, sums)]
    assert [len(level) for level in levels] == made
    assert sum(fold.candidates for fold in folds) == 16 * 25
    held = [key for fold in folds for _, keys in fold.parts for key in keys]
    assert sorted(held) == sorted(manifest.keys(SPEC.digest))


def test_the_digest_depends_on_the_numbers_and_the_candidates() -> None:
    manifest = planned(20)
    made = composed(manifest)
    dna, _ = decode_dna(made.files["dna"], "dna")
    assert digest_of_dna(dna, manifest.digest, PRODUCTS) == made.digest
    seen = {made.digest}
    seen.add(digest_of_dna(dna, "other manifest", PRODUCTS))
    seen.add(digest_of_dna(dna, manifest.digest, ("histogram",)))
    for name in (*INTEGER_LIKE, "mean", "m2"):
        values = getattr(dna, name).copy()
        values.reshape(-1)[-1] += 1
        seen.add(digest_of_dna(replace(dna, **{name: values}), manifest.digest, PRODUCTS))
    seen.add(digest_of_dna(replace(dna, failed=1), manifest.digest, PRODUCTS))
    seen.add(digest_of_dna(replace(dna, images=21), manifest.digest, PRODUCTS))
    for column in ("mean", "m2"):
        seen.add(digest_of_dna(replace(dna, unknown=(column,)), manifest.digest, PRODUCTS))
    for one, other in ((NUMERICS, OTHER_NUMERICS), (OTHER_NUMERICS, NUMERICS)):
        for count in (8, 9):
            numerics = ((one, count), (other, 20 - count))
            seen.add(digest_of_dna(replace(dna, numerics=numerics), manifest.digest, PRODUCTS))
    assert len(seen) == 3 + len(INTEGER_LIKE) + 2 + 2 + 2 + 4
    assert composed(planned(21)).digest not in seen


def put_all(manifest: Manifest) -> tuple[str, list[str]]:
    work = new_work()
    put_made(work, manifest)
    return work, [partial_uri(work, key) for key in manifest.keys(SPEC.digest)]


@pytest.mark.parametrize("kind", BAD_LEAVES)
def test_composing_refuses_a_bad_leaf_by_its_name(kind: str) -> None:
    change, error = BAD_LEAVES[kind]
    manifest = planned(40)
    work, uris = put_all(manifest)
    spoil(uris[5], change)
    with pytest.raises(error, match=re.escape(uris[5])):
        reduce_all(manifest, work, "photos")


def test_a_missing_leaf_says_what_to_do() -> None:
    manifest = planned(40)
    work, uris = put_all(manifest)
    storage.delete(uris[5])
    with pytest.raises(SourceError, match=r"is gone.*Rerun the same command"):
        reduce_all(manifest, work, "photos")


def test_swapped_leaves_are_refused() -> None:
    manifest = planned(40)
    work, uris = put_all(manifest)
    one, other = storage.read(uris[2]), storage.read(uris[9])
    storage.replace(uris[2], other)
    storage.replace(uris[9], one)
    with pytest.raises(CorruptFile, match=re.escape(uris[2])):
        reduce_all(manifest, work, "photos")


def test_a_leaf_of_another_spec_is_refused() -> None:
    manifest = planned(40)
    work, uris = put_all(manifest)
    spoil(uris[5], lambda p: other_spec_partial(p.shards))
    with pytest.raises(SpecMismatch, match=f"{re.escape(uris[5])} were not .*bins: 5 against 7"):
        reduce_all(manifest, work, "photos")


def test_leaves_all_of_another_spec_are_refused() -> None:
    manifest = planned(40)
    spec, ranges = tiny_spec(bins=7)
    work = new_work()
    for shard, key in zip(all_shards(manifest), manifest.keys(SPEC.digest), strict=True):
        dna = random_dna(spec, ranges, len(shard.members), 1)
        storage.create(partial_uri(work, key), Partial(dna, (key,), ()).encode())
    with pytest.raises(ConservationError, match="not those of the manifest"):
        reduce_all(manifest, work, "photos")


@pytest.mark.parametrize("change", ["an image less", "an image more", "a failure less"])
def test_a_leaf_that_accounts_for_other_candidates_is_refused(change: str) -> None:
    manifest = planned(40, bad=40 if change == "a failure less" else 0)
    work, uris = put_all(manifest)

    def spoiled(partial: Partial) -> bytes:
        if change == "a failure less":
            return with_failures(partial.dna, partial.shards, partial.failures[1:]).encode()
        images = partial.dna.images + (1 if change == "an image more" else -1)
        return Partial(random_dna(SPEC, RANGES, images, 5), partial.shards, ()).encode()

    spoil(uris[5], spoiled)
    fold = manifest.shards[5].fold
    with pytest.raises(ConservationError, match=f"fold {fold} of photos: .* candidates"):
        reduce_all(manifest, work, "photos")


def test_a_leaf_that_counts_a_failure_and_lists_none_is_refused() -> None:
    manifest = planned(40)
    work, uris = put_all(manifest)

    def with_one_more(partial: Partial) -> bytes:
        object.__setattr__(partial, "dna", replace(partial.dna, failed=1))  # unchecked
        return partial.encode()

    spoil(uris[5], with_one_more)
    with pytest.raises(ConservationError, match=r"fold \d+ of photos: .* 0 listed as failed"):
        reduce_all(manifest, work, "photos")


def test_a_network_of_one_layer_is_composed_too() -> None:
    spec, ranges = tiny_spec(taps=(Tap("only", 3, 2),))
    manifest, work = planned(10), new_work()
    partials = [hand_made(shard, spec, ranges) for shard in manifest.shards]
    put_partials(work, partials)
    dna, _ = decode_dna(reduce_all(manifest, work, "photos", spec).files["dna"], "dna")
    assert same_integers(dna, reduce(Partial.__add__, partials).dna)


def test_two_folds_with_opposite_errors_are_refused() -> None:
    """The sum over all folds is right, but each fold is wrong."""
    manifest = planned(40)
    work, uris = put_all(manifest)
    for uri, more in ((uris[0], 1), (uris[-1], -1)):
        partial = Partial.decode(storage.read(uri), uri)
        dna = random_dna(SPEC, RANGES, partial.dna.images + more, 5)
        storage.replace(uri, Partial(dna, partial.shards, ()).encode())
    with pytest.raises(ConservationError, match="fold 0"):
        reduce_all(manifest, work, "photos")


def test_folds_that_agree_with_their_parts_but_not_with_the_manifest_are_refused() -> None:
    manifest = planned(40)
    work, uris = put_all(manifest)
    images = len(manifest.shards[5].members) + 1
    spoil(uris[5], lambda p: Partial(random_dna(SPEC, RANGES, images, 5), p.shards, ()).encode())
    _, folds = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    wrong = [
        replace(fold, candidates=fold.candidates + (fold.index == manifest.shards[5].fold))
        for fold in folds
    ]
    with pytest.raises(ConservationError, match="photos: 41 counted and 0 failed of 40"):
        compose(wrong, manifest, PRODUCTS, "photos")


def test_a_sum_that_adds_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = planned(40)
    work, _ = put_all(manifest)
    real = DNA.__add__

    def one_more(a: DNA, b: DNA) -> DNA:
        total = real(a, b)
        return replace(total, counts=total.counts + 1)

    monkeypatch.setattr(DNA, "__add__", one_more)
    with pytest.raises(ConservationError, match="photos, layer"):
        reduce_all(manifest, work, "photos")


def test_a_manifest_with_a_shard_more_or_less_is_refused() -> None:
    manifest = planned(40)
    work, _ = put_all(manifest)
    extra = Shard(len(manifest.shards), 3, tuple(entries("more", 2)))
    longer = Manifest.of((*manifest.shards, extra), manifest.shard_images)
    _, folds = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    with pytest.raises(ConservationError, match="not those of the manifest"):
        compose(folds, longer, PRODUCTS, "photos")
    shorter = Manifest.of(manifest.shards[:-1], manifest.shard_images)
    with pytest.raises(ConservationError, match="not those of the manifest"):
        compose(folds, shorter, PRODUCTS, "photos")


def test_a_fold_counted_twice_is_refused() -> None:
    manifest = planned(40)
    work, _ = put_all(manifest)
    _, folds = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    with pytest.raises(OverlapError, match="photos"):
        compose([*folds, replace(folds[3], index=17)], manifest, PRODUCTS, "photos")


@pytest.mark.parametrize("layer", range(len(SPEC.layers)))
def test_a_layer_that_cannot_be_encoded_ends_the_composition(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is encoded in a thread of its own."""
    manifest = planned(40)
    work, _ = put_all(manifest)
    _, folds = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    real = reduction.to_table

    def encode(dna: DNA, *fold: int) -> pa.Table:
        if dna.layers == (SPEC.layers[layer],):
            raise MemoryError
        return real(dna, *fold)

    monkeypatch.setattr(reduction, "to_table", encode)
    with pytest.raises(MemoryError):
        compose(folds, manifest, PRODUCTS, "photos")


def test_composing_tells_of_each_layer() -> None:
    manifest = planned(10)
    work, _ = put_all(manifest)
    _, folds = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    told: list[Event] = []
    compose(folds, manifest, PRODUCTS, "photos", progress=told.append)
    assert told == [StepDone(1, name=layer) for layer in SPEC.layers]


def test_composing_no_folds_is_refused() -> None:
    with pytest.raises(ConservationError, match="photos has no folds"):
        compose([], planned(4), PRODUCTS, "photos")


def test_partials_of_other_products_are_not_used() -> None:
    manifest = planned(10)
    work, _ = put_all(manifest)
    _, folds = plan_folds(manifest, work, SPEC.digest, ("histogram",))
    with pytest.raises(SourceError):
        compose(folds, manifest, ("histogram",), "photos")


def test_partials_outside_the_manifest_are_not_summed() -> None:
    manifest = planned(40)
    work, _ = put_all(manifest)
    expected = reduce_all(manifest, work, "photos")
    put_partials(work, [hand_made(shard) for shard in plan(entries("stray", 9)).shards])
    assert reduce_all(manifest, work, "photos") == expected


def test_a_damaged_node_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    manifest = planned(35, shard_images=1)
    work, _ = put_all(manifest)
    reduce_all(manifest, work, "photos")
    (level,), _ = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    whole = storage.read(level[4].uri)
    for data in (whole[:-9], tampered(Partial.decode(whole, "x")), storage.read(level[5].uri)):
        storage.replace(level[4].uri, data)
        with pytest.raises((CorruptFile, ConservationError), match=re.escape(level[4].uri)):
            reduce_all(manifest, work, "photos")


# All products.

CANDIDATES = 18
KEEP = ExemplarSettings(2)
ALL = (*PRODUCTS, LAYER_GAUSSIAN, KEEP.product, IMAGE_HASHES)


def with_all_products(shard: Shard, products: Sequence[str] = ALL) -> Partial:
    images, order = len(shard.members), np.arange(len(shard.members))
    means = np.random.default_rng(shard.index).normal(size=(images, SPEC.neurons))
    moments = Moments([tap.neurons for tap in SPEC.taps], layerwise=True)
    moments.add(means)
    top = TopImages(KEEP, SPEC, order)
    top.add(means, order)
    dna = replace(
        random_dna(SPEC, RANGES, images, shard.index),
        mean=moments.mean,
        m2=moments.m2,
        scatter=moments.scatter,
    )
    names = [(entry.uri, entry.member) for entry in shard.members]
    key = shard.key(SPEC.digest, products)
    return Partial(dna, (key,), (), top.named(names), ImageHashes({key: hashes_of(shard)}))


def hashes_of(shard: Shard) -> HashRows:
    rows = np.zeros(len(shard.members), HASH_ROW)
    random = np.random.default_rng(shard.index)
    for column in ("content", "look"):
        rows[column] = random.integers(0, 2**64, len(rows), np.uint64)
    rows["flags"] = READ
    return rows


def composed_with(
    products: Sequence[str], change: Callable[[Partial], Partial] = lambda partial: partial
) -> tuple[Composed, Manifest, Partial]:
    """Composes partials that were made for these products, whatever they hold, and adds them."""
    manifest, work = planned(CANDIDATES), new_work()
    partials = [change(with_all_products(shard, products)) for shard in manifest.shards]
    put_partials(work, partials)
    _, folds = plan_folds(manifest, work, SPEC.digest, products)
    total = reduce(Partial.__add__, partials)
    return compose(folds, manifest, products, "photos"), manifest, total


def test_the_file_of_folds_samples_the_names_that_pair_images() -> None:
    manifest = planned(20)
    sampled = pairs_of(manifest)
    assert sampled is not None
    files = composed(manifest).files
    found = DnaFile(files["folds"], "folds", "folds").pairs
    assert found is not None
    assert found.to_json() == sampled.to_json()
    assert DnaFile(files["dna"], "dna", "dna").pairs is None
    unnamed = composed(replace(manifest, pairing=None)).files
    assert DnaFile(unnamed["folds"], "folds", "folds").pairs is None


def test_each_product_is_composed_to_a_file_of_its_own() -> None:
    made, manifest, total = composed_with(ALL)
    assert set(made.files) == {"dna", "folds", "layer_gaussians", "exemplars", "image_hashes"}
    for kind in ("dna", "folds"):
        assert "scatter" not in pq.read_schema(pa.BufferReader(made.files[kind])).names
    dna, _ = decode_dna(made.files["dna"], "dna")
    whole = DnaFile(made.files["layer_gaussians"], "layer_gaussians", "x").read_gaussians(dna)
    assert same_integers(whole, total.dna)
    assert np.allclose(whole.scatter, total.dna.scatter, rtol=1e-12, atol=1e-12)
    assert made.digest == digest_of_dna(whole, manifest.digest, ALL)
    assert Exemplars.decode(made.files["exemplars"], "x", SPEC) == total.exemplars
    hashes = decode_image_hashes(made.files["image_hashes"], "x", manifest.digest)
    assert np.array_equal(hashes, np.concatenate([hashes_of(of) for of in all_shards(manifest)]))


def test_parts_with_many_hashes_wait_on_disk_and_others_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = []
    real = storage.on_disk

    def on_disk(data: bytes) -> object:
        if b'"kind": "partial"' in data:  # the candidates of a plan are kept there, too
            kept.append(data)
        return real(data)

    monkeypatch.setattr(storage, "on_disk", on_disk)
    composed_with(PRODUCTS, plain)
    hashed = (*PRODUCTS, IMAGE_HASHES)
    monkeypatch.setattr(reduction, "HASHED_IN_MEMORY", CANDIDATES)
    composed_with(hashed, lambda p: replace(plain(p), image_hashes=p.image_hashes))
    assert kept == []
    monkeypatch.setattr(reduction, "HASHED_IN_MEMORY", CANDIDATES - 1)
    composed_with(PRODUCTS, plain)
    assert kept == []
    _, manifest, _ = composed_with(hashed, lambda p: replace(plain(p), image_hashes=p.image_hashes))
    assert len(kept) == len(manifest.shards)
    monkeypatch.undo()
    assert 1e8 < reduction.HASHED_IN_MEMORY * HASH_ROW.itemsize < 2e8, "bytes in memory"


def test_parts_with_scatter_wait_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    real = storage.on_disk
    monkeypatch.setattr(storage, "on_disk", lambda data: (kept.append(data), real(data))[1])
    _, manifest, _ = composed_with(ALL)
    assert sum(b'"kind": "partial"' in data for data in kept) == len(manifest.shards)


def plain(partial: Partial) -> Partial:
    """Returns a partial with nothing beside its histograms and means."""
    dna = replace(partial.dna, scatter=None)
    return replace(partial, dna=dna, exemplars=None, image_hashes=None)


@pytest.mark.parametrize("lacking", [True, False])
def test_image_hashes_that_the_products_lack_are_refused(lacking: bool) -> None:
    products = (*PRODUCTS, IMAGE_HASHES) if lacking else PRODUCTS

    def change(partial: Partial) -> Partial:
        return (
            plain(partial)
            if lacking
            else replace(plain(partial), image_hashes=partial.image_hashes)
        )

    with pytest.raises(CorruptFile, match=f"products are not {', '.join(products)}$"):
        composed_with(products, change)


def test_image_hashes_of_another_number_of_candidates_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ImageHashes.from_partial

    def shifted(file: DnaFile) -> ImageHashes | None:
        found = real(file)
        assert found is not None
        return ImageHashes({key: rows[:-1] for key, rows in found.by_shard.items()})

    monkeypatch.setattr(ImageHashes, "from_partial", shifted)
    monkeypatch.setattr(Partial, "__post_init__", lambda self: None)
    with pytest.raises(ConservationError, match=r"photos: shard \d+ has hashes of \d+ of its"):
        composed_with(ALL)


@pytest.mark.parametrize("products", [PRODUCTS, (*PRODUCTS, KEEP.product)], ids=" and ".join)
def test_scatter_that_no_product_asks_for_is_refused(products: tuple[str, ...]) -> None:
    def change(partial: Partial) -> Partial:
        partial = replace(partial, image_hashes=None)
        return partial if KEEP.product in products else replace(partial, exemplars=None)

    with pytest.raises(CorruptFile, match=f"products are not {', '.join(products)}$"):
        composed_with(products, change)


def test_missing_scatter_is_refused() -> None:
    with pytest.raises(CorruptFile, match=f"products are not {', '.join(ALL)}$"):
        composed_with(ALL, lambda partial: replace(partial, dna=replace(partial.dna, scatter=None)))


@pytest.mark.parametrize("wanted", [KEEP, ExemplarSettings(3), None])
def test_exemplars_of_other_settings_and_none_are_refused(wanted: ExemplarSettings | None) -> None:
    own = (wanted.product,) if wanted else ()

    def change(partial: Partial) -> Partial:
        partial = replace(partial, image_hashes=None)
        return replace(partial, exemplars=None) if wanted == KEEP else partial

    with pytest.raises(CorruptFile, match="the partials' exemplars are not"):
        composed_with((*PRODUCTS, LAYER_GAUSSIAN, *own), change)
