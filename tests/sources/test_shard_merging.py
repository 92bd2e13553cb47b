"""Small shards are put together: no cell is lost, no image moves, and there are never many."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources import MERGED, Manifest, plan, shard_merging
from pipeline.sources.listing import ListingWriter
from pipeline.sources.shard_merging import MOST_MERGES, TOGETHER, merge_groups
from pipeline.spec import FOLDS
from tests.sources.test_cell_planning import cells_of, counted_again, image
from tests.support.builders import all_shards


def places_of(manifest: Manifest) -> dict[str, int]:
    """Returns the fold of each image; each must be in one shard."""
    found = {}
    for shard in all_shards(manifest):
        for entry in shard.members:
            assert entry.uri not in found
            found[entry.uri] = shard.fold
    return found


def most_shards(first: int, refreshes: int, images: int, size: int, together: int) -> int:
    """The most shards that a dataset has which only grew: the formula of decision 16."""
    return first + FOLDS * (together - 1) + FOLDS * refreshes // together + 2 * images // size


@settings(max_examples=6)
@given(
    st.integers(2, 5),
    st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), max_size=5),
    st.sampled_from([None, 8, 64]),
)
def test_every_history_keeps_images_folds_and_cells(
    together: int, steps: list[tuple[int, bool, bool]], cell: int | None
) -> None:
    """A plan that puts shards together reads the images that are new or have changed, and no other.

    Each step adds images; it may remove one, and change another. Very small shards become one cell.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_merging, "TOGETHER", together)
        images = {f"first/{at}": "1" for at in range(150)}
        before = plan([image(*each) for each in images.items()], cell_images=cell)
        first, added = len(before.heads), 0
        for number, (more, removes, changes) in enumerate(steps):
            fresh = {f"step-{number}/{at}": "1" for at in range(more)}
            added += more
            changed = {name: f"{number}" for name in sorted(images)[:1] if changes}
            images |= fresh | changed
            if removes:
                images.pop(sorted(images)[-1], None)
            entries = [image(*each) for each in images.items()]
            after = plan(entries, previous=before, cell_images=cell)
            old, now = places_of(before), places_of(after)
            assert now.keys() == {image(name).uri for name in images}
            assert all(old.get(uri, fold) == fold for uri, fold in now.items())
            touched = 64 * (len(changed) + removes)
            assert counted_again(before, after) <= len(fresh) + touched
            assert plan(entries, previous=after, cell_images=cell).digest == after.digest
            size = after.shard_images
            assert len(after.heads) <= most_shards(first, number + 1, added, size, together)
            before = after


def test_shards_that_are_put_together_are_the_cells_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_merging, "TOGETHER", 2)
    images = [image(f"first/{at}") for at in range(200)]
    plans = [plan(images)]
    for number in range(3):
        images += [image(f"step-{number}/{at}") for at in range(100)]
        plans.append(plan(images, previous=plans[-1]))
    merged = [head for head in plans[-1].heads if head.is_merged]
    assert merged
    assert {head.origins for head in merged} == {(MERGED,)}
    assert all(len(head.cells) == 2 for head in merged)
    known = {head.content for before in plans for head in before.heads}
    cells = [cell.digest for shard in all_shards(plans[-1]) for cell in shard.cell_runs()]
    assert set(cells) <= known | {head.digest for head in plans[-1].heads}
    assert len(cells) == len(set(cells))


def test_very_small_shards_become_runs_of_one_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not put together again: runs are added from left to right."""
    monkeypatch.setattr(shard_merging, "TOGETHER", 3)
    images = [replace(image("step-0"), group="g")]
    plans = [plan(images, cell_images=10)]
    for number in range(1, 7):
        images += [replace(image(f"step-{number}/{at}"), group="g") for at in range(number + 1)]
        plans.append(plan(images, previous=plans[-1], cell_images=10))
        assert counted_again(*plans[-2:]) == number + 1
    heads = [[(head.candidates, head.cells, head.runs) for head in made.heads] for made in plans]
    first = (6, (), (1, 2, 3))
    assert heads[3] == [first, (4, (), ())]
    assert heads[6] == [first, (15, (4, 5, 6), ()), (7, (), ())]
    assert [head.is_merged for head in plans[6].heads] == [True, True, False]


def test_a_source_that_has_not_changed_or_has_lost_images_keeps_its_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [image(f"{at}") for at in range(200)]
    before = plan(images[:100])
    before = plan(images, previous=before)
    monkeypatch.setattr(shard_merging, "TOGETHER", 2)
    assert plan(images, previous=before).digest == before.digest
    assert not any(head.is_merged for head in plan(images[:-1], previous=before).heads)


def test_a_plan_puts_a_bounded_number_of_shards_together() -> None:
    heads = [plan([image("0")]).heads[0]] * (TOGETHER * MOST_MERGES + 100)
    groups = merge_groups(heads, 10**6, lambda head: "")
    assert [len(group) for group in groups] == [TOGETHER] * MOST_MERGES


def test_only_small_shards_of_one_cell_are_taken_as_many_as_make_a_new_one() -> None:
    few, many = plan([image("0")]).heads[0], plan([image(f"{n}") for n in range(999)]).heads[0]
    for size, wanted in ((1, []), (2, [2, 2]), (3, [3])):
        groups = merge_groups([few, many] * 5, size, lambda head: "")
        assert [len(group) for group in groups] == wanted
        assert all(group.count(few) == len(group) for group in groups)


@pytest.mark.soak
def test_the_number_of_shards_stays_bounded_after_40_small_refreshes() -> None:
    images = [image(f"first/{at}") for at in range(1000)]
    before = plan(images)
    first = len(before.heads)
    for number in range(40):
        images += [image(f"day-{number:03}/{at}") for at in range(24)]
        before = plan(images, previous=before)
    cells = sum(len(head.cells) or 1 for head in before.heads)
    assert len(places_of(before)) == len(images)
    assert len(cells_of(before)) == cells > 500
    most = most_shards(first, 40, 40 * 24, before.shard_images, TOGETHER)
    assert len(before.heads) <= most <= 350  # 500 if none were put together


def test_shards_of_different_values_are_never_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither if their images have another value since, nor if they had none before."""
    monkeypatch.setattr(shard_merging, "TOGETHER", 2)
    value = {image(f"step-{n}").uri: "rain" for n in range(6)}

    def planned(names: int, previous: Manifest | None = None, by: str | None = "w") -> Manifest:
        writer = ListingWriter(["w"] if by else [])
        for n in range(names):
            entry = image(f"step-{n}")
            labels = [value[entry.uri]] if by else []
            writer.add(entry.uri, "", entry.size, "1", group="one", labels=labels)
        return plan(writer.listing("s3://b"), previous=previous, by=by)

    second = planned(2, planned(1))
    value[image("step-1").uri] = "sun"
    third = planned(3, second)
    assert {value: len(at) for value, at in third.parts("w").items()} == {"rain": 2, "sun": 1}
    plain = planned(2, planned(1, by=None), by=None)
    assert planned(3, plain).parts("w").keys() == {"rain", "sun"}
