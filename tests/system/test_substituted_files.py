"""Tests that wrong files of a catalogue are refused by name, by every command that reads them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.catalogue import Catalogue
from pipeline.comparing import compare
from pipeline.counting import add_up, compose, load_partial, numerics, partial_uri, plan_folds
from pipeline.dna import DnaFile, Partial, Ranges, encode_layers, to_table
from pipeline.errors import CorruptFile, SpecMismatch
from pipeline.networks import encode_ranges, find_ranges
from pipeline.sources import Manifest, Shard, plan
from pipeline.spec import PRODUCTS
from tests.catalogue.test_verification import Copy, counts_moved
from tests.golden.handmade import (
    NETWORK,
    RANGES,
    SPEC,
    commit_dataset,
    entries,
    hand_made,
)
from tests.golden.handmade import Place as HandMadePlace
from tests.support.builders import photo, random_dna, sealed, tiny_spec, with_row_groups

NAME, OTHER = "photos", "others"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes two datasets of 20 candidates, one of them bad, their matrix, and three commits."""
    folder = tmp_path_factory.mktemp("built") / "catalogue"
    place = Catalogue(str(folder))
    for name, first in ((NAME, 0), (OTHER, 100), ("third", 200)):
        bad, *good = entries(name, 20, first)
        bad = replace(bad, uri=f"s3://bucket/{name}/bad.jpg")
        manifest = plan([bad, *good])
        commit_dataset(place, name, manifest, [hand_made(shard) for shard in manifest.shards])
    compare(place)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Copy:
    shutil.copytree(built, tmp_path / "copy")
    return Copy(Catalogue(str(tmp_path / "copy")))


# Files that were swapped or spoiled, and the commands that read them.

COMMANDS: dict[str, tuple[str, ...]] = {
    "ls": ("ls",),
    "log": ("log",),
    "show": ("show", NAME),
    "compare": ("compare", NAME, OTHER),
    "explain": ("explain", NAME, OTHER),
    "rank": ("rank", "{out}/images", "--to", NAME, "--workers", "0"),
    "verify": ("verify", NAME),
    "export": ("export", NAME, "{out}/x.npz", "--as", "gaussian"),
    "gc": ("gc", "--dry-run"),
    "rm": ("rm", NAME),  # the last, as no other finds the dataset then
}


def log(copy: Copy, number: int = 3) -> str:
    return copy.catalogue.log_uri(number)


def change_commit(copy: Copy, change: Callable[[dict], object], number: int = 3) -> str:
    uri = log(copy, number)
    body = json.loads(storage.read(uri))
    change(body)
    storage.replace(uri, sealed(body))
    return uri


def other_s(copy: Copy, kind: str) -> str:
    version = copy.catalogue.find(OTHER)
    return copy.catalogue.uri(kind, version.spec, OTHER, version.digest_in(kind))


def replace_with_commit(copy: Copy, kind: str, data: bytes) -> str:
    """Replaces a file, and lets the commit state the digest of the new bytes."""
    uri = copy.uri(kind)
    copy.put(kind, data)
    return uri


def swapped(kind: str, *, vouch: bool = False) -> Callable[[Copy], str]:
    def substitute(copy: Copy) -> str:
        data = storage.read(other_s(copy, kind))
        if vouch:
            return replace_with_commit(copy, kind, data)
        storage.replace(copy.uri(kind), data)
        return copy.uri(kind)

    return substitute


def truncated(kind: str) -> Callable[[Copy], str]:
    def substitute(copy: Copy) -> str:
        storage.replace(copy.uri(kind), copy.read(kind)[:-30])
        return copy.uri(kind)

    return substitute


def tables(copy: Copy) -> tuple[dict, list[pa.Table]]:
    file = DnaFile(copy.read("dna"), "dna", "dna")
    dna = file.read()
    return dict(file.metadata), [to_table(dna.select([layer])) for layer in dna.layers]


def rewritten(change: Callable[[list[pa.Table]], list[pa.Table]]) -> Callable[[Copy], str]:
    """Gives the DNA's file other rows and old metadata, and lets the commit state its digest."""

    def substitute(copy: Copy) -> str:
        metadata, groups = tables(copy)
        return replace_with_commit(copy, "dna", encode_layers("dna", metadata, change(groups)))

    return substitute


def negative(groups: list[pa.Table]) -> list[pa.Table]:
    """Moves two counts of one neuron below zero and up again, so that the sum holds."""
    first = groups[0]
    counts = np.array(first["counts"].to_pylist())
    counts[0, 0] -= 10**6
    counts[0, 1] += 10**6
    column = pa.array(counts.tolist(), pa.list_(pa.int64()))
    return [first.set_column(first.column_names.index("counts"), "counts", column), *groups[1:]]


def swapped_rows(groups: list[pa.Table]) -> list[pa.Table]:
    return [groups[0].take([1, 0, 2]), *groups[1:]]


def restated(**metadata: object) -> Callable[[Copy], str]:
    def substitute(copy: Copy) -> str:
        stated, groups = tables(copy)
        return replace_with_commit(copy, "dna", encode_layers("dna", stated | metadata, groups))

    return substitute


def of_version(**fields: object) -> Callable[[Copy], str]:
    """Lets a commit state something else of the version."""

    def substitute(copy: Copy) -> str:
        def change(body: dict) -> None:
            body["datasets"][NAME][SPEC.digest] |= fields

        return change_commit(copy, change)

    return substitute


def spec_swapped(copy: Copy) -> str:
    other, _ = tiny_spec(bins=9)
    storage.replace(copy.spec_uri, json.dumps(other.to_json()).encode())
    return copy.spec_uri


def other_sha256(kind: str) -> Callable[[Copy], str]:
    def substitute(copy: Copy) -> str:
        copy.forge_commit(sha256={**copy.version.sha256, kind: "00" * 32})
        return copy.uri(kind)

    return substitute


BEFORE = {"start": -9, "size": 9, "sha256": "00"}
AFTER = BEFORE | {"start": 9}


def other_footer(kind: str) -> Callable[[Copy], str]:
    def substitute(copy: Copy) -> str:
        stated = {of: asdict(footer) for of, footer in copy.version.footers.items()}
        copy.forge_commit(footers={**stated, kind: {**stated[kind], "sha256": "00" * 32}})
        return copy.uri(kind)

    return substitute


def a_failure_less(copy: Copy) -> str:
    from pipeline.dna import encode_failures

    return replace_with_commit(copy, "failures", encode_failures([]))


def gap(copy: Copy) -> str:
    storage.delete(log(copy, 2))
    return log(copy, 2)


def renumbered(copy: Copy) -> str:
    storage.replace(log(copy), storage.read(log(copy, 2)))
    return log(copy)


def led_elsewhere(copy: Copy) -> str:
    def change(body: dict) -> None:
        body["datasets"]["../../etc"] = body["datasets"].pop(NAME)

    return change_commit(copy, change)


def edited(body: dict) -> None:
    body["action"] = "build another"


ALL = set(COMMANDS)
READ_DNA = {"compare", "explain", "rank", "verify", "export"}
READ_FOLDS = {"compare", "explain", "verify"}
SUBSTITUTIONS: dict[str, tuple[Callable[[Copy], str], set[str]]] = {
    "another dataset's dna": (swapped("dna"), READ_DNA),
    "another dataset's dna, vouched for": (swapped("dna", vouch=True), READ_DNA),
    "another dataset's folds": (swapped("folds"), READ_FOLDS),
    "another dataset's folds, vouched for": (swapped("folds", vouch=True), READ_FOLDS),
    "another dataset's failures": (swapped("failures"), {"show", "verify"}),
    "another dataset's manifest": (swapped("manifests"), {"verify", "gc"}),
    "another manifest, vouched for": (swapped("manifests", vouch=True), {"verify", "gc"}),
    "a truncated dna": (truncated("dna"), READ_DNA),
    "a truncated manifest": (truncated("manifests"), {"verify", "gc"}),
    "truncated failures": (truncated("failures"), {"show", "verify"}),
    "a failure less, vouched for": (a_failure_less, {"show", "verify"}),
    "negative counts": (rewritten(negative), READ_DNA),
    "a row missing": (rewritten(lambda g: [g[0].slice(0, 2), *g[1:]]), READ_DNA),
    "rows swapped": (rewritten(swapped_rows), READ_DNA),
    "a layer missing": (rewritten(lambda g: g[:-1]), READ_DNA),
    "a layer more": (rewritten(lambda g: [*g, g[0]]), READ_DNA),
    "layers swapped": (rewritten(lambda g: g[::-1]), READ_DNA),
    "a dna of another dataset": (restated(dataset=OTHER), READ_DNA),
    "a dna of another digest": (restated(digest="00" * 16), READ_DNA),
    "a dna of another manifest": (restated(manifest="00" * 16), READ_DNA),
    "a dna of other failures": (restated(failed=2), READ_DNA),
    "another spec": (spec_swapped, {"show", "compare", "explain", "rank", "verify"}),
    "another sha256 of the dna": (other_sha256("dna"), READ_DNA),
    "another footer of the dna": (other_footer("dna"), READ_DNA),
    "another footer of the folds": (other_footer("folds"), READ_FOLDS),
    "a commit of a footer before its file": (of_version(footers={"dna": BEFORE}), ALL),
    "a commit of a footer of no file": (of_version(footers={"failures": AFTER}), ALL),
    "another sha256 of the manifest": (other_sha256("manifests"), {"verify", "gc"}),
    "a commit of a negative number": (of_version(images=-1), ALL),
    "a commit of no number": (of_version(failed=True), ALL),
    "a commit under another spec": (of_version(spec="00" * 16), ALL),
    "a commit of a dna elsewhere": (of_version(dna="../../../x"), ALL),
    "a commit of a manifest elsewhere": (of_version(manifest="a/b"), ALL),
    "a commit of a dataset elsewhere": (led_elsewhere, ALL),
    "a commit of no time": (lambda c: change_commit(c, lambda b: b.update(time="now")), ALL),
    "a commit in another's place": (renumbered, ALL),
    "a gap in the log": (gap, {"log", "gc"}),
    "an old commit that was edited": (lambda c: change_commit(c, edited, 1), {"log", "gc"}),
}


class NoNetwork:
    """Replaces the network: the activations of all images are zero."""

    micro_batch = 8
    device = torch.device("cpu")
    on_device = False

    def __init__(self, *_: object, **__: object) -> None:
        self.numerics = numerics(NETWORK, "cpu")

    def batches(self, rule: object) -> Callable[..., np.ndarray]:
        return np.stack

    def observe(self, pixels: np.ndarray, visit: Callable[[int, torch.Tensor], None]) -> None:
        for index, tap in enumerate(SPEC.taps):
            visit(index, torch.zeros((len(pixels), tap.positions, tap.neurons)))


@pytest.mark.parametrize("substitution", SUBSTITUTIONS)
def test_every_command_that_reads_a_wrong_file_refuses_it_by_name(
    copy: Copy, substitution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that do not read it still work."""
    monkeypatch.setattr("pipeline.explaining.ranking.network_of", lambda *_: NETWORK)
    monkeypatch.setattr("pipeline.counting.worker.Extractor", NoNetwork)
    (tmp_path / "images").mkdir()
    photo(1, 8, 8).save(tmp_path / "images" / "one.png")
    for item in storage.walk(storage.join(copy.catalogue.root, "matrix")):
        storage.delete(item.uri)  # otherwise it would not be computed
    substitute, readers = SUBSTITUTIONS[substitution]
    uri = substitute(copy)
    for command, words in COMMANDS.items():
        arguments = [word.format(out=tmp_path) for word in words]
        done = CliRunner().invoke(app, [*arguments, "-c", copy.catalogue.root])
        assert done.exception is None or isinstance(done.exception, SystemExit), command
        if command in readers:
            assert done.exit_code == 1, (command, done.output)
            assert uri in done.output, (command, done.output)
        else:
            assert done.exit_code == 0, (command, done.output)


# The log.


def test_a_gap_in_the_log_is_not_written_over(copy: Copy) -> None:
    """The hint shows that the log goes on behind the gap."""
    storage.delete(storage.join(copy.catalogue.root, "_log", "_latest"))
    uri = gap(copy)
    for action in (copy.catalogue.head, lambda: copy.catalogue.append("x", lambda h: replace(h))):
        with pytest.raises(CorruptFile, match=f"{re.escape(uri)} is missing.*the log has a gap"):
            action()
    assert not storage.exists(uri)


# Plans and ranges, which a build reads.


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HandMadePlace:
    monkeypatch.setattr("pipeline.building.shared_lookups.describe", lambda *_: NETWORK)
    return HandMadePlace(tmp_path)


@pytest.mark.parametrize("how", ["another dataset's", "of other folds", "of other sizes"])
def test_a_wrong_plan_is_refused_by_a_build_and_by_gc(place: HandMadePlace, how: str) -> None:
    """A collection would otherwise remove what the true plan needs."""
    place.photos(NAME, 6)
    place.photos(OTHER, 6)
    version, other = place.build(NAME).version, place.build(OTHER).version
    uri = place.catalogue.uri("manifests", version.spec, NAME, version.manifest)
    manifest = place.catalogue.manifest(NAME, version)
    first, *rest = manifest.shards
    if how == "another dataset's":
        wrong = place.catalogue.manifest(OTHER, other)
    elif how == "of other folds":
        wrong = Manifest.of((Shard(0, 15, first.members), *rest), 64)
    else:
        longer = replace(first.members[0], size=10**6)
        wrong = Manifest.of((Shard(0, first.fold, (longer, *first.members[1:])), *rest), 64)
    storage.replace(uri, wrong.data)
    with pytest.raises(CorruptFile, match=re.escape(f"{uri} should hold manifest")):
        place.build(NAME)
    done = CliRunner().invoke(app, ["gc", "-c", place.catalogue.root])
    assert done.exit_code == 1
    assert uri in done.output


def test_ranges_under_the_digest_of_others_are_refused(copy: Copy) -> None:
    """A build that asks for them by digest refuses them, and so does a worker that has them."""
    from pipeline.counting import Recipe, Worker
    from pipeline.spec import Resources

    moved = Ranges(RANGES.taps, RANGES.low - 1, RANGES.high)
    uri = copy.ranges_uri
    storage.replace(uri, encode_ranges(moved, NETWORK))
    message = f"{re.escape(uri)} should hold ranges {RANGES.digest}, but holds {moved.digest}"
    with pytest.raises(CorruptFile, match=message):
        find_ranges(NETWORK, RANGES.digest, {RANGES.digest: uri})
    from pipeline.counting import worker as shard_module

    class Loaded:
        numerics = None

    recipe = Recipe(SPEC, NETWORK, uri, Resources())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_module, "Extractor", lambda *_, **__: Loaded())
        with pytest.raises(CorruptFile, match=message):
            Worker()._load(recipe, 8)


# Partials and nodes, before and after they are summed.


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Manifest, str]:
    """Makes 85 candidates in as many shards, enough for nodes of the tree."""
    manifest = plan(entries(NAME, 85), shard_images=1)
    work = storage.join(storage.canonical(str(tmp_path)), "_work", NAME, SPEC.digest)
    for shard in manifest.shards:
        partial = hand_made(shard)
        storage.create(partial_uri(work, partial.shards[0]), partial.encode())
    return manifest, work


def reduced(planned: tuple[Manifest, str]) -> None:
    manifest, work = planned
    levels, folds = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    for level in levels:
        for node in level:
            add_up(node)
    compose(folds, manifest, PRODUCTS, NAME)


def leaf(planned: tuple[Manifest, str], index: int) -> str:
    manifest, work = planned
    return partial_uri(work, manifest.keys(SPEC.digest)[index])


def node(planned: tuple[Manifest, str]) -> str:
    manifest, work = planned
    (level,), _ = plan_folds(manifest, work, SPEC.digest, PRODUCTS)
    add_up(level[0])
    return level[0].uri


def rows_of(partial: Partial, data: bytes) -> bytes:
    """Makes a file with the metadata of `data` and the rows of the partial."""
    dna = partial.dna
    return with_row_groups(data, [to_table(dna.select([layer])) for layer in dna.layers])


@pytest.mark.parametrize("what", ["partial", "node"])
@pytest.mark.parametrize("how", ["conserving", "rows of another", "a layer less"])
def test_a_file_whose_rows_are_not_those_written_is_refused_before_it_is_summed(
    planned: tuple[Manifest, str], what: str, how: str
) -> None:
    uri = leaf(planned, 3) if what == "partial" else node(planned)
    data = storage.read(uri)
    partial = Partial.decode(data, uri)
    if how == "conserving":
        spoiled = rows_of(counts_moved(partial), data)
    elif how == "rows of another":
        other = random_dna(SPEC, RANGES, partial.dna.images, 77)
        spoiled = rows_of(replace(partial, dna=other), data)
    else:
        spoiled = with_row_groups(data, [to_table(partial.dna.select([SPEC.layers[0]]))])
    storage.replace(uri, spoiled)
    with pytest.raises(CorruptFile, match=re.escape(uri)):
        reduced(planned)


def test_a_partial_renamed_to_another_shard_s_key_is_refused(
    planned: tuple[Manifest, str],
) -> None:
    storage.replace(leaf(planned, 3), storage.read(leaf(planned, 5)))
    with pytest.raises(CorruptFile, match=re.escape(leaf(planned, 3))):
        load_partial(leaf(planned, 3))
    with pytest.raises(CorruptFile, match=re.escape(leaf(planned, 3))):
        reduced(planned)


def test_two_partials_with_swapped_names_are_refused_though_the_sum_is_right(
    planned: tuple[Manifest, str],
) -> None:
    manifest, _ = planned
    of_fold = [shard.index for shard in manifest.shards if shard.fold == 0]
    a, b = leaf(planned, of_fold[0]), leaf(planned, of_fold[1])
    first, second = storage.read(a), storage.read(b)
    storage.replace(a, second)
    storage.replace(b, first)
    with pytest.raises(CorruptFile, match=re.escape(a)):
        reduced(planned)


def test_a_partial_of_another_spec_is_named_with_the_fields_that_differ(
    planned: tuple[Manifest, str],
) -> None:
    spec, ranges = tiny_spec(bins=9)
    uri = leaf(planned, 3)
    key = uri.rpartition("/")[2].removesuffix(".parquet")
    storage.replace(uri, Partial(random_dna(spec, ranges, 1, 1), (key,), ()).encode())
    with pytest.raises(SpecMismatch, match=re.escape(uri)) as caught:
        reduced(planned)
    assert "bins" in str(caught.value)


# Wrong kept matrices are computed again.


def matrix_uri(copy: Copy) -> str:
    (item,) = storage.walk(storage.join(copy.catalogue.root, "matrix"))
    return item.uri


def with_table(data: bytes, change: Callable[[pa.Table], pa.Table]) -> bytes:
    """Returns the matrix's file with unchanged metadata, and other rows."""
    return with_row_groups(data, [change(pq.read_table(pa.BufferReader(data)))])


def nearer(table: pa.Table) -> pa.Table:
    index = table.column_names.index("emd")
    return table.set_column(index, "emd", pa.array(table["emd"].to_numpy() / 2))


def reordered(table: pa.Table) -> pa.Table:
    return table.take(list(range(table.num_rows))[::-1])


def relabelled(table: pa.Table) -> pa.Table:
    """Keeps the numbers in place, and swaps the datasets that they are about."""
    names = table["a"].to_pylist()
    return table.set_column(0, "a", pa.array(names[::-1]))


@pytest.mark.parametrize(
    "change",
    [nearer, reordered, relabelled, lambda t: t.slice(0, t.num_rows - 9), lambda t: t.slice(9)],
)
def test_a_wrong_kept_matrix_is_computed_again(
    copy: Copy, change: Callable[[pa.Table], pa.Table]
) -> None:
    uri = matrix_uri(copy)
    true = compare(copy.catalogue).table
    storage.replace(uri, with_table(storage.read(uri), change))
    assert compare(copy.catalogue).table.equals(true)
    assert pq.read_table(pa.BufferReader(storage.read(uri))).equals(true)


# Wrong files that agree with each other, which only verify finds.


def found(copy: Copy) -> dict[str, str]:
    from pipeline.catalogue import verify

    return {f.check: f.detail for f in verify(copy.catalogue, [NAME]) if not f.ok}


def test_a_dna_of_other_ranges_is_found(copy: Copy) -> None:
    """The file and its commit agree, but the spec names other ranges."""
    from pipeline.counting import digest_of_dna

    metadata, _ = tables(copy)
    dna = DnaFile(copy.read("dna"), "dna", "dna").read()
    low = dna.low.copy()
    low[1] -= 1
    dna = replace(dna, low=low)
    digest = digest_of_dna(dna, copy.version.manifest, copy.version.products)
    metadata["digest"] = digest
    groups = [to_table(dna.select([layer])) for layer in dna.layers]
    for kind in ("folds", "failures"):
        uri = copy.catalogue.uri(kind, SPEC.digest, NAME, digest)
        storage.create(uri, copy.read(kind))
    copy.forge_commit(dna=digest)
    copy.version = copy.catalogue.find(NAME)
    copy.put("dna", encode_layers("dna", metadata, groups))
    wrong = found(copy)
    assert f"neuron stem[1] was counted in [{low[1]}" in wrong["counts"]
    assert copy.uri("dna") in wrong["counts"]


def test_folds_of_other_candidates_than_the_manifest_s_are_found(copy: Copy) -> None:
    file = DnaFile(copy.read("folds"), "folds", "folds")
    metadata = json.loads(json.dumps(file.metadata))
    sizes = {fold: of["images"] + of["failed"] for fold, of in metadata["folds"].items()}
    first, second = min(sizes, key=lambda f: sizes[f]), max(sizes, key=lambda f: sizes[f])
    assert sizes[first] < sizes[second]
    groups = []
    for layer in SPEC.layers:
        parts = file.read_folds(layer)
        parts[int(first)], parts[int(second)] = parts[int(second)], parts[int(first)]
        groups.append(pa.concat_tables(to_table(dna, index) for index, dna in parts.items()))
    folds = metadata["folds"]
    folds[first], folds[second] = folds[second], folds[first]
    copy.put("folds", encode_layers("folds", metadata, groups))
    wrong = found(copy)
    assert set(wrong) == {"folds"}
    assert re.search(rf"fold ({first}|{second}) holds \d candidates", wrong["folds"])
    assert copy.uri("folds") in wrong["folds"]
