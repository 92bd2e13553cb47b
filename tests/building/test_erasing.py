"""After an erasure every kept version is that of the other images, and nothing names the erased."""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.buffers import sha256
from pipeline.building import (
    Erased,
    EraseOptions,
    Request,
    Result,
    build_datasets,
    committer,
    erase_images,
    erasing,
    erasure_plan,
    erasure_recount,
    preview_erasure,
    rename_dataset,
    renaming,
)
from pipeline.building.erasure_plan import still_held
from pipeline.catalogue import (
    Catalogue,
    KeptVersion,
    ObjectSearch,
    Receipt,
    Version,
    collect,
    find_outliers,
    keep_lens,
    keep_outliers,
    missing_files,
    purging,
    roll_back,
    tag_version,
    tagging,
    verify,
    window_sums,
)
from pipeline.catalogue.replacing import ReplacedKey
from pipeline.comparing import with_movement
from pipeline.counting import cells_uri, compose, partial_uri, reduction
from pipeline.counting.leases import Lease, claim
from pipeline.dna import Lens
from pipeline.engine import InProcess
from pipeline.errors import (
    Conflict,
    CorruptFile,
    NotFound,
    SourceError,
    SpecMismatch,
    TransientError,
    UsageError,
    VdnaError,
)
from pipeline.events import Finished, Started, StepDone, StepFailed, ignore
from pipeline.explaining import RankRequest, rank
from pipeline.reporting import erased_lines, preview_lines
from pipeline.sources import ImageNames, entries_file, shard_merging
from pipeline.spec import LAYER_GAUSSIAN, Resources
from tests.support import tiny_network as tiny
from tests.support.builders import same_counts_and_failures
from tests.support.killer import Killed, Killer, killer
from tests.support.tiny_network import Oracle, Picture

__all__ = ["killer"]

RESOURCES = Resources(workers=0, threads=2, fetch_ahead=4)
clock = itertools.count(10**6)  # of so many digits that no time is the beginning of another


class Home:
    """A folder of pictures, a catalogue, and what each commit of a dataset should hold."""

    def __init__(self, there: Path, network: tiny.Place, images: Path | None = None) -> None:
        self.images = images or there / "images"
        self.images.mkdir(parents=True)
        self.catalogue = Catalogue(str(there / "catalogue"))
        self.network = network
        self.now: dict[str, Picture] = {}
        self.held: dict[int, dict[str, Picture]] = {}
        self.shards: dict[int, list[set[str]]] = {}
        self.identities: dict[str, list[str]] = {}
        self.stated: dict[int, dict[str, str]] = {}

    def write(self, name: str, seed: int, kind: str = "good") -> None:
        path = self.images / name
        path.parent.mkdir(exist_ok=True)
        self.now[name] = Picture(kind, seed)
        path.write_bytes(self.now[name].data)
        at = next(clock) * 10**9
        os.utime(path, ns=(at, at))
        self.identities.setdefault(name, []).append(storage.info(self.uri(name)).identity)

    def remove(self, name: str) -> None:
        (self.images / name).unlink(missing_ok=True)
        self.now.pop(name, None)

    def uri(self, name: str) -> str:
        return (self.images / name).as_uri()

    def build(self, name: str = "x", **options: Any) -> Result:
        result = self.built(name, **options)
        self.held[result.commit] = dict(self.now)
        manifest = self.catalogue.manifest(name, result.version)
        self.stated[result.commit] = self.stated_now()
        self.shards[result.commit] = [set(rows["uri"].to_pylist()) for _, rows in manifest.tables()]
        return result

    def built(self, name: str = "x", **options: Any) -> Result:
        values = {"exemplars": 2, "layer_gaussian": True, "max_failures": 0.99, "replace": True}
        values |= {
            "group_by": "1",
            "shard_images": 8,
            "cell_images": 2,
            **self.network.options,
            **options,
        }
        request = Request(name, str(self.images), **values)
        with InProcess() as engine:
            (result,) = build_datasets(self.catalogue, [request], engine, RESOURCES)
        return result

    def stated_now(self) -> dict[str, str]:
        """What tells the contents of the images that are there: a new time does, too."""
        return {name: self.identities[name][-1] for name in self.now}

    def texts(self, name: str) -> list[str]:
        """What tells that an image was there: its url, its path, and what told its contents."""
        return [self.uri(name), str(self.images / name), *self.identities[name]]

    def erase(
        self, *names: str, progress: Callable[[Any], None] = ignore, **options: Any
    ) -> Erased:
        values = {"reason": "asked for", "by": "ada", "weights": [self.network.weights], **options}
        with InProcess() as engine:
            return erase_images(
                self.catalogue,
                [str(self.images / name) for name in names],
                EraseOptions(**values),
                engine,
                RESOURCES,
                progress,
            )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def oracle(network: tiny.Place) -> Oracle:
    return Oracle(network)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of each test's pictures: it is one, for a catalogue names them by their paths."""
    return tmp_path_factory.mktemp("home") / "images"


@pytest.fixture
def home(tmp_path: Path, network: tiny.Place, images: Path) -> Home:
    shutil.rmtree(images, ignore_errors=True)
    return Home(tmp_path, network, images)


NOTED = ("now", "held", "stated", "shards", "identities")
FILLED: dict[tuple[Path, int], dict[str, Any]] = {}
"""What was noted of homes that are kept, by the place of their pictures and their number."""


def filled(home: Home, count: int = 24) -> Home:
    """Fills a home with so many pictures and builds it. The first one is kept, and then copied."""
    root = Path(storage.local_path(home.catalogue.root))
    kept = home.images.with_name(f"filled-{count}")
    if (home.images, count) not in FILLED:
        for number in range(count):
            home.write(f"{number % 3}/{number:02}.png", number)
        home.build()
        shutil.copytree(home.images, kept / "images")
        shutil.copytree(root, kept / "catalogue")
        FILLED[home.images, count] = copy.deepcopy({name: getattr(home, name) for name in NOTED})
    else:
        shutil.copytree(kept / "images", home.images, dirs_exist_ok=True)
        shutil.copytree(kept / "catalogue", root)
        for name, noted in copy.deepcopy(FILLED[home.images, count]).items():
            setattr(home, name, noted)
    return home


def wrong(home: Home, oracle: Oracle, version: Version, pictures: Mapping[str, Picture]) -> Any:
    """Lists what a version has that is not the truth of these pictures."""
    place = home.catalogue
    dna = place.load_version("x", version, layer_gaussian=LAYER_GAUSSIAN in version.products)
    truth = oracle.truth({home.uri(name): picture for name, picture in pictures.items()})
    return truth.differences(dna, place.failures("x", version), place.exemplars("x", version))


def texts_below(folder: Path) -> Iterator[str]:
    """Every text of every file, read in another way than the erasure reads them."""
    for path in folder.rglob("*"):
        yield str(path)
        if path.is_file():
            yield from texts_in(path.read_bytes())


def texts_in(data: bytes) -> Iterator[str]:
    yield data.decode("latin-1")
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        yield from (text.decode() for text in pq.read_metadata(io.BytesIO(data)).metadata.values())
        for column in table.columns:
            for leaf in leaves(column.combine_chunks()):
                for value in leaf.drop_null().to_pylist():
                    yield from texts_in(value) if isinstance(value, bytes) else [str(value)]
    elif data[:1] == b"{":
        yield json.dumps(json.loads(data), ensure_ascii=False)


def leaves(values: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_struct(values.type):
        for each in values.flatten():
            yield from leaves(each)
    elif pa.types.is_list(values.type):
        yield from leaves(values.flatten())
    elif pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        yield values


def naming(home: Home, *texts: str) -> list[str]:
    """Which of the texts stand somewhere in the catalogue."""
    found = set()
    for text in texts_below(Path(storage.local_path(home.catalogue.root))):
        found |= {wanted for wanted in texts if wanted in text}
    return sorted(found)


def identity(home: Home, name: str) -> str:
    return storage.info(home.uri(name)).identity


def require_sound(home: Home) -> None:
    assert [f for f in verify(home.catalogue, all_versions=True) if not f.ok] == []


NAMES = [f"{number % 2}/{number}.png" for number in range(10)]
KINDS = st.sampled_from(["good"] * 4 + ["empty", "not_an_image"])
STEP = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(st.none(), st.tuples(st.integers(0, 5), KINDS)),
    min_size=1,
    max_size=6,
)


@given(
    steps=st.lists(STEP, min_size=1, max_size=4),
    gone=st.sets(st.sampled_from(NAMES), min_size=1, max_size=3),
    again=st.sets(st.sampled_from(NAMES), max_size=2),
    keeps=st.booleans(),
)
@settings(
    max_examples=10,
    report_multiple_bugs=False,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@pytest.mark.soak
def test_each_version_is_the_truth_of_its_other_images(
    network: tiny.Place,
    oracle: Oracle,
    steps: list[dict[str, tuple[int, str] | None]],
    gone: set[str],
    again: set[str],
    keeps: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), network)
        home.write("0/z.png", 99)  # the source is never empty
        seen = {"0/z.png"}
        for step in steps:
            for name, what in step.items():
                if what is None:
                    home.remove(name)
                else:
                    home.write(name, *what)
                    seen.add(name)
            home.build()
        erased: set[str] = set()
        for names in (gone, again):
            known = sorted(names & seen - erased)
            if not keeps:
                for name in known:
                    home.remove(name)
            if known:
                home.erase(*known, drop_unreadable=True, source_keeps=keeps)
            erased.update(known)
        for number, pictures in home.held.items():
            left = {name: p for name, p in pictures.items() if name not in erased}
            versions = home.catalogue.commit(number).datasets.get("x", {})
            for version in versions.values():
                assert wrong(home, oracle, version, left) == [], number
            if not versions:  # another image of a shard has changed, or none can be read
                now = home.stated_now()
                changed = {home.uri(n) for n in left if home.stated[number][n] != now.get(n)}
                lost = [of for of in home.shards[number] if of & set(map(home.uri, erased))]
                assert any(changed & of for of in lost) or not any(
                    p.kind == "good" for p in left.values()
                )
        require_sound(home)
        assert naming(home, *(text for name in erased for text in home.texts(name))) == []
        if home.catalogue.head().datasets:
            home.build()


def test_no_object_names_an_erased_image(home: Home, oracle: Oracle) -> None:
    filled(home)
    home.write("2/05.png", 500)
    before = identity(home, "2/05.png")
    home.write("0/06.png", 501, kind="empty")
    home.build()
    own = [identity(home, name) for name in ("2/05.png", "0/06.png", "1/07.png")]
    home.write("2/05.png", 502)
    home.build()
    own += [before, identity(home, "2/05.png")]
    gone = ("2/05.png", "0/06.png", "1/07.png")
    names = [home.uri(name) for name in gone]
    assert naming(home, *names, *own) == sorted({*names, *own})
    for name in gone:
        home.remove(name)
    done = home.erase(*gone)
    assert (done.images, done.recounted, done.restated, done.dropped) == (3, {"x": 3}, {}, {})
    assert done.running == ()
    assert naming(home, *names, *own) == []
    for number, pictures in home.held.items():
        left = {name: p for name, p in pictures.items() if name not in gone}
        version = home.catalogue.find(f"x@{number}")
        assert wrong(home, oracle, version, left) == []
    require_sound(home)
    receipt = home.catalogue.head().receipt
    assert receipt is not None
    assert (receipt.images, receipt.by) == (3, "ada")
    with pytest.raises(NotFound, match=r"has no image .*05\.png"):
        home.erase(*gone)
    assert not home.build().changed


def test_an_image_in_shards_that_were_put_together_of_a_dataset_with_windows(
    home: Home, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard that has lost it is none of those that were put together and are unchanged."""
    monkeypatch.setattr(shard_merging, "TOGETHER", 2)
    for step in range(4):
        for day in (1, 2):
            for at in range(3):
                home.write(f"day=2026-11-0{day}/{step}-{at}.png", 100 * day + 10 * step + at)
        home.build(by="1", shard_images=64, cell_images=64)
    place = home.catalogue
    before = place.manifest("x", place.find("x"))
    assert [head.candidates for head in before.heads if head.is_merged] == [6, 6]
    sums = {name: place.find(name).images for name in ("x@last:2d", "x@last:1d")}
    assert sums == {"x@last:2d": 24, "x@last:1d": 12}
    first, windows = "day=2026-11-02/0-1.png", list(storage.walk(place.root))
    texts = (home.uri(first), str(home.images / first), identity(home, first))
    home.remove(first)
    done = home.erase(first)
    assert (done.recounted, done.dropped) == ({"x": 4, "x/day-2026-11-02": 4}, {})
    for number, pictures in home.held.items():
        left = {name: picture for name, picture in pictures.items() if name != first}
        assert wrong(home, oracle, place.find(f"x@{number}"), left) == [], number
    after = place.manifest("x", place.find("x"))
    assert [head.candidates for head in after.heads if head.is_merged] == [6]
    large = [(head.candidates, head.runs) for head in after.heads if head.candidates > 3]
    assert sorted(large) == [(5, ()), (6, (3, 3))], "what has lost an image is one run"
    assert naming(home, *texts) == []
    gone = [item.uri for item in windows if "/_windows/" in item.uri]
    assert gone
    assert [uri for uri in gone if storage.exists(uri)] == []
    sums = {name: place.find(name).images for name in ("x@last:2d", "x@last:1d")}
    assert sums == {"x@last:2d": 23, "x@last:1d": 11}
    require_sound(home)
    assert not home.build(by="1", shard_images=64, cell_images=64).changed


def test_what_was_replaced_is_read_once_for_the_whole_log(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 8)
    place, read = home.catalogue, list[str]()
    home.write("2/20.png", 20)
    home.build()
    for name in ("0/03.png", "1/04.png"):
        home.remove(name)
        home.erase(name)
    tag_version(place, "x@1", "first")
    parse = ReplacedKey.parse

    def parsed(text: str) -> ReplacedKey:
        read.append(text)
        return parse(text)

    monkeypatch.setattr(ReplacedKey, "parse", parsed)
    commits = {commit.number: commit for commit in place.log()}
    assert sorted(read) == sorted(place.head().replaced["x"])
    assert len(commits) == 5
    monkeypatch.undo()
    for number, commit in commits.items():
        assert commit == place.commit(number)
    assert commits[1].datasets["x"].values() != commits[2].datasets["x"].values()
    assert commits[3].datasets == commits[2].datasets == place.head().datasets


@pytest.mark.parametrize(
    ("is_begun", "fails"),
    [
        (False, True),
        (True, False),
        pytest.param(False, False, marks=pytest.mark.soak),
        pytest.param(True, True, marks=pytest.mark.soak),
    ],
)
def test_a_window_that_is_added_up_meanwhile_leaves_no_name(
    home: Home, monkeypatch: pytest.MonkeyPatch, is_begun: bool, fails: bool
) -> None:
    monkeypatch.setattr(reduction, "FAN_IN", 2)  # a small window has inner sums, too
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    for at in range(24):
        home.write(f"day=2026-11-0{1 + at % 2}/{at}.png", at)
    home.build(by="1", shard_images=1)
    place, gone = home.catalogue, "day=2026-11-02/1.png"
    home.remove(gone)
    if not is_begun:
        chosen = window_sums._chosen

        def erase_before(*args: Any) -> Any:
            found = chosen(*args)
            home.erase(gone)
            return found

        monkeypatch.setattr(window_sums, "_chosen", erase_before)

    def erase_after(*args: Any, **options: Any) -> Any:
        made = compose(*args, **options)
        nodes = [item.uri for item in storage.walk(place.root) if "/nodes/" in item.uri]
        kept = {uri: storage.read(uri) for uri in nodes}
        home.erase(gone)
        for uri, data in kept.items():  # of a thread that was slower
            storage.create(uri, data)
        if fails:
            raise SourceError("a partial is gone")
        return made

    monkeypatch.setattr(window_sums, "compose", erase_after)
    with pytest.raises(Conflict, match=r"x@last:1d: commit 2 erased images while this job ran"):
        place.find("x@last:1d")
    monkeypatch.undo()
    assert naming(home, *home.texts(gone)) == []
    assert not [item for item in storage.walk(place.root) if "/_windows/" in item.uri]
    assert place.find("x@last:1d").images == 11


def test_a_version_that_shares_a_list_keeps_its_dna(home: Home, oracle: Oracle) -> None:
    filled(home)
    home.remove("0/03.png")
    later = home.build()
    preview = preview_erasure(home.catalogue, [str(home.images / "0/03.png")])
    done = home.erase("0/03.png")
    assert (done.recounted, done.restated) == ({"x": 1}, {"x": 1})
    why = "in one file with that of a version that {} such an image; the counts stay"
    wanted, told = preview_lines(preview), erased_lines(done)
    assert wanted[1:3] == [
        "  count again: x@1",
        f"  write only the list of images anew, which is {why.format('has')}: x@2",
    ]
    assert told[1:3] == [
        "  x: 1 version counted again",
        "  x: of 1 version only the list of images was written anew, which was "
        + why.format("had"),
    ]
    now = home.catalogue.find("x")
    assert now.dna == later.version.dna
    assert now.sha256["dna"] == later.version.sha256["dna"]
    assert home.catalogue.find("x@1").dna == now.dna  # their images are the same by now
    assert wrong(home, oracle, home.catalogue.find("x@1"), home.now) == []
    assert naming(home, home.uri("0/03.png")) == []
    require_sound(home)
    assert not home.build().changed


def test_tags_rollback_and_numbers_go_on(home: Home, oracle: Oracle) -> None:
    filled(home)
    tag_version(home.catalogue, "x", "first")
    home.write("0/90.png", 90)
    home.build()
    first = {name: p for name, p in home.now.items() if name not in ("0/90.png", "2/02.png")}
    home.remove("2/02.png")
    home.erase("2/02.png")
    place = home.catalogue
    assert wrong(home, oracle, place.find("x@first"), first) == []
    assert place.find("x@-1") == place.find("x@1") == place.find("x@first")
    roll_back(place, "x", "first")
    assert wrong(home, oracle, place.find("x"), first) == []
    tag_version(place, "x@3", "second")
    home.write("1/91.png", 91)
    assert wrong(home, oracle, home.build().version, home.now) == []
    require_sound(home)


def test_the_images_of_a_source_are_not_erased_silently(home: Home) -> None:
    filled(home)
    with pytest.raises(UsageError, match=r"still has 1 of 1 image, .*`source_keeps=True`"):
        home.erase("1/01.png")
    assert home.catalogue.head().number == 1
    preview = preview_erasure(home.catalogue, [str(home.images / "1/01.png"), "/no/such.png"])
    assert preview.held == (str(home.images / "1/01.png"),)
    assert (preview.images, preview.unknown) == (1, ("/no/such.png",))
    assert preview.cost.images == 1  # that of its cell
    assert home.catalogue.head().number == 1
    home.erase("1/01.png", source_keeps=True)
    assert home.catalogue.find("x").images == 23
    assert home.build().version.images == 24
    assert [home.catalogue.find(f"x@{number}").images for number in (1, 2, 3)] == [23, 23, 24]
    home.remove("0/03.png")
    home.erase("0/03.png")
    images = [home.catalogue.find(f"x@{number}").images for number in (1, 2, 3, 4)]
    assert images == [22, 22, 23, 23]
    require_sound(home)


def test_a_version_that_the_source_brings_back_is_not_replaced(home: Home) -> None:
    home.write("0/a.png", 1)
    home.write("1/b.png", 2)
    first = home.build().version
    home.erase("1/b.png", source_keeps=True)
    assert home.build().version.dna == first.dna
    assert [home.catalogue.find(f"x@{number}").images for number in (1, 2, 3)] == [1, 1, 2]


def test_sums_that_name_nothing_are_removed_too(home: Home) -> None:
    filled(home, 90)
    before = home.build(exemplars=0, replace=True, by="").version
    place, work = home.catalogue, home.catalogue.work_uri("x", before.spec)
    old = [place.uri(kind, before.spec, "x", before.digest_in(kind)) for kind in before.sha256]
    there = {item.uri for item in storage.walk(work) if "/leases/" not in item.uri}
    sums = [uri for uri in sorted(there) if "/partials/" in uri]
    recount_folder = storage.join(place.root, "_work", "recount-0123456789abcdef", "partials")
    for uri in sums:  # as a recount on a cluster leaves them that is killed
        storage.create(storage.join(recount_folder, uri.rpartition("/")[2]), storage.read(uri))
    home.remove("0/03.png")
    home.erase("0/03.png")
    assert [uri for uri in old if storage.exists(uri)] == []
    assert list(Path(storage.local_path(recount_folder)).glob("*")) == []
    left = {item.uri for item in storage.walk(work)} & there
    keys = {
        key
        for version in map(place.find, ("x@1", "x"))
        for key in place.manifest("x", version).keys(version.spec, version.products)
    }
    assert {uri.rpartition("/")[2].removesuffix(".parquet") for uri in left} <= {*keys, "_plan"}


def test_a_change_list_applies_after_an_erasure_that_died(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has committed, and not noted the plan: nothing is under the digest of its manifest."""
    filled(home, 12)
    home.remove("0/03.png")

    def die(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(erasing, "note_plans", die)
        with pytest.raises(Killed):
            home.erase("0/03.png")
    with suppress(NotFound):
        home.erase("0/03.png")
    require_change_lists(home)


def test_a_change_list_applies_after_an_erasure_that_forgot_the_plan_of_a_failed_build(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 12)
    home.write("0/90.png", 90)
    note_plan_only(home, monkeypatch)
    home.remove("0/90.png")
    home.remove("0/03.png")
    home.erase("0/03.png")
    require_change_lists(home)


def require_change_lists(home: Home) -> None:
    """Requires that a change list applies after a full listing that finds nothing new."""
    assert not home.build().changed
    home.write("0/91.png", 91)
    changes = home.images.parent / "changes.csv"
    changes.write_text(f"uri,change\n{home.uri('0/91.png')},added\n")
    assert home.build(changes=str(changes)).version.images == len(home.now)
    require_sound(home)


def test_what_a_refused_build_has_left_later_is_removed_too(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 12)
    home.remove("0/03.png")
    home.erase("0/03.png")
    place, now = home.catalogue, home.catalogue.find("x")
    work = place.work_uri("x", now.spec)
    late = [f"{work}/{folder}/{'0' * 32}.parquet" for folder in ("partials", "cells", "nodes")]
    for uri in late:
        storage.replace(uri, b"a sum that counts it")
    of_version = place.uri("dna", now.spec, "x", "0" * 32)
    storage.replace(of_version, b"a sum that counts it")
    home.write("0/90.png", 90)
    note_plan_only(home, monkeypatch)  # of a build that runs
    planned = place.planned("x", now.spec)
    assert planned is not None
    keys = planned[0].keys(now.spec, planned[1])
    of_build = [partial_uri(work, key) for key in keys]
    of_build.append(place.uri("dna", now.spec, "x", "1" * 32))
    storage.replace(of_build[-1], b"to be committed")
    done, head = home.erase("0/03.png"), place.head()
    assert done.removed >= 4
    assert (done.commit, head.action) == (head.number, "erase what was left of images")
    assert head.receipt == Receipt(0, "asked for", "ada")
    assert [uri for uri in (*late, of_version) if storage.exists(uri)] == []
    assert all(map(storage.exists, of_build))
    assert home.build().version.images == 12
    require_sound(home)


def test_the_work_of_rankings_is_removed_too(home: Home, tmp_path: Path) -> None:
    """One ranking is of a folder that has the image, the others of datasets' own images.

    The outliers that these keep go, too: of a dataset without the image as well, if they were held
    against the one that had it. Those that have nothing to do with it stay.
    """
    filled(home, 12)
    place = home.catalogue
    other = Home(tmp_path / "other", home.network)
    other.catalogue = place
    for number in range(6):
        other.write(f"0/{50 + number}.png", 50 + number)
    other.build("y")
    work = storage.join(place.root, "_work", "_ranks")
    for source, name in ((str(home.images), "x"), (None, "x"), (None, "y")):
        request = RankRequest(source, name, weights=home.network.weights, max_failures=0.99)
        with InProcess() as engine:
            assert rank(place, request, engine, resources=RESOURCES).ranked in (6, 12)
    assert [item for item in storage.walk(work) if "/partials/" in item.uri]
    of = {name: find_outliers(place, place.find(name)) for name in "xy"}
    assert of["x"] is not None
    assert of["y"] is not None
    assert "0/03.png" in " ".join(map(str, of["x"].images))
    assert of["y"].background == {name: place.find(name).dna for name in "xy"}
    alone = replace(of["y"], dna="1" * 32, background={})
    keep_outliers(place, alone, 0)  # as of a window of days, which no version has
    torn = place.outliers_uri(of["y"].spec, "2" * 32)
    storage.create(torn, b"torn")
    before = place.find("x")
    home.remove("0/03.png")
    home.erase("0/03.png")
    assert [item for item in storage.walk(work) if "/partials/" in item.uri] == []
    uris = [place.outliers_uri(of["y"].spec, dna) for dna in (before.dna, of["y"].dna, alone.dna)]
    assert [uri for uri in (*uris, torn) if storage.exists(uri)] == []
    keep_outliers(place, replace(of["y"], background={}), place.head().erasure)
    home.remove("1/04.png")
    home.erase("1/04.png")
    assert find_outliers(place, place.find("y")) == replace(of["y"], background={})
    folder = Path(storage.local_path(home.catalogue.root))
    assert not any("0/03.png" in text for text in texts_below(folder))


def test_what_comparisons_keep_of_a_dna_is_removed_too(home: Home) -> None:
    filled(home, 50)
    place = home.catalogue
    before = home.build(by="").version
    uris = [
        uri_of(before.spec, dna)
        for dna in (before.dna, "of-a-window")
        for uri_of in (place.fold_points_uri, place.coarse_curves_uri)
    ]
    for uri in uris:
        storage.create(uri, b"counts")
    home.remove("0/03.png")
    home.erase("0/03.png")
    assert [uri for uri in uris if storage.exists(uri)] == []


def test_lenses_that_were_fitted_with_an_erased_image_are_told(home: Home) -> None:
    filled(home, 8)
    place, first = home.catalogue, home.catalogue.find("x").dna
    home.remove("0/03.png")
    other = home.build("other").version
    taps = place.spec(other.spec).shape
    weights = np.ones(sum(neurons for _, neurons in taps))

    def keep(name: str, **provenance: Any) -> str:
        of = replace(Lens(name, taps, weights), provenance=provenance)
        return keep_lens(place, of)

    keep("plain")
    keep("of-others", members={"other": other.dna}, sample=None)
    told = [
        keep("of-a-sample", members={}, sample={"members": {"x": first}}),
        keep("of-a-window", members={"x@last:1d": "0" * 32, "other": other.dna}),
        keep("of-it", members={"x": first, "other": other.dna}),
    ]
    done = home.erase("0/03.png")
    assert list(done.lenses) == told
    lines = erased_lines(done)
    assert [f"    {uri}" in lines for uri in told] == [True] * 3
    assert "  fitted on sums that had an erased image: 3 lenses." in lines


def test_matrices_of_windows_are_removed_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(home, 8)
    home.remove("0/03.png")
    now = home.build()
    members = {"of-all.parquet": now.version.dna, "of-a-window.parquet": "of-no-version"}
    uris = {name: f"{home.catalogue.matrices_uri('spec')}/m/{name}" for name in members}
    for uri in uris.values():
        storage.create(uri, b"numbers")
    stated = {uris[name]: {"members": {"x": dna}} for name, dna in members.items()}
    monkeypatch.setattr(purging, "find_matrix_metadata", stated.get)
    home.erase("0/03.png")
    assert [name for name, uri in uris.items() if storage.exists(uri)] == ["of-all.parquet"]


def test_versions_that_cannot_be_counted_again_are_refused(home: Home) -> None:
    filled(home)
    tag_version(home.catalogue, "x", "old")
    for number in range(24):
        home.write(f"{number % 3}/{number:02}.png", 100 + number)
    home.remove("1/04.png")
    newest = home.build()
    files = sorted(storage.walk(home.catalogue.root))
    told: list[object] = []
    with pytest.raises(SourceError, match=r"^1 version cannot be counted") as refused:
        home.erase("1/04.png", progress=told.append)
    error, needed = str(refused.value), str(home.images / "1/01.png")
    changed = f"{needed} has changed since it was listed"
    assert f":\n  x@1: {changed}\nNothing was erased. There are two ways on. Put these" in error
    assert "Or give `drop_unreadable=True`, which removes these versions" in error
    assert "SourceError" not in error
    assert "rerun" not in error
    failed = [event for event in told if isinstance(event, StepFailed)]
    assert [(event.error, event.transient, event.dataset) for event in failed] == [
        (changed, False, "x")
    ]
    preview = preview_erasure(home.catalogue, [str(home.images / "1/04.png")])
    assert (preview.recounted, preview.unreadable) == ({}, {"x": (f"x@1: {changed}",)})
    lines = preview_lines(preview)
    assert lines[1] == f"  cannot be counted again: x@1: {changed}"
    assert (
        "  With `drop_unreadable=True`, these versions are removed, and their tags with them: x@old"
        in lines
    )
    gone = "  tags that go with removed versions: x@old"
    assert set(preview_lines(preview, drop_unreadable=True)) - {*lines} == {
        f"  remove, as it cannot be counted again: x@1: {changed}",
        gone,
    }
    assert gone not in lines
    left = {item.uri for item in storage.walk(home.catalogue.root)}
    assert {item.uri for item in files} <= left  # nothing was removed
    done = home.erase("1/04.png", drop_unreadable=True)
    assert list(done.dropped) == ["x"]
    assert done.lost_tags == preview.unreadable_tags == ("x@old",)
    assert "  tags of removed versions, gone with them: x@old" in erased_lines(done)
    assert home.catalogue.find("x").dna == newest.version.dna
    with pytest.raises(NotFound):
        home.catalogue.find("x@1")
    assert naming(home, home.uri("1/04.png")) == []
    require_sound(home)


def test_each_version_is_counted_with_its_own_weights(
    home: Home, oracle: Oracle, tmp_path: Path
) -> None:
    filled(home, 8)
    other, place = tmp_path / "tiny.pt", home.catalogue
    torch.save(tiny.Tiny().state_dict(), other)
    options = tiny.install(tmp_path).options
    second = home.build(spec="new", **options).version
    home.remove("0/03.png")
    objects = {item.uri for item in storage.walk(place.root)}
    lacking = f"x@2 was counted by tiny with weights of sha256 {sha256(other.read_bytes())}, and"
    with pytest.raises(SpecMismatch, match=lacking):
        home.erase("0/03.png")
    assert objects <= {item.uri for item in storage.walk(place.root)}
    done = home.erase("0/03.png", weights=[str(other), home.network.weights])
    assert done.recounted == {"x": 2}
    (first,) = {*place.head().datasets["x"]} - {second.spec}
    assert wrong(home, oracle, place.find("x", spec=first), home.now) == []
    home.catalogue = Catalogue(str(tmp_path / "clean"))
    clean = home.build(**options).version
    erased = place.load("x", spec=second.spec)
    assert same_counts_and_failures(erased, home.catalogue.load("x", spec=clean.spec))


def test_versions_of_the_same_images_with_other_products_are_told_apart(home: Home) -> None:
    filled(home, 8)
    home.build(exemplars=0)
    for name in sorted(home.now):  # all cells have changed
        home.write(name, 100)
    home.remove("0/03.png")
    home.build(exemplars=0)
    with pytest.raises(SourceError, match=r"^2 versions cannot(.|\n)*  x@2: (.|\n)*  x@1: "):
        home.erase("0/03.png")
    done = home.erase("0/03.png", drop_unreadable=True)
    assert sorted(why[:4] for why in done.dropped["x"]) == ["x@1:", "x@2:"]
    require_sound(home)


def test_a_dataset_of_erased_images_only_is_gone(home: Home) -> None:
    home.write("a.png", 1)
    home.build()
    home.build("other")
    home.remove("a.png")
    tag_version(home.catalogue, "x", "old")
    preview = preview_erasure(home.catalogue, [str(home.images / "a.png")])
    done = home.erase("a.png")
    assert set(done.dropped) == {"x", "other"} == set(preview.emptied)
    gone = "  tags that go with removed versions: x@old"
    assert gone in preview_lines(preview)
    assert (done.lost_tags, preview.unreadable_tags) == (preview.lost_tags, ())
    assert home.catalogue.head().datasets == {}
    assert naming(home, home.uri("a.png")) == []


def test_parts_lose_the_image_too(home: Home) -> None:
    for number in range(6):
        home.write(f"{'ab'[number % 2]}/{number}.png", number)
    home.write("c/7.png", 7)
    home.build(by="1")
    home.remove("a/0.png")
    home.remove("c/7.png")
    told: list[object] = []
    done = home.erase("a/0.png", "c/7.png", progress=told.append)
    assert {of.dataset for of in told if isinstance(of, StepDone) and of.shard is not None} == {"x"}
    place = home.catalogue
    images = {name: place.find(name).images for name in place.head().datasets}
    assert images == {"x": 5, "x/a": 2, "x/b": 3}
    assert list(done.dropped) == ["x/c"]
    assert naming(home, home.uri("a/0.png"), home.uri("c/7.png")) == []
    require_sound(home)
    assert not home.build().changed


def test_parts_go_with_a_version_that_is_dropped_and_stay_with_others(home: Home) -> None:
    for number in range(8):
        home.write(f"{'ab'[number % 2]}/{number}.png", number)
    home.build(by="1")
    tag_version(home.catalogue, "x", "old")
    for number in (0, 2, 4):  # so that the first version cannot be counted again
        home.write(f"a/{number}.png", 100 + number)
    home.remove("a/6.png")
    home.build(by="1")
    place = home.catalogue
    assert place.commit(1).datasets["x/b"] == place.commit(2).datasets["x/b"]
    done = home.erase("a/6.png", drop_unreadable=True)
    assert (set(done.dropped), done.lost_tags) == ({"x", "x/a"}, ("x@old",))
    assert place.commit(1).datasets == {}
    images = {name: place.find(name).images for name in place.commit(3).datasets}
    assert images == {"x": 7, "x/a": 3, "x/b": 4}
    require_sound(home)
    assert not home.build(by="1").changed


def archived(home: Home) -> Path:
    there = home.images / "all.zip"
    with zipfile.ZipFile(there, "w") as archive:
        for number in range(6):
            archive.writestr(f"in/{number}.png", Picture("good", number).data)
    home.build()
    return there


def test_a_member_of_an_archive(home: Home) -> None:
    name = f"{archived(home)}::in/3.png"
    with InProcess() as engine:
        options = EraseOptions(reason="asked", weights=[home.network.weights], source_keeps=True)
        done = erase_images(home.catalogue, [name], options, engine, RESOURCES)
    assert (done.images, home.catalogue.find("x").images) == (1, 5)
    assert naming(home, "in/3.png") == []
    require_sound(home)


def test_what_the_log_names_as_a_source_is_refused_before_anything_is_done(home: Home) -> None:
    path = str(home.images / "all.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", Picture("good", number).data)
    request = Request("x", path, max_failures=0.99, **home.network.options)
    with InProcess() as engine:
        build_datasets(home.catalogue, [request], engine, RESOURCES)
    preview = preview_erasure(home.catalogue, [path])
    assert (preview.images, preview.stated) == (3, ("x@1",))
    assert "as the source of a version: x@1" in "\n".join(preview_lines(preview))
    with pytest.raises(UsageError, match="names what is to be erased as the source of x@1"):
        home.erase("all.zip", source_keeps=True)
    assert home.catalogue.head().number == 1
    assert preview_erasure(home.catalogue, [f"{path}::1.png"]).stated == ()
    assert home.erase("all.zip::1.png", source_keeps=True).images == 1
    assert home.catalogue.find("x").images == 2


def test_a_whole_archive(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write("0/a.png", 9)
    archived(home)
    (kept,) = storage.walk(home.catalogue.archives_uri)
    index = bytes(storage.read(kept.uri))
    (home.images / "all.zip").unlink()
    real = storage.delete_all

    def list_again(uris: Sequence[str]) -> None:  # another job has looked into it before
        real(uris)
        if kept.uri in uris:
            monkeypatch.setattr(storage, "delete_all", real)
            storage.replace(storage.join(home.catalogue.archives_uri, "again.parquet"), index)

    monkeypatch.setattr(storage, "delete_all", list_again)
    assert home.erase("all.zip").images == 6
    assert home.catalogue.find("x").images == 1
    assert naming(home, *(f"in/{number}.png" for number in range(6))) == []
    require_sound(home)
    storage.replace(kept.uri, index)
    assert home.erase("all.zip").removed == 1


def test_copies_of_an_image_and_what_may_be_one_stay_and_are_told(home: Home) -> None:
    filled(home, 8)
    image = home.images / "0/03.png"
    shutil.copy2(image, home.images / "copy.png")
    home.write("2/alike.png", 77)
    shutil.copy(image, home.images / "late.png")
    (home.images / "2/alike.png").write_bytes(b"a" * image.stat().st_size)
    at = image.stat().st_mtime_ns
    os.utime(home.images / "2/alike.png", ns=(at, at))
    home.build()
    (home.images / "late.png").unlink()
    home.build()  # a version before it has a copy that is gone
    home.remove("0/03.png")
    copies = (str(home.images / "copy.png"), str(home.images / "late.png"))
    alike = (str(home.images / "2/alike.png"),)
    preview = preview_erasure(home.catalogue, [str(image)])
    assert (preview.copies, preview.alike) == (copies, alike)
    done = home.erase("0/03.png")
    assert (done.copies, done.alike) == (copies, alike)
    for lines in (preview_lines(preview), erased_lines(done)):
        said = f"  warning: 2 copies under other names, with equal bytes, stay: {copies[0]} and "
        assert f"{said}{copies[1]}." in lines
    assert naming(home, home.uri("0/03.png")) == []
    assert home.erase("copy.png", "late.png", source_keeps=True).copies == ()


def test_pairs_are_named_as_before(home: Home) -> None:
    filled(home)
    home.remove("0/03.png")
    other = home.build("other").version
    home.erase("0/03.png")
    layer = home.catalogue.spec(other.spec).layers[:1]
    sample = [
        home.catalogue.open_file("folds", name, home.catalogue.find(name), layer).pairs
        for name in ("x", "other")
    ]
    assert sample[0] is not None
    assert sample[1] is not None
    assert sample[0].to_json()["numbers"] == sample[1].to_json()["numbers"]


def test_pairs_are_named_as_the_manifest_states(home: Home, tmp_path: Path) -> None:
    """The images of an annotation file lie in folders beside it."""
    names = [f"{number % 2}/{number // 2}.png" for number in range(8)]
    for number, name in enumerate(names):
        path = tmp_path / "set" / "images" / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Picture("good", number).data)
    listed = tmp_path / "set" / "annotations" / "instances_val.json"
    listed.parent.mkdir()

    def build(dataset: str, names: list[str]) -> Any:
        of = [
            {"id": at, "file_name": name, "width": 8, "height": 8} for at, name in enumerate(names)
        ]
        listed.write_text(json.dumps({"images": of, "annotations": [], "categories": []}))
        request = Request(dataset, str(listed), max_failures=0.99, **home.network.options)
        with InProcess() as engine:
            build_datasets(home.catalogue, [request], engine, RESOURCES)

    def sample(dataset: str) -> Any:
        version = home.catalogue.find(dataset)
        layer = home.catalogue.spec(version.spec).layers[:1]
        pairs = home.catalogue.open_file("folds", dataset, version, layer).pairs
        return pairs and pairs.to_json()["numbers"]

    build("x", names)
    build("other", names[1:])
    assert sample("other")
    home.erase(str(tmp_path / "set" / "images" / "val" / names[0]), source_keeps=True)
    assert home.catalogue.find("x").images == 7
    assert sample("x") == sample("other")


def test_what_must_not_be_removed_and_names_an_image_is_told(home: Home) -> None:
    filled(home)
    own = identity(home, "0/03.png")
    home.remove("0/03.png")
    time = f"{home.catalogue.root}/lenses/mine/times.json"
    storage.replace(time, json.dumps({"seen": [own]}).encode())
    note = f"{home.catalogue.root}/lenses/mine/notes.json"
    storage.replace(note, json.dumps({"why": f"see {home.uri('0/03.png')}"}).encode())
    torn = f"{home.catalogue.root}/lenses/mine/more.json.gz"
    storage.replace(torn, b"\x1f\x8b torn")
    page = f"{home.catalogue.root}/site/index.html"
    storage.replace(page, b'<img src="data:image/webp;base64,UklG" alt="03.png">')
    with pytest.raises(VdnaError, match="not proved: 4 objects of") as told:
        home.erase("0/03.png")
    shown = f"{page} has pictures inside, which may show an erased image; delete it"
    assert shown in str(told.value)
    for uri in (note, time):
        assert f"{uri} still names an erased image; delete it" in str(told.value)
    assert re.search(r"more\.json\.gz: .* cannot be searched; restore it, or", str(told.value))
    for uri in (time, note, torn, page):
        storage.delete(uri)
    with pytest.raises(NotFound, match="none names it: if it was erased before, nothing of it is"):
        home.erase("0/03.png")
    with pytest.raises(UsageError, match="`reason` names an image"):
        home.erase("0/03.png", reason=f"{home.uri('0/03.png')} shows me")
    with pytest.raises(UsageError, match="`reason` is missing or empty"):
        home.erase("0/03.png", reason=" ")


@pytest.mark.parametrize("is_first", [False, True])
def test_an_erasure_of_no_version_ends_the_builds_that_run(
    home: Home, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """What it removes is of no version yet, also if the catalogue has none at all."""
    if not is_first:
        filled(home, 8)
    for number in range(50, 54):
        home.write(f"0/{number}.png", number)
    real = Catalogue.put_version

    def erase_before(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Catalogue, "put_version", real)
        home.remove("0/50.png")
        done = home.erase("0/50.png")
        assert (done.images, done.recounted, done.commit) == (1, {}, 1 + (not is_first))
        return real(*args, **kwargs)

    monkeypatch.setattr(Catalogue, "put_version", erase_before)
    with pytest.raises(Conflict, match="erased images while this job ran"):
        home.build("new")
    head = home.catalogue.head()
    assert head.receipt == Receipt(1, "asked for", "ada")
    assert head.datasets.keys() == (set() if is_first else {"x"})
    told = CliRunner().invoke(app, ["log", "-c", home.catalogue.root])
    assert f"     {head.number}  {head.time[:19]}  erase 1 image  (" in told.stdout
    assert "\n        by ada: asked for\n" in told.stdout
    told = CliRunner().invoke(app, ["log", "-c", home.catalogue.root, "--json"])
    assert json.loads(told.stdout)[0]["receipt"] == asdict(head.receipt)
    assert CliRunner().invoke(app, ["ls", "-c", home.catalogue.root]).exit_code == 0
    require_sound(home)
    with suppress(NotFound):  # as the build was told to do
        home.erase("0/50.png")
    assert naming(home, *home.texts("0/50.png")) == []
    assert home.build("new").version.images == len(home.now)
    require_sound(home)


def build_before_receipt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that ends just before an erasure commits its receipt."""
    real = Catalogue.append

    def build_first(*args: Any) -> Any:
        monkeypatch.setattr(Catalogue, "append", real)
        assert home.build().changed
        return real(*args)

    monkeypatch.setattr(Catalogue, "append", build_first)


def test_a_version_that_comes_before_the_receipt_is_erased_from(
    home: Home, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 8)
    home.write("0/90.png", 90)
    note_plan_only(home, monkeypatch)
    build_before_receipt(home, monkeypatch)
    assert home.erase("0/90.png", source_keeps=True).recounted == {"x": 1}
    home.remove("0/90.png")
    assert wrong(home, oracle, home.catalogue.find("x"), home.now) == []
    assert naming(home, *home.texts("0/90.png")) == []
    require_sound(home)


def test_a_version_that_comes_before_the_receipt_of_remains_stays_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files came after lists were searched, and no plan names them when they are found."""
    filled(home, 8)
    home.write("0/90.png", 90)
    real = erasing.plan_erasure

    def die(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    def list_after(*args: Any, **kwargs: Any) -> Any:
        plan = real(*args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(Catalogue, "put_version", die)
            with pytest.raises(Killed):
                home.build()
        storage.delete(home.catalogue.plan_uri("x", home.catalogue.find("x").spec))
        build_before_receipt(home, monkeypatch)
        return plan

    monkeypatch.setattr(erasing, "plan_erasure", list_after)
    with pytest.raises(VdnaError, match="a version or a build that came meanwhile needs it"):
        home.erase("0/90.png", source_keeps=True)
    assert home.catalogue.find("x").images == 9
    require_sound(home)


def test_a_build_that_had_listed_the_image_does_not_commit(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home)
    home.write("0/90.png", 90)
    real = committer.store_sum

    def erase_before(*args: Any, **kwargs: Any) -> Version:
        monkeypatch.setattr(committer, "store_sum", real)
        home.erase("0/03.png", source_keeps=True)
        return real(*args, **kwargs)

    monkeypatch.setattr(committer, "store_sum", erase_before)
    with pytest.raises(TransientError, match="was removed while the build ran; rerun"):
        home.build()
    assert home.catalogue.find("x").images == 23
    home.remove("0/03.png")
    assert naming(home, home.uri("0/03.png")) == []
    assert home.build().version.images == 24
    require_sound(home)


def test_a_build_that_has_looked_for_its_lists_does_not_commit(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home)
    home.write("0/90.png", 90)
    real = Catalogue.put_version

    def erase_before(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Catalogue, "put_version", real)
        home.erase("0/03.png", source_keeps=True)
        return real(*args, **kwargs)

    monkeypatch.setattr(Catalogue, "put_version", erase_before)
    with pytest.raises(Conflict, match="erased images while this job ran"):
        home.build()
    assert home.catalogue.find("x").images == 23
    assert naming(home, home.uri("0/03.png")) == []


def test_a_rename_that_has_copied_the_image_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 8)
    real = renaming._work_copies  # called between the copies of versions and those of sums

    def erase_before(*args: Any) -> list[tuple[str, str]]:
        copies = list(real(*args))
        home.erase("0/03.png", source_keeps=True)
        storage.replace(copies[-1][1], b"a sum that counts it")
        return copies

    monkeypatch.setattr(renaming, "_work_copies", erase_before)
    with pytest.raises(Conflict, match="erased images while this job ran"):
        rename_dataset(home.catalogue, "x", "y")
    home.erase("0/03.png")
    assert [item.uri for item in storage.walk(home.catalogue.root) if "/y/" in item.uri] == []
    require_sound(home)


def test_a_tag_does_not_bring_files_of_the_image_back(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 8)
    home.write("0/90.png", 90)
    home.build()
    real = tagging.renew_files

    def erase_after(*args: Any) -> None:
        real(*args)
        home.erase("0/03.png", source_keeps=True)

    monkeypatch.setattr(tagging, "renew_files", erase_after)
    with pytest.raises(Conflict, match="erased images while this job ran"):
        tag_version(home.catalogue, "x@1", "first")


def test_a_version_that_comes_meanwhile_is_erased_from_too(
    home: Home, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home)
    real = erasure_recount.run_missing

    def build_before(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(erasure_recount, "run_missing", real)
        home.write("0/90.png", 90)
        home.build()
        return real(*args, **kwargs)

    monkeypatch.setattr(erasure_recount, "run_missing", build_before)
    home.erase("0/03.png", source_keeps=True)
    home.now.pop("0/03.png")
    assert wrong(home, oracle, home.catalogue.find("x"), home.now) == []
    assert naming(home, home.uri("0/03.png")) == []
    require_sound(home)


def test_a_version_of_lists_that_come_meanwhile_is_erased_from_too(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 12)
    real = erasure_recount.run_missing

    def build_before(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(erasure_recount, "run_missing", real)
        home.build("other", shard_images=3)
        return real(*args, **kwargs)

    monkeypatch.setattr(erasure_recount, "run_missing", build_before)
    done = home.erase("0/03.png", source_keeps=True)
    assert done.recounted == {"x": 1, "other": 1}
    assert naming(home, home.uri("0/03.png")) == []
    require_sound(home)


def note_plan_only(home: Home, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A build that notes its plan and dies."""

    def die(*args: Any, **kwargs: Any) -> Version:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(committer, "store_sum", die)
        with pytest.raises(Killed):
            home.build(**options)


def test_sums_of_a_build_that_died_while_it_listed_are_removed_with_the_image(
    home: Home, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has counted by plans of some shards, which name no image, and noted no whole plan."""
    monkeypatch.setattr(entries_file, "FILE_ROWS", 8)
    for number in range(24):
        home.write(f"{number % 3}/{number:02}.png", number)
    note_plan_only(home, monkeypatch, exemplars=0)  # else sums name images
    place = home.catalogue
    (noted,) = [of.uri for of in storage.walk(place.root) if of.uri.endswith("/_plan")]
    work, spec = noted.removesuffix("/_plan"), noted.split("/")[-2]
    planned = place.planned("x", spec)
    assert planned is not None
    some, products = planned
    place.note_plan("x", spec, "", products, "torch")
    gone, texts = home.uri("0/03.png"), home.texts("0/03.png")
    held: dict[str, list[str]] = {}
    for head, key in zip(some.heads, some.keys(spec, products), strict=True):
        uris = some.entries.read_shard(head)["uri"].to_pylist()
        held |= {uri: uris for uri in (partial_uri(work, key), cells_uri(work, key))}
        texts += [head.content] * (gone in uris)
    assert all(map(storage.exists, held))
    home.remove("0/03.png")
    lease = claim(work, "0" * 32, "a job that still runs")
    assert isinstance(lease, Lease)
    with lease.renewed(60):
        done = home.erase("0/03.png")
    assert done.running == ("x",)
    told = " ".join(erased_lines(done))
    assert "a list with an erased image: x. That build ends with an   error" in told
    left = [uri for uri in held if storage.exists(uri)]
    assert 0 < len(left) < len(held)
    assert [uri for uri in left if gone in held[uri]] == []
    assert naming(home, *texts) == []
    with pytest.raises(NotFound, match="none names it"):
        home.erase("0/03.png")
    assert all(map(storage.exists, left))
    assert wrong(home, oracle, home.build().version, home.now) == []
    require_sound(home)


def test_no_build_goes_on_with_a_plan_whose_lists_go(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home)
    home.write("0/90.png", 90)
    note_plan_only(home, monkeypatch)
    home.remove("0/03.png")
    spec = home.catalogue.find("x").spec
    home.erase("0/03.png")
    assert home.catalogue.noted_plan("x", spec) is None
    assert naming(home, home.uri("0/03.png")) == []
    assert home.build().version.images == 24
    require_sound(home)


@pytest.mark.parametrize("look", ["first", "second"])
def test_a_version_that_comes_while_objects_are_removed_stays_whole(
    home: Home, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    filled(home, 12)
    home.write("0/90.png", 90)
    note_plan_only(home, monkeypatch)
    home.remove("0/03.png")
    looks = iter(["first", "second"])
    real = purging.noted_plans

    def build_after(*args: Any) -> Any:
        found = list(real(*args))
        if next(looks, "") == look:  # what it finds was read before
            if look == "second":  # as if it had begun before the plan was removed
                storage.replace(plan, noted)
            assert home.build().changed
        return found

    plan = home.catalogue.plan_uri("x", home.catalogue.find("x").spec)
    noted = bytes(storage.read(plan))
    monkeypatch.setattr(purging, "noted_plans", build_after)
    with pytest.raises(VdnaError, match="a version or a build that came meanwhile needs it"):
        home.erase("0/03.png")
    require_sound(home)
    home.erase("0/03.png")
    assert naming(home, home.uri("0/03.png")) == []
    assert home.catalogue.find("x").images == 12
    require_sound(home)


def test_a_version_that_has_lost_a_list_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 8)
    home.write("0/90.png", 90)
    home.build()
    lists = {item.uri for item in storage.walk(home.catalogue.entries_uri)}
    home.remove("0/03.png")
    real = storage.delete_all
    before, place = home.catalogue.find("x"), home.catalogue
    manifest = place.read_checked("manifests", "x", before)

    def commit_after(uris: Sequence[str]) -> None:
        real(uris)
        if lists & set(uris):
            storage.replace(place.uri("manifests", before.spec, "y", before.manifest), manifest)
            place.put_version("y", before, None)

    monkeypatch.setattr(storage, "delete_all", commit_after)
    with pytest.raises(VdnaError, match="was removed, and a version that another job has commit"):
        home.erase("0/03.png")


def test_a_build_whose_list_goes_as_it_commits_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 8)
    home.erase("0/03.png", source_keeps=True)
    home.write("0/90.png", 90)
    real = Catalogue.put_version

    def lose_after(*args: Any, **kwargs: Any) -> Any:
        commit = real(*args, **kwargs)
        for name in home.catalogue.manifest("x", args[2]).files:
            storage.delete(f"{home.catalogue.entries_uri}/{name}.parquet")
        return commit

    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "put_version", lose_after)
        with pytest.raises(TransientError, match="was removed while"):
            home.build()
    assert home.build().version.images == 9


def build_before_erasure(home: Home, name: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Builds. An image of the version before is erased as soon as the new one is committed."""
    real = Catalogue.put_version

    def erase_after(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Catalogue, "put_version", real)
        commit = real(*args, **kwargs)
        home.erase(name)
        return commit

    monkeypatch.setattr(Catalogue, "put_version", erase_after)
    return home.built()


def test_a_build_that_has_committed_when_images_are_erased_is_done(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(home, 8)
    home.remove("0/03.png")
    home.write("0/90.png", 90)
    result = build_before_erasure(home, "0/03.png", monkeypatch)
    assert (result.changed, result.version.images) == (True, 8)
    assert result.replaced == home.catalogue.find("x@1")  # what stands in its place
    assert (result.replaced.images, result.former_options) == (7, {"at": 1})
    assert with_movement(home.catalogue, result).moved is not None
    require_sound(home)


def test_a_build_that_has_committed_when_the_version_before_goes_is_done(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write("a.png", 1)
    home.build()
    home.remove("a.png")
    home.write("b.png", 2)
    result = build_before_erasure(home, "a.png", monkeypatch)
    assert (result.changed, result.version.images) == (True, 1)
    assert (result.replaced, dict(result.former_options)) == (None, {})
    assert result.unmeasured == "an erasure has just removed the version before"
    require_sound(home)


def test_two_erasures_at_once(home: Home, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(home)
    home.remove("0/03.png")
    home.remove("1/04.png")
    real = erasure_recount.run_missing

    def erase_before(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(erasure_recount, "run_missing", real)
        home.erase("1/04.png")
        return real(*args, **kwargs)

    monkeypatch.setattr(erasure_recount, "run_missing", erase_before)
    home.erase("0/03.png")
    assert wrong(home, oracle, home.catalogue.find("x@1"), home.now) == []
    assert naming(home, home.uri("0/03.png"), home.uri("1/04.png")) == []
    require_sound(home)


@pytest.mark.parametrize("step", ["_matching", "_affected"])
def test_an_erasure_that_ends_while_another_looks_for_images(
    home: Home, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It has removed what the other one was about to read, which then looks again."""
    filled(home, 8)
    home.remove("0/03.png")
    home.remove("1/04.png")
    real = getattr(erasure_plan, step)

    def erase_before(*args: Any) -> Any:
        monkeypatch.setattr(erasure_plan, step, real)
        home.erase("1/04.png")
        return real(*args)

    monkeypatch.setattr(erasure_plan, step, erase_before)
    assert home.erase("0/03.png").recounted == {"x": 1}
    assert naming(home, home.uri("0/03.png"), home.uri("1/04.png")) == []
    require_sound(home)


def test_a_list_that_goes_while_others_are_read_has_no_images(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection of garbage may remove it, as no version needs it."""
    filled(home, 8)
    real = erasure_plan._list_files
    monkeypatch.setattr(erasure_plan, "_list_files", lambda place: ["0" * 64, *real(place)])
    preview = preview_erasure(home.catalogue, [str(home.images / "0/03.png")])
    assert (preview.images, preview.recounted, preview.alike) == (1, {"x": (1,)}, ())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [12, pytest.param(2, marks=pytest.mark.soak)])
def test_a_crash_at_any_write_leaves_what_a_rerun_ends(
    home: Home, oracle: Oracle, killer: Killer, after: bool, step: int
) -> None:
    filled(home, 10)
    home.write("0/90.png", 90)
    home.build()
    home.remove("0/03.png")
    start = Path(storage.local_path(home.catalogue.root))
    whole = start.with_name("copy")
    shutil.copytree(start, whole)
    for at in itertools.count(1, step):
        shutil.rmtree(start)
        shutil.copytree(whole, start)
        writes = killer(at, after)
        try:
            home.erase("0/03.png")
        except Killed:
            killer(None, False)
        else:
            break
        for number in (1, 2):  # read before the erasure or after, and never in between
            version = home.catalogue.find(f"x@{number}")
            erased = bool(home.catalogue.head().erasure)
            pictures = (
                dict(home.held[number])
                if not erased
                else {name: p for name, p in home.held[number].items() if name != "0/03.png"}
            )
            assert wrong(home, oracle, version, pictures) == [], writes[-1]
        home.erase("0/03.png")
        for number in (1, 2):
            pictures = {n: p for n, p in home.held[number].items() if n != "0/03.png"}
            assert wrong(home, oracle, home.catalogue.find(f"x@{number}"), pictures) == []
        assert naming(home, home.uri("0/03.png")) == []
        require_sound(home)
    assert at > 10


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_crash_while_objects_are_removed_leaves_what_a_rerun_ends(
    home: Home, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    filled(home)
    home.remove("0/03.png")
    home.remove("1/04.png")
    home.build()
    real = storage.delete_all

    def die(uris: Sequence[str]) -> None:
        monkeypatch.setattr(storage, "delete_all", real)
        real(uris[: int(share * len(uris))])
        raise Killed

    monkeypatch.setattr(storage, "delete_all", die)
    with pytest.raises(Killed):
        home.erase("0/03.png", "1/04.png")
    assert wrong(home, oracle, home.catalogue.find("x@1"), home.now) == []
    assert home.erase("0/03.png", "1/04.png").removed > 0
    assert naming(home, home.uri("0/03.png"), home.uri("1/04.png")) == []
    require_sound(home)


def test_the_command_tells_what_it_would_do_and_what_it_did(home: Home, tmp_path: Path) -> None:
    filled(home)
    tag_version(home.catalogue, "x", "t")  # a later commit that holds x@1
    names = tmp_path / "names.txt"
    image = str(home.images / "0/03.png")
    names.write_text(f"{image}\n\n/no/such.png\n", "utf-8-sig")  # as editors of Windows do
    words = ["erase", "-c", home.catalogue.root, "--from", str(names)]
    told = CliRunner().invoke(app, [*words, "--dry-run"])
    assert told.stdout.startswith(
        "1 image to erase\n  not in any version: /no/such.png\n  count again: x@1\n"
        "  1 shard to count again, with 1 other image to read ("
    )
    assert f"still in their source, so that the next build brings them back: {image}" in told.stdout
    refused = CliRunner().invoke(app, [*words, "--reason", "why"])
    assert refused.exit_code == 2
    home.remove("0/03.png")
    words += ["--reason", "asked for", "--by", "ada", "--weights", home.network.weights]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(
        "1 image erased, by commit 3\n  not in any version: /no/such.png\n"
        "  x: 1 version counted again\n"
    )
    again = CliRunner().invoke(app, [*words, "--json"])
    assert again.exit_code == 1
    assert "All objects were searched, and none names it" in again.output


def test_an_archive_is_asked_for_once_for_all_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, gone = (tmp_path / f"{name}.tar" for name in ("there", "gone"))
    there.touch()
    asked: list[str] = []
    exists = storage.exists
    monkeypatch.setattr(storage, "exists", lambda uri: asked.append(uri) or exists(uri))
    images = {(path.as_uri(), f"{n}.png") for path in (there, gone) for n in range(50)}
    held = still_held(images)
    assert held == sorted(storage.spelled(there.as_uri(), f"{n}.png") for n in range(50))
    assert sorted(asked) == sorted(path.as_uri() for path in (there, gone))


def test_an_erasure_leaves_the_manifest_of_an_older_version_with_the_same_images(
    home: Home,
) -> None:
    """The last build added one image, and saw another note. Without the image it is the first."""
    options = {"exemplars": 0, "layer_gaussian": False}
    for number in range(8):
        home.write(f"0/{number:02}.png", number)
    first = home.build(**options)
    home.write("1/99.png", 99)
    (home.images / "notes.txt").write_text("no image")
    home.build(**options)
    home.remove("1/99.png")
    home.erase("1/99.png")
    catalogue = home.catalogue
    assert catalogue.find("x").manifest == first.version.manifest
    assert [found for found in verify(catalogue, all_versions=True) if not found.ok] == []
    search = ObjectSearch(ImageNames.of([str(home.images / "1/99.png")]))
    assert not [item for item in storage.walk(catalogue.root) if search.found_in_object(item)]
    collect(catalogue, grace=timedelta(0))
    noted = catalogue.planned("x", first.version.spec)
    assert noted is not None
    assert noted[0].digest == first.version.manifest


@pytest.mark.parametrize("exemplars", [0, 3])
def test_a_removed_version_whose_place_a_newer_one_has_is_no_obstacle(
    home: Home, exemplars: int
) -> None:
    """Its parts have the manifests of the newer one's parts, which point into other lists."""
    options = {"exemplars": 0, "layer_gaussian": False, "by": "1"}
    for number in range(8):
        home.write(f"{number % 2}/{number:02}.png", number)
    catalogue = home.catalogue
    first = home.built("a", **options).commit
    rename_dataset(catalogue, "a", "b")
    collect(catalogue, keep=1, grace=timedelta(0))
    home.write("1/99.png", 99)
    home.built("a", **options | {"exemplars": exemplars})
    part, place = catalogue.find(f"a/0@{first}"), catalogue.find("a/0")
    assert part.digest_in("manifests") == place.digest_in("manifests")
    missing = missing_files(catalogue, KeptVersion("a/0", part, first))
    assert missing == (sorted(part.sha256) if exemplars else ["manifests"])
    with pytest.raises(SourceError, match=r"is the file of another version of the same images"):
        catalogue.manifest("a/0", part)
    home.remove("1/99.png")
    assert preview_erasure(catalogue, [str(home.images / "1/99.png")]).images == 1
    assert home.erase("1/99.png").images == 1
    require_sound(home)
    collect(catalogue, grace=timedelta(0))
    require_sound(home)
    assert naming(home, str(home.images / "1/99.png")) == []


def test_a_damaged_manifest_is_none_of_another_version(home: Home) -> None:
    for number in range(4):
        home.write(f"0/{number:02}.png", number)
    version = home.build().version
    uri = home.catalogue.uri("manifests", version.spec, "x", version.manifest)
    storage.replace(uri, storage.read(uri)[:-1] + b"?")
    with pytest.raises(CorruptFile, match=r"was committed\. Restore it"):
        home.catalogue.manifest("x", version)


@pytest.mark.parametrize("change", ["build", "rename"])
def test_a_collection_keeps_both_manifests_of_the_same_images(home: Home, change: str) -> None:
    """An erasure stores a manifest elsewhere; what comes later stores it in its own place."""
    for number in range(6):
        home.write(f"0/{number:02}.png", number)
    catalogue = home.catalogue
    home.build()
    home.remove("0/05.png")
    home.erase("0/05.png")
    erased = catalogue.head().number
    if change == "build":
        home.write("0/06.png", 6)
        home.build()
        home.remove("0/06.png")
        home.build()
    else:
        rename_dataset(catalogue, "x", "y")
        rename_dataset(catalogue, "y", "x")
    before, now = catalogue.find(f"x@{erased}"), catalogue.find("x")
    assert (before.manifest_file != now.manifest_file, before.dna) == (True, now.dna)
    collect(catalogue, keep=1, grace=timedelta(0))
    require_sound(home)
    assert catalogue.manifest("x", before).candidates == 5
    assert collect(catalogue, keep=1, grace=timedelta(0)) == (0, 0)
    # Without it the version counts as removed, also if another older one has its other files.
    home.write("0/07.png", 7)
    home.build()

    def removed() -> int:
        told = [of.detail for of in verify(catalogue, all_versions=True) if of.check == "history"]
        return sum(int(detail.split()[0]) for detail in told)

    others = removed()
    storage.delete(catalogue.files("x", before)["manifests"])
    assert removed() == others + 1
    require_sound(home)


def test_a_removed_version_whose_dna_an_erasure_makes_again_is_no_fault(home: Home) -> None:
    for number in range(6):
        home.write(f"0/{number:02}.png", number)
    catalogue = home.catalogue
    home.build()
    home.write("0/99.png", 99)
    home.build()
    collect(catalogue, keep=1, grace=timedelta(0))
    home.write("0/98.png", 98)
    home.build()
    home.remove("0/98.png")
    home.remove("0/99.png")
    home.erase("0/98.png", "0/99.png")
    assert catalogue.find("x@1").dna == catalogue.find("x").dna
    require_sound(home)


def test_an_erasure_whose_new_files_are_collected_as_garbage_ends_before_it_commits(
    home: Home,
) -> None:
    """It takes longer than the grace period, and no plan names what it has stored."""
    for number in range(6):
        home.write(f"0/{number:02}.png", number)
    home.build()
    home.remove("0/05.png")
    steps: list[Started] = []

    def collect_in_the_end(event: Any) -> None:
        if isinstance(event, Started) and event.step == "versions":
            steps.append(event)
        if isinstance(event, Finished) and len(steps) == 2:
            steps.clear()
            collect(home.catalogue, grace=timedelta(0))

    with pytest.raises(TransientError, match=r"x: `vdna gc` has removed .*manifests.*grace-days"):
        home.erase("0/05.png", progress=collect_in_the_end)
    assert home.catalogue.head().number == 1
    require_sound(home)
    assert home.erase("0/05.png").images == 1
    require_sound(home)


def test_an_image_whose_name_is_not_unicode_is_erased_by_its_path(home: Home) -> None:
    for number in range(4):
        home.write(f"0/{number:02}.png", number)
    odd = home.images / "0" / os.fsdecode(b"\xffodd.png")
    odd.write_bytes(Picture("good", 9).data)
    assert home.built().version.images == 5
    odd.unlink()
    assert preview_erasure(home.catalogue, [str(odd)]).images == 1
    assert home.erase(f"0/{odd.name}").images == 1
    require_sound(home)
    assert naming(home, odd.as_uri(), "odd.png") == []
    assert home.catalogue.find("x").images == 4
