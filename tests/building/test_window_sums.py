"""Windows of days: the sum of kept parts is the DNA of a build of these days' images alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import date, timedelta
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.buffers import Data
from pipeline.building import Request, Result, build_datasets, make_dna, rename_dataset
from pipeline.catalogue import (
    Catalogue,
    collect,
    parts_of,
    recount,
    remove,
    roll_back,
    tag_version,
    verify,
    window_sums,
)
from pipeline.comparing import compare
from pipeline.counting import Counter, plan_folds, reduction
from pipeline.engine import InProcess
from pipeline.errors import NotFound, SourceError, UsageError
from pipeline.events import Event, Finished, Said, Started, StepDone, heard_by, ignore, stage
from pipeline.explaining import RankRequest, difference, drift, rank, read_ranking
from pipeline.reporting.dataset_words import division_of
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import photo, same_counts_and_failures, write_photos

FIRST = date(2026, 10, 30)
NETWORK: dict[str, Any] = {}
"""Fields of a request that say how images are counted here; the fixture `network` fills it."""


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory: pytest.TempPathFactory) -> None:
    NETWORK.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


def day(number: int) -> str:
    return f"day={FIRST + timedelta(number)}"


def add_day(source: Path, number: int, images: int) -> None:
    write_photos(source / day(number), images, first_seed=1000 * number)


def build(place: Catalogue, source: Path, name: str = "cams", **options: Any) -> Result:
    settings = {"max_failures": 1.0, "by": "1", **NETWORK} | options
    request = Request(name, str(source), **settings)
    (result,) = build_datasets(place, [request], InProcess(), Resources(workers=0, threads=2))
    return result


def images_of(source: Path, listed: Path, numbers: range) -> Path:
    """Writes a list of the images of some days."""
    images = [path for number in numbers for path in sorted((source / day(number)).glob("*"))]
    listed.write_text("\n".join(map(str, images)))
    return listed


@pytest.fixture(scope="module")
def four_days(network: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Four days of one to four images, built one day after the other: a catalogue and a source."""
    base = tmp_path_factory.mktemp("four-days")
    catalogue, source = base / "catalogue", base / "source"
    for number in range(4):
        add_day(source, number, number + 1)
        build(Catalogue(str(catalogue)), source)
    return catalogue, source


@pytest.fixture
def place(four_days: tuple[Path, Path], tmp_path: Path) -> Catalogue:
    """A copy of the catalogue."""
    return Catalogue(str(shutil.copytree(four_days[0], tmp_path / "catalogue")))


@pytest.fixture
def source(four_days: tuple[Path, Path]) -> Iterator[Path]:
    """The source; days that a test adds are taken away."""
    _, source = four_days
    yield source
    for number in range(4, 9):
        shutil.rmtree(source / day(number), ignore_errors=True)


@settings(max_examples=3)
@given(data=st.data())
def test_a_window_equals_a_build_of_its_days_alone(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Days come in random orders, several at a time, and get more images later."""
    base = tmp_path_factory.mktemp("days")
    place, source = Catalogue(str(base / "catalogue")), base / "source"
    days = data.draw(st.integers(2, 5), "days")
    order = data.draw(st.permutations(range(days)), "order")
    for at, number in enumerate(order):
        add_day(source, number, data.draw(st.integers(1, 4), "images"))
        if at == days - 1 or data.draw(st.booleans(), "built"):
            build(place, source)
    photo(77).save(source / day(order[0]) / "later.jpg")
    (source / day(order[-1]) / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    build(place, source)
    first = data.draw(st.integers(0, days - 1), "first")
    last = data.draw(st.integers(first, days - 1), "last")
    name = f"cams@{FIRST + timedelta(first)}..{FIRST + timedelta(last)}"
    version, dna = place.find(name), place.load(name, folds=True)
    listed = images_of(source, base / "images.txt", range(first, last + 1))
    alone = build(Catalogue(str(base / "alone")), listed, by="")
    clean = Catalogue(str(base / "alone")).load("cams")
    assert same_counts_and_failures(dna, clean)
    assert (version.images, version.failed) == (alone.version.images, alone.version.failed)
    np.testing.assert_allclose(dna.mean, clean.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dna.m2, clean.m2, rtol=1e-9, atol=1e-12)
    assert dna.folds is not None
    manifest = place.manifest(name, version)
    sizes = {index: sum(h.candidates for h in heads) for index, heads in manifest.folds().items()}
    layer = dna.layers[0]
    folds = place.open_file("folds", name, version).read_folds(layer)
    assert {index: fold.images + fold.failed for index, fold in folds.items()} == sizes
    summed = reduce(add, (fold.counts for fold in folds.values()))
    assert np.array_equal(summed, dna.select([layer]).counts)


@pytest.mark.parametrize(
    "built",
    ["yesterday", "2026-11-24T00:00:00", 7, None],
    ids=["word", "no zone", "number", "none"],
)
def test_a_damaged_note_of_a_window_is_made_again(place: Catalogue, built: object) -> None:
    name = f"cams@{FIRST}..{FIRST + timedelta(1)}"
    version = place.find(name)
    ((note),) = [item.uri for item in storage.walk(place.root) if "/windows/" in item.uri]
    good = storage.read(note)
    storage.replace(note, json.dumps(json.loads(good) | {"built": built}).encode())
    assert place.find(name).dna == version.dna
    assert "+00:00" in json.loads(storage.read(note))["built"]


def test_the_same_days_have_the_same_bits_whatever_else_there_is(
    place: Catalogue, source: Path, tmp_path: Path
) -> None:
    name = f"cams@{FIRST}..{FIRST + timedelta(2)}"
    before = place.find(name)
    add_day(source, 7, 3)
    build(place, source)
    after = place.find(name)
    assert after == before
    whole = place.find("cams@last:4", at=4)
    current = place.find("cams", at=4)
    assert same_counts_and_failures(place.load("cams@last:4", at=4), place.load("cams", at=4))
    assert (whole.images, whole.part_of) == (current.images, "cams")


def test_a_window_has_the_failures_of_parts_without_an_image(tmp_path: Path) -> None:
    """Such parts are not committed: a day may lose one of its hours, or be torn as a whole."""
    place, source = Catalogue(str(tmp_path / "catalogue")), tmp_path / "source"
    for number, hours in enumerate(("ab", "at", "tt")):
        for hour in range(2):
            folder = source / day(number) / f"hour={hour}"
            write_photos(folder, 2, first_seed=100 * number + 10 * hour)
            if hours[hour] == "t":
                for path in folder.iterdir():
                    path.write_bytes(b"\xff\xd8 torn")
    build(place, source, by="2", max_failures=0.9)
    whole = place.find("cams")
    assert (whole.images, whole.failed) == (6, 6)
    assert same_counts_and_failures(place.load("cams@last:3d"), place.load("cams"))
    windows = {name: place.find(f"cams@{name}") for name in ("last:3", "last:2d")}
    assert {name: (found.images, found.failed) for name, found in windows.items()} == {
        "last:3": (6, 6),
        "last:2d": (2, 6),
    }
    with pytest.raises(NotFound, match="none of 4 candidates is an image that can be read"):
        place.find("cams@last:1d")


@pytest.mark.soak
def test_a_wrong_count_is_repaired_as_a_verification_advises_in_parts_and_windows_too(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "FAN_IN", 2)
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    image, *_ = write_photos(source / day(4), 40, first_seed=400)
    build(place, source, shard_images=1)
    status = image.stat()
    photo(999).save(image, quality=5)
    image.write_bytes(image.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    name = "cams@last:1d"
    window, whole = place.find(name), place.find("cams")
    parts = parts_of(place.head(), "cams", whole.spec)

    def wrong() -> list[str]:
        found = recount(place, engine=InProcess(), sample=None, weights=NETWORK["weights"])
        return [finding.detail for finding in found if not finding.ok]

    named = {uri for of in wrong() for uri in re.findall(r"file://\S+/partials/\w+\.parquet", of)}
    assert len(named) == 1
    of_files = {name: window, "cams": whole, **parts}
    files = [place.uri("dna", of.spec, each, of.dna) for each, of in of_files.items()]
    for uri in [*named, *files]:
        storage.delete(uri)
    for folder in ("cells", "nodes"):
        storage.delete_tree(storage.join(place.work_uri("cams", whole.spec), folder))
    build(place, source, shard_images=1)
    assert wrong() == []
    assert [finding.detail for finding in verify(place) if not finding.ok] == []
    clean = make_dna(source / day(4), max_failures=0.9, threads=2, **NETWORK)
    assert same_counts_and_failures(place.load(name), clean)


def test_a_window_reads_no_image_and_is_made_once(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counter, "make", lambda *_, **__: pytest.fail("counted again"))
    first = place.find("cams@last:2d")
    assert first.images == 7
    monkeypatch.setattr(window_sums, "compose", lambda *_, **__: pytest.fail("added up again"))
    assert place.find("cams@last:2d") == first
    assert place.find("cams@last:2") == first
    monkeypatch.undo()
    storage.delete(place.uri("folds", first.spec, "cams@last:2d", first.dna))
    told: list[Event] = []
    with heard_by(told.append), stage(ignore, Started(1, 1)):
        again = place.find("cams@last:2d")
    assert told == []  # a listener knows one stage at a time
    assert again.sha256 == first.sha256
    assert place.load("cams@last:2d", folds=True).images == 7


def test_a_window_is_added_up_again_if_a_build_has_removed_sums_under_it(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose, failed = window_sums.compose, list[bool]()

    def compose_later(*args: Any, **options: Any) -> Any:
        if not failed:
            failed.append(True)
            raise SourceError("a sum is gone")
        return compose(*args, **options)

    monkeypatch.setattr(window_sums, "compose", compose_later)
    assert place.find("cams@last:2d").images == 7
    assert failed == [True]


def test_how_far_the_sums_of_a_window_are_is_told(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "FAN_IN", 2)  # a small window has a tree, too
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    told: list[Event] = []
    with heard_by(told.append):
        version = place.find("cams@last:4")
        assert place.find("cams@last:4") == version  # it is kept, which takes no time
    said, started, *steps, finished = told
    manifest = place.manifest("cams@last:4", version)
    levels, _ = plan_folds(manifest, "memory://x", version.spec, version.products)
    assert levels
    sums = sum(map(len, levels)) + len(place.spec(version.spec).layers)
    assert said == Said(f"cams@last:4: adding up {len(manifest.heads)} shards")
    assert started == Started(sums, sums, unit="sums", step="sums")
    assert [type(step) for step in steps] == [StepDone] * sums
    assert finished == Finished()


def test_windows_are_named_wherever_a_dataset_is(place: Catalogue, source: Path) -> None:
    matrix = compare(place, ["cams@last:1d", "cams@last:3d", "cams"])
    assert matrix.names == ("cams@last:1d", "cams@last:3d", "cams")
    assert (matrix.of("all", "emd") >= 0).all()
    paired = matrix.of("all", "paired")  # all images of the smaller one are in the larger one
    assert paired[0, 1] == paired[1, 2] == 1
    found = difference(place, f"cams@{FIRST}..{FIRST + timedelta(1)}", "cams@last:3d")
    assert found.changes is not None
    assert (found.changes.added, found.changes.removed, found.changes.equal) == (7, 1, 2)


def test_images_are_ranked_by_their_distance_to_a_window(
    place: Catalogue, source: Path, tmp_path: Path
) -> None:
    """They are, again, when the window has come to mean other days."""
    listed = images_of(source, tmp_path / "images.txt", range(2, 4))
    build(place, listed, "alone", by="")
    add_day(source, 4, 2)

    out = str(tmp_path / "near.parquet")

    def ranked(to: str, out: str | None = None) -> dict[str, float]:
        asked = RankRequest(str(source / day(4)), to, weights=NETWORK["weights"], out=out)
        found = rank(place, asked, InProcess(), resources=Resources(workers=0, threads=2))
        assert found.name == to
        return {image.entry.uri: image.emd for image in found.nearest}

    before = ranked("cams@last:2d", out)
    assert before == ranked("alone")
    assert len(before) == 2
    read = read_ranking(place, out)
    assert (read.name, read.version.images) == ("cams@last:2d", 7)
    build(place, source)
    assert ranked("cams@last:2d") != before
    with pytest.raises(NotFound, match=r"near\.parquet ranks .* of other images now"):
        read_ranking(place, out)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("last:2d", "the days from 2026-11-01 to 2026-11-02"),
        (f"{FIRST}..{FIRST + timedelta(2)}", "the days from 2026-10-30 to 2026-11-01"),
    ],
)
def test_a_window_is_said_to_be_one(place: Catalogue, source: Path, name: str, said: str) -> None:
    shown = CliRunner().invoke(app, ["show", f"cams@{name}", "-c", place.root])
    assert f"\n  window of  cams, {said}\n" in shown.stdout
    told = rf"cams@{re.escape(name)}: adding up \d shards\n(\d)/\1 sums  .*/s  in 0:00:\d\d\n"
    assert re.fullmatch(told, shown.stderr)
    assert division_of(place.find(f"cams@{name}")) == f"It is a window of cams: {said}."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cams@last:9d", r"and 2 more \(cams@2026-10-25..2026-11-02:4 takes .*; cams has"),
        ("cams@last:9", "only 4 of 9 days have images"),
        ("cams@2026-10-31..2026-11-03", "no images of 2026-11-03"),
        ("cams@2025-01-01..2025-01-02", "no day of it has images"),
        ("cams/day-2026-10-30@last:1d", "has no parts, so it keeps no days"),
        ("none@last:1d", "has no dataset 'none'"),
    ],
)
def test_a_window_that_is_not_there_is_refused(
    place: Catalogue, source: Path, name: str, message: str
) -> None:
    with pytest.raises(NotFound, match=message):
        place.find(name)


def test_a_dataset_without_days_has_no_window(place: Catalogue, tmp_path: Path) -> None:
    write_photos(tmp_path / "weather" / "rain", 2)
    build(place, tmp_path / "weather", "weather")
    with pytest.raises(NotFound, match="no part of weather is of a day, but rain; build it with"):
        place.find("weather@last:1d")


def test_a_window_has_no_history(place: Catalogue, source: Path) -> None:
    for refused in (
        lambda: tag_version(place, "cams@last:2d", "good"),
        lambda: roll_back(place, "cams", "last:2d"),
        lambda: drift(place, "cams@last:2d"),
    ):
        with pytest.raises(UsageError, match="cams@last:2d is a window of days"):
            refused()
    with pytest.raises(UsageError, match="name the dataset"):
        remove(place, ["cams@last:2d"])


def test_gc_takes_the_files_of_windows_and_no_sum_that_they_need(
    place: Catalogue, source: Path, tmp_path: Path
) -> None:
    version = place.find("cams@last:3d")
    then = time.time() - 30 * 86400
    for path in (tmp_path / "catalogue").rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))
    removed, _ = collect(place, keep=1)
    assert removed
    assert not list((tmp_path / "catalogue").rglob("_windows/*.parquet"))
    assert [finding for finding in verify(place) if not finding.ok] == []
    assert place.find("cams@last:3d").sha256 == version.sha256


def test_windows_follow_a_renamed_and_a_rolled_back_dataset(place: Catalogue, source: Path) -> None:
    version = place.find("cams@last:2d")
    rename_dataset(place, "cams", "eyes")
    assert same_counts_and_failures(place.load("eyes@last:2d"), place.load("cams@last:2d", at=4))
    assert place.find("eyes@last:2d").images == version.images
    with pytest.raises(NotFound):
        place.find("cams@last:2d")
    roll_back(place, "cams", 3)
    assert place.find("cams@last:2d").images == 5


def test_sums_that_are_gone_are_named(place: Catalogue, source: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "catalogue" / "_work" / "cams")
    with pytest.raises(SourceError, match="cams@last:2d: some sums of its days are gone"):
        place.find("cams@last:2d")


def test_a_window_is_added_up_under_the_wanted_spec_alone(
    place: Catalogue, source: Path, tmp_path: Path
) -> None:
    first = place.find("cams").spec
    work = tmp_path / "catalogue" / "_work" / "cams"
    before = set(work.rglob("partials/*.parquet"))
    build(place, source, bins=50, spec="new")
    second = next(spec for spec in place.head().datasets["cams"] if spec != first)
    for path in before:
        path.unlink()
    assert place.find("cams@last:2d", spec=second[:12]).images == 7
    compared = compare(place, ["cams@last:1d", "cams@last:2d"], spec=second)
    assert compared.bins == 50
    with pytest.raises(SourceError, match="some sums of its days are gone"):
        place.find("cams@last:2d", spec=first[:12])
    with pytest.raises(NotFound, match="cams has no version under spec 0000"):
        place.find("cams@last:2d", spec="0000")


def test_a_day_that_is_added_leaves_the_other_days_alone(
    place: Catalogue, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daily refresh writes the files of one part, not of every day that there was."""
    spec = place.find("cams").spec
    before = parts_of(place.head(), "cams", spec)
    written: list[str] = []
    create = storage.create

    def spy(uri: str, data: Data) -> bool:
        written.append(uri)
        return create(uri, data)

    monkeypatch.setattr(storage, "create", spy)
    add_day(source, 4, 2)
    result = build(place, source)
    assert {name: result.parts[name] for name in before} == before
    assert [uri for uri in written if "/cams/day-2026-11-03/" in uri]
    assert not [uri for uri in written for name in before if f"/{name}/" in uri]
    one = before["cams/day-2026-10-31"]
    storage.delete(place.uri("folds", spec, "cams/day-2026-10-31", one.dna))
    add_day(source, 5, 1)
    build(place, source)
    assert [finding for finding in verify(place) if not finding.ok] == []


def test_a_build_without_a_catalogue_agrees(place: Catalogue, source: Path, tmp_path: Path) -> None:
    listed = images_of(source, tmp_path / "images.txt", range(2, 4))
    assert same_counts_and_failures(
        place.load("cams@last:2d"), make_dna(listed, threads=2, **NETWORK)
    )
