"""Rows of tables have no listed size; tables state about how many bytes their images take.

New shards and cells go by that. Nothing else does: sizes of entries are compared with what is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import CorruptFile
from pipeline.sources import (
    Entry,
    ImageSeconds,
    Listing,
    Manifest,
    NewShardSizes,
    Rules,
    list_changed,
    list_source,
    plan,
)
from pipeline.sources.archives import image_column
from pipeline.sources.archives.contents import index_archive
from pipeline.sources.archives.index import INDEX, ArchiveIndex, IndexBuilder
from pipeline.sources.shard_sizes import (
    CELL_SHARE,
    FIRST_SHARD_BYTES,
    MAX_SHARD_IMAGES,
    MIN_SHARD_IMAGES,
    USUAL_CELL_IMAGES,
    default_cell_images,
)
from pipeline.spec import digest_of
from tests.support.archives import tar_bytes, zip_bytes

ROWS_A_GROUP = 50
"""Parquet repeats two values of each group in its statistics."""


def images_of(rows: int, size: int) -> list[bytes]:
    return [os.urandom(size) for _ in range(rows)]


def table_of(rows: int, size: int, beside: str = "") -> pa.Table:
    """Returns a table of images with what lies beside them."""
    column: pa.Array = pa.array(images_of(rows, size), pa.binary())
    if beside == "path":  # as Hugging Face's datasets write it
        paths = pa.array([f"{at}.jpg" for at in range(rows)])
        column = pa.StructArray.from_arrays([column, paths], ["bytes", "path"])
    columns: dict[str, pa.Array] = {"an.image": column}
    if beside == "camera":
        columns = {"another": pa.array(images_of(rows, size), pa.binary())} | columns
    if beside == "caption":
        columns["text"] = pa.array([os.urandom(size // 4).hex() for _ in range(rows)])
    return pa.table(columns)


def write_table(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=ROWS_A_GROUP)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=ROWS_A_GROUP)
    return path


def mean_of(listing: Listing) -> float:
    return listing.unsized_bytes / listing.unsized


def contents(manifest: Manifest) -> list[tuple[int, str, int]]:
    return [(head.fold, head.content, head.cell_images) for head in manifest.heads]


@pytest.mark.parametrize("beside", ["", "path", "camera", "caption"])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_listing_knows_about_how_large_the_rows_of_a_table_are(
    kind: str, beside: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / f"a.{kind}", table_of(100, 2_000, beside))
    found = list_source(path, Rules(image_column="an.image"))
    assert found.unsized == 100
    # Of Arrow, text beside the images is taken for a part of them.
    assert mean_of(found) == pytest.approx(
        2_000, rel=0.6 if (kind, beside) == ("arrow", "caption") else 0.1
    )
    assert {entry.size for entry in found.entries} == {0}, "no guess is ever compared with a file"


@pytest.mark.parametrize("size", [1_000, 100_000])
@pytest.mark.parametrize("beside", ["", "camera"])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_cells_of_rows_take_a_share_of_their_bytes(
    kind: str, beside: str, size: int, tmp_path: Path
) -> None:
    path = write_table(tmp_path / f"a.{kind}", table_of(40, size, beside))
    listing = list_source(path, Rules(image_column="an.image"))
    for cell_bytes in (1_000, 1_700_000):
        (images,) = {head.cell_images for head in plan(listing, cell_bytes=cell_bytes).heads}
        assert images in (default_cell_images(cell_bytes, size * about) for about in (1, 1.1))
        if images < MAX_SHARD_IMAGES:
            assert cell_bytes <= CELL_SHARE * images * size * 1.1
    assert (images == USUAL_CELL_IMAGES) == (size == 100_000)


def test_a_shard_of_rows_is_cut_into_cells_and_a_first_one_is_bounded_by_its_bytes(
    tmp_path: Path,
) -> None:
    """The bytes of an image are stated here, as a table of so many would take long to write."""
    path = write_table(tmp_path / "a.parquet", table_of(20_000, 1))
    listing = list_source(path)
    assert listing.unsized == 20_000

    def of(size: int) -> Manifest:
        stated = Listing.joined([listing])
        vars(stated).update(unsized_bytes=20_000 * size)
        return plan(stated, cell_bytes=1_700_000)

    usual, large = of(110_000), of(4_000_000)
    assert {head.cells[0] for head in usual.heads} == {128}
    assert usual.shard_images == 632
    assert large.shard_images == NewShardSizes().shard(20_000, 4_000_000) == 128
    folds = [{e.member: s.fold for s in each.shards for e in s.members} for each in (usual, large)]
    assert folds[0] == folds[1]


SIZES = (300, 2_000, 9_000, 40_000)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four tables whose images differ in size, and of files."""
    folder = tmp_path_factory.mktemp("mixed")
    for at, size in enumerate(SIZES):
        kind = ("parquet", "arrow")[at % 2]
        write_table(folder / f"{at}.{kind}", table_of(20 * (at + 1), size))
    for at in range(9):
        with (folder / f"{at}.jpg").open("wb") as file:
            file.truncate(1_000_000)
    return folder


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(len(SIZES) + 9)), limit=st.none() | st.integers(20, 200))
def test_no_order_of_listing_changes_the_sizes(
    mixed: Path, order: list[int], limit: int | None
) -> None:
    options: dict[str, Any] = {"cell_bytes": 500_000, "limit": limit}
    names = sorted(path.name for path in mixed.iterdir() if path.suffix != ".txt")
    (mixed / "names.txt").write_text("\n".join(names[at] for at in order))
    listed, whole = list_source(mixed / "names.txt"), list_source(mixed)
    assert (listed.unsized, listed.unsized_bytes) == (whole.unsized, whole.unsized_bytes)
    assert contents(plan(listed, **options)) == contents(plan(whole, **options))


def sizes_seen(monkeypatch: pytest.MonkeyPatch, listing: Listing, **options: Any) -> float:
    """Plans a listing, and returns what a new shard's images are taken for."""
    seen = []
    real = NewShardSizes.shard

    def spy(self: NewShardSizes, candidates: int, image_bytes: float) -> int:
        seen.append(image_bytes)
        return real(self, candidates, image_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(NewShardSizes, "shard", spy)
        plan(listing, **options)
    return seen[-1]


def test_rows_and_files_are_averaged_by_their_numbers(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = sum(20 * (at + 1) * size for at, size in enumerate(SIZES))
    listing = list_source(mixed)
    assert (listing.unsized, listing.unsized_bytes) == (200, pytest.approx(truth, rel=0.02))
    seen = sizes_seen(monkeypatch, listing)
    assert seen == (listing.unsized_bytes + 9_000_000) / 209
    assert seen == pytest.approx((truth + 9_000_000) / 209, rel=0.01)
    # Of a sample, those files count that are in it.
    sample = [entry.size for shard in plan(listing, limit=150).shards for entry in shard.members]
    rows = sample.count(0)
    assert 140 < rows < 150
    expected = (sum(sample) + rows * mean_of(listing)) / 150
    assert sizes_seen(monkeypatch, listing, limit=150) == pytest.approx(expected)


def test_rows_that_are_left_out_do_not_count(tmp_path: Path) -> None:
    for name, size in (("a", 100), ("b", 9_000)):
        write_table(tmp_path / f"{name}.parquet", table_of(20, size))
    names = pa.table({"uri": ["a.parquet"] * 3 + ["b.parquet"], "member": ["0", "5", "7", ""]})
    pa.csv.write_csv(names, tmp_path / "named.csv")
    a, b = (list_source(tmp_path / f"{name}.parquet") for name in "ab")
    assert list_source(tmp_path, Rules(exclude="a.parquet")).unsized_bytes == b.unsized_bytes
    both = Listing.joined([a, b])
    assert (both.unsized, both.unsized_bytes) == (40, a.unsized_bytes + b.unsized_bytes)
    some = list_source(tmp_path / "named.csv")
    assert (some.unsized, some.unsized_bytes) == (23, a.unsized_bytes * 3 // 20 + b.unsized_bytes)


def test_what_is_listed_of_the_images_comes_before_what_was_measured(tmp_path: Path) -> None:
    listing = list_source(write_table(tmp_path / "a.parquet", table_of(40, 50_000)))
    for usual in (0.0, 1.0, 1e9):
        known = ImageSeconds(0.01, 0.0, usual)
        made = plan(listing, cell_bytes=1_700_000, image_seconds=known)
        assert {head.cell_images for head in made.heads} == {256}


def unknown(*names: int) -> list[Entry]:
    """Returns images whose size is not known at all."""
    return [Entry(f"s3://b/{name:05}", "", 0, "e", "g") for name in names]


def test_images_of_which_nothing_is_known_are_taken_for_those_that_were_measured() -> None:
    def cells(**more: Any) -> set[int]:
        made = plan(unknown(*range(500)), shard_images=500, cell_bytes=1_700_000, **more)
        return {head.cell_images for head in made.heads}

    assert cells() == cells(image_seconds=ImageSeconds(0.1)) == {MAX_SHARD_IMAGES}
    assert cells(image_seconds=ImageSeconds(0.1, 0.0, 60_000.0)) == {128}
    assert cells(image_seconds=ImageSeconds(0.1, 0.0, 30_000.0)) == {256}


@pytest.mark.parametrize(("usual", "size"), [(0.0, 64), (60_000.0, 128)])
def test_if_nothing_was_measured_either_cells_stay_as_they_were(usual: float, size: int) -> None:
    options: dict[str, Any] = {"shard_images": 500, "cell_bytes": 1_700_000}
    before = plan(unknown(*range(300)), cell_images=64, shard_images=500)
    known = ImageSeconds(0.01, 0.0, usual)
    more = unknown(*range(300), *range(1_000, 1_300))
    after = plan(more, previous=before, image_seconds=known, **options)
    assert [head.cell_images for head in after.heads] == [64, size]
    assert after.heads[1].cells[0] == size
    # What is known of the images is more than what an earlier plan went by.
    sized = [Entry(f"s3://c/{at}", "", 30_000, "e") for at in range(10)]
    after = plan([*more, *sized], previous=before, image_seconds=known, **options)
    assert {head.cell_images for head in after.heads} == {64, 256}


@pytest.mark.parametrize("size", [20_000, 100, 200_000])
def test_a_change_list_of_tables_makes_the_plan_of_a_full_listing(
    size: int, tmp_path: Path
) -> None:
    """It knows only the tables that it names, so new cells are those of the plan before."""
    folder = tmp_path / "images"
    folder.mkdir()
    write_table(folder / "a.parquet", table_of(40, 20_000))
    options: dict[str, Any] = {"cell_bytes": 1_700_000}
    before = plan(list_source(folder), **options)
    write_table(folder / "b.parquet", table_of(40, size))
    changes = tmp_path / "changes.csv"
    changes.write_text("path,change\nb.parquet,added\n")
    listing, counts = list_changed(folder, str(changes), before)
    assert (counts.added, listing.unsized) == (40, 40)
    by_list = plan(listing, previous=before, **options)
    assert contents(by_list) == contents(plan(list_source(folder), previous=before, **options))
    assert {head.cell_images for head in by_list.heads} == {512}


def test_a_kept_index_gives_the_same_plan(mixed: Path, tmp_path: Path) -> None:
    cache = (tmp_path / "cache").as_uri()
    listings = [list_source(mixed), *(list_source(mixed, cache=cache) for _ in range(2))]
    assert len({(each.unsized, each.unsized_bytes) for each in listings}) == 1
    plans = [contents(plan(each, cell_bytes=500_000)) for each in listings]
    assert plans[0] == plans[1] == plans[2]


def test_an_index_of_a_table_that_an_earlier_version_has_kept_is_not_used(tmp_path: Path) -> None:
    """It does not say how large the images are."""
    path = write_table(tmp_path / "a.parquet", table_of(40, 20_000))
    item, cache = storage.info(path.as_uri()), (tmp_path / "cache").as_uri()
    index = index_archive(item)
    assert index is not None
    former = ArchiveIndex(index.members, index.ignored, index.duplicates)
    name = digest_of("index", INDEX.format, item.uri, item.identity, None)
    storage.create(storage.join(cache, f"{name}.parquet"), former.encode())
    assert list_source(path, cache=cache).unsized_bytes == index.image_bytes > 0


@pytest.mark.parametrize("make", [tar_bytes, zip_bytes])
def test_archives_that_state_sizes_are_kept_as_before(
    make: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / ("a.tar" if make is tar_bytes else "a.zip")
    path.write_bytes(make([("a.jpg", bytes(100)), ("b.jpg", bytes(300))]))
    item, cache = storage.info(path.as_uri()), (tmp_path / "cache").as_uri()
    index = index_archive(item)
    assert index is not None
    assert index.image_bytes == 0
    found = list_source(path, cache=cache)
    assert (found.unsized, found.unsized_bytes) == (0, 0)
    name = digest_of("index", INDEX.format, item.uri, item.identity, None)
    assert storage.read(storage.join(cache, f"{name}.parquet")) == index.encode()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_says_nothing_of_sizes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(os.urandom(100_000))
    found = list_source(tmp_path)
    assert len(list(found.entries)) == 1
    assert (found.unsized, found.unsized_bytes) == (0, 0)
    with pytest.raises(CorruptFile):
        ArchiveIndex.decode(path.read_bytes(), "a")


@pytest.mark.parametrize("stated", [[-5, 60, 30], [2**62, 2**62], [-1], [0, 100]])
def test_a_table_never_has_more_bytes_of_images_than_bytes(stated: Sequence[int]) -> None:
    builder, file = IndexBuilder(), SimpleNamespace(size=90)
    for size in stated:
        image_column.add_rows(
            file,
            builder,
            1,
            "parquet",
            0,
            column="image",
            image_bytes=size,  # type: ignore[arg-type]
        )
    assert builder.index().image_bytes == min(90, sum(max(0, size) for size in stated))


@given(st.integers(1, 10**9), st.floats(1, 1e7), st.integers(1, 2**34))
def test_a_first_shard_of_rows_has_as_many_bytes_as_one_of_files(
    candidates: int, size: float, cell_bytes: int
) -> None:
    sizes = NewShardSizes(cell_bytes=cell_bytes)
    images = sizes.shard(candidates, size)
    assert images == MIN_SHARD_IMAGES or images * size <= FIRST_SHARD_BYTES
    assert sizes.cell(images, size, former=7) == default_cell_images(cell_bytes, size)
    assert sizes.cell(images, 0.0, former=7) == 7
