"""Tests a whole build in one process: interrupted, repeated or concurrent builds count exactly."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import building as build_module
from pipeline import storage
from pipeline.building import (
    ForecastRequest,
    Request,
    build_datasets,
    committer,
    forecast,
    make_dna,
    runner,
    without_catalogue,
)
from pipeline.building.failure_gate import allowed_failures
from pipeline.catalogue import Catalogue, Verification, Version, collect, tag_version, verify
from pipeline.counting import Counter, Extractor, Made, partial_uri, worker
from pipeline.dna import DNA, encode_dna
from pipeline.engine import InProcess
from pipeline.errors import (
    Conflict,
    ConservationError,
    CorruptFile,
    GateError,
    SourceError,
    SpecMismatch,
    TransientError,
    UnexpectedError,
    UsageError,
    VdnaError,
)
from pipeline.events import Event, Said, StepDone
from pipeline.sources import Shard
from pipeline.spec import Resources
from tests.golden.handmade import NETWORK, Place
from tests.support import tiny_network as tiny
from tests.support.builders import photo, same_counts_and_failures, write_photos
from tests.support.killer import Killed, killer

__all__ = ["killer"]  # a fixture

ENGINE = InProcess()
RESOURCES = Resources(workers=0, threads=2)

COUNTING: dict[str, Any] = {}
"""Fields of a request that say how images are counted here; the fixture `small` fills it."""

LITE0 = {"extractor": "efficientnet_lite0", "weights": None, "ranges": None, "bins": 100}


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> None:
    COUNTING.update(tiny.install(tmp_path_factory.mktemp("tiny")).options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 9)
    (folder / "cut.jpg").write_bytes((folder / "photo-0000.jpg").read_bytes()[:-300])
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path, small: None) -> DNA:
    with pytest.warns(UserWarning, match="1 of 10 images could not be read"):
        return clean_pass(folder, max_failures=1)


@pytest.fixture
def place(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path / "catalogue"))


def request_of(folder: Path | str, name: str = "photos", **options: object) -> Request:
    defaults = {"max_failures": 1.0, "shard_images": 2, **COUNTING}
    return Request(name, str(folder), **(defaults | options))


def clean_pass(folder: Path, **options: Any) -> DNA:
    """Counts the images in memory, without shards on disk, reduction or catalogue."""
    return make_dna(folder, threads=2, **(COUNTING | options))


def run(place: Catalogue, *requests: Request) -> list[build_module.Result]:
    return build_datasets(place, requests, ENGINE, RESOURCES)


def holds(place: Catalogue, truth: DNA, name: str = "photos") -> None:
    assert same_counts_and_failures(place.load(name), truth)
    assert [f for f in verify(place, [name]) if not f.ok] == []


def test_a_build_counts_what_one_clean_pass_counts(place: Catalogue, folder: Path) -> None:
    (result,) = run(place, request_of(folder, **LITE0))
    assert result.changed
    assert (result.version.images, result.version.failed) == (9, 1)
    (failure,) = result.failures
    assert failure.reason == "truncated"
    assert failure.uri.endswith("cut.jpg")
    assert place.failures("photos", result.version) == [failure]
    with pytest.warns(UserWarning, match="1 of 10 images could not be read"):
        holds(place, clean_pass(folder, max_failures=1, **LITE0))


def test_a_dna_is_the_same_however_many_shards_are_counted_together(
    folder: Path, truth: DNA, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    observe = Extractor.observe

    def spy(self: Extractor, pixels: Any, visit: Any) -> None:
        passes.append(len(pixels))
        observe(self, pixels, visit)

    monkeypatch.setattr(Extractor, "observe", spy)
    for images, expected in ((1, [1] * 9), (4096, [2, 1, 2, 2, 2])):  # folds of one or two images
        monkeypatch.setattr(without_catalogue, "JOINED_IMAGES", images)
        passes.clear()
        with pytest.warns(UserWarning, match="1 of 10 images could not be read"):
            assert clean_pass(folder, max_failures=1).identical(truth)
        assert passes[1:] == expected  # after that of the check of the taps


def test_a_build_of_an_unchanged_source_does_nothing(
    place: Catalogue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = run(place, request_of(folder))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be counted")

    monkeypatch.setattr(Counter, "make", never)
    (second,) = run(place, request_of(folder))
    assert (second.changed, second.version, second.failures) == (
        False,
        first.version,
        first.failures,
    )
    assert place.head().number == 1


def test_two_builds_of_the_same_images_write_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    hashes = []
    for name in "ab":
        place = Catalogue(str(tmp_path / name))
        (result,) = run(place, request_of(folder))
        hashes.append(result.version.sha256 | {"digest": result.version.dna})
    assert hashes[0] == hashes[1]


def test_folds_are_stored_and_sum_to_the_dna(place: Catalogue, folder: Path) -> None:
    from functools import reduce

    from pipeline.dna import DnaFile

    (result,) = run(place, request_of(folder))
    data = place.read_checked("folds", "photos", result.version)
    parts = list(DnaFile(data, "folds", "folds").read_folds("b").values())
    assert len(parts) == 10
    assert sorted({part.images + part.failed for part in parts}) == [1]
    assert same_counts_and_failures(reduce(DNA.__add__, parts), place.load("photos", layers=["b"]))


@pytest.mark.soak
def test_a_build_killed_at_any_write_is_completed_by_a_rerun(
    tmp_path: Path, killer: Callable[[int | None, bool], list[str]]
) -> None:
    folder = tmp_path / "photos"
    write_photos(folder, 3)
    truth = clean_pass(folder)
    writes = killer(None, False)
    run(Catalogue(str(tmp_path / "clean")), request_of(folder))
    total = len(writes)
    assert total > 15
    for at in range(1, total + 1):
        place = Catalogue(str(tmp_path / f"at-{at}"))
        killer(at, at % 2 == 0)
        with pytest.raises(Killed):
            run(place, request_of(folder))
        killer(None, False)
        before = place.head().number
        (result,) = run(place, request_of(folder))
        assert place.head().number == 1
        assert result.changed == (before == 0)
        assert same_counts_and_failures(place.load("photos"), truth)
        shutil.rmtree(tmp_path / f"at-{at}")


def test_a_rerun_counts_only_what_is_missing(
    place: Catalogue, tmp_path: Path, folder: Path, truth: DNA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that was under way beside the one that died may have been stored, or not."""
    counted: list[str] = []
    make, lock = Counter.make, threading.Lock()

    def spy(self: Counter, shard: object, key: str, **kwargs: bool) -> object:
        with lock:
            if len(counted) == limit:
                raise Killed
            counted.append(key)
        return make(self, shard, key, **kwargs)

    monkeypatch.setattr(Counter, "make", spy)
    limit = 4
    with pytest.raises(Killed):
        run(place, request_of(folder))
    stored = {path.stem for path in (tmp_path / "catalogue").glob("_work/*/*/partials/*.parquet")}
    assert limit - worker.OVERLAP < len(stored) <= limit
    assert stored <= set(counted)
    limit = -1
    counted.clear()
    (result,) = run(place, request_of(folder))
    assert stored.isdisjoint(counted)
    assert len(set(counted)) == len(counted) == result.counted_shards == 10 - len(stored)
    holds(place, truth)


def test_a_grown_and_changed_source_counts_only_the_change(
    place: Catalogue, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    run(place, request_of(source))
    photo(100).save(source / "new.jpg")
    (source / "photo-0003.jpg").unlink()
    photo(101).save(source / "photo-0004.jpg")
    counted: list[str] = []
    make = Counter.make

    def spy(self: Counter, shard: object, key: str, **kwargs: bool) -> object:
        counted.append(key)
        return make(self, shard, key, **kwargs)

    monkeypatch.setattr(Counter, "make", spy)
    (result,) = run(place, request_of(source))
    assert result.changed
    assert len(counted) == 2
    with pytest.warns(UserWarning, match="could not be read"):
        clean = clean_pass(source, max_failures=1)
    holds(place, clean)
    assert place.load("photos", at=1).images == 9
    (again,) = run(place, request_of(source))
    assert not again.changed


def test_two_jobs_at_once_commit_one_version(place: Catalogue, folder: Path, truth: DNA) -> None:
    barrier = threading.Barrier(2)

    def job(_: int) -> build_module.Result:
        barrier.wait()
        (result,) = build_datasets(place, [request_of(folder)], InProcess(), RESOURCES)
        return result

    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(job, range(2))
    assert a.version.dna == b.version.dna
    assert place.head().number == 1
    holds(place, truth)


def test_a_build_does_not_replace_a_newer_version_committed_meanwhile(
    place: Catalogue, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    compose = committer.compose
    grown: list[int] = []

    def another_job_is_quicker(*args: object) -> object:
        composed = compose(*args)
        if not grown:
            grown.append(1)
            photo(100).save(source / "new.jpg")
            run(place, request_of(source))
        return composed

    monkeypatch.setattr(committer, "compose", another_job_is_quicker)
    with pytest.raises(Conflict, match="photos: another job committed"):
        run(place, request_of(source))
    assert place.load("photos").images == 10
    (again,) = run(place, request_of(source))
    assert not again.changed


def test_too_many_failures_are_not_committed_and_a_higher_limit_commits_at_once(
    place: Catalogue, folder: Path, truth: DNA, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GateError, match=r"1 of 10 images .* limit is 1% .*\n.*cut.jpg: truncated"):
        run(place, request_of(folder, max_failures=0.01))
    assert place.head().number == 0
    monkeypatch.setattr(Counter, "make", lambda *_, **__: pytest.fail("counted again"))
    (result,) = run(place, request_of(folder, max_failures=0.1))
    assert result.changed
    holds(place, truth)


def test_very_many_failures_are_judged_by_their_number_alone(
    place: Catalogue, folder: Path, truth: DNA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of millions would not go into memory."""
    monkeypatch.setattr(committer, "FAILURES_HELD", 0)
    compose = committer.compose
    monkeypatch.setattr(committer, "compose", lambda *_: pytest.fail("all names were read"))
    with pytest.raises(GateError, match=r"1 of 10 images .* limit is 1% .*\n.*cut.jpg: truncated"):
        run(place, request_of(folder, max_failures=0.01))
    (tmp_path / "bad").mkdir()
    for number in range(7):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"none of 7 candidates is an image .* First: .*not_an"):
        run(place, request_of(tmp_path / "bad", max_failures=100))
    monkeypatch.setattr(committer, "compose", compose)
    (result,) = run(place, request_of(folder, max_failures=0.1))
    assert result.changed
    holds(place, truth)


@pytest.mark.parametrize(
    ("limit", "candidates", "allowed"),
    [
        (0.01, 99, 0),
        (0.01, 100, 1),
        (0, 100, 0),
        (1, 100, 1),
        (5, 100, 5),
        (0.5, 3, 1),
        (0.29, 100, 29),
    ],
)
def test_the_number_of_failures_that_a_limit_allows(
    limit: float, candidates: int, allowed: int
) -> None:
    assert allowed_failures(limit, candidates) == allowed


def test_a_source_without_a_readable_image_is_an_error(place: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="none of 1 candidate"):
        run(place, request_of(tmp_path / "source", max_failures=100))
    assert place.head().number == 0


def test_storage_that_does_not_answer_ends_the_build_and_a_rerun_goes_on(
    place: Catalogue, folder: Path, truth: DNA, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storage.read

    def broken(uri: str, *args: Any, **kwargs: Any) -> bytes:
        if uri.endswith("photo-0004.jpg"):
            raise TransientError(f"{uri}: no answer after 5 tries")
        return read(uri, *args, **kwargs)

    monkeypatch.setattr(storage, "read", broken)
    with pytest.raises(TransientError, match=r"photos: 1 of 10 shards .*photo-0004.jpg"):
        run(place, request_of(folder))
    assert place.head().number == 0
    monkeypatch.setattr(storage, "read", read)
    (result,) = run(place, request_of(folder))
    assert result.counted_shards == 1
    holds(place, truth)


def test_a_source_that_changes_during_a_build_is_not_counted_in_two_states(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    write_photos(source, 4)
    missing = runner._missing

    def then_change(p: object) -> tuple[set[int], bool]:
        photo(50).save(source / "photo-0002.jpg")
        return missing(p)

    monkeypatch.setattr(runner, "_missing", then_change)
    with pytest.raises(TransientError, match=r"photo-0002.jpg changed between listing and reading"):
        run(place, request_of(source))
    assert place.head().number == 0
    monkeypatch.undo()
    run(place, request_of(source))
    holds(place, clean_pass(source))


def test_one_broken_dataset_does_not_stop_the_others(
    place: Catalogue, folder: Path, tmp_path: Path, truth: DNA
) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        run(place, request_of(tmp_path / "nowhere", "broken"), request_of(folder))
    assert place.names() == ["photos"]
    holds(place, truth)


def test_a_second_spec_does_not_break_the_first(place: Catalogue, folder: Path) -> None:
    run(place, request_of(folder))
    (other,) = run(place, request_of(folder, bins=4, spec="new"))
    assert place.load("photos").spec.bins == 8
    coarse = place.load("photos", spec=other.version.spec)
    assert coarse.counts.shape == (7, 4)
    inner = place.load("photos").counts.reshape(7, 4, 2).sum(axis=2)
    assert np.array_equal(inner, coarse.counts)


def test_memory_urls_work_in_process_and_are_refused_elsewhere(folder: Path, truth: DNA) -> None:
    key = uuid.uuid4().hex
    for path in folder.iterdir():
        storage.create(f"memory://{key}/images/{path.name}", path.read_bytes())
    place = Catalogue(f"memory://{key}/catalogue")
    run(place, request_of(f"memory://{key}/images"))
    holds(place, truth)

    class Elsewhere(InProcess):
        in_process = False

    with pytest.raises(UsageError, match=r"other processes cannot see memory://"):
        build_datasets(place, [request_of(folder)], Elsewhere(), RESOURCES)


def test_a_damaged_partial_is_refused_by_name_and_counted_again_once_deleted(
    place: Catalogue, folder: Path, truth: DNA, tmp_path: Path
) -> None:
    with pytest.raises(GateError):
        run(place, request_of(folder, max_failures=0))
    partial = next((tmp_path / "catalogue").glob("_work/photos/*/partials/*.parquet"))
    whole = partial.read_bytes()
    partial.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile, match=rf"{partial.name}: torn(.|\n)*delete it and rerun"):
        run(place, request_of(folder))
    assert place.head().number == 0
    partial.unlink()
    (result,) = run(place, request_of(folder))
    assert result.counted_shards == 1
    holds(place, truth)


def test_a_committed_file_that_is_gone_is_made_again_from_the_partials(
    place: Catalogue, folder: Path, truth: DNA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged one is refused until it is deleted."""
    (first,) = run(place, request_of(folder))
    version = first.version
    monkeypatch.setattr(Counter, "make", lambda *_, **__: pytest.fail("counted again"))
    for kind in ("dna", "folds", "failures", "manifests"):
        name = version.manifest if kind == "manifests" else version.dna
        uri = place.uri(kind, version.spec, "photos", name)
        whole = storage.read(uri)
        storage.replace(uri, whole[:-9] + b"otherwise")
        with pytest.raises(CorruptFile, match="delete it and build the dataset again"):
            place.read_checked(kind, "photos", version)
        storage.delete(uri)
        run(place, request_of(folder))
        assert storage.read(uri) == whole
        assert place.head().number == 1
        holds(place, truth)


@pytest.mark.parametrize("default", [True, False])
def test_a_result_tells_which_options_read_the_version_that_it_replaced(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: bool
) -> None:
    source = tmp_path / "photos"
    write_photos(source, 2)
    run(place, request_of(source))
    request = request_of(source) if default else request_of(source, bins=50, spec="new")
    (first,) = run(place, request)
    assert (first.replaced, first.former_options) == (None, {})
    photo(90).save(source / "photo-0000.jpg")
    made = place.head().number
    before = tag_version(place, "photos", "t", first.version.spec).number  # holds the version, too
    commit = Catalogue.put_version

    def commit_after_others(
        self: Catalogue, name: str, new: Version, *rest: Any, **parts: Any
    ) -> Any:
        commit(self, name, new, *rest, **parts)  # another job commits the same version
        commit(self, "elsewhere", new, None)
        return commit(self, name, new, *rest, **parts)

    monkeypatch.setattr(Catalogue, "put_version", commit_after_others)
    (result,) = run(place, request)
    assert place.head().number == before + 2
    assert result.replaced == first.version
    options = dict(result.former_options)
    assert options == {"at": made} | ({} if default else {"spec": first.version.spec[:12]})
    assert place.find("photos", **options) == first.version
    assert "<td>replaces</td>" in result._repr_html_()


def test_a_dataset_loses_half_of_its_images_at_most_unless_more_is_meant(
    place: Catalogue, small: None, tmp_path: Path
) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    write_photos(source, 10)
    shutil.copytree(source, elsewhere)

    def lose(count: int) -> None:
        for path in sorted(source.iterdir())[:count]:
            path.unlink()

    request = request_of(source)
    run(place, request)
    lose(5)
    (half,) = run(place, request)
    assert half.version.images == 5
    lose(3)
    before = place.head().datasets
    few = f"photos: it had 5 images of {source}, and has 2 now; .*give `replace=True`, or else"
    with pytest.raises(UsageError, match=few):
        run(place, request, request_of(source, "other"))
    other = f"photos: its source was {source}, and is {elsewhere} now"
    with pytest.raises(UsageError, match=other):
        run(place, request_of(elsewhere))
    left = dict(place.head().datasets)
    (rest,) = left.pop("other").values()
    assert rest.images == 2  # what was not refused is committed
    assert left == before
    run(place, replace(request, replace=True))
    holds(place, clean_pass(source))


def test_the_same_dna_in_other_files_replaces_nothing(
    place: Catalogue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = run(place, request_of(folder))
    version = first.version
    uri = place.uri("failures", version.spec, "photos", version.dna)
    table = pq.read_table(pa.BufferReader(storage.read(uri)))
    otherwise = pa.BufferOutputStream()
    pq.write_table(table, otherwise, compression="gzip")
    storage.delete(uri)
    monkeypatch.setattr(committer, "encode_failures", lambda _: otherwise.getvalue().to_pybytes())
    (result,) = run(place, request_of(folder))
    assert (result.changed, place.head().number) == (True, 2)
    assert (result.version.dna, result.replaced, result.former_options) == (version.dna, None, {})
    assert "replaces" not in result._repr_html_()


def test_what_a_verification_advises_for_a_damaged_file_repairs_it(
    place: Catalogue, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    (first,) = run(place, request_of(tmp_path / "photos"))
    version = first.version
    spec = version.spec
    work = place.partials_uri("photos", version)
    keys = place.manifest("photos", version).keys(spec, version.products)
    kinds = ("dna", "folds", "failures", "exemplars", "image_hashes", "manifests")
    files = {kind: place.uri(kind, spec, "photos", version.digest_in(kind)) for kind in kinds}
    files |= {
        "spec": place.spec_uri(spec),
        "ranges": place.ranges_uri(place.spec(spec).ranges_digest),
        "partial": partial_uri(work, keys[0]),
    }
    for kind, uri in files.items():
        storage.replace(uri, storage.read(uri)[:-9])
        advice = Verification(tuple(verify(place))).verdict
        assert advice.endswith("; or delete those of a dataset, and build or import it again.")
        storage.delete(uri)
        run(place, request_of(tmp_path / "photos"))
        assert [finding for finding in verify(place) if not finding.ok] == [], kind
        assert kind == "partial" or storage.exists(uri)


@pytest.mark.parametrize("kind", ["dna", "log"])
def test_what_a_verification_advises_for_an_older_state_repairs_it(
    place: Catalogue, tmp_path: Path, kind: str
) -> None:
    write_photos(tmp_path / "photos", 2)
    (first,) = run(place, request_of(tmp_path / "photos"))
    photo(90).save(tmp_path / "photos" / "photo-0000.jpg")
    run(place, request_of(tmp_path / "photos"))
    version = first.version
    dna = place.uri("dna", version.spec, "photos", version.dna)
    uri = place.log_uri(1) if kind == "log" else dna
    whole = storage.read(uri)
    storage.replace(uri, whole[:-9])
    advice = Verification(tuple(verify(place, all_versions=True)), all_versions=True).verdict
    assert "delete those" not in advice
    if kind == "log":
        assert advice.endswith("; the log can only be restored.")
        storage.replace(uri, whole)
    else:
        assert advice.endswith("; or let `vdna gc --keep` remove the older versions.")
        collect(place, keep=1, grace=timedelta(0))
        assert not storage.exists(uri)
    assert [f for f in verify(place, all_versions=True) if not f.ok] == []


def test_a_wrong_file_under_the_name_of_the_dna_is_not_committed(
    place: Catalogue, folder: Path, truth: DNA, tmp_path: Path
) -> None:
    """The build commits what it summed, whatever file has the name of the digest already."""
    (first,) = run(place, request_of(folder))
    uri = place.uri("dna", first.version.spec, "photos", first.version.dna)
    false = replace(place.load("photos"), counts=place.load("photos").counts[:, ::-1].copy())
    storage.replace(uri, encode_dna(false))
    shutil.rmtree(tmp_path / "catalogue" / "_log")
    run(place, request_of(folder))
    holds(place, truth)


def test_another_grouping_of_images_makes_a_new_plan(place: Catalogue, tmp_path: Path) -> None:
    for video in range(3):
        write_photos(tmp_path / "source" / f"video{video}", 3, first_seed=10 * video)
    (plain,) = run(place, request_of(tmp_path / "source"))
    (grouped,) = run(place, request_of(tmp_path / "source", group_by="1"))
    assert grouped.changed
    folds: dict[str, set[int]] = {}
    for shard in place.manifest("photos", grouped.version).shards:
        for entry in shard.members:
            folds.setdefault(entry.group, set()).add(shard.fold)
    assert len(folds) == 3
    assert all(len(of) == 1 for of in folds.values())
    assert same_counts_and_failures(place.load("photos"), place.load("photos", at=1))
    assert plain.version.manifest != grouped.version.manifest
    holds(place, clean_pass(tmp_path / "source"))


def test_a_grouping_that_makes_few_groups_is_told(place: Catalogue, tmp_path: Path) -> None:
    """Its distances have no error bars, and a comparison later does not say why."""

    def said(**options: Any) -> list[str]:
        events: list[Event] = []
        request = request_of(tmp_path / "source", **options)
        build_datasets(place, [request], ENGINE, RESOURCES, events.append)
        messages = [event.message for event in events if isinstance(event, Said)]
        return [message for message in messages if "`group_by=" in message]

    write_photos(tmp_path / "source" / "day0", 3)
    assert said(group_by="1") == [
        "photos: `group_by='1'` puts all 3 images into one group, so its distances will have no "
        "error bars and no tests; if that is not meant, group by something that differs more"
    ]
    assert said() == []
    write_photos(tmp_path / "source" / "day1", 3, first_seed=10)
    assert said(group_by="1") == [
        "photos: `group_by='1'` puts all 6 images into groups that fill 2 folds. Tests need 6, so "
        "its distances will have none; if that is not meant, group by something that differs more"
    ]
    for number in range(2, 40):
        write_photos(tmp_path / "source" / f"day{number}", 1, first_seed=10 * number)
    assert said(group_by="1") == []


def test_a_catalogue_inside_its_source_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    for root in (tmp_path, tmp_path / "deep" / "catalogue"):
        with pytest.raises(UsageError, match="is inside the source"):
            run(Catalogue(str(root)), request_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["photo-0000.jpg"]


def test_a_catalogue_inside_its_source_by_a_link_is_refused(tmp_path: Path) -> None:
    photos, link = tmp_path / "photos", tmp_path / "link"
    write_photos(photos, 1)
    (photos / "catalogue").mkdir()
    link.symlink_to(photos)
    (tmp_path / "kept").symlink_to(photos / "catalogue")
    for root, source in (
        (photos / "catalogue", link),
        (photos / "deep" / "catalogue", link),
        (link / "catalogue", photos),
        (tmp_path / "kept", photos),
        (tmp_path / "kept" / "deep", link),
    ):
        with pytest.raises(UsageError, match="is inside the source"):
            run(Catalogue(str(root)), request_of(source))
    (photos / "away").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is inside the source"):
        run(Catalogue(str(link / "away" / "catalogue")), request_of(photos))
    (photos / "away").unlink()
    assert sorted(path.name for path in photos.iterdir()) == ["catalogue", "photo-0000.jpg"]
    assert list((photos / "catalogue").iterdir()) == []


def test_a_link_in_the_source_that_leads_into_the_catalogue_is_refused(
    place: Catalogue, folder: Path, tmp_path: Path
) -> None:
    run(place, request_of(folder))
    root = Path(storage.local_path(place.root))
    source = tmp_path / "source"
    write_photos(source / "sub", 1)
    for target, files in ((root, "_log/*"), (root.parent, "*/_log/*"), (root / "_log", "*")):
        (source / "sub" / "link").symlink_to(target)
        for text in (source, f"{source}/sub/link/{files}"):
            with pytest.raises(UsageError, match=rf"a link in .* leads to {root}: .*/sub/link/"):
                run(place, request_of(text, "other"))
        (source / "sub" / "link").unlink()
    (source / "sub" / "link").symlink_to(folder)
    (result,) = run(place, request_of(source, "other"))
    assert (result.version.images, result.version.failed) == (10, 1)


def test_weights_need_their_own_ranges(tmp_path: Path, folder: Path) -> None:
    import torch

    from pipeline.networks import describe, load_model

    state = load_model(describe("efficientnet_lite0")).state_dict()
    torch.save(state | {"conv_stem.weight": state["conv_stem.weight"] * 2}, tmp_path / "other.pt")
    with pytest.raises(SpecMismatch, match="calibrate"):
        make_dna(folder, weights=str(tmp_path / "other.pt"), max_failures=1)


def test_permanent_errors_are_not_reported_as_transient(
    place: Catalogue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SpecMismatch("this worker has other numerics")

    monkeypatch.setattr(Counter, "make", refuse)
    with pytest.raises(VdnaError, match="other numerics") as caught:
        run(place, request_of(folder))
    assert not isinstance(caught.value, TransientError)
    assert "rerun" not in str(caught.value)


def test_two_requests_with_one_name_are_refused(place: Catalogue, folder: Path) -> None:
    with pytest.raises(UsageError, match="asked for twice"):
        run(place, request_of(folder), request_of(folder))


def test_wrong_arguments_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(UsageError, match="no extractor 'resnet'; there are: efficientnet_lite0"):
        make_dna(folder, extractor="resnet")
    with pytest.raises(UsageError, match="bins is 1"):
        make_dna(folder, bins=1)
    with pytest.raises(UsageError, match=r"image 0 has shape .* or \(height, width\)$"):
        make_dna([np.zeros((4, 4, 7), np.uint8)])
    with pytest.raises(UsageError, match=r"type float64; .* np\.rint\(255 \* image\)\.astype"):
        make_dna([np.zeros((4, 4, 3))])
    with pytest.raises(UsageError, match=r"put last by np\.moveaxis\(image, 0, -1\)"):
        make_dna([np.zeros((3, 4, 4), np.uint8)])
    with pytest.raises(GateError, match="1 of 10"):
        clean_pass(folder)


def test_a_file_that_changed_after_the_listing_is_not_read(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    path = tmp_path / "photo-0000.jpg"
    listed = storage.info(path.as_uri())
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed"):
        storage.read(path.as_uri(), listed.identity)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_random_schedules_of_faults(
    tmp_path: Path,
    killer: Callable[[int | None, bool], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Runs builds that die, cannot read, see the source grow or run at once, and then one alone.

    Whatever came before, the last build commits the counts of one clean pass.
    """
    chance = random.Random(seed)
    source, place = tmp_path / "source", Catalogue(str(tmp_path / "catalogue"))
    write_photos(source, chance.randint(1, 4), first_seed=10 * seed)
    read = storage.read
    for step in range(chance.randint(2, 6)):
        fault = chance.choice(["die", "die", "unreadable", "grow", "shrink", "both"])
        if fault == "die":
            killer(chance.randint(1, 25), chance.random() < 0.5)
        elif fault == "unreadable":
            bad = chance.random()

            def flaky(uri: str, *args: Any, bad: float = bad, **kwargs: Any) -> bytes:
                if uri.endswith(".jpg") and chance.random() < bad:
                    raise TransientError(f"{uri}: no answer")
                return read(uri, *args, **kwargs)

            monkeypatch.setattr(storage, "read", flaky)
        elif fault == "grow":
            write_photos(source, 1, first_seed=10 * seed + 5 + step)
        elif fault == "shrink" and len(list(source.iterdir())) > 1:
            next(source.iterdir()).unlink()
        jobs = 2 if fault == "both" else 1
        with ThreadPoolExecutor(jobs) as pool:
            for job in [pool.submit(run, place, request_of(source)) for _ in range(jobs)]:
                with contextlib.suppress(Killed, TransientError, Conflict):
                    job.result()
        killer(None, False)
        monkeypatch.setattr(storage, "read", read)
    run(place, request_of(source))
    holds(place, clean_pass(source))
    (again,) = run(place, request_of(source))
    assert not again.changed


def test_a_source_that_returns_to_an_earlier_state_does_not_break_old_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers are written in other bytes, as another version of a library writes them."""
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    hand_made = Place(tmp_path)
    hand_made.photos("photos", 30, bad=2)
    newer = pq.ParquetWriter

    def older(*args: Any, **options: Any) -> pq.ParquetWriter:
        return newer(*args, **{**options, "compression": "gzip", "compression_level": 1})

    with monkeypatch.context() as then:
        then.setattr(pq, "ParquetWriter", older)
        first = hand_made.build("photos").version
    hand_made.photos("photos", 34, bad=2)
    assert hand_made.build("photos").version.dna != first.dna
    for name in ("photo-030.jpg", "photo-031.jpg", "photo-032.jpg", "photo-033.jpg"):
        (tmp_path / "photos" / name).unlink()
    again = hand_made.build("photos").version
    assert (again.dna, again.sha256, again.footers) == (first.dna, first.sha256, first.footers)
    assert all(finding.ok for finding in verify(hand_made.catalogue, ["photos"]))
    for number in (1, 2, 3):
        assert hand_made.catalogue.load("photos", at=number).images in (28, 32)


def test_a_source_that_returns_to_an_earlier_state_repairs_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.building.shared_lookups.describe", lambda name, weights, taps: NETWORK
    )
    hand_made = Place(tmp_path)
    hand_made.photos("photos", 30)
    first = hand_made.build("photos").version
    hand_made.photos("photos", 31)
    hand_made.build("photos")
    for kind in ("dna", "folds", "failures"):
        uri = hand_made.catalogue.uri(kind, first.spec, "photos", first.dna)
        data = bytearray(storage.read(uri))
        data[len(data) // 3] ^= 1
        storage.replace(uri, bytes(data))
    (tmp_path / "photos" / "photo-030.jpg").unlink()
    assert hand_made.build("photos").version.sha256 == first.sha256
    assert hand_made.catalogue.load("photos", at=1).images == 30


# What nobody foresaw.


class Broken:
    """Breaks the counting of a dataset's shards `times` times, as a broken device would."""

    def __init__(self, name: str, times: int, patch: pytest.MonkeyPatch) -> None:
        self.name, self.times, self.tried = name, times, 0
        self._make = Counter.make
        broken = self

        def made(counter: Counter, shard: Shard, *args: Any, **options: Any) -> Made:
            if f"/{broken.name}/" in shard.members[0].uri and broken.tried < broken.times:
                broken.tried += 1
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return broken._make(counter, shard, *args, **options)

        patch.setattr(Counter, "make", made)


def three_sets(tmp_path: Path, **options: object) -> list[Request]:
    requests = []
    for seed, name in enumerate("abc"):
        write_photos(tmp_path / name, 3, first_seed=10 * seed)
        requests.append(request_of(tmp_path / name, name, **options))
    return requests


def test_an_error_that_nobody_foresaw_fails_one_dataset_and_the_others_are_committed(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = three_sets(tmp_path, shard_images=10**6)
    broken = Broken("b", 10**6, monkeypatch)
    failed: dict[str, VdnaError] = {}
    with pytest.raises(UnexpectedError, match=r"^b: .*RuntimeError: CUDA error: .*\.py:\d+") as got:
        build_datasets(place, requests, ENGINE, RESOURCES, failed=failed.__setitem__)
    assert "Traceback" in got.value.details
    assert failed == {"b": got.value}
    assert sorted(place.head().datasets) == ["a", "c"]
    shards = len(list(Path(storage.local_path(place.root)).glob("_work/b/*/attempts/*")))
    assert shards == 0, "a shard that was given up is not counted as one that killed its worker"
    assert broken.tried % runner.TRIES == 0
    broken.times = 0
    run(place, *requests)
    for request in requests:
        holds(place, clean_pass(request.source), request.name)


def test_a_device_that_works_again_costs_nothing_but_time(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = three_sets(tmp_path)
    loads = []
    load = worker._load
    monkeypatch.setattr(worker, "_load", lambda *of: loads.append(of) or load(*of))
    broken = Broken("b", runner.TRIES - 1, monkeypatch)
    with contextlib.closing(InProcess()) as engine:
        build_datasets(place, requests, engine, RESOURCES)
    assert broken.tried == broken.times
    assert len(loads) > 1, "a network that may be broken is loaded again"
    for request in requests:
        holds(place, clean_pass(request.source), request.name)


def test_a_dataset_is_committed_while_the_shards_of_another_are_still_counted(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = three_sets(tmp_path, shard_images=1)
    make = Counter.make
    seen: list[set[str]] = []

    def wait_for_the_others(counter: Counter, shard: Shard, *args: Any, **options: Any) -> Made:
        if "/c/" in shard.members[0].uri and not seen:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and len(place.head().datasets) < 2:
                time.sleep(0.05)
            seen.append(set(place.head().datasets))
        return make(counter, shard, *args, **options)

    monkeypatch.setattr(Counter, "make", wait_for_the_others)
    results = run(place, *requests)
    assert seen[0] == {"a", "b"}
    assert [result.name for result in results] == ["a", "b", "c"]


def test_counts_that_do_not_add_up_are_not_tried_again(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = three_sets(tmp_path, shard_images=10**6)
    make, tried = Counter.make, []

    def lose(counter: Counter, shard: Shard, *args: Any, **options: Any) -> Made:
        if "/b/" in shard.members[0].uri:
            tried.append(shard.index)
            raise ConservationError("a[0] counts 3 activations of 4")
        return make(counter, shard, *args, **options)

    monkeypatch.setattr(Counter, "make", lose)
    with pytest.raises(ConservationError, match=r"^b: .*counts 3 activations of 4"):
        run(place, *requests)
    assert len(tried) == len(set(tried))
    assert sorted(place.head().datasets) == ["a", "c"]


@pytest.mark.parametrize("by", ["a build", "make_dna", "a forecast"])
def test_an_error_of_the_listener_ends_the_counting_and_is_raised(
    by: str, place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook, the other shards would be counted after the error was seen."""
    folder = tmp_path / "images"
    write_photos(folder, 40)
    begun: list[int] = []
    told: list[Event] = []

    class Broken(Exception):
        pass

    def slow(method: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(counter: Counter, shard: Shard, *args: Any, **options: Any) -> Any:
            begun.append(shard.index)
            time.sleep(0.1)
            return method(counter, shard, *args, **options)

        return slowly

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and begun:
            told.append(event)
            if len(told) == 2:
                raise Broken

    count_each = Counter.count_each

    def slowly_each(counter: Counter, *args: Any, **options: Any) -> Any:
        for number, partial in enumerate(count_each(counter, *args, **options)):
            begun.append(number)
            time.sleep(0.1)
            yield partial

    monkeypatch.setattr(Counter, "count_each", slowly_each)
    monkeypatch.setattr(Counter, "make", slow(Counter.make))
    request = request_of(folder, shard_images=1)
    to_forecast = ForecastRequest(str(folder), **COUNTING)
    jobs: dict[str, Callable[[], object]] = {
        "a build": lambda: build_datasets(place, [request], ENGINE, RESOURCES, progress=listen),
        "make_dna": lambda: make_dna(folder, threads=2, progress=listen, **COUNTING),
        "a forecast": lambda: forecast(to_forecast, RESOURCES, progress=listen),
    }
    with pytest.raises(Broken) as raised:
        jobs[by]()
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith(("shard", "count"))] == []
    assert 2 <= len(begun) <= 8
    assert raised.tb is not None  # it keeps all frames, as a notebook does
