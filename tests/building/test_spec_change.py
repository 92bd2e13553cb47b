"""A dataset is counted in another way than before only where that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import api
from pipeline.building import CalibrationRequest, Request, Result, planner
from pipeline.catalogue import Catalogue, remove
from pipeline.errors import UsageError
from pipeline.refreshing import refresh
from pipeline.spec import Resources
from tests.jobs.test_cli import vdna
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

RESOURCES = Resources(workers=0, threads=1)


@pytest.fixture
def place(tmp_path: Path) -> Catalogue:
    write_photos(tmp_path / "photos", 3)
    catalogue = Catalogue(str(tmp_path / "c"))
    build(catalogue, tmp_path)
    return catalogue


def build(catalogue: Catalogue, folder: Path, name: str = "a", **options: Any) -> Result:
    wanted = tiny.install(folder).options | options
    return api.build(
        catalogue, Request(name, str(folder / "photos"), **wanted), resources=RESOURCES
    )


def test_another_source_or_a_small_rest_under_a_new_spec_has_to_be_meant(
    place: Catalogue, tmp_path: Path
) -> None:
    write_photos(tmp_path / "elsewhere", 3)
    asked = tiny.install(tmp_path).options | {"bins": 4, "spec": "new"}
    other = Request("a", str(tmp_path / "elsewhere"), **asked)
    with pytest.raises(UsageError, match=r"its source was .*photos, and is .*elsewhere now; if it"):
        api.build(place, other, resources=RESOURCES)
    for photo in sorted((tmp_path / "photos").iterdir())[:2]:
        photo.unlink()
    with pytest.raises(UsageError, match=r"it had 3 images of .*photos, and has 1 now"):
        build(place, tmp_path, bins=4, spec="new")
    assert len(place.head().datasets["a"]) == 1
    api.build(place, replace(other, replace=True), resources=RESOURCES)
    assert len(place.head().datasets["a"]) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bins": 4}, "bins was 8 and is 4. Give"),
        ({"resize": "fast"}, r"preprocess.resize was 'clean' and is 'fast'\. Give"),
        (
            {"bins": 4, "resize": "fast", "crop": "center"},
            r"bins was 8 and is 4; preprocess.crop was 'none' and is 'center'; preprocess.resize",
        ),
    ],
)
def test_a_build_in_another_way_is_refused_and_both_sides_are_named(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, told: str
) -> None:
    head = place.head()
    monkeypatch.setattr(planner, "list_source", lambda *_, **__: pytest.fail("it was listed"))
    with pytest.raises(
        UsageError, match=f"^a: its latest version was .*compared: {told}"
    ) as caught:
        build(place, tmp_path, **options)
    (spec,) = head.datasets["a"]
    assert "or give `spec='new'` to begin versions of spec " in str(caught.value)
    assert str(caught.value).endswith(f"beside those of spec {spec[:12]}")
    assert place.head() == head


def test_a_spec_that_is_asked_for_has_versions_of_its_own(place: Catalogue, tmp_path: Path) -> None:
    first = place.find("a")
    coarse = build(place, tmp_path, bins=4, spec="new")
    assert (coarse.changed, coarse.replaced) == (True, None)
    assert place.head().datasets["a"] == {first.spec: first, coarse.version.spec: coarse.version}
    # Both go on without being asked for, and asking again begins nothing.
    assert [build(place, tmp_path, bins=bins).changed for bins in (8, 4)] == [False, False]
    assert not build(place, tmp_path, bins=4, spec="new").changed
    with pytest.raises(UsageError, match="bins was 4 and is 5"):  # the latest version's
        build(place, tmp_path, bins=5)


def test_where_nothing_is_left_behind_nothing_is_asked(place: Catalogue, tmp_path: Path) -> None:
    assert build(place, tmp_path, "b", bins=4).changed
    remove(place, ["a"])
    assert build(place, tmp_path, bins=4).changed
    assert build(place, tmp_path, "c", spec="new").changed


def test_other_ranges_and_another_network_are_refused(place: Catalogue, tmp_path: Path) -> None:
    out = tmp_path / "own.parquet"
    network = {name: tiny.install(tmp_path).options[name] for name in ("extractor", "weights")}
    asked = CalibrationRequest([str(tmp_path / "photos")], str(out), **network)  # type: ignore[arg-type]  # fields by name
    api.calibrate(asked, resources=RESOURCES)
    with pytest.raises(UsageError, match=r"compared: ranges_digest was '.*' and is '"):
        build(place, tmp_path, ranges=str(out))
    with pytest.raises(
        UsageError, match=r"extractor was 'tiny' and is 'efficientnet_lite0'; .* dif"
    ):
        build(place, tmp_path, extractor="efficientnet_lite0", weights=None, ranges=None)


def test_a_refresh_says_which_dataset_and_builds_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photos(tmp_path / name, 2)
    file = tmp_path / "datasets.yaml"

    def write(more: str) -> None:
        lines = [f"catalogue: {tmp_path / 'dnas'}", "datasets:"]
        lines += [f"  - {{name: a, source: '{tmp_path / 'a'}'{more}}}"]
        lines += [f"  - {{name: b, source: '{tmp_path / 'b'}'}}"]
        options = json.dumps(tiny.install(tmp_path).options)
        file.write_text("\n".join([f"defaults: {options}", *lines]))

    write("")
    refresh(str(file), resources=RESOURCES).require_ok()
    write(", bins: 4")
    words = ("refresh", "--config", file, "--workers", 0)
    done = vdna(*words, exits=2)
    assert "a: its latest version was counted in another way" in done.stderr
    assert "bins was 8 and is 4. Give the options of that version to go on" in done.stderr
    assert f"give `spec: new` in {file} to begin versions of spec" in done.stderr
    assert "b: 2 images; nothing to do" in done.stdout
    write(", bins: 4, spec: new")
    assert "a: 2 images; committed" in vdna(*words).stdout
    assert "a: 2 images; nothing to do" in vdna(*words).stdout
    assert len(Catalogue(str(tmp_path / "dnas")).head().datasets["a"]) == 2
    write(", spec: old")
    with pytest.raises(UsageError, match=r"datasets\.0\.spec is 'old': choose same or new"):
        refresh(str(file), resources=RESOURCES)
