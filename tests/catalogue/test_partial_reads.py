"""Tests files that are read in part: only what is needed is fetched, and all of it is checked."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.buffers import footer_start, sha256
from pipeline.catalogue import Catalogue, footers_of, verify
from pipeline.catalogue.commit import IN_PART, Footer
from pipeline.comparing import (
    Matrix,
    layer_cache,
    tile_sums,
)
from pipeline.comparing import compare as compare_all
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.tiles import Tile
from pipeline.counting import digest_of_dna
from pipeline.dna import (
    DNA,
    DnaFile,
    dna_metadata,
    encode_dna,
    encode_layers,
    to_gaussian_table,
    to_table,
)
from pipeline.dna.value import packed_scatter_size
from pipeline.errors import CorruptFile, SourceError, UsageError
from pipeline.sources import plan
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS, Tap, digest_of
from pipeline.storage import objects
from tests.golden.handmade import commit_dataset, entries, hand_made
from tests.support.builders import sealed, tiny_spec

SPEC, RANGES = tiny_spec(taps=(Tap("a", 3, 4), Tap("b", 2, 1), Tap("c", 5, 2), Tap("d", 1, 9)))
NAMES = ("set/0", "set/1", "set/2")
NAME = NAMES[0]


def filled(root: str) -> Catalogue:
    """Makes three datasets with folds and layer Gaussians."""
    place = Catalogue(root)
    for n, name in enumerate(NAMES):
        manifest = plan(entries(name, 6 + n, 100 * n), shard_images=1)
        partials = [hand_made(shard, SPEC, RANGES) for shard in manifest.shards]
        commit_dataset(place, name, manifest, partials, SPEC, RANGES)
        with_gaussians(place, name)
    return place


def with_gaussians(place: Catalogue, name: str) -> None:
    """Commits the version again with layer Gaussians made by hand; its folds stay the same."""
    base = place.find(name)
    dna = place.load(name)
    parts = []
    for layer in dna.layers:
        sums = np.sqrt(dna.m2[dna.slice_of(layer)])
        scatter = np.outer(sums, sums) * 0.1
        np.fill_diagonal(scatter, sums**2)
        parts.append(scatter[np.triu_indices(len(sums))])
    dna = replace(dna, scatter=np.concatenate(parts))
    assert len(dna.scatter) == packed_scatter_size(SPEC, SPEC.layers)
    products = (*PRODUCTS, LAYER_GAUSSIAN)
    digest = digest_of_dna(dna, base.manifest, products)
    files: dict[str, bytes] = {}
    for kind in IN_PART:
        shared = {
            "dataset": name,
            "digest": digest,
            "manifest": base.manifest,
            "products": products,
        }
        layers = [dna.select([layer]) for layer in dna.layers]
        if kind == "folds":
            old = place.open_file("folds", name, base)
            metadata = old.metadata | {"digest": digest}
            groups = [
                pa.concat_tables(to_table(d, i) for i, d in old.read_folds(layer).items())
                for layer in SPEC.layers
            ]
        elif kind == "dna":
            metadata = dna_metadata(dna, **shared)
            groups = [to_table(replace(layer, scatter=None)) for layer in layers]
        else:
            metadata = dna_metadata(dna, **shared)
            groups = [to_gaussian_table(layer) for layer in layers]
        files[kind] = encode_layers(kind, metadata, groups)
        storage.create(place.uri(kind, SPEC.digest, name, digest), files[kind])
    failures = place.read_checked("failures", name, base)
    storage.create(place.uri("failures", SPEC.digest, name, digest), bytes(failures))
    version = replace(
        base,
        dna=digest,
        products=products,
        sha256={**base.sha256, **{kind: sha256(data) for kind, data in files.items()}},
        footers=footers_of(files),
    )
    place.put_version(name, version, base)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "catalogue"
    filled(str(folder))
    return folder


@pytest.fixture(scope="module")
def sound(built: Path) -> Catalogue:
    """Returns a catalogue that tests only read."""
    return Catalogue(str(built))


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Catalogue:
    """Returns a catalogue that a test may damage."""
    shutil.copytree(built, tmp_path / "copy")
    return Catalogue(str(tmp_path / "copy"))


def uri_of(place: Catalogue, kind: str, name: str = NAME) -> str:
    return place.uri(kind, SPEC.digest, name, place.find(name).dna)


def whole(place: Catalogue, kind: str, name: str = NAME) -> DnaFile:
    return place.open_file(kind, name, place.find(name))


def read(place: Catalogue, kind: str, layers: Sequence[str]) -> dict[str, Any]:
    """Reads all numbers of these layers from a file that is opened for them alone."""
    file = place.open_file(kind, NAME, place.find(NAME), layers)
    return {layer: numbers(place, file, kind, layer) for layer in layers}


def numbers(place: Catalogue, file: DnaFile, kind: str, layer: str) -> Any:
    if kind == "folds":
        return file.read_folds(layer)
    if kind == "dna":
        return {0: file.read([layer])}
    return {0: file.read_gaussians(whole(place, "dna").read([layer]))}


def same(a: dict[int, DNA], b: dict[int, DNA]) -> bool:
    return a.keys() == b.keys() and all(a[key].identical(b[key]) for key in a)


def change_commit(place: Catalogue, **changes: object) -> None:
    """Lets the newest commit state something else about the version."""
    uri = place.log_uri(place.head().number)
    body = json.loads(storage.read(uri))
    body["datasets"][NAME][SPEC.digest] |= changes
    storage.replace(uri, sealed(body))


def replace_with_commit(place: Catalogue, kind: str, data: bytes) -> None:
    """Replaces a file of the version, and lets the commit state the digests of the new bytes."""
    storage.replace(uri_of(place, kind), data)
    version = place.find(NAME)
    footers = version.footers | footers_of({kind: data})
    change_commit(
        place,
        sha256={**version.sha256, kind: sha256(data)},
        footers={of: asdict(footer) for of, footer in footers.items()},
    )


def wrong(place: Catalogue) -> dict[str, str]:
    return {f.check: f.detail for f in verify(place, [NAME]) if not f.ok}


# What is written.


@pytest.mark.parametrize("kind", IN_PART)
def test_the_digests_cover_a_file_without_a_gap(sound: Catalogue, kind: str) -> None:
    data = storage.read(uri_of(sound, kind))
    file = whole(sound, kind)
    spans = [file.span(layer) for layer in SPEC.layers]
    footer = sound.find(NAME).footers[kind]
    assert data[:4] == b"PAR1"
    assert [4, *(stop for _, stop in spans)] == [*(start for start, _ in spans), footer.start]
    assert footer.start + footer.size == len(data)
    assert footer == Footer(footer_start(data), footer.size, sha256(data[footer.start :]))
    for (start, stop), row_group in zip(spans, file.row_groups, strict=True):
        assert row_group.sha256 == sha256(data[start:stop])
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    for index, (start, stop) in enumerate(spans):
        group = metadata.row_group(index)
        chunks = sorted(
            (column.data_page_offset, column.data_page_offset + column.total_compressed_size)
            for column in map(group.column, range(group.num_columns))
        )
        assert (chunks[0][0], chunks[-1][1]) == (start, stop)
        assert all(end == begin for (_, end), (begin, _) in pairwise(chunks))


def test_the_same_input_gives_the_same_bytes(sound: Catalogue) -> None:
    dna = sound.load(NAME)
    assert encode_dna(dna) == encode_dna(dna)
    restated = dna_metadata(dna) | {"row_groups": [{"bytes": 1, "sha256": "another"}]}
    groups = [to_table(dna.select([layer])) for layer in dna.layers]
    assert encode_layers("dna", restated, groups) == encode_dna(dna)


# What is read.


@settings(max_examples=60)
@given(
    layers=st.lists(st.sampled_from(SPEC.layers), min_size=1, unique=True),
    kind=st.sampled_from(IN_PART),
)
def test_layers_read_alone_equal_those_of_the_whole_file(
    sound: Catalogue, layers: list[str], kind: str
) -> None:
    file = whole(sound, kind)
    for layer, found in read(sound, kind, layers).items():
        assert same(found, numbers(sound, file, kind, layer))
    if kind != "folds":
        gaussian = kind == "layer_gaussians"
        dna = sound.load(NAME, layers=layers, layer_gaussian=gaussian)
        assert dna.identical(sound.load(NAME, layer_gaussian=gaussian).select(layers))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Collects each answer of the store as (object, first byte, number of bytes)."""
    seen: list[tuple[str, int, int]] = []
    real = objects._get

    def spy(uri: str, *rest: Any, **options: Any) -> Any:
        answer = real(uri, *rest, **options)
        seen.append((uri, rest[1] if len(rest) > 1 else 0, len(answer.data)))
        return answer

    monkeypatch.setattr(objects, "_get", spy)
    return seen


@pytest.fixture(params=["file", "memory", "s3"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Catalogue:
    if request.param == "file":
        return filled(str(tmp_path))
    if request.param == "memory":
        return filled(f"memory://{uuid.uuid4().hex}")
    return filled(f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}")


def expected(place: Catalogue, kind: str, name: str, *runs: tuple[str, str]) -> set[Any]:
    """Returns the span of the footer, and the spans of runs of layers."""
    uri, file = uri_of(place, kind, name), whole(place, kind, name)
    footer = place.find(name).footers[kind]
    spans = [(file.span(first)[0], file.span(last)[1]) for first, last in runs]
    found = [(footer.start, footer.size), *((start, stop - start) for start, stop in spans)]
    return {(uri, start, length) for start, length in found}


def compare(place: Catalogue, *layers: str) -> Matrix:
    return compare_all(place, layers=layers or None, fd=True, error_bars=True)


def of_files(seen: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return sorted(got for got in seen if any(f"/{kind}/" in got[0] for kind in IN_PART))


def test_comparing_one_layer_fetches_only_footers_and_that_layer(
    stored: Catalogue, fetched: list[tuple[str, int, int]]
) -> None:
    wanted = set[Any]().union(
        *(expected(stored, kind, name, ("c", "c")) for kind in IN_PART for name in NAMES)
    )
    fetched.clear()
    alone = compare(stored, "c")
    assert of_files(fetched) == sorted(wanted)  # each once
    every = compare(stored)
    for column in ("emd", "nfd", "fd", *every.estimates):
        of_all = every.stacked(column)[every.planes.index("c")]
        assert np.array_equal(alone.stacked(column)[0], of_all, equal_nan=True), column


def test_adjacent_layers_are_fetched_together(
    sound: Catalogue, fetched: list[tuple[str, int, int]]
) -> None:
    for layers, runs in (
        (("c", "b"), (("b", "c"),)),
        (("d", "a"), (("a", "a"), ("d", "d"))),
        (("a", "c", "d"), (("a", "a"), ("c", "d"))),
    ):
        wanted = expected(sound, "folds", NAME, *runs)
        fetched.clear()
        read(sound, "folds", layers)
        assert of_files(fetched) == sorted(wanted)
    of_both = [expected(sound, kind, NAME, ("b", "c")) for kind in ("dna", "layer_gaussians")]
    fetched.clear()
    sound.load(NAME, layers=["b", "c"], layer_gaussian=True)
    assert of_files(fetched) == sorted(set[Any]().union(*of_both))


def test_a_long_layer_is_fetched_in_blocks(
    sound: Catalogue, fetched: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = whole(sound, "folds")
    monkeypatch.setattr(objects, "LONGEST_BLOCK", 100)
    fetched.clear()
    found = read(sound, "folds", ["c"])["c"]
    start, stop = file.span("c")
    _, *blocks = [length for _, _, length in of_files(fetched)][::-1]
    assert sum(blocks) == stop - start
    assert len(blocks) == -(-(stop - start) // 100)
    assert same(found, file.read_folds("c"))


def test_all_layers_are_fetched_as_one_file(
    stored: Catalogue, fetched: list[tuple[str, int, int]]
) -> None:
    """The footer is not fetched separately, since one sha256 covers the whole file."""
    starts = {stored.find(name).footers[kind].start for name in NAMES for kind in IN_PART}
    fetched.clear()
    compare_all(stored, layers=SPEC.layers, fd=True)
    compare(stored)
    assert not starts & {start for _, start, _ in of_files(fetched)}
    fetched.clear()
    assert stored.load(NAME, layers=SPEC.layers).identical(stored.load(NAME))
    size = len(storage.read(uri_of(stored, "dna")))
    assert [length for _, _, length in fetched].count(size) == 3


def test_a_worker_reads_further_layers_of_the_same_files(sound: Catalogue) -> None:
    members = tuple((name, sound.find(name)) for name in NAMES)
    found = {}
    for layers in (("b",), ("a", "c"), SPEC.layers):
        job = Job(sound.root, SPEC, layers, whole=False)
        emd = tile_sums.compute(Tile(job, members, members))["emd"]
        found |= {(layers, layer): emd[at] for at, layer in enumerate(layers)}
    layer_cache.clear_cache()
    for (_, layer), emd in found.items():
        assert np.array_equal(emd, found[SPEC.layers, layer])


def test_a_layer_that_was_not_opened_cannot_be_read(sound: Catalogue) -> None:
    uri, version = uri_of(sound, "dna"), sound.find(NAME)
    file = sound.open_file("dna", NAME, version, ["b", "c"])
    with pytest.raises(CorruptFile, match=f"{re.escape(uri)}: layer d was not read; only b, c"):
        file.read(["b", "d"])
    with pytest.raises(UsageError, match="nose"):
        sound.open_file("dna", NAME, version, ["nose"])


def test_a_file_that_is_gone_is_a_source_error(place: Catalogue) -> None:
    storage.delete(uri_of(place, "dna"))
    with pytest.raises(SourceError):
        place.load(NAME, layers=["b"])


# What is refused.


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def places_in(start: int, stop: int) -> Iterator[int]:
    """Returns some thirty places, the first and the last among them."""
    yield from range(start, stop, max(1, (stop - start) // 30))
    yield stop - 1


def refused(place: Catalogue, kind: str) -> str:
    uri = uri_of(place, kind)
    with pytest.raises(CorruptFile, match=re.escape(uri)) as caught:
        read(place, kind, ["b"])
    return str(caught.value)


@pytest.mark.parametrize("kind", IN_PART)
def test_a_flipped_bit_of_what_is_read_is_refused(place: Catalogue, kind: str) -> None:
    """A bit is flipped in the layer, in the footer, and in the digests that the footer holds."""
    uri, file = uri_of(place, kind), whole(place, kind)
    data = storage.read(uri)
    footer = place.find(NAME).footers[kind].start
    for at in places_in(*file.span("b")):
        storage.replace(uri, flipped(data, at))
        assert "layer b has sha256" in refused(place, kind)
    digests = [data.index(row_group.sha256.encode()) for row_group in file.row_groups]
    for at in (*places_in(footer, len(data)), *digests):
        storage.replace(uri, flipped(data, at))
        assert "its footer has sha256" in refused(place, kind)
    storage.replace(uri, data)
    read(place, kind, ["b"])


@pytest.mark.parametrize("kind", IN_PART)
def test_a_flipped_bit_of_what_is_not_read_is_left_to_verify(place: Catalogue, kind: str) -> None:
    uri, file = uri_of(place, kind), whole(place, kind)
    data, right = storage.read(uri), read(place, kind, ["b"])
    for layer in ("a", "c", "d"):
        for at in list(places_in(*file.span(layer)))[::10]:
            storage.replace(uri, flipped(data, at))
            assert same(read(place, kind, ["b"])["b"], right["b"])
            with pytest.raises(CorruptFile, match=re.escape(uri)):
                read(place, kind, ["b", layer])
            found = wrong(place)
            assert uri in found["folds" if kind == "folds" else "counts"]


@pytest.mark.parametrize("kind", IN_PART)
@pytest.mark.parametrize("how", ["empty", "torn", "longer", "another's", "shifted"])
def test_a_file_with_other_content_is_refused(place: Catalogue, kind: str, how: str) -> None:
    data = storage.read(uri_of(place, kind))
    contents = {
        "empty": b"",
        "torn": data[:-20],
        "longer": data[:9] + data[8:],
        "another's": storage.read(uri_of(place, kind, NAMES[1])),
        "shifted": data[1:],
    }
    storage.replace(uri_of(place, kind), contents[how])
    assert "its footer has sha256" in refused(place, kind)


def test_a_forged_file_is_refused_even_if_its_own_digests_agree(place: Catalogue) -> None:
    """Everything in the file agrees; only the commit shows that it is forged."""
    dna = place.load(NAME)
    counts = dna.counts[:, ::-1].copy()
    metadata = whole(place, "dna").metadata
    groups = [to_table(replace(dna, counts=counts).select([layer])) for layer in dna.layers]
    forged = encode_layers("dna", metadata, groups)
    DnaFile(forged, "dna", "x", layers=SPEC.layers).read()
    storage.replace(uri_of(place, "dna"), forged)
    assert "its footer has sha256" in refused(place, "dna")
    replace_with_commit(place, "dna", forged)
    assert np.array_equal(place.load(NAME, layers=["b"]).counts, counts[dna.slice_of("b")])


Change = Callable[[list[dict[str, Any]]], Any]


def restated(data: bytes, change: Change) -> bytes:
    """Returns the file with other digests of its layers, and everything else unchanged."""
    file = pq.ParquetFile(pa.BufferReader(data))
    metadata = json.loads(file.metadata.metadata[b"vdna"])
    del metadata["checksum"]
    metadata["row_groups"] = change(metadata["row_groups"])
    return with_metadata(data, metadata)


def with_metadata(data: bytes, metadata: dict[str, Any]) -> bytes:
    """Encodes a file with these metadata, whatever digests they state."""
    file = pq.ParquetFile(pa.BufferReader(data))
    metadata = metadata | {"checksum": digest_of(metadata)}
    encodings = {"counts": "DELTA_BINARY_PACKED", "scatter": "BYTE_STREAM_SPLIT"}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        file.schema_arrow,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        column_encoding={
            f"{column}.list.element": encoding
            for column, encoding in encodings.items()
            if column in file.schema_arrow.names
        },
        data_page_size=4 * 2**20,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        for index in range(file.num_row_groups):
            writer.write_table(file.read_row_group(index))
        writer.add_key_value_metadata({"vdna": json.dumps(metadata, sort_keys=True)})
    found = sink.getvalue().to_pybytes()
    assert found[: footer_start(found)] == data[: footer_start(data)]
    return found


def other_digest(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [groups[0], groups[1] | {"sha256": "00" * 32}, *groups[2:]]


def moved_edge(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    a, b = (groups[n] | {"bytes": groups[n]["bytes"] + by} for n, by in enumerate((1, -1)))
    return [a, b, *groups[2:]]


MALFORMED: dict[str, tuple[Change, str]] = {
    "fewer": (lambda groups: groups[:-1], "row groups; states"),
    "of a gap": (
        lambda groups: [*groups[:-1], groups[-1] | {"bytes": groups[-1]["bytes"] - 1}],
        "its rows end at",
    ),
    "of half a byte": (lambda groups: [groups[0] | {"bytes": 0.5}, *groups[1:]], "metadata"),
    "of less than nothing": (lambda groups: [groups[0] | {"bytes": -9}, *groups[1:]], "metadata"),
    "no list": (lambda groups: 7, "metadata"),
    "without a digest": (lambda groups: [{"rows": 1, "bytes": 1}] * 4, "metadata"),
    "of other rows": (
        lambda groups: [groups[0] | {"rows": groups[0]["rows"] + 1}, *groups[1:]],
        "row groups; states",
    ),
}


@pytest.mark.parametrize("kind", IN_PART)
@pytest.mark.parametrize("change", [other_digest, moved_edge])
def test_wrong_digests_of_layers_are_found(place: Catalogue, kind: str, change: Change) -> None:
    """The numbers of the file are right, and the commit states its sha256."""
    replace_with_commit(place, kind, restated(storage.read(uri_of(place, kind)), change))
    assert re.search(r"layer b has sha256 \w+; its footer states", refused(place, kind))
    found = wrong(place)["folds" if kind == "folds" else "counts"]
    assert uri_of(place, kind) in found
    assert re.search(r"layer [ab] has sha256", found)


@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_digests_of_layers_are_refused(place: Catalogue, how: str) -> None:
    change, message = MALFORMED[how]
    replace_with_commit(place, "dna", restated(storage.read(uri_of(place, "dna")), change))
    assert message in refused(place, "dna")
    with pytest.raises(CorruptFile, match=message):
        place.load(NAME)


@pytest.mark.parametrize("kind", IN_PART)
@pytest.mark.parametrize("change", [{"sha256": "00" * 32}, {"start": 5}, {"size": 9}])
def test_a_commit_that_states_a_wrong_footer_is_refused(
    place: Catalogue, kind: str, change: dict[str, Any]
) -> None:
    """Readers of the whole file refuse it, too."""
    stated = {of: asdict(footer) for of, footer in place.find(NAME).footers.items()}
    change_commit(place, footers=stated | {kind: stated[kind] | change})
    assert "was committed" in refused(place, kind)
    assert uri_of(place, kind) in wrong(place)["folds" if kind == "folds" else "counts"]
    with pytest.raises(CorruptFile, match=re.escape(uri_of(place, kind))):
        whole(place, kind)


@pytest.mark.parametrize(
    "footers",
    [
        {"failures": {"start": 1, "size": 1, "sha256": ""}},
        {"nose": {"start": 1, "size": 1, "sha256": ""}},
        {"dna": {"start": -1, "size": 1, "sha256": ""}},
        {"dna": {"start": 1, "size": True, "sha256": ""}},
        {"dna": {"start": 1, "size": 1, "sha256": 7}},
        {"dna": {"start": 1, "size": 1}},
        {"dna": "a footer"},
        ["dna"],
    ],
)
def test_a_commit_without_valid_footers_is_refused(place: Catalogue, footers: Any) -> None:
    change_commit(place, footers=footers)
    with pytest.raises(CorruptFile, match=re.escape(place.log_uri(6))):
        place.head()
