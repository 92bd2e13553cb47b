"""Tests bounds of a dataset against its own past, on unreadable images and on numbers of images."""

from __future__ import annotations

import json
import re
import shutil
from decimal import Decimal
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pipeline.building import Request, rename_dataset
from pipeline.catalogue import Catalogue, former_names, remove, renames, tag_version
from pipeline.comparing import CONFIDENCE, compare
from pipeline.errors import GateError, NotFound, UsageError
from pipeline.refreshing import Refreshed, load_config
from pipeline.refreshing.bound_kinds import (
    Bound,
    FailedBound,
    ImagesBound,
    MoveBound,
    read_bound,
)
from pipeline.refreshing.gate import judge, require_kept, require_known
from pipeline.refreshing.verdict import AnyVerdict, CountVerdict, Verdict
from pipeline.storage import local_path
from tests.explaining.test_sensitivity import MOVED, put
from tests.refreshing.test_config import one, refusal, write
from tests.refreshing.test_gate import parted, refresh
from tests.support.builders import photo


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Makes `a` of three versions, of which the last moved, and `once` and `tagged` of one."""
    catalogue = Catalogue(str(tmp_path_factory.mktemp("bounds")))
    put(catalogue, "a", 160, {})  # commit 1
    put(catalogue, "once", 32, {})
    put(catalogue, "a", 200, {})  # commit 3
    put(catalogue, "a", 240, MOVED)  # commit 4
    tag_version(catalogue, "a@3", "release")
    put(catalogue, "tagged", 32, {})
    tag_version(catalogue, "tagged", "first")
    return catalogue


def moved(place: Catalogue, since: int = 0, **bound: Any) -> Verdict:
    given = {"dataset": "a", "against": "@-1", "max_move": 3.0, **bound}
    (found,) = judge(place, [MoveBound(**given)], since=since)
    assert isinstance(found, Verdict)
    return found


# Against its own past.


@pytest.mark.parametrize("layer", ["all", "stem"])
@pytest.mark.parametrize("against", ["@-1", "@-2", "@3", "@1", "@release", "@2999-10"])
def test_a_move_is_judged_by_the_interval_of_the_named_version(
    place: Catalogue, against: str, layer: str
) -> None:
    matrix = compare(place, [f"a{against}", "a"])
    low = float(matrix.of(layer, "low")[0, 1])
    found = moved(place, against=against, layer=layer, max_move=low)
    assert (found.value, found.outcome) == (low, "holds")
    assert found.emd == matrix.of(layer, "emd")[0, 1]
    if low:
        below = moved(place, against=against, layer=layer, max_move=float(np.nextafter(low, 0)))
        assert below.outcome == "broken"


def test_versions_that_share_images_are_judged_by_the_interval_of_pairs(tmp_path: Path) -> None:
    bound = "{dataset: day, against: '@-1', max_move: 0}"
    refresh(parted(tmp_path, {"day": 100}, bound))
    photo(99).save(tmp_path / "day" / "rain" / "new.jpg")
    (row,) = json.loads(refresh(tmp_path / "datasets.yaml", "--json").stdout)["gate"]
    catalogue = Catalogue(str(tmp_path / "c"))
    matrix = compare(catalogue, ["day@-1", "day"])
    assert matrix.of("all", "paired")[0, 1] == 1
    assert (row["low"], row["high"]) == tuple(
        matrix.of("all", column)[0, 1] for column in ("low", "high")
    )
    assert (row["outcome"], row["new_version"]) == ("holds", True)


def test_without_known_pairs_the_plain_move_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.counting.reduction.pairs_of", lambda *_: None)
    bound = "{dataset: day, against: '@-1', max_move: 99}"
    refresh(parted(tmp_path, {"day": 100}, bound))
    photo(99).save(tmp_path / "day" / "rain" / "new.jpg")
    done = refresh(tmp_path / "datasets.yaml")
    assert "without an interval, as it is not known which images both versions have" in done.stdout
    (row,) = json.loads(refresh(tmp_path / "datasets.yaml", "--json").stdout)["gate"]
    assert (row["value"], row["low"], row["false_alarm_rate"]) == (row["emd"], None, None)
    (found,) = judge(Catalogue(str(tmp_path / "c")), [Bound(a="day@-1", b="day", max=99)])
    assert isinstance(found, Verdict)
    assert (found.row["value"], found.row["low"]) == (row["emd"], None)


def test_the_refresh_that_changes_nothing_judges_the_last_change_again(tmp_path: Path) -> None:
    bound = "{dataset: day, against: '@-1', max_move: 0.5}"
    file = parted(tmp_path, {"day": 100}, bound)
    done = refresh(file)
    assert "gate: day@-1 and day, all neurons: no earlier version yet" in done.stdout
    for path in (tmp_path / "day").rglob("*.jpg"):
        Image.new("RGB", (32, 32)).save(path)
    done = refresh(file, exits=3)
    assert "at most 0.5: surely more\n" in done.stdout
    assert "says no: day@-1 and day, all neurons: " in done.stderr
    number = Catalogue(str(tmp_path / "c")).head().number
    done = refresh(file, exits=3)  # nothing is committed, and it is not forgotten
    assert "surely more; this refresh made no new version, so that of commit " in done.stdout
    (row,) = json.loads(refresh(file, "--json", exits=3).stdout)["gate"]
    assert (row["commit"], row["against_commit"], row["new_version"]) == (number, 1, False)
    assert (row["kind"], row["outcome"], row["holds"]) == ("move", "broken", False)


def test_the_version_before_is_the_one_before_what_this_refresh_commits(place: Catalogue) -> None:
    assert [of and (of.commit, of.against, of.new) for of in (moved(place, 3).judged,)] == [
        (4, 3, True)
    ]
    unchanged = moved(place, 4)
    assert unchanged.judged is not None
    assert not unchanged.judged.new
    assert str(unchanged).endswith("so that of commit 4 is judged")


@pytest.mark.parametrize(
    "bound",
    [
        *({"dataset": "once", "against": of} for of in ("@-1", "@release", "@2020-01", "@1")),
        {"against": "@-3"},
    ],
)
def test_no_earlier_version_yet_breaks_nothing_and_is_told(
    place: Catalogue, bound: dict[str, str]
) -> None:
    found = moved(place, 99, **bound)
    assert found.judged is not None
    assert not found.judged.new
    assert found.outcome == "no earlier version yet"
    assert str(found).endswith("all neurons: no earlier version yet, so nothing is judged")
    require_kept([found], "x.yaml")
    row = json.loads(json.dumps(found.row, allow_nan=False))
    assert (row["holds"], row["value"], row["error"]) == (None, None, None)
    assert (row["against_commit"], row["false_alarm_rate"]) == (None, None)
    assert not found.holds


@pytest.mark.parametrize("against", ["@4", "@5", "@7"])
@pytest.mark.parametrize("since", [3, 7])
def test_a_number_of_the_version_that_is_judged_is_no_earlier_one(
    place: Catalogue, against: str, since: int
) -> None:
    found = moved(place, since, against=against)
    assert found.outcome == "no earlier version yet"
    assert found.row["commit"] == 4


def test_a_name_that_means_a_version_of_another_spec_only_is_an_error(tmp_path: Path) -> None:
    bounds = [f"{{dataset: day, against: '{of}', max_move: 0}}" for of in ("@release", "@1")]
    refresh(parted(tmp_path, {"day": 100}, "{dataset: day, min_images: 1}"))
    tag_version(Catalogue(str(tmp_path / "c")), "day", "release")
    rows = json.loads(refresh(parted(tmp_path, {"day": 100}, *bounds), "--json").stdout)["gate"]
    assert {row["outcome"] for row in rows} == {"no earlier version yet"}
    for path in (tmp_path / "day").rglob("*.jpg"):
        Image.new("RGB", (32, 32)).save(path)
    for _ in range(2):
        done = refresh(parted(tmp_path, {"day": 50}, *bounds), "--json", exits=1)
        rows = json.loads(done.stdout)["gate"]
        assert [row["outcome"] for row in rows] == ["not judged"] * 2
        assert all("has no version under spec" in row["error"] for row in rows)


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Makes `y` of two versions, the first tagged `rel`, and renames it to `yy`, then to `z`."""
    catalogue = Catalogue(str(tmp_path_factory.mktemp("renamed")))
    put(catalogue, "y", 24, {})
    tag_version(catalogue, "y", "rel")  # commit 2 holds y@1, too
    put(catalogue, "y", 32, MOVED)  # commit 3
    rename_dataset(catalogue, "y", "yy")
    rename_dataset(catalogue, "yy", "z")  # commit 5
    return catalogue


@pytest.mark.parametrize(
    ("against", "name"), [("@-1", "y@1"), ("@rel", "y@rel"), ("@2", "y@2"), ("@2020-01", "")]
)
def test_a_renamed_dataset_says_under_which_name_its_past_is(
    renamed: Catalogue, against: str, name: str
) -> None:
    bound = MoveBound(dataset="z", against=against, max_move=0.001)
    requests = [Request("z", "photos")]
    if not name:
        with pytest.raises(UsageError, match="renamed y to yy, and there is no y@2020-01 either"):
            require_known([bound], renamed, requests)
        return
    require_known([bound], renamed, requests)
    found = moved(renamed, dataset="z", against=against, max_move=0.001)
    assert found.outcome == "no earlier version yet"
    assert str(found) == (
        f"z{against} and z, all neurons: no earlier version of this name, so nothing is judged: "
        "commit 4 renamed y to yy, and its earlier versions and tags stay under the old name. To "
        f"judge by {name}, write `a: {name}`, `b: z` and `max: 0.001` in the place of `dataset`, "
        "`against` and `max_move`"
    )
    advised = Bound(a=name, b="z", max=0.001)
    require_known([advised], renamed, requests)
    (judged,) = judge(renamed, [advised])
    assert isinstance(judged, Verdict)
    assert (judged.error, judged.emd > 0) == (None, True)


def test_a_new_dataset_has_no_past_under_the_old_names_of_one_that_had_its_name(
    tmp_path: Path,
) -> None:
    catalogue = Catalogue(str(tmp_path))
    put(catalogue, "old", 24, {})
    rename_dataset(catalogue, "old", "photos")
    assert [each.old for each in former_names(renames(catalogue.log()), "photos")] == ["old"]
    remove(catalogue, ["photos"])
    put(catalogue, "photos", 32, MOVED)
    assert former_names(renames(catalogue.log()), "photos") == []
    rename_dataset(catalogue, "photos", "new")
    assert [each.old for each in former_names(renames(catalogue.log()), "new")] == ["photos"]
    found = moved(catalogue, dataset="new", against="@-1", max_move=0.001)
    assert "commit 5 renamed photos to new" in str(found)
    catalogue = Catalogue(str(tmp_path / "other"))
    put(catalogue, "old", 24, {})
    rename_dataset(catalogue, "old", "photos")
    remove(catalogue, ["photos"])
    put(catalogue, "photos", 32, MOVED)
    found = moved(catalogue, dataset="photos", against="@-1", max_move=0.001)
    assert "old" not in str(found)


def test_a_name_that_no_dataset_had_is_refused_although_it_was_renamed(
    renamed: Catalogue, tmp_path: Path
) -> None:
    for wrong in ("@rell", "@99"):
        bound = MoveBound(dataset="z", against=wrong, max_move=3.0)
        with pytest.raises(UsageError, match=f"there is no z{wrong}; .* there is no y+{wrong} eit"):
            require_known([bound], renamed, [Request("z", "photos")])
    too_far = moved(renamed, dataset="z", against="@-2")
    assert str(too_far).endswith("no earlier version yet, so nothing is judged")
    for name in ("y@-1", "y", "y@last:2d", "y@rell"):
        with pytest.raises(UsageError, match="there is no dataset 'y'; there are z"):
            require_known([Bound(a=name, b="z", max=1.0)], renamed, [])
    after = Catalogue(str(shutil.copytree(local_path(renamed.root), tmp_path / "c")))
    put(after, "z", 40, {})
    bound = MoveBound(dataset="z", against="@rel", max_move=3.0)
    with pytest.raises(UsageError, match=r"there is no z@rel; .*; commit 4 .* write `a: y@rel`"):
        require_known([bound], after, [Request("z", "photos")])
    two_back = moved(after, dataset="z", against="@-2")
    assert "To judge by y@1, write" in str(two_back)


@pytest.mark.parametrize("against", ["@realease", "@99", "@2020-01"])
def test_a_name_that_means_none_of_several_versions_is_an_error(
    place: Catalogue, against: str
) -> None:
    found = moved(place, against=against)
    assert found.outcome == "not judged"
    with pytest.raises(NotFound, match=rf"there is no a{against}; .*its versions are a@4, a@3"):
        require_kept([found], "x.yaml")


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        (
            {"against": "@realease"},
            "there is no a@realease; its tags are release, its versions are",
        ),
        ({"against": "@2020-01"}, "there is no a@2020-01; its versions are a@4, a@3 and a@1"),
        ({"against": "@0"}, "there is no a@0; its versions"),
        ({"against": "@99"}, "there is no a@99; its versions"),
        ({"against": "@8"}, "a@8 is the version of a commit to come, which may be the one that is"),
        ({"dataset": "once", "against": "@8"}, "once@8 is the version of a commit to come, which"),
        (
            {"dataset": "tagged", "against": "@frist"},
            "there is no tagged@frist; its tags are first",
        ),
        (
            {"dataset": "once", "against": "@release"},
            "there is no once@release; it has no tag, its versions are once@2; if that is the tag "
            "you mean, vdna tag once release gives it",
        ),
        ({"against": "@2999-10"}, "a@2999-10 is the version of a time that has not passed"),
        ({"a": "a@2999-10-01", "b": "once"}, "a@2999-10-01 is the version of a time that has not"),
        ({"a": "a@realease", "b": "once"}, "there is no a@realease; its tags are release"),
        ({"a": "once", "b": "once@release"}, "there is no once@release; it has no tag, its v"),
        ({"a": "once", "b": "a@-4"}, "there is no a@-4; its versions are a@4, a@3 and a@1"),
    ],
)
def test_a_version_that_will_never_be_is_refused_before_a_build(
    place: Catalogue, bound: dict[str, str], told: str
) -> None:
    given = {"max": 3.0} if "a" in bound else {"max_move": 3.0, "dataset": "a"}
    wrong = read_bound(given | bound)
    with pytest.raises(UsageError, match=rf"gate {{.*@.*3.0.*}}: {told}"):
        require_known([wrong], place, [Request("a", "photos")])


@pytest.mark.parametrize(
    "bound",
    [
        *({"dataset": "once", "against": of} for of in ("@-1", "@-9", "@2020-01")),
        *({"against": of} for of in ("@-1", "@-9", "@release", "@1", "@last:7d")),
        *({"dataset": "new", "against": of} for of in ("@-1", "@release", "@1", "@2020-01")),
        *({"a": of, "b": "a"} for of in ("a@-3", "once@-1", "a@7", "new@1", "new@-1")),
    ],
)
def test_a_version_that_the_refresh_may_make_is_not_refused(
    place: Catalogue, bound: dict[str, str]
) -> None:
    requests = [Request(name, "photos") for name in ("a", "once", "new")]
    given = {"max": 3.0} if "a" in bound else {"max_move": 3.0, "dataset": "a"}
    require_known([read_bound(given | bound)], place, requests)


def test_a_dataset_under_a_new_spec_has_no_earlier_version(tmp_path: Path) -> None:
    bound = "{dataset: day, against: '@-1', max_move: 99}"
    refresh(parted(tmp_path, {"day": 100}, bound))
    done = refresh(parted(tmp_path, {"day": 50}, bound))
    assert "gate: day@-1 and day, all neurons: no earlier version yet" in done.stdout
    photo(99).save(tmp_path / "day" / "rain" / "new.jpg")
    (row,) = json.loads(refresh(tmp_path / "datasets.yaml", "--json").stdout)["gate"]
    assert (row["outcome"], row["commit"], row["against_commit"]) == ("holds", 3, 2)


def test_a_part_and_a_failed_build_are_judged_as_for_pairs(tmp_path: Path) -> None:
    bounds = [
        f"{{dataset: {name}, against: '@-1', max_move: 99}}" for name in ("day", "day/rain")
    ] + ["{dataset: day, min_images: 1}"]
    refresh(parted(tmp_path, {"day": 100}, *bounds))
    untagged = MoveBound(dataset="day/rain", against="@release", max_move=99)
    with pytest.raises(UsageError, match=r"you mean, vdna tag day release gives it$"):
        require_known([untagged], Catalogue(str(tmp_path / "c")), [Request("day", "photos")])
    photo(99).save(tmp_path / "day" / "rain" / "new.jpg")
    told = json.loads(refresh(tmp_path / "datasets.yaml", "--json").stdout)["gate"]
    assert [row["outcome"] for row in told] == ["holds"] * 3
    (tmp_path / "day").rename(tmp_path / "away")
    done = refresh(tmp_path / "datasets.yaml", exits=1)
    assert done.stdout.count("not judged: day was not built") == 3


# Numbers of images.


def counted(place: Catalogue, bound: FailedBound | ImagesBound) -> AnyVerdict:
    (found,) = judge(place, [bound])
    return found


@pytest.mark.parametrize(("least", "outcome"), [(239, "holds"), (240, "holds"), (241, "broken")])
def test_too_few_images_break_a_bound(place: Catalogue, least: int, outcome: str) -> None:
    found = counted(place, ImagesBound(dataset="a", min_images=least))
    assert (found.value, found.outcome, found.false_alarm_rate) == (240, outcome, 0)
    if outcome == "broken":
        assert str(found) == "a, images: 240, at least 241: fewer"
        with pytest.raises(GateError, match=r"x\.yaml says no: a, images: 240, at least 241"):
            require_kept([found], "x.yaml")


@pytest.mark.parametrize(
    ("limit", "failed", "holds"),
    [
        *((0, 0, True), (0, 1, False), (3, 3, True), (3, 4, False), (1, 2, False)),
        *((0.1, 10, True), (0.1, 11, False), (0.999, 99, True)),
    ],
)
def test_too_many_unreadable_images_break_a_bound(limit: float, failed: int, holds: bool) -> None:
    bound = FailedBound(dataset="a", max_failed=limit)
    found = CountVerdict(bound, 100 - failed, failed)
    assert (found.holds, found.value) == (holds, failed)
    share = f" ({100 * limit:g}%)" if 0 < limit < 1 else ""
    ending = f"at most {bound.allowed(100)}{share}: {'holds' if holds else 'more'}"
    assert str(found) == f"a, failed images: {failed} of 100, {ending}"


def test_a_refresh_judges_failures_and_numbers(tmp_path: Path) -> None:
    file = parted(
        tmp_path,
        {"day": 100},
        "{dataset: day, max_failed: 0.5}",
        "{dataset: day, max_failed: 0}",
        "{dataset: day/sun, min_images: 12}",
        "{dataset: day, min_images: 30}",
    )
    file.write_text(file.read_text().replace("bins: 100", "bins: 100, max_failures: 5"))
    (tmp_path / "day" / "rain" / "broken.jpg").write_bytes(b"nothing")
    told = json.loads(refresh(file, "--json", exits=3).stdout)["gate"]
    assert [(row["kind"], row["value"], row["outcome"]) for row in told] == [
        ("failed", 1, "holds"),
        ("failed", 1, "broken"),
        ("images", 12, "holds"),
        ("images", 24, "broken"),
    ]
    said = refresh(file, exits=3)
    assert "gate: day, failed images: 1 of 25, at most 12 (50%): holds" in said.stdout
    assert "says no: day, failed images: 1 of 25, at most 0: more; day, images: 24" in said.stderr


# What a bound states, and what may not be stated.


def test_every_verdict_states_how_often_chance_breaks_it(place: Catalogue) -> None:
    assert moved(place).false_alarm_rate == pytest.approx((1 - CONFIDENCE) / 2) == 1 / 40
    assert moved(place).row["false_alarm_rate"] == 0.025
    assert Verdict(MoveBound(dataset="a", against="@-1", max_move=1), nan).false_alarm_rate is None


def test_the_table_of_the_gate_has_bounds_of_all_kinds(place: Catalogue) -> None:
    bounds = [
        ImagesBound(dataset="a", min_images=1),
        FailedBound(dataset="a", max_failed=0.5),
        MoveBound(dataset="once", against="@-1", max_move=1),
        MoveBound(dataset="a", against="@-1", max_move=0.1),
        Bound(a="a", b="once", max=99),
    ]
    done = Refreshed(place, (), (), tuple(judge(place, bounds)))
    table = done.to_pandas("gate")
    assert table["kind"].tolist() == ["images", "failed", "move", "move", "distance"]
    states = ["holds", "holds", "no earlier version yet", "broken", "holds"]
    assert table["outcome"].tolist() == done.to_polars("gate")["outcome"].to_list() == states
    assert done.to_polars("gate")["value"].to_list()[:3] == [240, 0, None]
    assert [len(of) for of in done.to_polars("gate")["reasons"].to_list()[2:]] == [0, 5, 0]


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        ("{dataset: a, against: '@-1'}", "gate.0.max_move", "is missing in"),
        ("{dataset: a, max_move: 1}", "gate.0.against", "is missing in"),
        ("{dataset: a, against: '@-1', max_move: -1}", "gate.0.max_move", "-1"),
        ("{dataset: a, against: '@-1', max_move: .inf}", "gate.0.max_move", "inf"),
        ("{dataset: a, against: '-1', max_move: 1}", "gate.0.against", "'-1'"),
        ("{dataset: a, against: '@?', max_move: 1}", "gate.0.against", "'@?'"),
        ("{dataset: a, against: '@?', max_move: 1}", "gate.0.against", "; give a commit's number"),
        ("{dataset: a, against: '@last:0d', max_move: 1}", "gate.0.against", ": a window has at l"),
        ("{dataset: a, against: '@', max_move: 1}", "gate.0.against", '"@-1" or "@release"'),
        ("{dataset: a@3, against: '@-1', max_move: 1}", "gate.0.dataset", "without a version"),
        ("{dataset: a@3, min_images: 1}", "gate.0.dataset", "'a@3'"),
        ("{dataset: a, max_failed: -1}", "gate.0.max_failed", "at least 0"),
        ("{dataset: a, max_failed: .nan}", "gate.0.max_failed", "nan"),
        ("{dataset: a, max_failed: .inf}", "gate.0.max_failed", "it must be finite"),
        ("{dataset: a, min_images: .inf}", "gate.0.min_images", "inf"),
        ("{dataset: a, against: '@-1', max_move: .inf}", "gate.0.max_move", "it must be finite"),
        ("{a: a, b: b, max: .inf}", "gate.0.max", "it must be finite"),
        ("{dataset: a, max_failed: 1.5}", "gate.0.max_failed", "a fraction below 1"),
        ("{dataset: a, min_images: 0}", "gate.0.min_images", "0"),
        ("{dataset: a, min_images: 1.5}", "gate.0.min_images", "1.5"),
        ("{dataset: a, min_images: 1, layer: b}", "gate.0.layer", "'b'"),
        ("{dataset: a, min_images: 1, max_failed: 1}", "gate.0", "each is a bound of its own"),
        ("{dataset: a}", "gate.0", "give one of max_move, max_failed, min_images"),
        ("{dataset: a, against: @-1, max_move: 1}", "is not YAML: line 5", "write the value in q"),
    ],
)
def test_a_wrong_bound_is_refused_by_its_field(
    tmp_path: Path, entry: str, field: str, value: str
) -> None:
    message = refusal(tmp_path, f"{one()}gate:\n  - {entry}\n")
    assert field in message
    assert value in message


def test_all_kinds_are_read(tmp_path: Path) -> None:
    text = f"""{one()}gate:
  - {{dataset: a, against: "@-1", layer: stem, lens: l, max_move: 3}}
  - {{dataset: a, max_failed: 0.5}}
  - {{dataset: a, min_images: 7}}
"""
    move, failed, images = load_config(write(tmp_path, text)).gate
    assert move == MoveBound(dataset="a", against="@-1", layer="stem", lens="l", max_move=3)
    assert failed == FailedBound(dataset="a", max_failed=0.5)
    assert images == ImagesBound(dataset="a", min_images=7)
    assert str(images) == "gate {'dataset': 'a', 'min_images': 7}"
    labels = [MoveBound(dataset="a", against="@-1", max_move=most).label for most in (0.5, 1)]
    assert [label.rpartition(": ")[2] for label in labels] == ["at most 0.5 bins", "at most 1 bin"]


@given(st.floats(0, 1e9), st.floats(0, 1, exclude_min=True, exclude_max=True))
@example(1e-05, 0.01)
@example(1.0001e-05, 0.0100001)
@example(0.1 + 0.2, 5e-324)
def test_a_label_states_the_whole_limit(most: float, share: float) -> None:
    """So bounds that differ in it alone are told apart, as metrics know a bound by its label."""
    (number,) = re.findall(": at most (.*) bins?$", Bound(a="a", b="b", max=most).label)
    assert float(number) == most
    (percent,) = re.findall(": at most (.*)%$", FailedBound(dataset="a", max_failed=share).label)
    assert float(f"{Decimal(percent) / 100}") == share


@pytest.mark.parametrize(
    "bound",
    [
        MoveBound(dataset="x", against="@-1", max_move=1),
        FailedBound(dataset="x", max_failed=1),
        ImagesBound(dataset="x", min_images=1),
    ],
)
def test_an_unknown_dataset_is_refused_before_a_build(
    place: Catalogue, bound: MoveBound | FailedBound | ImagesBound
) -> None:
    with pytest.raises(UsageError, match=r"gate .*: there is no dataset 'x'; there are a, once"):
        require_known([bound], place, [])
    require_known([bound.model_copy(update={"dataset": "a"})], place, [])
