"""Tests the hashes of images: the same whatever the shards, cells, batches, order and failures."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import images, storage
from pipeline.building import (
    EraseOptions,
    Request,
    Result,
    build_datasets,
    counted_way,
    erase_images,
    rename_dataset,
    renaming,
)
from pipeline.catalogue import Catalogue, Version, recount, verify
from pipeline.counting import load_partial, partial_uri, reduction
from pipeline.dna import (
    BLACK,
    HASH_ROW,
    READ,
    SINGLE_COLOUR,
    Failure,
    HashRows,
    ImageHashes,
    Partial,
    decode_image_hashes,
    dna_encoding,
    image_hashes,
    write_image_hashes,
)
from pipeline.dna.image_hashes import HASH_SCHEMA
from pipeline.engine import InProcess
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    NotFound,
    OverlapError,
    SpecMismatch,
    UsageError,
)
from pipeline.images.hashing import BLACK_LEVEL, SAMPLED_SIDE, hash_image
from pipeline.spec import IMAGE_HASHES, Resources
from tests.catalogue.test_verification import Copy
from tests.support import tiny_network as tiny
from tests.support.builders import photo, random_dna, tiny_spec
from tests.support.killer import Killed

SPEC, RANGES = tiny_spec()


def random_rows(count: int, seed: int) -> HashRows:
    """Returns the rows of candidates, of which about a third could not be read."""
    random = np.random.default_rng(seed)
    rows = np.zeros(count, HASH_ROW)
    for column in ("content", "look"):
        rows[column] = random.integers(0, 2**64, count, np.uint64)
    rows["flags"] = random.choice(
        [READ, READ | SINGLE_COLOUR, READ | BLACK, READ | SINGLE_COLOUR | BLACK], count
    )
    rows[random.random(count) < 0.3] = 0
    return rows


def file_of(shards: list[HashRows], manifest: str = "m") -> bytes:
    sink = io.BytesIO()
    write_image_hashes(sink, np.concatenate(shards), [len(of) for of in shards], manifest)
    return sink.getvalue()


def partial_of(rows: HashRows, key: str, seed: int) -> Partial:
    read = int(np.count_nonzero(rows["flags"] & READ))
    failures = tuple(Failure(f"{key}{at}", "", "empty", "") for at in range(len(rows) - read))
    dna = replace(random_dna(SPEC, RANGES, read, seed), failed=len(failures))
    return Partial(dna, (key,), failures, None, ImageHashes({key: rows}))


# Laws.


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), data=st.data())
def test_hashes_are_added_in_any_order_and_survive_a_file(
    sizes: list[int], data: st.DataObject
) -> None:
    rows = [random_rows(size, seed) for seed, size in enumerate(sizes)]
    parts = [partial_of(of, f"k{at}", at) for at, of in enumerate(rows)]
    total = reduce(Partial.__add__, parts)
    shuffled = data.draw(st.permutations(parts))
    assert reduce(Partial.__add__, shuffled).image_hashes == total.image_hashes
    again = Partial.decode(total.encode(), "partial")
    assert again.identical(replace(total, image_hashes=again.image_hashes))
    assert again.image_hashes == total.image_hashes
    assert again.as_shard("k").image_hashes == ImageHashes({"k": np.concatenate(rows)})
    file = file_of(rows)
    assert np.array_equal(decode_image_hashes(file, "file", "m"), np.concatenate(rows))
    table = pq.read_table(io.BytesIO(file))
    assert table.schema.remove_metadata().equals(HASH_SCHEMA)
    assert table["shard"].to_pylist() == [at for at, size in enumerate(sizes) for _ in range(size)]
    failed = [not row["flags"] for of in rows for row in of]
    assert [value is None for value in table["content"].to_pylist()] == failed


@pytest.mark.parametrize("longest", [1, 25, 34, 1 << 29])
def test_hashes_that_are_longer_than_a_cell_go_on_in_the_next_one(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = partial_of(random_rows(5, 1), "k1", 1) + partial_of(random_rows(5, 2), "k2", 2)
    cells = pa.table({"x": pa.array([b"long"], pa.large_binary())})
    assert dna_encoding._batches(cells) == {}
    monkeypatch.setattr(image_hashes, "LONGEST_CELL", longest)
    monkeypatch.setattr(dna_encoding, "LONG_COLUMN", 0)
    assert dna_encoding._batches(cells) == {"write_batch_size": 1}
    data = partial.encode()
    lengths = [len(of) for of in pq.read_table(io.BytesIO(data))[IMAGE_HASHES].to_pylist()]
    assert sum(lengths) == 170
    assert max(lengths) <= max(longest, -(-170 // len(partial.dna.select([SPEC.layers[0]]).low)))
    again = Partial.decode(data, "partial")
    assert again.image_hashes == partial.image_hashes
    assert again.dna.identical(partial.dna)


def test_hashes_that_are_not_of_the_candidates_are_refused() -> None:
    a, b = (partial_of(random_rows(5, seed), key, seed) for seed, key in ((1, "a"), (2, "b")))
    assert a.image_hashes is not None
    with pytest.raises(OverlapError, match="shard a would be kept twice"):
        _ = a.image_hashes + a.image_hashes
    with pytest.raises(SpecMismatch, match="image hashes cannot be added to one without"):
        _ = a + replace(b, image_hashes=None)
    for wrong in (random_rows(4, 1), np.zeros(5, HASH_ROW)):
        with pytest.raises(ConservationError, match="counts 4 of 5 candidates, and has hashes of"):
            replace(a, image_hashes=ImageHashes({"a": wrong}))
    with pytest.raises(ValueError, match="5 rows where 6 should be"):
        ImageHashes.cut(random_rows(5, 1), ["a", "b"], [4, 2])
    with pytest.raises(CorruptFile, match="of manifest m; the version has other"):
        decode_image_hashes(file_of([random_rows(5, 1)]), "file", "other")


# One image.


def flags_of(pixels: np.ndarray, single: bool = False) -> int:
    return hash_image(b"x", pixels, single_colour=single)[2]


def test_an_image_is_black_if_no_pixel_is_brighter_than_the_level() -> None:
    dark = np.full((3 * SAMPLED_SIDE, 5, 3), BLACK_LEVEL, np.uint8)
    assert flags_of(dark) == READ | BLACK
    assert flags_of(dark, single=True) == READ | BLACK | SINGLE_COLOUR
    for at in (0, 7, 3 * SAMPLED_SIDE - 1):  # also a pixel that no sample has
        bright = dark.copy()
        bright[at, 4, 2] += 1
        assert flags_of(bright) == READ


def test_a_file_is_hashed_by_its_bytes_and_an_image_by_its_look() -> None:
    original = photo(3, 400, 300)
    saved = {}
    for name, image, options in (
        ("png", original, {}),
        ("jpeg", original, {"quality": 60}),
        ("small", original.resize((200, 150)), {}),
        ("large", original.resize((1203, 907)), {}),
        ("other", photo(4, 400, 300), {}),
    ):
        sink = io.BytesIO()
        image.save(sink, "JPEG" if name == "jpeg" else "PNG", **options)
        saved[name] = sink.getvalue()
    found = {name: images.load(data, tiny.RULE, hashed=True).hashes for name, data in saved.items()}
    looks = {}
    for name, hashes in found.items():
        assert hashes is not None
        assert f"{hashes[0]:016x}" == hashlib.sha256(saved[name]).hexdigest()[:16]
        looks[name] = hashes[1]
    near = {name: (looks["png"] ^ look).bit_count() for name, look in looks.items()}
    assert max(near[name] for name in ("jpeg", "small", "large")) <= 4
    assert near["other"] > 10
    assert images.load(saved["png"], tiny.RULE).hashes is None


# In a build.


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pictures() -> dict[str, tiny.Picture]:
    kinds = {3: "empty", 11: "not_an_image", 19: "truncated"}
    return {f"{at:02d}.png": tiny.Picture(kinds.get(at, "good"), at) for at in range(24)}


@pytest.fixture(scope="module")
def folder(pictures: Mapping[str, tiny.Picture], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    for name, picture in pictures.items():
        (place / name).write_bytes(picture.data)
    (place / "again.png").write_bytes(pictures["05.png"].data)
    return place


def build(place: Catalogue, network: tiny.Place, source: Path, **options: Any) -> Result:
    threads = options.pop("threads", 2)
    options = {"max_failures": 9, "shard_images": 6, "exemplars": 0, **network.options, **options}
    request = Request("photos", str(source), **options)
    with InProcess() as engine:
        resources = Resources(workers=0, threads=threads)
        (result,) = build_datasets(place, [request], engine, resources)
    return result


def die(*args: object, **keywords: object) -> None:
    raise Killed


def by_name(place: Catalogue, version: Version) -> dict[str, tuple[int, ...] | None]:
    """Returns the values of each row by the name of its file; None for a failure."""
    rows = place.image_hashes("photos", version)
    shards = place.manifest("photos", version).shards
    members = [entry.uri.rpartition("/")[2] for shard in shards for entry in shard.members]
    return {
        name: tuple(map(int, row)) if row["flags"] else None
        for name, row in zip(members, rows, strict=True)
    }


def truth(folder: Path) -> dict[str, tuple[int, ...] | None]:
    found: dict[str, tuple[int, ...] | None] = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        try:
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except OSError:
            found[path.name] = None
            continue
        single = bool((pixels == pixels[0, 0]).all())
        found[path.name] = hash_image(data, pixels, single_colour=single)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shard_images": 100},
        {"shard_images": 100, "cell_images": 3, "group_by": "1"},
        {"shard_images": 1, "threads": 1},
    ],
    ids=str,
)
def test_every_candidate_has_its_hashes_whatever_the_shards_and_cells(
    network: tiny.Place,
    folder: Path,
    tmp_path: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("FAN_IN", "LAST_SUMMANDS"):  # a small set has a tree, too
        monkeypatch.setattr(reduction, name, 2)
    place = Catalogue(str(tmp_path / "dnas"))
    version = build(place, network, folder, **options).version
    found = by_name(place, version)
    assert found == truth(folder)
    assert found["again.png"] == found["05.png"]
    single = sum(of is not None and of[2] & SINGLE_COLOUR > 0 for of in found.values())
    assert single == version.single_colour > 0
    assert all(finding.ok for finding in verify(place))
    findings = list(
        recount(place, ["photos"], engine=InProcess(), sample=None, weights=network.weights)
    )
    assert all(finding.ok for finding in findings)


def test_a_build_that_goes_on_has_the_same_hashes(
    network: tiny.Place, folder: Path, tmp_path: Path
) -> None:
    """Cells that did not change are not read again; a partial that is lost is counted again."""
    source = tmp_path / "images"
    source.mkdir()
    for path in sorted(folder.iterdir())[:20]:
        (source / path.name).write_bytes(path.read_bytes())
    options = {"shard_images": 100, "cell_images": 5, "group_by": "1", "replace": True}
    place = Catalogue(str(tmp_path / "dnas"))
    build(place, network, source, **options)
    (source / "00.png").write_bytes(tiny.Picture("good", 77).data)
    grown = build(place, network, source, **options)
    assert 0 < grown.read < 20
    assert by_name(place, grown.version) == truth(source)
    version = grown.version
    keys = place.manifest("photos", version).keys(version.spec, version.products)
    storage.delete(partial_uri(place.partials_uri("photos", version), keys[0]))
    assert not build(place, network, source, **options).changed
    clean = Catalogue(str(tmp_path / "clean"))
    build(clean, network, source, **options)
    assert np.array_equal(
        place.image_hashes("photos", place.find("photos")),
        clean.image_hashes("photos", clean.find("photos")),
    )


def test_hashes_are_kept_unless_a_dataset_is_without(
    network: tiny.Place, folder: Path, tmp_path: Path
) -> None:
    place = Catalogue(str(tmp_path / "dnas"))
    first = build(place, network, folder, image_hashes=False).version
    assert IMAGE_HASHES not in first.products
    with pytest.raises(NotFound, match="has no image hashes: build it with `image_hashes=True`"):
        place.image_hashes("photos", first)
    again = build(place, network, folder)
    assert (again.changed, again.counted_shards) == (False, 0)
    asked = build(place, network, folder, image_hashes=True)
    assert asked.counted_shards > 0
    assert by_name(place, asked.version) == truth(folder)
    assert not build(place, network, folder).changed
    assert place.load("photos").identical(place.load_version("photos", first))


def test_a_first_build_that_goes_on_counts_nothing_again(
    network: tiny.Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps what the build that died has kept, which may be of software without hashes."""
    place = Catalogue(str(tmp_path / "dnas"))
    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "append", die)
        with pytest.raises(Killed):
            build(place, network, folder, image_hashes=False)
    first = build(place, network, folder)
    assert (first.counted_shards, IMAGE_HASHES in first.version.products) == (0, False)
    other = Catalogue(str(tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "append", die)
        with pytest.raises(Killed):
            build(other, network, folder, image_hashes=False)
    assert IMAGE_HASHES in build(other, network, folder, replace=True).version.products


HASHED = {IMAGE_HASHES, "partials"}
"""Where the hash of an image is, as `kind_of` says."""


def content_of(path: Path) -> bytes:
    """Returns the bytes of the hash of a file."""
    return hashlib.sha256(path.read_bytes()).digest()[:8][::-1]


def holding(place: Catalogue, content: bytes) -> list[str]:
    """Finds the objects that hold the hash of a file, also where it is compressed."""
    value = int.from_bytes(content, "little")

    def holds(uri: str) -> bool:
        if f"/{IMAGE_HASHES}/" in uri:
            return value in pq.read_table(io.BytesIO(storage.read(uri)))["content"].to_pylist()
        if "/partials/" in uri:
            hashes = load_partial(uri).image_hashes
            rows = hashes.by_shard.values() if hashes is not None else ()
            return any(np.uint64(value) in of["content"] for of in rows)
        return content in storage.read(uri)

    return [item.uri for item in storage.walk(place.root) if holds(item.uri)]


def kind_of(place: Catalogue, uri: str) -> str:
    kind, *folders = uri.removeprefix(f"{place.root}/").split("/")
    return folders[-2] if kind == "_work" else kind


def test_an_erased_image_leaves_no_hash(network: tiny.Place, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for path in folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    place = Catalogue(str(tmp_path / "dnas"))
    build(place, network, source)
    gone = (source / "08.png").as_uri()
    content = content_of(source / "08.png")
    assert {kind_of(place, uri) for uri in holding(place, content)} == HASHED
    (source / "08.png").unlink()
    with InProcess() as engine:
        resources = Resources(workers=0, threads=2)
        options = EraseOptions(reason="asked", weights=[network.weights])
        erase_images(place, [gone], options, engine, resources)
    version = place.find("photos")
    assert by_name(place, version) == truth(source)
    assert holding(place, content) == []
    assert all(finding.ok for finding in verify(place))


@pytest.mark.parametrize("goes_on", [False, True], ids=["dead", "built-since"])
def test_an_erasure_finds_the_hash_that_a_build_has_left_that_died_before_it_committed(
    network: tiny.Place,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    goes_on: bool,
) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for name in ("05.png", "06.png", "07.png"):
        (source / name).write_bytes((folder / name).read_bytes())
    place = Catalogue(str(tmp_path / "dnas"))
    build(place, network, source)
    added = source / "08.png"
    added.write_bytes((folder / added.name).read_bytes())
    gone, content = added.as_uri(), content_of(added)

    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "append", die)
        with pytest.raises(Killed):
            build(place, network, source)
    assert {kind_of(place, uri) for uri in holding(place, content)} == HASHED
    added.unlink()
    if goes_on:
        build(place, network, source)
        assert {kind_of(place, uri) for uri in holding(place, content)} == HASHED
    with InProcess() as engine:
        options = EraseOptions(reason="asked", weights=[network.weights])
        done = erase_images(place, [gone], options, engine, Resources(workers=0, threads=2))
    head = place.head()
    assert (done.images, done.recounted, done.commit) == (1, {}, head.number)
    assert head.receipt is not None
    assert (head.receipt.images, head.receipt.recounted) == (1, {})
    assert holding(place, content) == []
    assert all(finding.ok for finding in verify(place))
    assert build(place, network, source).counted_shards == 0


def test_wrong_hashes_are_found_by_verify_and_by_a_recount(
    network: tiny.Place, folder: Path, tmp_path: Path
) -> None:
    place = Catalogue(str(tmp_path / "dnas"))
    version = build(place, network, folder).version
    manifest = place.manifest("photos", version)
    uri = place.uri(IMAGE_HASHES, version.spec, "photos", version.dna)
    rows = place.image_hashes("photos", version)
    sound = storage.read(uri)

    def details(check: str) -> str:
        bad = {finding.check: finding.detail for finding in verify(place) if not finding.ok}
        assert set(bad) == {check}
        return bad[check]

    def put(changed: HashRows) -> None:
        ends = np.cumsum([head.candidates for head in manifest.heads])[:-1]
        Copy(place).put(IMAGE_HASHES, file_of(np.split(changed, ends), manifest.digest))

    storage.replace(uri, sound[:-9])
    assert f"{uri} has sha256" in details("image hashes")
    at = int(np.flatnonzero(rows["flags"] & READ)[0])
    other = rows.copy()
    other["look"][at] ^= 1
    put(other)
    assert details("partials").endswith("do not sum to the DNA")
    recounted = recount(place, ["photos"], engine=InProcess(), sample=None, weights=network.weights)
    wrong = [finding.detail for finding in recounted if not finding.ok]
    assert any("other image hashes are stored" in detail for detail in wrong)
    other = rows.copy()
    other["flags"][at] ^= SINGLE_COLOUR
    put(other)
    assert "of a single colour; the DNA has" in details("image hashes")
    other["flags"][at] = 0
    put(other)
    assert f"{uri} has hashes of" in details("image hashes")
    put(rows)
    assert all(finding.ok for finding in verify(place))


def test_more_images_than_an_object_has_room_for_are_refused_before_they_are_counted(
    network: tiny.Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted_way, "MOST_HASHED", 10)
    place = Catalogue(str(tmp_path / "dnas"))
    told = "photos has 25 images, and the hashes of at most 10 are kept; build it with"
    with pytest.raises(UsageError, match=told):
        build(place, network, folder)
    assert build(place, network, folder, image_hashes=False).changed


def test_many_hashes_wait_on_disk(
    network: tiny.Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []
    real = storage.on_disk

    def on_disk(data: bytes) -> object:
        kept.append(data)
        return real(data)

    monkeypatch.setattr(storage, "on_disk", on_disk)
    place = Catalogue(str(tmp_path / "dnas"))
    build(place, network, folder)
    assert not any(b'"kind": "partial"' in data for data in kept)
    monkeypatch.setattr(reduction, "HASHED_IN_MEMORY", 24)
    version = build(place, network, folder, spec="new", bins=9).version
    assert any(b'"kind": "partial"' in data for data in kept)
    assert by_name(place, version) == truth(folder)


def test_hashes_are_read_from_disk_some_rows_at_a_time(
    network: tiny.Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_hashes, "ROWS_PER_GROUP", 10)
    place = Catalogue(str(tmp_path / "dnas"))
    version = build(place, network, folder).version
    filled: list[int] = []
    real = image_hashes._fill

    def fill(rows: HashRows, table: pa.Table) -> None:
        filled.append(len(rows))
        real(rows, table)

    monkeypatch.setattr(image_hashes, "_fill", fill)
    assert by_name(place, version) == truth(folder)
    assert filled == [10, 10, 5]
    assert isinstance(place.read_checked(IMAGE_HASHES, "photos", version), mmap)
    stored: dict[str, object] = {}
    store = renaming.store_version

    def store_version(*named: Any) -> Any:
        stored.update(named[-1])
        return store(*named)

    monkeypatch.setattr(renaming, "store_version", store_version)
    rename_dataset(place, "photos", "pictures")
    assert isinstance(stored[IMAGE_HASHES], mmap)
    rows = place.image_hashes("pictures", place.find("pictures"))
    assert np.array_equal(rows, place.image_hashes("photos", version))


def test_partials_that_lack_hashes_are_refused(
    network: tiny.Place, folder: Path, tmp_path: Path
) -> None:
    place = Catalogue(str(tmp_path / "dnas"))
    version = build(place, network, folder, shard_images=100).version
    manifest = place.manifest("photos", version)
    work = place.partials_uri("photos", version)
    for key in manifest.keys(version.spec, version.products):
        uri = partial_uri(work, key)
        storage.replace(uri, replace(load_partial(uri), image_hashes=None).encode())
    _, folds = reduction.plan_folds(manifest, work, version.spec, version.products)
    with pytest.raises(CorruptFile, match=r"the partials' products are not .*image_hashes"):
        reduction.compose(folds, manifest, version.products, "photos")
