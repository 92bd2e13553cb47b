"""Tests the gate of a refresh: what it judges by, and that it names both datasets and numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.building import Request, Result
from pipeline.catalogue import Catalogue, keep_lens
from pipeline.comparing import Matrix, compare
from pipeline.dna import Lens
from pipeline.errors import GateError, NotFound, UsageError
from pipeline.refreshing import load_config
from pipeline.refreshing.bound_kinds import Bound
from pipeline.refreshing.gate import judge, require_kept, require_known
from pipeline.refreshing.verdict import Verdict
from tests.explaining.test_sensitivity import MOVED, SPEC, put
from tests.jobs.test_cli import Outcome, refused, vdna
from tests.refreshing.test_config import one, refusal, write
from tests.support import tiny_network as tiny
from tests.support.builders import photo, write_photos


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    catalogue = Catalogue(str(tmp_path_factory.mktemp("gate")))
    for name, images, moved in (("a", 320, {}), ("b", 240, MOVED), ("single", 1, {})):
        put(catalogue, name, images, moved)
    for name, weights in (("moved", {5: 1.0}), ("still", {0: 1.0}), ("signed", {5: 2.0, 0: -1.0})):
        keep_lens(catalogue, Lens.from_rows(name, SPEC, [("stem", *of) for of in weights.items()]))
    fitted = {"spec": SPEC.digest, "weights_sha256": SPEC.weights_sha256}
    keep_lens(
        catalogue, replace(Lens.from_rows("own", SPEC, [("stem", 5, 1.0)]), provenance=fitted)
    )
    return catalogue


def judged(place: Catalogue, **bound: Any) -> Verdict:
    (found,) = judge(place, [Bound(**{"a": "a", "b": "b", **bound})])
    return found


@pytest.mark.parametrize("layer", ["all", "stem", "head"])
@pytest.mark.parametrize("lens", [None, "moved", "still"])
def test_a_bound_breaks_if_the_lower_end_of_the_interval_is_above_it(
    place: Catalogue, layer: str, lens: str | None
) -> None:
    if lens and layer == "head":
        assert not judged(place, lens=lens, layer=layer, max=1000).holds  # no weight, no distance
        return
    weights = {"moved": 5, "still": 0}
    through = Lens.from_rows(lens, SPEC, [("stem", weights[lens], 1.0)]) if lens else None
    matrix = compare(place, ["a", "b"], lens=through)
    low, high = (matrix.of(layer, column)[0, 1] for column in ("low", "high"))
    assert low < matrix.of(layer, "emd_corrected")[0, 1] < high or lens == "still"
    for limit, holds in ((low, True), (np.nextafter(low, -1), low == 0), (high, True)):
        if limit >= 0:
            found = judged(place, lens=lens, layer=layer, max=float(limit))
            assert (found.value, found.holds) == (low, holds)


def test_a_pair_is_judged_separately_through_each_lens(place: Catalogue) -> None:
    moved, still = (judged(place, lens=lens, max=3) for lens in ("moved", "still"))
    assert (moved.holds, still.holds) == (False, True)
    assert "a and b, through lens moved: " in str(moved)
    assert str(moved).endswith(" at most 3: surely more")
    assert str(still).endswith(" at most 3: holds")


def test_a_bound_inside_the_interval_holds_and_says_so(place: Catalogue) -> None:
    found = judged(place, max=0)
    between = replace(found, bound=Bound(a="a", b="b", max=(found.low + found.emd_corrected) / 2))
    assert between.holds
    assert str(between).endswith("holds, as it is not surely more")


@pytest.mark.parametrize("bound", [{"b": "single"}, {"lens": "signed"}])
def test_without_an_interval_the_plain_distance_is_judged(
    place: Catalogue, bound: dict[str, str]
) -> None:
    found = judged(place, **bound, max=1000)
    assert np.isnan(found.low)
    assert found.value == found.emd > 0
    assert found.holds
    assert "bins, without an interval, at most 1000: holds" in str(found)
    assert not judged(place, **bound, max=float(np.nextafter(found.emd, 0))).holds
    assert judged(place, **bound, max=found.emd).holds


def test_an_undefined_distance_does_not_hold() -> None:
    found = Verdict(Bound(a="a", b="b", max=1000), nan, nan, nan, nan)
    assert not found.holds
    assert "a distance that is not defined, at most 1000: cannot hold" in str(found)
    row = json.loads(json.dumps(found.row, allow_nan=False))
    assert (row["value"], row["holds"], row["max"], row["lens"]) == (None, False, 1000, None)


def test_a_matrix_that_is_given_is_not_computed_again(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = compare(place)
    expected = judged(place, max=3, layer="stem")

    def again(*_: object, **__: object) -> Matrix:
        raise AssertionError("compared again")

    monkeypatch.setattr("pipeline.refreshing.gate.compare", again)
    results = [Result("a", place.find("a"), False, 0, ())]
    bound = Bound(a="b", b="a", layer="stem", max=3)  # the other way round
    (found,) = judge(place, [bound], (), results, [matrix])
    assert (found.low, found.emd) == (expected.low, expected.emd)


def test_errors_name_the_bound(place: Catalogue) -> None:
    other = Lens("other", (("stem", 2),), np.ones(2))
    path = Path(place.root.removeprefix("file://")) / "other.parquet"
    path.write_bytes(other.encode())
    found = judge(place, [Bound(a="a", b="b", lens=str(path), max=3), Bound(a="a", b="b", max=0)])
    assert [of.holds for of in found] == [False, False]  # the second bound is judged nevertheless
    assert "not judged: " in str(found[0])
    assert "at most 0: surely more" in str(found[1])
    with pytest.raises(UsageError, match=r"gate .*'max': 3.0.*another network") as told:
        require_kept(found, "x.yaml")
    assert "the gate of x.yaml says no: a and b, all neurons: " in str(told.value)
    assert "not judged" not in str(told.value)
    with pytest.raises(GateError, match="says no"):
        require_kept(found[1:], "x.yaml")


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ({"b": "c"}, "there is no dataset 'c'; there are a, b, new, single$"),
        ({"b": "sinlge"}, r"there is no dataset 'sinlge'; .*, single\. Did you mean single\?$"),
        ({"lens": "rain"}, "there is no lens 'rain'; .* has moved, own, signed, still"),
        ({"lens": "nowhere.parquet"}, "there is no lens 'nowhere.parquet'"),
        ({"a": "new", "layer": "stem"}, "there is no layer 'stem'; there are bn1, "),
        (
            {"b": "single", "lens": "moved", "layer": "head"},
            "lens moved gives the neurons of head no weight in sum, .*; take another layer",
        ),
        ({"lens": "own"}, "lens own was fitted to a network with the weights abab.*efficientnet"),
    ],
)
def test_unknown_datasets_layers_and_lenses_are_refused_before_a_build(
    place: Catalogue, bound: dict[str, str], said: str
) -> None:
    wrong = Bound(**{"a": "a", "b": "b", "max": 3.0, **bound})  # type: ignore[arg-type]
    requests = [Request("new", "photos"), Request("b", "photos")]
    with pytest.raises(UsageError, match=rf"gate {{.*'max': 3.0.*}}: {said}"):
        require_known([Bound(a="new", b="b", layer="bn1", max=1), wrong], place, requests)
    require_known([Bound(a="a", b="new", lens="moved", max=1)], place, requests)
    part = Bound(a="a", b="parts/rain", max=1)
    require_known([part], place, [*requests, Request("parts", "photos", by="weather")])
    with pytest.raises(UsageError, match="there is no dataset 'parts/rain'"):
        require_known([part], place, [*requests, Request("parts", "photos")])
    with pytest.raises(NotFound, match=r"gate {.*'parts/rain'.*parts/rain"):
        require_kept(judge(place, [part]), "x.yaml")
    requests = [Request("b", "photos"), Request("parts", "photos", by="weather")]
    for first, second in (("single", "b"), ("parts/rain", "a"), ("a", "parts/rain")):
        wrong = Bound(a=first, b=second, layer="stem", max=1)
        with pytest.raises(UsageError, match="there is no layer 'stem'; there are bn1"):
            require_known([wrong], place, requests)
    require_known([Bound(a="a", b="single", layer="stem", max=1)], place, requests)


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        ("{a: a, b: b}", "gate.0.max", "is missing in"),
        ("{a: a, b: b, max: -1}", "gate.0.max", "-1"),
        ("{a: a, b: b, max: .nan}", "gate.0.max", "nan"),
        ("{a: a, b: b, max: .inf}", "gate.0.max", "inf"),
        ("{a: a, b: b, max: many}", "gate.0.max", "'many'"),
        ("{a: a, b: b, max: true}", "gate.0.max", "True"),
        ("{a: a, b: b, max: 3, min: 1}", "gate.0.min", "1"),
        ("{a: 5, b: b, max: 3}", "gate.0.a", "5"),
        ("{a: a, b: a, max: 3}", "a and b are the same dataset", "'a'"),
        ("hello", "gate.0", "'hello'"),
    ],
)
def test_a_wrong_bound_is_named_with_its_text(
    tmp_path: Path, entry: str, field: str, value: str
) -> None:
    message = refusal(tmp_path, f"{one()}gate:\n  - {entry}\n")
    assert field in message
    assert value in message
    if entry.startswith("{a: a, b: b"):
        assert "{'a': 'a', 'b': 'b'" in message


def test_a_gate_may_be_left_out_and_takes_whole_numbers(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, one())).gate == []
    text = one() + "gate: [{a: a, b: b, max: 3}, {a: b, b: a, lens: l, layer: stem, max: 0.5}]\n"
    first, second = load_config(write(tmp_path, text)).gate
    assert (first.layer, first.lens, first.max) == ("all", None, 3)
    assert (second.layer, second.lens, second.max) == ("stem", "l", 0.5)


# The command.


def config(folder: Path, *bounds: str) -> Path:
    sources = [folder / name for name in ("day", "night")]
    if not sources[0].exists():
        for first, source in enumerate(sources):
            for path in write_photos(source, 12, 50 * first):
                with Image.open(path) as image:
                    dark = ImageEnhance.Brightness(image).enhance(1 - 0.8 * first)
                dark.save(path)
    small = json.dumps(tiny.install(folder).options | {"bins": 100})
    lines = [f"catalogue: {folder / 'c'}", f"defaults: {small}", "datasets:"]
    lines += [f"  - {{name: {source.name}, source: '{source}'}}" for source in sources]
    lines += ["gate:", *(f"  - {bound}" for bound in bounds)]
    path = folder / "datasets.yaml"
    path.write_text("\n".join(lines))
    return path


def refresh(file: Path, *options: object, exits: int = 0) -> Outcome:
    return vdna("refresh", "--config", file, "--workers", 0, *options, exits=exits)


def test_refresh_judges_and_exits_3_with_names_value_and_bound(tmp_path: Path) -> None:
    unknown = "{a: day, b: nigth, max: 3}"
    refused(refresh(config(tmp_path, unknown), exits=2), "datasets.yaml", "'nigth'", "'max': 3.0")
    assert not (tmp_path / "c" / "_log").exists()  # nothing was built
    wide, tight = "{a: day, b: night, max: 99}", "{a: night, b: day, layer: a, max: 0.001}"
    done = refresh(config(tmp_path, wide))
    assert "gate: day and night, all neurons: " in done.stdout
    assert "at most 99: holds" in done.stdout
    done = refresh(config(tmp_path, wide, tight), exits=3)
    assert "at most 99: holds" in done.stdout
    assert "at most 0.001: " in done.stdout
    assert "% of the distance\n    in night: " in done.stdout
    assert "(100 to a neuron's range)" in done.stdout  # the matrix is made nevertheless
    for told in ("says no: night and day, a: ", "bins", "at most 0.001"):
        assert told in done.stderr
    assert "at most 99" not in done.stderr
    told = json.loads(refresh(config(tmp_path, wide, tight), "--json", exits=3).stdout)
    assert [one["holds"] for one in told["gate"]] == [True, False]
    assert told["gate"][1]["value"] == pytest.approx(
        next(
            row["low"]
            for row in told["matrix"]
            if (row["a"], row["b"], row["layer"]) == ("day", "night", "a")
        )
    )
    assert "says no" in told["error"]


def test_a_lens_in_the_gate(tmp_path: Path) -> None:
    file = config(tmp_path, "{a: day, b: night, lens: one, max: 99}")
    refused(refresh(file, exits=2), "there is no lens 'one'")
    refresh(config(tmp_path, "{a: day, b: night, max: 99}"))
    place = Catalogue(str(tmp_path / "c"))
    lens = Lens.from_rows("one", place.spec(place.find("day").spec), [("a", 1, 1.0)])
    keep_lens(place, lens)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(lens.encode()[:-9])
    for bound, said in (
        (f"{{a: day, b: night, lens: {torn}, max: 99}}", "torn, or not a Parquet file"),
        ("{a: day, b: night, lens: one, layer: b, max: 99}", "neurons of b no weight in sum"),
    ):
        refused(refresh(config(tmp_path, bound), exits=2), "datasets.yaml: gate {'lens':", said)
    photo(99).save(tmp_path / "day" / "photo-0000.jpg")
    (tmp_path / "one.parquet").write_bytes(lens.encode())
    bounds = [
        f"{{a: day, b: night, lens: '{tmp_path / 'one.parquet'}', layer: a, max: 99}}",
        "{dataset: day, against: '@-1', lens: one, max_move: 99}",
        "{a: day, b: night, lens: one, max: 0}",
    ]
    told = json.loads(refresh(config(tmp_path, *bounds), "--json", exits=3).stdout)
    assert [row["outcome"] for row in told["gate"]] == ["holds", "holds", "broken"]
    apart = compare(place, ["day", "night"], lens=lens)
    moved = compare(place, ["day@-1", "day"], lens=lens)
    values = [float(found.of("all", "low")[0, 1]) for found in (apart, moved, apart)]
    assert [row["value"] for row in told["gate"]] == values
    assert len({*values}) == 2
    (reason,) = [of for of in told["gate"][2]["reasons"] if of["share"]]
    assert (reason["layer"], reason["neuron"]) == ("a", 1)
    assert "says no: day and night, through lens one: " in told["error"]
    assert "at most 0: surely more" in told["error"]


def test_a_gate_between_two_specs_is_an_error(tmp_path: Path) -> None:
    file = config(tmp_path, "{a: day, b: night, max: 99}")
    file.write_text(file.read_text().replace("name: night,", "name: night, bins: 50,"))
    done = refresh(file, exits=1)
    assert "day: 12 images" in done.stdout
    assert "bins" in done.stderr
    assert "'max': 99.0" in done.stderr


# The gate judges what this refresh built.


def parted(folder: Path, bins: dict[str, int], *bounds: str) -> Path:
    """Makes `day` with its parts `day/rain` and `day/sun`, and `night`, on the tiny network."""
    if not (folder / "day").exists():
        for first, name in enumerate(("day/rain", "day/sun", "night")):
            write_photos(folder / name, 12, 50 * first)
    network = tiny.install(folder)
    lines = [f"catalogue: {folder / 'c'}", f"defaults: {json.dumps(network.options)}", "datasets:"]
    by = {"day": ", by: 1", "night": ""}
    lines += [
        f"  - {{name: {name}, source: '{folder / name}', bins: {of}, spec: new{by[name]}}}"
        for name, of in bins.items()
    ]
    lines += ["gate:", *(f"  - {bound}" for bound in bounds)]
    path = folder / "datasets.yaml"
    path.write_text("\n".join(lines))
    return path


PARTS = "{a: day/rain, b: day/sun, max: 99}"


def test_parts_are_judged_as_this_refresh_counted_them(tmp_path: Path) -> None:
    refresh(parted(tmp_path, {"day": 100}, PARTS))  # whose spec is the catalogue's default
    photo(99).save(tmp_path / "day" / "rain" / "new.jpg")
    done = refresh(parted(tmp_path, {"day": 50}, PARTS), "--json")
    told = json.loads(done.stdout)
    catalogue = Catalogue(str(tmp_path / "c"))
    spec = next(one["spec"] for one in told["datasets"])
    assert spec != catalogue.head().default_spec
    matrix = compare(catalogue, ["day/rain", "day/sun"], spec=spec)
    assert matrix.bins == 50
    assert told["gate"][0]["emd"] == matrix.of("all", "emd")[0, 1]


def test_an_old_version_is_not_judged_instead_of_one_under_another_spec(tmp_path: Path) -> None:
    bounds = ["{a: day, b: night, max: 99}", "{a: night, b: day/sun, max: 99}", PARTS]
    refresh(parted(tmp_path, {"day": 100, "night": 100}, *bounds))
    broken = "{a: day/sun, b: day/rain, max: 0}"
    file = parted(tmp_path, {"day": 100, "night": 50}, *bounds, broken)
    done = refresh(file, exits=1)
    for pair in ("day and night", "night and day/sun"):
        assert f"gate: {pair}, all neurons: not judged: " in done.stdout
        assert f"{pair} were not made the same way: bins: " in done.stderr
    assert "gate: day/rain and day/sun, all neurons: " in done.stdout
    told = json.loads(refresh(file, "--json", exits=1).stdout)["gate"]
    assert [one["error"] is None for one in told] == [False, False, True, True]
    assert [one["holds"] for one in told[:3]] == [False, False, True]


NESTED = "{a: day, b: day/rain, max: 99}", "{a: day/sun, b: day, max: 0}"


def test_a_part_is_judged_against_its_whole_by_the_interval_of_pairs(tmp_path: Path) -> None:
    file = parted(tmp_path, {"day": 100}, *NESTED)
    assert "these may share images" not in refresh(file).stdout
    for row in json.loads(refresh(file, "--json").stdout)["gate"]:
        assert 0 == row["low"] == row["value"] < row["emd_corrected"] < row["high"]
        assert row["holds"]


def test_a_part_without_known_pairs_is_judged_against_its_whole_without_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.counting.reduction.pairs_of", lambda *_: None)
    file = parted(tmp_path, {"day": 100}, *NESTED)
    done = refresh(file, exits=3)
    assert done.stdout.count("bins, without an interval, as one is a part of the other, ") == 2
    assert "note: these may share images" in done.stdout
    for row in json.loads(refresh(file, "--json", exits=3).stdout)["gate"]:
        assert row["low"] is row["emd_corrected"] is None
        assert row["value"] == row["emd"] > 0
        assert row["holds"] == (row["max"] > 0)


def test_windows_have_an_interval_unless_they_have_days_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.counting.reduction.pairs_of", lambda *_: None)
    for number in (1, 2):
        write_photos(tmp_path / "day" / f"2026-11-0{number}", 12, 50 * number)
    windows = "day@last:2d", "day@2026-11-01..2026-11-01"
    bounds = [f"{{a: {window}, b: day@last:1d, max: 99}}" for window in windows]
    file = parted(tmp_path, {"day": 100}, *bounds)
    done = refresh(file)
    assert done.stdout.count("bins, without an interval, as they have days in common, ") == 1
    shared, apart = json.loads(refresh(file, "--json").stdout)["gate"]
    assert shared["low"] is shared["emd_corrected"] is None
    assert apart["low"] <= apart["emd_corrected"] < apart["high"]


def test_a_dataset_is_judged_against_a_window_of_its_days(tmp_path: Path) -> None:
    """Even the first version: its days are there. A window that is not there is an error."""
    for number in (1, 2):
        write_photos(tmp_path / "day" / f"2026-11-0{number}", 24, 50 * number)
    for path in (tmp_path / "day" / "2026-11-02").iterdir():
        Image.new("RGB", (96, 72)).save(path)  # so that this day is far from the other
    windows = {"@last:2d": 0, "@last:1d": 0, "@2026-11-01..2026-11-01": 99, "@last:3d": 99}
    bounds = [
        f"{{dataset: day, against: '{window}', max_move: {most}}}"
        for window, most in windows.items()
    ]
    done = refresh(parted(tmp_path, {"day": 100}, *bounds), "--json", exits=1)
    same, apart, kept, absent = json.loads(done.stdout)["gate"]
    assert (same["sides"], same["value"], same["holds"]) == (["day@last:2d", "day"], 0, True)
    assert (apart["sides"], apart["holds"]) == (["day@last:1d", "day"], False)
    matrix = compare(Catalogue(str(tmp_path / "c")), ["day@last:1d", "day"])
    assert apart["low"] == matrix.of(column="low")[0, 1] > 0
    assert apart["reasons"]
    assert 0 < kept["low"] == kept["value"] < 99
    assert kept["holds"]
    assert "there are no images of 2026-10-31" in absent["error"]


def test_a_dataset_whose_build_failed_is_not_judged_by_its_old_version(tmp_path: Path) -> None:
    bounds = ["{a: day, b: night, max: 99}", "{a: night, b: day/sun, max: 99}"]
    bins = {"day": 100, "night": 100}
    refresh(parted(tmp_path, bins, *bounds))
    (tmp_path / "day").rename(tmp_path / "away")
    done = refresh(tmp_path / "datasets.yaml", exits=1)
    assert done.stdout.count("not judged: day was not built") == 2
    assert "holds" not in done.stdout
    told = json.loads(refresh(tmp_path / "datasets.yaml", "--json", exits=1).stdout)
    assert [one["holds"] for one in told["gate"]] == [False, False]


def test_a_dataset_is_judged_against_its_own_versions(tmp_path: Path) -> None:
    bounds = [f"{{a: {a}, b: day, max: {limit}}}" for a, limit in (("day@-1", 99), ("day@1", 0))]
    refresh(parted(tmp_path, {"day": 100}, "{a: day@1, b: day, max: 0}"))
    refresh(parted(tmp_path, {"day": 100}, *bounds), exits=1)  # there is none before it yet
    for path in (tmp_path / "day").rglob("*.jpg"):
        Image.new("RGB", (32, 32)).save(path)
    done = refresh(tmp_path / "datasets.yaml", exits=3)
    assert "day@-1 and day, all neurons:" in done.stdout
    told = json.loads(refresh(tmp_path / "datasets.yaml", "--json", exits=3).stdout)
    assert [(one["a"], one["holds"]) for one in told["gate"]] == [
        ("day@-1", True),
        ("day@1", False),
    ]
    (tmp_path / "day").rename(tmp_path / "away")
    done = refresh(tmp_path / "datasets.yaml", exits=1)
    assert done.stdout.count("not judged: day was not built") == 2
    mistyped = tmp_path / "mistyped.yaml"
    bound = "{dataset: day, against: '@relase', max_move: 1}"
    mistyped.write_text((tmp_path / "datasets.yaml").read_text().replace(bounds[1], bound))
    said = refresh(mistyped, exits=2)  # and not 1 for the source that is away: nothing is listed
    refused(said, "mistyped.yaml: gate {'dataset': 'day', 'against': '@relase'", "no day@relase")
    kept = "{a: day@1, b: day@1, max: 0}"
    refused(refresh(parted(tmp_path, {"night": 50}, kept), exits=2), "the same dataset")


def test_a_bound_on_no_version_is_refused_before_a_build(place: Catalogue) -> None:
    with pytest.raises(UsageError, match=r"a@\?: after the @ stands '\?'"):
        require_known([Bound(a="a@?", b="b", max=1)], place, [])
    with pytest.raises(UsageError, match="there is no dataset 'x'; there are a, b"):
        require_known([Bound(a="x@1", b="b", max=1)], place, [])
    require_known([Bound(a="a@-1", b="a", max=1)], place, [])


def test_a_part_that_no_longer_exists_is_not_judged(tmp_path: Path) -> None:
    refresh(parted(tmp_path, {"day": 100}, PARTS))
    (tmp_path / "day" / "sun").rename(tmp_path / "day" / "fog")
    done = refresh(parted(tmp_path, {"day": 50}, PARTS), exits=1)
    assert "not judged: day has no part day/sun any more" in done.stdout
