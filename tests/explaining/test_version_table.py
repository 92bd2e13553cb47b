"""Versions of a dataset are listed with what changed, and two of them are told apart."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalogue import Catalogue, remove, roll_back, tag_version
from pipeline.comparing import compare
from pipeline.errors import NotFound, SourceError, UsageError
from pipeline.explaining import difference, explain, list_versions
from pipeline.reporting import difference_json, difference_lines, version_lines
from pipeline.sources import Entry, ImageChanges, plan
from tests.golden.handmade import commit_dataset, hand_made


def image(name: str, content: int = 0) -> Entry:
    return Entry(f"s3://bucket/{name}.jpg", "", 100, f"e{content}")


def put(place: Catalogue, images: Sequence[Entry], name: str = "x") -> None:
    manifest = plan(images, shard_images=2)
    commit_dataset(place, name, manifest, [hand_made(shard) for shard in manifest.shards])


FIRST = [image(name) for name in ("a", "b", "c", "bad-1", "bad-2")]
SECOND = [image("a"), image("b", 1), image("bad-1"), image("bad-3"), image("d"), image("e")]


@pytest.fixture(scope="module")
def place() -> Catalogue:
    """Makes a dataset of three versions; the second one changes it, and the third adds to it."""
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    put(catalogue, FIRST)
    put(catalogue, [image("z")], "other")
    put(catalogue, SECOND)
    put(catalogue, [*SECOND, image("f")])
    tag_version(catalogue, "x@3", "good")
    return catalogue


def test_each_version_is_listed_with_what_changed_and_how_far_it_moved(place: Catalogue) -> None:
    third, second, first = list_versions(place, "x")
    assert [row.commit for row in (first, second, third)] == [1, 3, 4]
    assert [row.images for row in (first, second, third)] == [3, 4, 5]
    assert [row.failed for row in (first, second, third)] == [2, 2, 2]
    assert [row.tags for row in (first, second, third)] == [(), ("good",), ()]
    assert first.changes is first.movement is None
    assert second.changes == ImageChanges(added=3, removed=2, changed=1, equal=2)
    assert third.changes == ImageChanges(added=1, removed=0, changed=0, equal=6)
    distances = compare(place, ["x@1", "x@3", "x@4"], error_bars=False).of()
    assert (second.movement, third.movement) == (distances[0, 1], distances[1, 2])
    assert (first.drift, second.drift, third.drift) == (0, distances[0, 1], distances[0, 2])


def test_fewer_versions_know_the_one_before_the_last(place: Catalogue) -> None:
    everything = list_versions(place, "x")
    (row,) = list_versions(place, "x", limit=1)
    assert (row.changes, row.movement) == (everything[0].changes, everything[0].movement)
    assert row.drift == 0
    assert [of.commit for of in list_versions(place, "x@-1")] == [3, 1]
    with pytest.raises(NotFound, match="no dataset 'y'"):
        list_versions(place, "y")


def test_a_difference_is_of_one_commit_whatever_comes_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    for images in (FIRST, SECOND):
        put(place, images)
    before = difference(place, "x@-1", "x")

    def explained(*given: Any, **options: Any) -> Any:
        put(place, [image("f")])
        return explain(*given, **options)

    monkeypatch.setattr("pipeline.explaining.version_difference.explain", explained)
    found = difference(place, "x@-1", "x")
    assert found.changes == before.changes
    assert found.explanation is not None
    assert before.explanation is not None
    assert found.explanation.layers.equals(before.explanation.layers)


def test_what_gc_removed_is_listed_without_distances() -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    for images in (FIRST, SECOND, [*SECOND, image("f")]):
        put(place, images)
    gone = place.find("x@2")
    for kind in gone.sha256:
        storage.delete(place.uri(kind, gone.spec, "x", gone.digest_in(kind)))
    third, second, first = list_versions(place, "x")
    assert [row.kept for row in (third, second, first)] == [True, False, True]
    assert second.changes is second.movement is third.changes is third.movement is None
    assert third.drift is not None
    assert second.drift is None
    lines = version_lines([third, second, first])
    assert [line for line in lines if "files removed by gc" in line] == [lines[2]]
    assert lines[0].split() == [
        "commit",
        "time",
        "images",
        "failed",
        "change",
        *("plain", "move", "plain", "drift"),
        "tags",
    ]


def test_one_that_came_back_is_listed_again_without_a_move() -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    put(place, FIRST)
    remove(place, ["x"])
    roll_back(place, "x", 1)
    now, former = list_versions(place, "x")
    assert (now.commit, former.commit) == (3, 1)
    assert (now.movement, str(now.changes)) == (0, "+0 -0 ~0 =5")
    assert len(version_lines([former])) == 2


NAMES = st.lists(
    st.sampled_from(["a", "b", "c", "bad-1", "bad-2", "bad-3"]), min_size=1, unique=True
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES, NAMES, st.sets(st.sampled_from(["a", "bad-1"])))
def test_a_failure_is_new_if_the_image_was_read_before_or_was_not_there(
    before: list[str], after: list[str], changed: set[str]
) -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    put(place, [image("z"), *map(image, before)])
    put(place, [image("z", 1), *(image(n, 1 if n in changed else 0) for n in after)])
    old, new = place.find("x@1"), place.find("x@2")
    found = difference(place, "x@1", "x", named=9)
    bad = [{n for n in names if n.startswith("bad")} for names in (before, after)]
    assert {of.uri for of in found.failing} == {image(n).uri for n in bad[1] - bad[0]}
    assert found.mended == ()
    assert found.changes.added == len({*after} - {*before})
    assert found.changes.removed == len({*before} - {*after})
    assert found.changes.changed == 1 + len({*before} & {*after} & changed)
    assert (old.images, new.images) == (1 + len(before) - len(bad[0]), 1 + len(after) - len(bad[1]))


def test_a_difference_names_images_failures_and_neurons(place: Catalogue, tmp_path: Path) -> None:
    out = tmp_path / "images.parquet"
    found = difference(place, "x@1", "x@3", named=2, out=str(out), top=3)
    assert found.images == {
        "added": (("s3://bucket/bad-3.jpg", ""), ("s3://bucket/d.jpg", "")),
        "removed": (("s3://bucket/bad-2.jpg", ""), ("s3://bucket/c.jpg", "")),
        "changed": (("s3://bucket/b.jpg", ""),),
    }
    assert [of.uri for of in found.failing] == ["s3://bucket/bad-3.jpg"]
    rows = pq.read_table(out).to_pylist()
    assert {(row["change"], row["uri"][12:-4]) for row in rows} == {
        *(("added", name) for name in ("bad-3", "d", "e")),
        *(("removed", name) for name in ("bad-2", "c")),
        ("changed", "b"),
    }
    why = explain(place, "x@1", "x@3", top=3)
    assert found.explanation is not None
    assert found.explanation.neurons.equals(why.neurons)
    lines = difference_lines(found)
    assert lines[0] == "From x@1 to x@3: +3 -2 ~1 =2 images"
    assert "  + … and 1 more (added)" in lines
    assert "1 image cannot be read now:" in lines
    told = difference_json(found, 3)
    assert len(told["neurons"]) == 3
    assert told["changes"] == {"added": 3, "removed": 2, "changed": 1, "equal": 2}


def test_images_that_can_be_read_again_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    put(place, FIRST)
    put(place, [*FIRST, image("z")])
    real = Catalogue.failures
    monkeypatch.setattr(
        Catalogue, "failures", lambda self, name, of: real(self, name, of)[: "@1" in name and 2]
    )
    found = difference(place, "x@1", "x")
    assert [of.uri for of in found.mended] == ["s3://bucket/bad-1.jpg", "s3://bucket/bad-2.jpg"]
    assert found.failing == ()
    assert "2 images can be read now:" in difference_lines(found)


def test_the_same_twice_and_what_is_gone_are_refused(place: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'x' is given twice"):
        difference(place, "x", "x")
    with pytest.raises(UsageError, match=r"\.parquet"):
        difference(place, "x@1", "x", out=str(tmp_path / "x.csv"))
    same = difference(place, "x@4", "x")
    assert same.explanation is None
    assert difference_lines(same)[-1] == "Both have the same DNA: nothing has moved"
    assert difference_json(same, 3)["neurons"] == []
    gone = Catalogue(f"memory://{uuid.uuid4().hex}")
    put(gone, FIRST)
    put(gone, SECOND)
    former = gone.find("x@1")
    storage.delete(gone.uri("manifests", former.spec, "x", former.manifest))
    with pytest.raises(SourceError, match=r"x@1: .* is missing. `vdna gc` has removed the files"):
        difference(gone, "x@1", "x")
