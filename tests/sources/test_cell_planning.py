"""Tests how shards are cut into cells, and which cells a later plan leaves as they are."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import CorruptFile, UsageError
from pipeline.sources import Entries, Entry, Manifest, plan, shard_merging
from pipeline.sources.shard_sizes import (
    CELL_SHARE,
    MAX_SHARD_IMAGES,
    USUAL_CELL_IMAGES,
    NewShardSizes,
    default_cell_images,
)
from tests.support.builders import all_shards

BYTES = 100_000

CHANGES = st.tuples(st.sampled_from(["add", "remove", "change"]), st.integers(0, 99))


def image(name: str, identity: str = "1") -> Entry:
    return Entry(f"s3://b/{name}.jpg", "", BYTES, identity)


def cells_of(manifest: Manifest) -> dict[str, int]:
    """Returns how many members each cell of a plan has, by its content."""
    return {
        cell.head.content: len(cell.members)
        for shard in all_shards(manifest)
        for cell in shard.cell_runs()
    }


def read_again(before: Manifest, after: Manifest) -> list[str]:
    """Returns the images in runs that are in no cell of the plan before, nor were one.

    Of a joined cell, as many runs from the first on as were a cell are kept.
    """
    kept = cells_of(before).keys()
    read = []
    for cell in (cell for shard in all_shards(after) for cell in shard.cell_runs()):
        runs = list(cell.each_run())
        assert cell.members == tuple(entry for run in runs for entry in run.members)
        whole = [n for n in range(1, len(runs) + 1) if cell.first_runs(n).head.content in kept]
        for run in runs[max(whole, default=0) :]:
            if run.digest not in kept:
                read += [entry.uri for entry in run.members]
    return read


def counted_again(before: Manifest, after: Manifest) -> int:
    """Returns how many images are read again."""
    return len(read_again(before, after))


def days(days: int, images: int) -> list[Entry]:
    return [image(f"day={day:03d}/{at:05d}") for day in range(days) for at in range(images)]


def test_the_cells_of_a_shard_are_all_its_members_in_order() -> None:
    manifest = plan(days(4, 100), shard_images=20, cell_images=6)
    for shard in all_shards(manifest):
        assert sum(len(cell.members) for cell in shard.cell_runs()) == len(shard.members)
        members = [entry for cell in shard.cell_runs() for entry in cell.members]
        assert members == list(shard.members)
        assert sorted(members, key=lambda entry: entry.sort_key) == members
    assert {size for shard in all_shards(manifest) for size in shard.cells} <= set(range(1, 8))


def test_a_shard_that_is_hardly_larger_than_a_cell_is_one() -> None:
    (shard,) = plan([image(f"{n}") for n in range(1)], cell_images=1).shards
    assert shard.cells == ()
    manifest = plan(days(2, 100), cell_images=64)
    assert {shard.cells for shard in all_shards(manifest)} == {()}


def test_a_cell_ends_where_a_folder_does_if_one_ends_near() -> None:
    group = [
        Entry(f"s3://b/{day}/{at}.jpg", "", 9, "1", "g") for day in range(5) for at in range(9)
    ]
    (shard,) = plan(group, shard_images=100, cell_images=10).shards
    assert shard.cells == (9, 9, 9, 9, 9)
    (shard,) = plan(group, shard_images=100, cell_images=14).shards
    assert shard.cells == (14, 13, 14, 4)
    (shard,) = plan(group, shard_images=100, cell_images=8).shards
    assert shard.cells == (8, 8, 8, 8, 8, 5), "none is larger, so that it is no more micro-batches"


@given(st.integers(1, 2**34), st.one_of(st.just(0.0), st.floats(1, 1e9)))
def test_the_sums_of_cells_take_a_share_of_the_images_bytes(cell: int, size: float) -> None:
    images = default_cell_images(cell, size)
    assert images >= USUAL_CELL_IMAGES
    if images < MAX_SHARD_IMAGES:
        assert cell <= CELL_SHARE * images * size
    if images > USUAL_CELL_IMAGES:
        assert cell > CELL_SHARE * (images // 2) * size


@given(st.integers(1, 2**34), st.floats(1, 1e9), st.integers(1, 2**20))
def test_the_cells_of_a_shard_of_any_size_take_a_share_of_the_images_bytes(
    cell: int, size: float, shard: int
) -> None:
    images = NewShardSizes(shard, cell_bytes=cell).cell(shard, size)
    assert images >= shard or cell <= CELL_SHARE * images * size


def test_images_whose_size_is_not_known_have_no_cells() -> None:
    rows = [Entry(f"s3://b/{n}.jpg", "", 0, "1", "g") for n in range(500)]
    assert {shard.cells for shard in plan(rows, shard_images=500, cell_bytes=1).shards} == {()}


def test_the_size_of_cells_is_checked() -> None:
    with pytest.raises(UsageError, match="cell_images is 0; it must be at least 1"):
        plan([image("a")], cell_images=0)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(CHANGES, max_size=25), min_size=1, max_size=3), st.sampled_from([1, 4, 9]))
@example([[("remove", 3)] * 5 + [("remove", 40)], [("change", 0)], [("remove", 0)]], 9)
def test_only_images_of_cells_with_a_member_that_changed_are_read(
    refreshes: list[list[tuple[str, int]]], size: int
) -> None:
    """Also where cells are joined, and one that was joined changes. No small ones are left."""
    entries = {f"{n // 10}/{n}": member(f"{n // 10}/{n}") for n in range(60)}
    options = {"shard_images": 20, "cell_images": size}
    before = plan(list(entries.values()), **options)  # type: ignore[arg-type]  # by name
    for number, changes in enumerate(refreshes):
        touched = changed_by(changes, entries, str(number + 2))
        if not entries:
            return
        after = plan(list(entries.values()), previous=before, **options)  # type: ignore[arg-type]
        assert now(after) == sorted(entry.uri for entry in entries.values())
        cell_of = {
            e.uri: c.digest for s in all_shards(before) for c in s.cell_runs() for e in c.members
        }
        hit = {cell_of[uri] for uri in touched if uri in cell_of} | {"added"}
        again = {uri for uri in now(after) if cell_of.get(uri, "added") in hit}
        assert set(read_again(before, after)) == again
        contents = {head.content for head in before.heads}
        for shard in (shard for shard in all_shards(after) if shard.head.content not in contents):
            for one, two in pairwise(shard.cell_runs()):
                assert two.runs or len(one.members) + len(two.members) >= size - size // 4
        before = after
    again_planned = plan(list(entries.values()), previous=before, **options)  # type: ignore[arg-type]
    assert again_planned.digest == before.digest


def member(name: str, identity: str = "1") -> Entry:
    return replace(image(name, identity), group="g")


def now(manifest: Manifest) -> list[str]:
    """Returns the images of a plan."""
    return sorted(entry.uri for shard in all_shards(manifest) for entry in shard.members)


def changed_by(
    changes: Iterable[tuple[str, int]], entries: dict[str, Entry], identity: str
) -> set[str]:
    """Adds, removes and changes images; returns which were removed and changed."""
    touched: set[str] = set()
    for what, at in changes:
        names = sorted(entries)
        if what == "add":
            entries.setdefault(name := f"{at // 10}/new{at}", member(name, identity))
        elif names:
            name = names[at % len(names)]
            touched.add(entries[name].uri)
            if what == "remove":
                del entries[name]
            else:
                entries[name] = member(name, identity)
    return touched


def grouped(names: Iterable[int], identity: str = "1") -> list[Entry]:
    """Returns images of one shard."""
    return [Entry(f"s3://b/{n:03}.jpg", "", 9, identity, "g") for n in names]


def shrinking(*lefts: Iterable[int], cell: int = 16) -> list[Manifest]:
    """Plans 64 images in cells of that size, and then what is left of them, again and again."""
    options = {"shard_images": 100, "cell_images": cell}
    plans = [plan(grouped(range(64)), **options)]  # type: ignore[arg-type]  # by name
    for left in lefts:
        plans.append(plan(grouped(left), previous=plans[-1], **options))  # type: ignore[arg-type]
    return plans


def test_neighbours_that_have_less_than_a_new_cell_at_least_are_joined() -> None:
    """A new cell of 16 has 12 at least."""
    last = range(16, 64)
    for left, wanted in ((range(10, 22), (6, 6)), (range(10, 21), (11,))):
        _, after = shrinking([*left, *range(32, 64)])
        assert (after.heads[0].cells, after.heads[0].runs) == ((*wanted, 16, 16), ())
    _, one, two = shrinking([*range(5), *last], [*range(5), 16, 17, *last[16:]])
    assert (one.heads[0].cells, one.heads[0].runs) == ((5, 16, 16, 16), ())
    assert (two.heads[0].cells, two.heads[0].runs) == ((7, 16, 16), (5, 2, 16, 16))
    assert len(read_again(one, two)) == 2


def test_a_shard_that_nothing_else_touches_is_not_changed_to_join_its_cells() -> None:
    """As of a plan under which cells were not joined yet: they are, when an image changes."""
    options = {"shard_images": 100, "cell_images": 1}
    small = plan(grouped(range(9)), **options)  # type: ignore[arg-type]  # by name
    object.__setattr__(small.heads[0], "cell_images", 40)  # cells of 40 that have become small
    assert plan(grouped(range(9)), previous=small, cell_images=40).digest == small.digest
    after = plan(grouped([*range(8), 9]), previous=small, cell_images=40)
    assert [(head.cells, head.runs) for head in after.heads] == [((), (1,) * 8), ((), ())]
    assert len(read_again(small, after)) == 1
    unasked = plan(grouped(range(8)), previous=small)
    assert unasked.heads[0].cells == (1,) * 8, "nobody says how large a cell should be"


def test_a_shard_keeps_its_cells_if_others_are_wanted_of_new_ones() -> None:
    """As of an earlier version, under which those of a GPU had 1,024 images."""
    _, before = shrinking(range(1, 64), cell=32)
    after = plan(grouped([*range(2, 64)]), previous=before, shard_images=100, cell_images=4)
    assert [each.heads[0].cells for each in (before, after)] == [(31, 32), (30, 32)]
    assert len(read_again(before, after)) == 30


def test_cells_are_never_joined_beyond_the_size_that_they_were_cut_with() -> None:
    """One plan with larger cells must not leave them large: each change would read as many."""
    full, left = range(64), [0, 1, *range(8, 10), *range(16, 64)]
    for stated in (8, 0):  # 0 as of a version that did not state it: the largest cell shows it
        options = {"shard_images": 100, "cell_images": 8}
        before = plan(grouped(full), **options)  # type: ignore[arg-type]  # by name
        assert before.heads[0].cell_images == 8
        object.__setattr__(before.heads[0], "cell_images", stated)
        once = plan(grouped(left), previous=before, shard_images=100, cell_images=64)
        assert (once.heads[0].cells, once.heads[0].runs) == ((4, *[8] * 6), ())
        once = Manifest.decode(once.data, "m", once.entries)
        again = plan(grouped(left[:-1]), previous=once, **options)  # type: ignore[arg-type]
        assert again.heads[0].cells == (4, *[8] * 5, 7)
        assert len(read_again(once, again)) == 7
        for step in (7, 4, 2):  # so many are left of each cell
            kept = [n for n in full if n % 8 < step]
            again = plan(grouped(kept), previous=again, shard_images=100, cell_images=64)
        assert max(again.heads[0].cells) == 4, "joined up to what they were cut with"
        assert again.heads[0].cell_images == 8


def test_small_shards_that_are_put_together_keep_the_size_of_their_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_merging, "TOGETHER", 4)
    before = None
    for images, size in ((2, 8), (4, 8), (6, 8), (8, 8), (10, 64)):
        before = plan(grouped(range(images)), previous=before, shard_images=64, cell_images=size)
    assert before is not None
    assert [(head.cells, head.cell_images) for head in before.heads] == [((4, 4), 8), ((), 64)]


def test_a_joined_cell_that_loses_an_image_is_counted_in_one_run() -> None:
    left = [*range(5), *range(16, 64)]
    *_, joined, then = shrinking(left, [*left[:5], 16, 17, *range(32, 64)], [*left[1:5], 16, 17])
    assert joined.heads[0].runs == (5, 2, 16, 16)
    assert (then.heads[0].cells, then.heads[0].runs) == ((), ())
    assert len(read_again(joined, then)) == 6


def test_a_joined_cell_is_joined_again_with_what_follows_it_only() -> None:
    ends = [*range(5), *range(16, 18)], [*range(48, 64)]
    first, last = ends
    *_, before, after = shrinking(
        [*range(5), *range(16, 64)], [*first, *range(32, 64)], [*first, 32, 33, 34, *last]
    )
    assert (after.heads[0].cells, after.heads[0].runs) == ((10, 16), (5, 2, 3, 16))
    assert len(read_again(before, after)) == 3
    *_, before, after = shrinking(
        [*range(16), *range(16, 20), *range(32, 64)],
        [*range(16), *range(16, 20), 32, 33, *last],
        [*range(3), *range(16, 20), 32, 33, *last],
    )
    assert before.heads[0].runs == (16, 4, 2, 16)
    assert (after.heads[0].cells, after.heads[0].runs) == ((3, 6, 16), (3, 4, 2, 16))


def test_a_changed_shard_knows_what_it_was_though_it_was_never_counted() -> None:
    group = [Entry(f"s3://b/{n}.jpg", "", 9, "1", "g") for n in range(12)]
    options = {"shard_images": 100, "cell_images": 4}
    states = [plan(group, **options)]  # type: ignore[arg-type]  # by name
    for at in range(6):
        group[at] = Entry(group[at].uri, "", 9, "2", "g")
        states.append(plan(group, previous=states[-1], **options))  # type: ignore[arg-type]
    contents = [state.heads[0].content for state in states]
    assert states[1].heads[0].origins == (contents[0],)
    assert states[3].heads[0].origins == (contents[2], contents[1], contents[0])
    assert states[6].heads[0].origins == tuple(contents[5:1:-1])
    again = plan(group, previous=states[-1], **options)  # type: ignore[arg-type]
    assert again.heads[0].origins == states[-1].heads[0].origins
    assert again.digest == states[-1].digest


def test_a_manifest_keeps_cells_and_origins() -> None:
    group = [Entry(f"s3://b/{n}.jpg", "", 9, "1", "g") for n in range(12)]
    entries = Entries()
    first = plan(group, shard_images=100, cell_images=4, entries=entries)
    left = [group[0], group[2], *group[6:10]]
    then = plan(left, previous=first, entries=entries)
    read = Manifest.decode(then.data, "m", entries)
    assert (read.heads[0].cells, read.heads[0].cell_images) == ((1, 1, 4), 4)
    assert read.heads[0].origins == (first.heads[0].content,)
    assert read.shards[0].origins == (first.heads[0].content,)
    assert b"runs" not in then.data, "as it was before cells were joined"
    joined = plan(left[:-1], previous=then, cell_images=16, entries=entries)
    read = Manifest.decode(joined.data, "m", entries)
    for of in (read.heads[0], read.shards[0]):
        assert (of.cells, of.runs) == ((2, 3), (1, 1, 3))


def test_cells_that_are_not_all_members_are_refused() -> None:
    group = [Entry(f"s3://b/{n}.jpg", "", 9, "1", "g") for n in range(12)]
    manifest = plan(group, shard_images=100, cell_images=4)
    object.__setattr__(manifest.heads[0], "cells", (4, 4, 3))
    with pytest.raises(CorruptFile, match=r"shard 0 has 12 members, and cells of \[4, 4, 3\]"):
        Manifest.decode(manifest.data, "m", manifest.entries)


@pytest.mark.parametrize("runs", [(4, 4, 4), (6, 6), (5, 7, 1), (5, 2), (5, 0, 7), (5, 8, -1)])
def test_runs_that_do_not_make_the_cells_are_refused(runs: tuple[int, ...]) -> None:
    def stated(runs: tuple[int, ...]) -> Manifest:
        made = plan(grouped(range(12)), shard_images=100)
        object.__setattr__(made.heads[0], "cells", (5, 7))
        object.__setattr__(made.heads[0], "runs", runs)
        return Manifest.decode(made.data, "m", made.entries)

    assert stated((2, 3, 7)).heads[0].runs == (2, 3, 7)
    with pytest.raises(CorruptFile, match=r"12 members in cells of \[5, 7\], and runs of "):
        stated(runs)


def test_the_same_members_in_other_cells_are_another_shard() -> None:
    group = [Entry(f"s3://b/{n}.jpg", "", 9, "1", "g") for n in range(12)]
    manifests = [plan(group, shard_images=100, cell_images=n) for n in (4, 5, 12, 100)]
    keys = [manifest.keys("spec") for manifest in manifests]
    assert len(set(keys[:3])) == 3
    assert keys[2] == keys[3], "a shard of one cell"


# What changes cost. At 200,000 images a day is 1,000.


@pytest.fixture(scope="module")
def large() -> tuple[list[Entry], Manifest]:
    entries = days(200, 1000)
    return entries, plan(entries, cell_bytes=1)


def replanned(entries: Iterable[Entry], before: Manifest) -> Manifest:
    return plan(list(entries), previous=before, cell_bytes=1)


@pytest.mark.optional
@pytest.mark.soak
def test_few_images_are_counted_again_when_one_in_a_thousand_changes(
    large: tuple[Sequence[Entry], Manifest],
) -> None:
    entries, before = large
    changed = set(random.Random(1).sample(range(len(entries)), len(entries) // 1000))
    after = replanned(
        (Entry(e.uri, "", BYTES, "2") if at in changed else e for at, e in enumerate(entries)),
        before,
    )
    assert counted_again(before, after) <= 0.13 * len(entries)


@pytest.mark.optional
@pytest.mark.soak
@pytest.mark.parametrize("day", [0, 77, 199])
def test_a_deleted_day_has_at_most_twice_its_size_counted_again(
    large: tuple[Sequence[Entry], Manifest], day: int
) -> None:
    entries, before = large
    after = replanned((e for e in entries if f"/day={day:03d}/" not in e.uri), before)
    assert after.candidates == len(entries) - 1000
    assert counted_again(before, after) <= 2 * 1000


@pytest.mark.optional
@pytest.mark.soak
def test_a_day_that_is_added_has_only_itself_counted(
    large: tuple[Sequence[Entry], Manifest],
) -> None:
    entries, before = large
    day = [image(f"day=200/{at:05d}") for at in range(1000)]
    assert counted_again(before, replanned([*entries, *day], before)) == 1000


@pytest.mark.optional
@pytest.mark.soak
@pytest.mark.parametrize("added", [1, 200, 10_000])
def test_images_that_are_added_everywhere_have_hardly_more_than_themselves_counted(
    large: tuple[Sequence[Entry], Manifest], added: int
) -> None:
    entries, before = large
    chance = random.Random(added)
    new = [image(f"day={chance.randrange(200):03d}/{n / 7:09.3f}") for n in range(added)]
    assert added <= counted_again(before, replanned([*entries, *new], before)) <= 1.03 * added


@pytest.mark.soak
def test_cells_have_about_the_size_that_was_wanted(
    large: tuple[Sequence[Entry], Manifest],
) -> None:
    sizes = np.array(list(cells_of(large[1]).values()))
    assert len(sizes) * USUAL_CELL_IMAGES <= 1.1 * sizes.sum()
    assert sizes.max() <= 1.25 * USUAL_CELL_IMAGES
