"""A build says what it will read, and then what changed, and how much it has read."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import api, storage
from pipeline.building import Request, Result, build_datasets
from pipeline.building.reading_estimate import SHARD_REQUESTS, ReadingEstimate, estimate_reading
from pipeline.building.shard_time import note_speed
from pipeline.catalogue import Catalogue
from pipeline.comparing import Effort, Matrix, compare, movement_between, with_movements
from pipeline.comparing.version_movement import _without_interval
from pipeline.counting import Recipe, ShardJob, cells_uri, partial_uri
from pipeline.counting.cells import cell_key, encode_cells
from pipeline.events import Event, Listener, Said, StepDone, ignore
from pipeline.mapper import SerialMapper
from pipeline.refreshing.night_outcome import dataset_row, sum_up
from pipeline.reporting import build_json, build_lines, work_lines
from pipeline.sources import MERGED, Entry, ImageChanges, Manifest, Shard, plan
from pipeline.spec import Resources
from tests.golden import handmade
from tests.golden.handmade import NETWORK, SPEC, HandMade, Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    return Place(tmp_path)


class Engine(HandMade):
    """Makes partials by hand, for several datasets."""

    def beside_shards(self) -> SerialMapper:
        return SerialMapper()


def build(place: Place, *names: str) -> tuple[list[Result], list[str]]:
    """Builds datasets; returns the results, and what was said."""
    requests = [
        Request(
            name,
            str(place.folder / name),
            extractor=NETWORK.name,
            bins=SPEC.bins,
            ranges=str(place.folder / "tiny.ranges.parquet"),
            max_failures=100,
            shard_images=4,
            exemplars=0,
            image_hashes=False,
        )
        for name in names
    ]
    events: list[Event] = []
    results = build_datasets(place.catalogue, requests, Engine(), progress=events.append)
    return results, [event.message for event in events if isinstance(event, Said)]


def test_a_build_tells_what_changed_and_how_much_it_read(place: Place) -> None:
    place.photos("a", 40, bad=2)
    (first,), said = build(place, "a")
    assert any(each.startswith("a: up to 40 images of 40 to read, about 3") for each in said)
    assert (first.image_changes, first.read, first.reused) == (None, 40, 0)
    assert first.seconds > 0
    size = sum(path.stat().st_size for path in (place.folder / "a").iterdir())
    assert first.read_bytes == size
    line, moved = work_lines(first)
    assert line.startswith(f"  40 read ({size} bytes), in ")
    assert (
        moved
        == "  how far it moved is not known: there was no version of this spec to compare it with"
    )
    for name in ("photo-007", "photo-008"):
        (place.folder / "a" / f"{name}.jpg").write_bytes(b"another picture")
    (place.folder / "a" / "photo-009.jpg").unlink()
    (place.folder / "a" / "photo-100.jpg").write_bytes(b"a new one")
    (second,), said = build(place, "a")
    assert second.image_changes == ImageChanges(added=1, removed=1, changed=2, equal=37)
    assert second.read + second.reused == 40
    assert 3 <= second.read < 40
    assert any(each.startswith(f"a: up to {second.read} images of 40 to read") for each in said)
    (line,) = work_lines(second)
    assert line.startswith(
        f"  +1 -1 ~2 =37 images, {second.read} read ({second.read_bytes} bytes), {second.reused} "
        "not, as "
    )
    assert 0 < second.read_bytes < size
    assert build_lines(second, "drop")[1] == line
    told = build_json(second)
    assert told["image_changes"] == {"added": 1, "removed": 1, "changed": 2, "equal": 37}
    assert (told["read"], told["reused"]) == (second.read, second.reused)
    assert (told["read_bytes"], told["moved"]) == (second.read_bytes, None)
    (third,), said = build(place, "a")
    assert (third.changed, third.image_changes, third.read, third.reused) == (False, None, 0, 40)
    assert work_lines(third) == []
    assert not any("to read" in each for each in said)


def put_photos(place: Place, count: int, progress: Listener = ignore) -> Result:
    """Adds images to a dataset, and builds it by the function that measures its move."""
    place.photos("a", count)
    request = Request(
        "a",
        str(place.folder / "a"),
        extractor=NETWORK.name,
        bins=SPEC.bins,
        ranges=str(place.folder / "tiny.ranges.parquet"),
        shard_images=16,  # so that no neuron of a fold is without finite values
        exemplars=0,
        image_hashes=False,
    )
    return api.build(
        place.catalogue, request, engine=Engine(), resources=Resources(), progress=progress
    )


def test_a_build_tells_how_far_the_dataset_moved_as_compare_does(place: Place) -> None:
    first = put_photos(place, 160)
    assert (first.moved, first.commit) == (None, 1)
    assert first.unmeasured == "there was no version of this spec to compare it with"
    events: list[Event] = []
    second = put_photos(place, 176, events.append)
    assert events[-1] == Said("a: measuring how far it has moved")
    files = [item.uri for item in storage.walk(place.catalogue.root)]
    assert not any("/matrix/" in uri for uri in files)  # what is measured is not kept
    matrix = compare(place.catalogue, ["a@1", "a@2"])
    moved = second.moved
    assert moved == movement_between(matrix, "a@1", "a@2")
    assert moved is not None
    assert moved.paired == pytest.approx(1)
    assert moved.emd_corrected is not None
    assert moved.interval is not None
    low, high = moved.interval
    assert low <= moved.emd_corrected <= high
    assert (second.commit, second.unmeasured) == (2, "")
    told = build_json(second)
    assert (told["commit"], told["unmeasured"]) == (2, None)
    assert told["moved"] == {"from": "a@1", **asdict(moved)}
    assert work_lines(second)[1] == (
        f"  moved from a@1 by {moved.emd_corrected:.3g} bins [{low:.3g}, {high:.3g}]"
    )
    assert "moved since a@1" in second._repr_html_()
    third = put_photos(place, 176)
    assert (third.moved, third.unmeasured, third.commit) == (None, "", 2)


def test_a_version_whose_distance_cannot_be_measured_is_committed_and_says_why(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = put_photos(place, 12)
    before = first.version
    storage.delete(place.catalogue.uri("dna", before.spec, "a", before.dna))
    second = put_photos(place, 16)
    assert (second.changed, second.moved) == (True, None)
    assert place.catalogue.find("a") == second.version
    assert before.dna in second.unmeasured
    assert work_lines(second)[1] == f"  how far it moved is not known: {second.unmeasured}"
    assert build_json(second)["unmeasured"] == second.unmeasured

    def broken(*_: object, **__: object) -> Matrix:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr("pipeline.comparing.version_movement.compare", broken)
    third = put_photos(place, 20)
    assert third.unmeasured.startswith("unexpected ZeroDivisionError: by chance")
    assert place.catalogue.find("a") == third.version


def test_a_version_of_few_groups_has_a_distance_without_an_interval(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By chance a neuron of a single image may have no finite value; here none is without.
    make = handmade.random_dna
    monkeypatch.setattr(
        handmade, "random_dna", lambda spec, ranges, images, _: make(spec, ranges, images, images)
    )
    put_photos(place, 1)
    second = put_photos(place, 2)
    assert second.moved is not None
    assert second.moved.interval is None
    assert work_lines(second)[1] == (
        f"  moved from a@1 by {second.moved.emd:.3g} bins, not corrected "
        "(no interval, which takes two groups of images with values of every neuron)"
    )


def test_only_some_versions_of_a_large_refresh_are_measured(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.comparing.version_movement.MOVES_MEASURED", 2)
    names = ("a", "b", "c", "d")
    for name in names:
        place.photos(name, 12)  # of fewer, some neuron may have no finite value at all
    firsts, _ = build(place, *names)
    assert with_movements(place.catalogue, firsts) == (firsts, {})
    for name in names:
        place.photos(name, 12 if name == "b" else 13)
    results, _ = build(place, *names)
    events: list[Event] = []
    found, matrices = with_movements(place.catalogue, results, Effort(progress=events.append))
    assert matrices.keys() == {"a", "c"}
    assert [of.name for of in found] == list(names)
    why = [of.unmeasured for of in found]
    assert [of.moved is not None for of in found] == [True, False, True, False], why
    assert found[1] == results[1]  # it has not changed
    assert found[3].unmeasured == "a refresh measures the first 2 new versions; see vdna drift"
    assert [of.name for of in events if isinstance(of, StepDone)] == ["a", "c"]
    place.photos("b", 13)
    results, _ = build(place, *names)
    now = datetime.now(UTC)
    later = now + timedelta(days=3)
    for most, time, count in ((5, now, 4), (4, now, 3), (1, now, 1), (5, later, 1), (5, None, 1)):
        monkeypatch.setattr("pipeline.comparing.version_movement.MOVES_MEASURED", most)
        found, moves = with_movements(place.catalogue, results, now=time)
        assert [of.name for of in found if of.moved] == [*moves]
        assert (len(moves), "b" in moves) == (count, True)
        for result in found:  # by their folds, some that are measured again cannot be tested
            untested = result.moved and (result.moved.p is None or result.untested)
            assert result.changed or bool(result.unmeasured) == bool(untested)
    # While this refresh was under way, another job has replaced what it found unchanged.
    place.photos("c", 14)
    build(place, "c")
    monkeypatch.setattr("pipeline.comparing.version_movement.MOVES_MEASURED", 20)
    found, moves = with_movements(place.catalogue, results, now=datetime.now(UTC))
    assert [of.name for of in found if of.moved] == [*moves] == ["a", "b", "d"]


def test_a_version_of_few_groups_is_not_said_to_be_tested(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever changed, its p is never small enough for an alarm."""
    put_photos(place, 160)
    second = put_photos(place, 176)
    assert (second.untested, dataset_row(second)["alarm"]) == ("", False)
    monkeypatch.setattr("pipeline.comparing.version_movement.LEAST_STEPPED", 17)
    third = put_photos(place, 200)
    assert third.moved is not None
    assert third.moved.p is not None
    why = "a drift alarm takes 17 groups of images, and there are 16"
    row = dataset_row(third)
    assert (third.untested, row["alarm"], build_json(third)["untested"]) == (why, None, why)
    assert work_lines(third)[1].endswith(f"({why})")
    assert sum_up([row], (), (), {"requests": 1})["untested"] == 1


def test_an_interval_that_may_not_hold_is_not_told(place: Place) -> None:
    put_photos(place, 160)
    second = put_photos(place, 176)
    assert second.moved is not None
    unknown = replace(second.moved, paired=None)
    assert second.moved.interval is not None
    assert unknown.interval is None
    assert _without_interval(unknown).endswith("it is not known which images both versions have")


def test_each_dataset_of_a_build_has_its_own_numbers(place: Place) -> None:
    place.photos("a", 9)
    place.photos("b", 5)
    results, _ = build(place, "a", "b")
    assert [(of.name, of.read, of.reused) for of in results] == [("a", 9, 0), ("b", 5, 0)]
    place.photos("b", 6)
    results, _ = build(place, "a", "b")
    assert [of.image_changes for of in results] == [None, ImageChanges(1, 0, 0, 5)]


def test_a_version_before_whose_list_is_gone_does_not_keep_a_build_from_its_end(
    place: Place,
) -> None:
    place.photos("a", 5)
    (first,), _ = build(place, "a")
    version = first.version
    storage.delete(place.catalogue.uri("manifests", version.spec, "a", version.manifest))
    place.photos("a", 6)
    (second,), said = build(place, "a")
    assert second.changed
    assert second.image_changes is None
    assert any(each.startswith("a: what changed is not known: a: ") for each in said)


JOB = ShardJob(Recipe(SPEC, NETWORK, "memory://ranges", Resources()), "", "memory://work", "")

SIZES = st.lists(st.integers(-1, 10**9), min_size=1, max_size=30)


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(1, 6), st.data())
def test_the_bytes_of_few_shards_are_exact(
    sizes: list[int], most: int, data: st.DataObject
) -> None:
    members = [Entry(f"s3://b/{i}", "", size, "e") for i, size in enumerate(sizes)]
    cuts = range(0, len(members), most)
    shards = [Shard(i, 0, tuple(members[cut : cut + most])) for i, cut in enumerate(cuts)]
    manifest = Manifest.of(shards, most)
    missing = sorted(data.draw(st.sets(st.integers(0, len(shards) - 1), min_size=1, max_size=8)))
    found = estimate_reading(Catalogue("memory://none"), manifest, missing, JOB)
    left = [entry for index in missing for entry in shards[index].members]
    assert (found.images, found.of, found.seconds) == (len(left), len(sizes), None)
    assert found.bytes == (sum(max(entry.size, 0) for entry in left) or None)
    assert found.requests == len(left) + (SHARD_REQUESTS + 1) * len(missing)


def test_many_shards_are_sampled_and_the_time_is_that_of_the_last_run() -> None:
    manifest = plan([Entry(f"s3://b/{i}", "", 1000, f"{i}") for i in range(400)], shard_images=4)
    catalogue = Catalogue("memory://speeds")
    note_speed(catalogue, SPEC.digest, "cpu", images=1000, seconds=50)
    every = range(len(manifest.heads))
    found = estimate_reading(catalogue, manifest, every, JOB)
    asked = 400 + (SHARD_REQUESTS + 1) * len(every)
    assert found == ReadingEstimate(400, 400, 400_000, asked, seconds=pytest.approx(20))


@pytest.mark.parametrize("every", [2, 3, 4, 6, 12])
def test_the_sample_holds_large_shards_that_come_at_equal_distances(every: int) -> None:
    """As those of one part do, where a dataset is divided into parts."""
    shards = [
        Shard(i, 0, (Entry(f"s3://b/{i}", "", 10**6 if i % every == 1 else 10**3, "e"),))
        for i in range(960)
    ]
    manifest = Manifest.of(shards, 1)
    found = estimate_reading(Catalogue("memory://none"), manifest, range(960), JOB)
    whole = sum(shard.members[0].size for shard in shards)
    assert found.bytes is not None
    assert 0.5 * whole < found.bytes < 2 * whole


def test_the_time_goes_by_the_bytes_of_these_images_too() -> None:
    catalogue = Catalogue("memory://speeds-of-small-images")
    spent = {"decode": 10.0, "network": 40.0}
    note_speed(catalogue, SPEC.digest, "cpu", 1000, 50.0, 10_000_000, spent)
    for size, seconds in ((10_000, 2.0), (100_000, 5.6), (0, 2.0)):
        manifest = plan([Entry(f"s3://b/{i}", "", size, f"{i}") for i in range(40)])
        found = estimate_reading(catalogue, manifest, range(len(manifest.heads)), JOB)
        assert found.seconds == pytest.approx(seconds)


def test_only_what_is_in_a_store_takes_requests(tmp_path: Path) -> None:
    """Members of an archive are read in pieces, and images on a disk by none."""
    mib = 2**20
    entries = [Entry("s3://b/a.tar", f"{i:02}.jpg", mib, "e", access=f"tar:{i}") for i in range(17)]
    entries += [Entry(f"file:///photos/{i}", "", mib, "e") for i in range(5)]
    manifest = Manifest.of([Shard(0, 0, tuple(entries))], 99)
    for root, asked in (("memory://none", SHARD_REQUESTS + 1), (str(tmp_path), 0)):
        found = estimate_reading(Catalogue(root), manifest, [0], JOB)
        assert (found.images, found.bytes, found.requests) == (22, 22 * mib, 3 + asked)


def test_images_whose_sums_are_kept_are_not_to_be_read() -> None:
    """Only some cells of a shard that has changed are read, and only some runs of a joined cell."""
    work = f"memory://{uuid.uuid4().hex}"
    job, catalogue = replace(JOB, work_uri=work), Catalogue(work)
    note_speed(catalogue, SPEC.digest, "cpu", images=1000, seconds=50)

    def planned(left: Iterable[int], changed: int = -1, before: Manifest | None = None) -> Manifest:
        images = [
            Entry(f"s3://b/{n:02}", "", 10 + n, "2" if n == changed else "1", "g") for n in left
        ]
        return plan(images, previous=before, shard_images=99, cell_images=8)

    def keep(manifest: Manifest) -> str:
        """Stores a file of the cells of a plan; returns where."""
        (shard,) = manifest.shards
        cells = [cell_key(SPEC.digest, job.recipe.products, cell) for cell in shard.cell_runs()]
        uri = cells_uri(work, shard.key(SPEC.digest, job.recipe.products))
        storage.create(uri, encode_cells(dict.fromkeys(cells, b"sums")))
        return uri

    def estimate(manifest: Manifest) -> ReadingEstimate:
        return estimate_reading(catalogue, manifest, [0], job)

    first = planned(range(32))
    first_cells = keep(first)
    second = planned(range(32), 9, first)
    size, read = sum(range(10 + 8, 10 + 16)), 8
    wanted = ReadingEstimate(read, 32, size, read + SHARD_REQUESTS + 1, read * 0.05, at_most=False)
    assert estimate(second) == wanted
    assert str(wanted).startswith("about 8 images of 32 to read, about 172 bytes, about 15 ")
    third = planned(range(1, 32), 9, second)  # the second was never counted
    assert third.heads[0].origins == (second.heads[0].content, first.heads[0].content)
    assert estimate(third).images == 7 + 8
    small = planned([0, *range(8, 32)], -1, first)
    small_cells = keep(small)
    joined = planned([0, 8, 9, *range(16, 32)], -1, small)
    assert (joined.heads[0].cells, joined.heads[0].runs) == ((3, 8, 8), (1, 2, 8, 8))
    assert estimate(joined).images == 2
    keep(joined)
    after = planned([0, 8, 9, *range(16, 31)], -1, joined)
    assert (after.heads[0].runs, estimate(after).images) == ((1, 2, 8, 7), 7)
    storage.replace(small_cells, b"torn")
    assert estimate(joined).images == 3, "the sums of one image and of two are not in the first"
    storage.delete(first_cells)
    assert estimate(second).images == 32
    assert estimate(joined).images == 19


def test_kept_partials_of_small_shards_count_as_sums() -> None:
    """As of shards that were put together, when the new one changed before it was counted."""
    work = f"memory://{uuid.uuid4().hex}"
    members = tuple(Entry(f"s3://b/{n}", "", 1, "1") for n in range(6))
    shard = Shard(0, 0, members, (2, 4), (MERGED,))
    manifest = Manifest.of([shard], 9)
    job = replace(JOB, work_uri=work)
    assert estimate_reading(Catalogue(work), manifest, [0], job).images == 6
    key = Shard(0, 0, members[:2]).key(SPEC.digest, job.recipe.products)
    storage.create(partial_uri(work, key), b"sums")
    assert estimate_reading(Catalogue(work), manifest, [0], job).images == 4
    new = replace(shard, origins=())
    many = Manifest.of([shard, new] * 20, 9)  # some of each kind are looked at
    found = estimate_reading(Catalogue(work), many, range(40), job)
    assert (found.images, found.bytes) == (20 * (4 + 6), 20 * (4 + 6))
    assert found.requests == 20 * (4 + 6) + (SHARD_REQUESTS + 1) * 40


def test_an_estimate_in_words() -> None:
    whole = ReadingEstimate(23, 1141, bytes=4_140_000, requests=1234, seconds=5.2)
    assert str(whole) == (
        "up to 23 images of 1,141 to read, about 4.1 MB, about 1,234 requests, about 5 s of one "
        "worker as of late"
    )
    for size, words in ((999, "999 bytes"), (1000, "1.0 kB"), (83_000_000_000, "83 GB")):
        said = str(replace(whole, bytes=size, requests=0, seconds=None))
        assert said.endswith(f"to read, about {words}")
    assert str(ReadingEstimate(1, 1, None, 0, None)) == "up to 1 image of 1 to read"
