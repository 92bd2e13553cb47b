"""Tests that a large source is planned block by block as it is planned as a whole."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.sources import (
    Entries,
    Entry,
    ImageSeconds,
    Listing,
    NewShardSizes,
    blocks,
    entries_file,
    plan,
    shard_sizes,
)
from pipeline.sources.block_plan import plan_block
from pipeline.sources.blocks import block_ends
from pipeline.sources.entries_file import ENTRY_SCHEMA
from pipeline.sources.pair_names import Pairing
from tests.support.builders import all_shards
from tests.support.small_sources import shrink_plans

BLOCK = 50

NAMES = st.lists(
    st.text("ab'%/é0", min_size=1, max_size=6).map(lambda text: f"s3://b/{text}.jpg"),
    min_size=40,
    max_size=300,
    unique=True,
)

SIZES = st.builds(
    NewShardSizes,
    shard_images=st.sampled_from([None, 5, 8, 24]),
    image_seconds=st.sampled_from([None, ImageSeconds(1.0, 2.0, 1.0), ImageSeconds(20.0)]),
    cell_images=st.sampled_from([None, 3]),
    cell_bytes=st.sampled_from([None, 50]),
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_plans(monkeypatch, block=BLOCK, many=40)
    monkeypatch.setattr(shard_sizes, "USUAL_CELL_IMAGES", 2)
    monkeypatch.setattr(shard_sizes, "MIN_SHARD_IMAGES", 2)
    monkeypatch.setattr(shard_sizes, "SHARD_MULTIPLE", 1)
    monkeypatch.setattr(shard_sizes, "default_shard_images", lambda _: 30)


RANGES = st.tuples(st.text("abc", max_size=2), st.none() | st.text("abc", max_size=2)).filter(
    lambda bounds: bounds[1] is None or bounds[0] < bounds[1]
)


@given(st.lists(RANGES, max_size=6), RANGES, st.text("abc", min_size=1, max_size=3))
def test_a_range_is_open_if_one_of_its_names_is(
    ranges: list[blocks.Bounds], bounds: blocks.Bounds, name: str
) -> None:
    def has(of: blocks.Bounds) -> bool:
        return of[0] < name and (of[1] is None or name <= of[1])

    is_open = blocks.OpenNames(ranges).overlap(bounds)
    assert is_open == any(
        max(bounds[0], after) < min(last for last in (bounds[1], until, "d") if last is not None)
        for after, until in ranges
    )
    if has(bounds) and any(map(has, ranges)):
        assert is_open


def ends_of(uris: list[str]) -> list[str]:
    return block_ends(pa.array(sorted(uris)), BLOCK)


def parts_of(entries: list[Entry], cuts: int) -> list[pa.Table]:
    """Stored parts of a listing: each is sorted, and they come in no order."""
    rows = [asdict(entry) for entry in entries]
    taken = [sorted(rows[at::cuts], key=lambda row: row["uri"]) for at in range(cuts)]
    return [pa.Table.from_pylist(part, ENTRY_SCHEMA) for part in taken]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(NAMES, SIZES, st.integers(1, 4), st.integers(0, 30), st.sampled_from([2**20, 200]))
@example(
    [f"s3://b/{i * 7919}.jpg" for i in range(200)],
    NewShardSizes(image_seconds=ImageSeconds(1.0, 2.0, 1.0)),
    2,
    3,
    200,
)
def test_the_blocks_of_a_source_have_the_shards_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
    uris: list[str],
    sizes: NewShardSizes,
    cuts: int,
    again: int,
    row_group_bytes: int,
) -> None:
    """Some candidates are listed twice, and changed in between."""
    monkeypatch.setattr(entries_file, "SHARD_MULTIPLE", 1)
    monkeypatch.setattr(entries_file, "ROW_GROUP_BYTES", row_group_bytes)
    found = [Entry(uri, "", 10 + len(uri), uri[-7]) for uri in uris]
    found += [replace(entry, size=entry.size - at % 2) for at, entry in enumerate(found[:again])]
    parts = parts_of(found, cuts)
    listing, entries = Listing.of(found), Entries()
    options = {name: getattr(sizes, name) for name in NewShardSizes.__dataclass_fields__}
    whole = plan(listing, entries=entries, **options)
    ends = ends_of(uris)
    bounds: list[str | None] = ["", *ends]
    if not ends or ends[-1] != max(uris):
        bounds.append(None)
    heads, duplicates, largest = [], 0, 0
    for after, until in pairwise(bounds):
        made = plan_block(parts, after or "", until, sizes, entries, Pairing())
        heads += made.heads
        duplicates += made.duplicates
        largest = max(largest, made.shard_images)
    assert duplicates == whole.duplicates == again
    assert largest == whole.shard_images
    assert [replace(head, index=at) for at, head in enumerate(heads)] == list(whole.heads)


def test_cells_of_a_block_end_where_those_of_the_whole_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mostly at the end of a folder."""
    monkeypatch.setattr(blocks, "BLOCK_IMAGES", 10**6)
    found = [Entry(f"s3://b/{i // 90}/{i:05}.jpg", "", 9, "e") for i in range(480)]
    sizes = NewShardSizes(shard_images=16, cell_images=4)
    whole = plan(found, shard_images=16, cell_images=4)
    made = plan_block(parts_of(found, 2), "", None, sizes, Entries(), Pairing())
    assert made.heads == whole.heads
    assert len({cell for head in made.heads for cell in head.cells[:-1]}) > 1


def test_a_name_that_goes_changes_its_own_block_alone() -> None:
    uris = [f"s3://b/{i:04}.jpg" for i in range(1_000)]
    ends = ends_of(uris)
    assert len(ends) > 5
    gone = next(uri for uri in uris if ends[2] < uri < ends[3])
    before = plan([Entry(uri, "", 9, "e") for uri in uris], shard_images=8)
    after = plan([Entry(uri, "", 9, "e") for uri in uris if uri != gone], shard_images=8)
    moved = {h.digest for h in before.heads} - {h.digest for h in after.heads}
    shards = [s for s in all_shards(before) if s.digest in moved]
    assert shards
    assert all(ends[2] < e.uri <= ends[3] for s in shards for e in s.members)


def test_a_name_that_ends_a_block_and_goes_joins_two() -> None:
    uris = [f"s3://b/{i:04}.jpg" for i in range(1_000)]
    ends = ends_of(uris)
    before = plan([Entry(uri, "", 9, "e") for uri in uris], shard_images=8)
    after = plan([Entry(uri, "", 9, "e") for uri in uris if uri != ends[2]], shard_images=8)
    moved = {h.digest for h in before.heads} - {h.digest for h in after.heads}
    touched = [e.uri for s in all_shards(before) if s.digest in moved for e in s.members]
    assert ends[1] < min(touched)
    assert max(touched) <= ends[3]


def test_shards_of_a_block_are_nearly_equal() -> None:
    uris = [f"s3://b/{i:05}.jpg" for i in range(1_200)]
    made = plan([Entry(uri, "", 9, "e") for uri in uris], shard_images=16)
    ends = ends_of(uris)

    def place(uri: str) -> int:
        return sum(end < uri for end in ends)

    of_block: dict[tuple[int, int], list[int]] = {}
    for shard in all_shards(made):
        key = place(shard.members[0].uri), shard.fold
        assert {place(e.uri) for e in shard.members} == {key[0]}
        of_block.setdefault(key, []).append(len(shard.members))
    for sizes in of_block.values():
        assert max(sizes) <= 16
        assert len(sizes) == -(-sum(sizes) // 16) or len(set(sizes[:-1])) == 1


@pytest.mark.parametrize("form", ["s3://b/{:07}.jpg", "s3://b/{0:x}/{0:08b}", "s3://b/day={}/f"])
def test_names_that_differ_in_few_digits_make_blocks_of_the_stated_size(form: str) -> None:
    """A number of independent names of 200,000 would end a block 400 times, give or take 60."""
    uris = pa.array([form.format(i) for i in range(200_000)])
    assert abs(len(block_ends(uris, 500)) - 400) < 60
