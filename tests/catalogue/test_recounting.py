"""Tests `verify --deep`: counting the images again finds forgeries that agree with each other."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jobs.app import app
from pipeline import api, storage
from pipeline.building import Request, build_datasets, committer, runner
from pipeline.catalogue import Catalogue, Finding, Verification, Version, recount, verify
from pipeline.catalogue.recounting import MOVED_BY_ROUNDING, compare_partials
from pipeline.counting import (
    ShardJob,
    ShardReceipt,
    compose,
    load_partial,
    partial_uri,
    reduction,
)
from pipeline.dna import Failure, Partial
from pipeline.engine import InProcess
from pipeline.events import Event, StepDone, StepFailed
from pipeline.networks import describe, encode_ranges, find_ranges
from pipeline.networks.registry import register_network
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import (
    NUMERICS,
    OTHER_NUMERICS,
    photo,
    random_dna,
    tiny_spec,
    write_photos,
)

NAME = "photos"
NETWORK = "seven"
RANGES = "ranges.parquet"
ENGINE = InProcess()
RESOURCES = Resources(workers=0, threads=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes 5 photos and a truncated one, in 6 shards, and the catalogue beside them."""
    folder = tmp_path_factory.mktemp("original")
    cut = write_photos(folder / "images", 6)[-1]
    cut.write_bytes(cut.read_bytes()[:-200])
    place = tiny.install(folder)
    register_network(
        NETWORK, tiny.Tiny, preprocess=tiny.RULE, taps="a,b", weights=place.weights
    )  # its own, so that nobody has to state them
    network = describe(NETWORK)
    ranges, _ = find_ranges(place.network, place.ranges, {})
    storage.create((folder / RANGES).as_uri(), encode_ranges(ranges, network, origin="tests"))
    build(folder)
    return folder


def build(folder: Path, engine: InProcess = ENGINE, **more: Any) -> None:
    request = Request(
        NAME,
        str(folder / "images"),
        extractor=NETWORK,
        bins=tiny.BINS,
        ranges=str(folder / RANGES),
        max_failures=1,
        **more,
    )
    build_datasets(Catalogue(str(folder / "catalogue")), [request], engine, RESOURCES)


class Place:
    """A catalogue to damage, and the images that it was built from."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.catalogue = Catalogue(str(folder / "catalogue"))
        self.version: Version = self.catalogue.find(NAME)
        self.manifest = self.catalogue.manifest(NAME, self.version)

    def partial(self, index: int) -> str:
        work = self.catalogue.work_uri(NAME, self.version.spec)
        return partial_uri(
            work, self.manifest.keys(self.version.spec, self.version.products)[index]
        )

    def image(self, index: int) -> Path:
        (entry,) = self.manifest.shards[index].members
        return Path(storage.local_path(entry.uri))

    def run(self, **options: Any) -> list[Finding]:
        return list(recount(self.catalogue, engine=ENGINE, resources=RESOURCES, **options))


@pytest.fixture
def place(original: Path) -> Iterator[Place]:
    """Yields the catalogue; the images stay in place, and are restored afterwards."""
    kept = original.parent / f"{original.name}-kept"
    shutil.copytree(original, kept, copy_function=shutil.copy2)
    yield Place(original)
    shutil.rmtree(original)
    shutil.move(kept, original)


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.detail for finding in findings if not finding.ok}


def readable(place: Place) -> list[int]:
    """Returns the shards whose image can be read."""
    return [i for i in range(6) if load_partial(place.partial(i)).dna.images]


def replaced_in_place(path: Path, seed: int) -> None:
    """Replaces an image, keeping size and time, as a copy with `touch -r` would."""
    status = path.stat()
    photo(seed).save(path, quality=5)
    data = path.read_bytes()
    assert len(data) <= status.st_size
    path.write_bytes(data + b"\0" * (status.st_size - len(data)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def moved(partial: Partial) -> Partial:
    """Moves one activation to another bin: all sums stay."""
    counts = partial.dna.counts.copy()
    at = int(np.flatnonzero(counts[5])[0])
    counts[5, at] -= 1
    counts[5, (at + 1) % counts.shape[1]] += 1
    return replace(partial, dna=replace(partial.dna, counts=counts))


def test_a_clean_dataset_passes_and_nothing_is_changed(place: Place) -> None:
    before = {i.uri: i.identity for i in storage.walk(place.catalogue.root)}
    findings = place.run(sample=None)
    assert wrong(findings) == {}
    assert len(findings) == 6 + 2
    assert findings[-1].detail == "6 of 6 shards looked at again (all), 0 findings"
    assert findings[-2].check == "recounted sum"
    assert findings[-2].detail == "5 images, all numbers are equal"
    assert {i.uri: i.identity for i in storage.walk(place.catalogue.root)} == before


def test_a_sample_is_chosen_by_its_seed(place: Place) -> None:
    def chosen(seed: int) -> list[str]:
        findings = place.run(sample=2, seed=seed)
        assert findings[-1].detail == f"2 of 6 shards looked at again (seed {seed}), 0 findings"
        return sorted(finding.check for finding in findings[:-1])  # they come as shards end

    assert len(chosen(1)) == 2
    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(seed)) for seed in range(4)}) > 1


def test_an_older_version_is_counted_again_by_its_name(place: Place) -> None:
    photo(7).save(place.images / "later.jpg")
    build(place.images.parent)
    replaced_in_place(place.image(readable(place)[0]), 996)
    (place.images / "later.jpg").unlink()
    older = place.run(names=[f"{NAME}@-1"], sample=None)
    assert {(finding.dataset, finding.at) for finding in older} == {(NAME, 1)}
    assert wrong(older).keys() == {f"shard {readable(place)[0]}", "recount"}
    newest = place.run(sample=None)
    assert {finding.at for finding in newest} == {None}
    assert len(wrong(newest)) == len(wrong(older)) + 1


def test_a_forged_partial_with_correct_sums_is_found(place: Place) -> None:
    index = readable(place)[1]
    uri = place.partial(index)
    storage.replace(uri, moved(load_partial(uri)).encode())
    load_partial(uri)
    found = wrong(place.run(sample=None))
    assert set(found) == {f"shard {index}", "recount"}
    assert uri in found[f"shard {index}"]
    assert re.search(r"1 activation \(.*\) is in another bin, in layer b", found[f"shard {index}"])
    assert found["recount"] == "6 of 6 shards looked at again (all), 1 finding"


def test_an_image_replaced_with_the_same_size_and_time_is_found(place: Place) -> None:
    index = readable(place)[0]
    replaced_in_place(place.image(index), 999)
    assert wrong(list(verify(place.catalogue))) == {}  # it looks at what is stored alone
    found = wrong(place.run(sample=None))
    assert set(found) == {f"shard {index}", "recount"}
    assert "are in other bins" in found[f"shard {index}"]


def test_what_a_verification_advises_where_a_count_differs_repairs_it(place: Place) -> None:
    index = readable(place)[0]
    replaced_in_place(place.image(index), 999)
    advice = Verification(tuple(place.run(sample=None))).verdict
    assert advice.endswith(
        "in photos. Where a count differs, delete the partials that are named, the folders cells/ "
        "and nodes/ beside theirs, and the files under dna/ of this version, its parts and its "
        "windows; then build it again."
    )
    storage.delete(place.partial(index))
    storage.delete(place.catalogue.uri("dna", place.version.spec, NAME, place.version.dna))
    build(place.images.parent)
    repaired = Place(place.images.parent)
    assert wrong(repaired.run(sample=None)) == wrong(list(verify(place.catalogue))) == {}


class Dying(InProcess):
    """Counts the shards and dies before the build ends."""

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        list(super().run_shards(work))
        raise RuntimeError("died")


def test_no_sum_over_a_shard_outlives_its_partial(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that was told to count it again may die between counting and adding up."""
    monkeypatch.setattr(reduction, "FAN_IN", 2)
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    for seed in range(20, 40):
        photo(seed).save(place.images / f"more-{seed}.jpg")
    build(place.images.parent, shard_images=1)
    place = Place(place.images.parent)
    work = place.catalogue.work_uri(NAME, place.version.spec)
    nodes = Path(storage.local_path(storage.join(work, "nodes")))
    before = {path.name for path in nodes.iterdir()}
    folds = Counter(head.fold for head in place.manifest.heads)
    index = next(h.index for h in place.manifest.heads if folds[h.fold] > 1)
    replaced_in_place(place.image(index), 999)
    assert set(wrong(place.run(sample=None))) == {f"shard {index}", "recount"}
    storage.delete(place.partial(index))
    storage.delete(place.catalogue.uri("dna", place.version.spec, NAME, place.version.dna))
    with pytest.raises(RuntimeError, match="died"):
        build(place.images.parent, Dying(), shard_images=1)
    assert [*nodes.iterdir()] == []
    build(place.images.parent, shard_images=1)
    repaired = Place(place.images.parent)
    assert wrong(repaired.run(sample=None)) == wrong(list(verify(place.catalogue))) == {}
    assert {path.name for path in nodes.iterdir()} == before


def test_sums_that_vanish_while_they_are_added_up_are_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "FAN_IN", 2)
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    for seed in range(20, 40):
        photo(seed).save(place.images / f"more-{seed}.jpg")
    work = place.catalogue.work_uri(NAME, place.version.spec)
    nodes = Path(storage.local_path(storage.join(work, "nodes")))
    removed = []

    def compose_later(*args: Any, **options: Any) -> Any:
        if not removed:  # by another job that begins to count the same shard
            removed.extend(path.unlink() or path for path in [*nodes.iterdir()])
        return compose(*args, **options)

    monkeypatch.setattr(committer, "compose", compose_later)
    build(place.images.parent, shard_images=1)
    assert removed != []
    built = Place(place.images.parent)
    assert wrong(built.run(sample=None)) == wrong(list(verify(place.catalogue))) == {}


def test_sums_over_shards_that_another_job_has_stored_meanwhile_stay(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This job had listed the partials before, and the other one added them up since."""
    monkeypatch.setattr(reduction, "FAN_IN", 2)
    monkeypatch.setattr(reduction, "LAST_SUMMANDS", 1)
    for seed in range(20, 40):
        photo(seed).save(place.images / f"more-{seed}.jpg")
    build(place.images.parent, shard_images=1)
    place = Place(place.images.parent)
    version, work = place.version, place.catalogue.work_uri(NAME, place.version.spec)
    spec = SimpleNamespace(digest=version.spec)
    recipe = SimpleNamespace(spec=spec, products=version.products)
    job: Any = SimpleNamespace(work_uri=work, recipe=recipe)
    nodes = Path(storage.local_path(storage.join(work, "nodes")))
    before = {path.name for path in nodes.iterdir()}
    keys = place.manifest.keys(version.spec, version.products)
    runner._remove_sums_over(job, place.manifest, set(keys))
    assert {path.name for path in nodes.iterdir()} == before != set()
    folds = Counter(head.fold for head in place.manifest.heads)
    index = next(h.index for h in place.manifest.heads if folds[h.fold] > 1)
    storage.delete(place.partial(index))
    runner._remove_sums_over(job, place.manifest, {keys[index]})
    assert [*nodes.iterdir()] == []


class SharedEngine(InProcess):
    """Keeps sums where a cluster does, and removes one or all of them before they are read."""

    in_process = False

    def __init__(self, work: str, of_one: bool) -> None:
        super().__init__()
        self.work, self.of_one = work, of_one

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        *others, last = super().run_shards(work)
        if not self.of_one:
            yield from others
            yield last
        (folder,) = Path(storage.local_path(self.work)).glob("recount-*")
        shutil.rmtree(folder)
        if self.of_one:
            yield last


@pytest.mark.parametrize("of_one", [False, True])
def test_new_sums_that_an_erasure_removes_meanwhile_are_told(place: Place, of_one: bool) -> None:
    work = storage.join(place.catalogue.root, "_work")
    with SharedEngine(work, of_one) as engine:
        *found, last = recount(place.catalogue, engine=engine, resources=RESOURCES, sample=None)
    assert found != []
    told = found[-1].detail if of_one else last.detail
    assert re.search(r"recount-.*\. The sum was counted just now, .*run the same command ag", told)
    assert not last.ok


def test_an_image_that_became_unreadable_in_place_is_found(place: Place) -> None:
    index = readable(place)[0]
    path = place.image(index)
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    detail = wrong(place.run(sample=None))[f"shard {index}"]
    assert "1 image and 0 failures are stored, 0 and 1 were found" in detail
    assert path.name in detail


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_an_image_that_changed_since_the_build_is_reported_as_changed(
    place: Place, how: str
) -> None:
    path = place.image(2)
    if how == "changed":
        photo(998).save(path)
    else:
        path.unlink()
    found = wrong(place.run(sample=None))
    assert set(found) == {"shard 2", "recount"}
    assert "1 of its images changed since they were counted" in found["shard 2"]
    assert path.as_uri() in found["shard 2"]
    assert ("gone now" in found["shard 2"]) == (how == "gone")


def test_without_partials_the_recounted_sum_is_compared(place: Place) -> None:
    first = readable(place)[0]
    for index in range(6):
        storage.delete(place.partial(index))
    assert wrong(place.run(sample=3)) == {
        "recount": "none of 6 partials is kept; count all shards (`sample='all'`)"
    }
    assert wrong(place.run(sample=None)) == {}
    replaced_in_place(place.image(first), 997)
    found = wrong(place.run(sample=None))
    assert set(found) == {"recounted sum", "recount"}
    assert "are in other bins" in found["recounted sum"]


def test_other_weights_than_the_spec_s_are_refused(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"x": torch.zeros(1)}, path)
    ((finding),) = place.run(weights=str(path))
    assert not finding.ok
    own = hashlib.sha256((place.images.parent / "tiny.pt").read_bytes()).hexdigest()
    assert f"it was built with {own[:12]}" in finding.detail


def two(numerics: Any, share: float) -> tuple[Partial, Partial]:
    spec, ranges = tiny_spec()
    dna = random_dna(spec, ranges, 1000, 3)
    total = 1000 * int(dna.positions.sum())
    counts = dna.counts.copy()
    move = min(round(share * total), int(counts[0, 0]))
    counts[0, 0] -= move
    counts[0, 1] += move
    other = replace(dna, counts=counts, numerics=((numerics, 1000),))
    return Partial(dna, ("a",), ()), Partial(other, ("a",), ())


@pytest.mark.parametrize(
    ("numerics", "share", "holds"),
    [
        (NUMERICS, 0, True),
        (NUMERICS, 1e-4, False),
        (OTHER_NUMERICS, MOVED_BY_ROUNDING * 0.9, True),
        (OTHER_NUMERICS, MOVED_BY_ROUNDING * 1.1, False),
    ],
)
def test_rounding_is_allowed_for_where_numerics_differ(
    numerics: Any, share: float, holds: bool
) -> None:
    ok, detail = compare_partials(*two(numerics, share))
    assert ok == holds
    if share:
        assert ("other numerics than were recorded" in detail) == (numerics is OTHER_NUMERICS)
        assert re.search(r"\d activations? \(.* bins?, ", detail)


def test_a_failure_may_be_told_in_other_words_but_not_have_another_reason() -> None:
    stored, again = two(NUMERICS, 0)

    def failed(of: Partial, reason: str, detail: str) -> Partial:
        dna = replace(of.dna, failed=1)
        return replace(of, dna=dna, failures=(Failure("file:///a.jpg", "", reason, detail),))

    stored = failed(stored, "truncated", "image file is truncated (7 bytes not processed)")
    ok, detail = compare_partials(stored, failed(again, "truncated", "the image ends early"))
    assert ok, detail
    ok, detail = compare_partials(stored, failed(again, "not_an_image", "no image"))
    assert not ok
    assert "; first: /a.jpg: not_an_image" in detail
    assert not compare_partials(stored, again)[0]


def test_the_verify_deep_command(place: Place) -> None:
    words = ["verify", "-c", place.catalogue.root, "--deep", "--threads", "2"]
    good = CliRunner().invoke(app, [*words, "--sample", "1", "--seed", "5"])
    assert good.exit_code == 0, good.output
    assert "1 of 6 shards looked at again (seed 5), 0 findings" in good.stdout
    assert "counting 1 of 6 shards again (seed 5)" in good.stderr
    assert "1/1 shard  " in good.stderr
    index = readable(place)[0]
    replaced_in_place(place.image(index), 996)
    bad = CliRunner().invoke(app, [*words, "--sample", "all", "--json"])
    assert bad.exit_code == 1, bad.output
    found = {f["check"] for f in json.loads(bad.stdout)["findings"] if not f["ok"]}
    assert found == {f"shard {index}", "recount"}
    for sample in ("0", "-1", "some"):
        refused = CliRunner().invoke(app, [*words, "--sample", sample])
        assert refused.exit_code == 2
        assert f"sample is {sample!r}" in refused.stderr
    shallow = [word for word in words if word != "--deep"]
    for given in (["--sample", "all"], ["--seed", "0"], ["--weights", "file"]):
        refused = CliRunner().invoke(app, [*shallow, *given])
        assert refused.exit_code == 2
        assert f"{given[0]} needs --deep, which counts shards again" in refused.stderr
    assert CliRunner().invoke(app, [*shallow, "--sample", "3"]).exit_code == 0  # as without it


def test_a_shard_that_cannot_be_counted_again_is_told_as_a_failure(place: Place) -> None:
    """A step without its work would be one of another job."""

    class Failing(InProcess):
        def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
            for receipt in super().run_shards(work):
                broken = replace(receipt, images=0, error="ValueError: broken", fault="device")
                yield broken if receipt.index == 2 else receipt

    told: list[Event] = []
    with Failing() as engine:
        findings = recount(
            place.catalogue, engine=engine, resources=RESOURCES, sample=None, progress=told.append
        )
        detail = wrong(list(findings))["shard 2"]
    assert detail == "could not be counted again: ValueError: broken"
    (failed,) = [event for event in told if isinstance(event, StepFailed)]
    assert (failed.dataset, failed.shard, failed.fault) == (NAME, 2, "device")
    done = [event for event in told if isinstance(event, StepDone)]
    assert {event.shard for event in done} == {0, 1, 3, 4, 5}
    assert all(event.work is not None for event in done)


def test_an_error_of_who_is_told_ends_the_counting(place: Place) -> None:
    begun, ended = [], []

    class Counting(InProcess):
        def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
            try:
                for receipt in super().run_shards(work):
                    begun.append(receipt.index)
                    yield receipt
            finally:
                ended.append(True)

    class Broken(Exception):
        pass

    def tell(finding: Finding) -> None:
        if begun:
            raise Broken

    with Counting() as engine, pytest.raises(Broken) as raised:
        api.verify(
            place.catalogue, engine=engine, resources=RESOURCES, tell=tell, deep=True, sample="all"
        )
    assert (len(begun), ended) == (1, [True])
    assert raised.tb is not None  # it keeps all frames
