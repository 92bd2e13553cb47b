"""Every image counts exactly once, on the whole machine: random schedules of builds, deaths, lost
answers, changing sources, collections and builders at once, against a truth that is added up apart.

After each step every version that was ever committed must be the truth of a state that its source
was in while it was built; in the end a build that is left alone must commit the truth of today.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline import images, storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue, Version, collect, verify
from pipeline.counting import reduction as reduce_module
from pipeline.dna import DNA, Exemplars, Failure
from pipeline.engine import InProcess
from pipeline.errors import Conflict, GateError, SourceError, TransientError
from pipeline.sources import shard_merging
from pipeline.spec import LAYER_GAUSSIAN, Resources
from pipeline.storage import objects, store_checks
from tests.support import tiny_network as tiny
from tests.support.killer import Killed
from tests.support.repeated_tests import chosen
from tests.support.tiny_network import Oracle, Picture, Place, Truth

RESOURCES = Resources(workers=0, threads=2, fetch_ahead=4)
MODULES = (objects, store_checks)
"""Modules of `pipeline.storage` whose functions touch a store."""
NAMES = ("photos", "videos")
FOLDERS = ("a", "b")
FIGURES: Counter[str] = Counter()


@dataclass
class Process:
    """A builder as storage sees it: it may die at any of its operations, with all its threads.

    `die_at`: the operation before which, or after which if `after`, it dies. `trouble`: the share
    of operations that get no answer, performed or not. `change`: what happens to an image that was
    read, and to the one that is about to be, at the reading of that number. `meet`: where builders
    wait for each other before they commit.
    """

    seed: int
    die_at: int | None = None
    after: bool = False
    trouble: float = 0.0
    slow: float = 0.0
    change_at: int | None = None
    change: Callable[[str], None] = lambda uri: None
    like_s3: bool = False
    meet: threading.Barrier | None = None
    operations: int = 0
    images: list[str] = field(default_factory=list)
    dead: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def perform(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.meet and name == "create" and "/_log/" in args[0]:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.meet.wait(1)
        if name == "read" and args[0].endswith(".png"):
            self._change_images(args[0])
        fate = self._fate(name)
        if fate == "killed":
            self._leave_torn(name, args)
            raise Killed
        if fate == "refused":
            raise TransientError(f"{args[0]}: no answer")
        done = real(*args, **kwargs)
        if inspect.isgenerator(done):
            done = iter(list(done))
        if name == "create" and not done and self.like_s3:
            done = REAL["read"](args[0]) == args[1]
        if self.dead or fate == "killed after":
            self.dead = True
            raise Killed
        if fate == "lost":
            raise TransientError(f"{args[0]}: the answer was lost")
        return done

    def _fate(self, name: str) -> str:
        with self.lock:
            if self.dead:
                raise Killed
            self.operations += 1
            wait = 0.002 * self._chance.random() if self._chance.random() < self.slow else 0
            dies = self.operations == self.die_at
            self.dead = dies and not self.after
            trouble = self._chance.random() < self.trouble
            lost = self._chance.random() < 0.5
        if wait:
            time.sleep(wait)
        if dies:
            fate = "killed after" if self.after else "killed"
        elif trouble:
            fate = "lost" if lost and name != "open_random" else "refused"
        else:
            return ""
        FIGURES[f"{fate} at {name}"] += 1
        return fate

    def _change_images(self, uri: str) -> None:
        with self.lock:
            self.images.append(uri)
            if len(self.images) == self.change_at:
                self.change(self.images[0])
                self.change(uri)

    def _leave_torn(self, name: str, args: Any) -> None:
        """Leaves what a local writer that dies half-way leaves behind."""
        if name in ("create", "replace") and storage.protocol_of(args[0]) == "file":
            path = Path(storage.local_path(args[0]))
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
            torn.write_bytes(args[1][: len(args[1]) // 2])


CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)
REAL: dict[str, Callable[..., Any]] = {
    name: function
    for name in storage.__all__
    if inspect.isfunction(function := getattr(storage, name))
    and function.__module__ in {module.__name__ for module in MODULES}
    and function is not storage.store_of
}
assert {"create", "delete", "exists", "open_random", "read", "replace", "walk"} <= REAL.keys()


def _watched(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        process = CURRENT.get()
        if process is None:
            return REAL[name](*args, **kwargs)
        return process.perform(name, REAL[name], args, kwargs)

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def oracle(place: Place) -> Oracle:
    return Oracle(place)


@pytest.fixture(scope="module", autouse=True)
def figures() -> Iterator[None]:
    yield
    if path := os.environ.get("VDNA_TEST_FIGURES"):
        Path(path).write_text(json.dumps(dict(sorted(FIGURES.items())), indent=1))


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provides storage in which a process, with its threads, can die or get no answer."""
    for name in REAL:
        for module in (storage, *MODULES):
            if hasattr(module, name):  # these functions call each other
                monkeypatch.setattr(module, name, _watched(name))
    submit = ThreadPoolExecutor.submit

    def inherit(self: ThreadPoolExecutor, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(self, copy_context().run, function, *args, **kwargs)

    def isolated(data: bytes, rule: Any, seconds: float, *, on_device: bool, hashed: bool) -> Any:
        FIGURES["images decoded apart"] += 1
        return images.load(data, rule, on_device, hashed)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", inherit)
    monkeypatch.setattr(images, "load_isolated", isolated)  # a process of its own takes a second
    monkeypatch.setattr(shard_merging, "TOGETHER", 2)
    monkeypatch.setattr(reduce_module, "FAN_IN", 2)  # small sets have trees too
    monkeypatch.setattr(reduce_module, "LAST_SUMMANDS", 2)


class Source:
    """A folder of pictures with repeated contents; every file ever written has its own time."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.pictures: dict[str, Picture] = {}
        self._chance = chance
        self._written: list[tuple[Path, Picture]] = []
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("no candidate")
        for _ in range(chance.randint(2, 9)):
            self.add()

    def change(self) -> None:
        kinds = [self.add, self.overwrite, self.overwrite, self.remove, self.restore, self.move]
        self._chance.choice(kinds)()

    def add(self) -> None:
        name = f"{self._chance.choice(FOLDERS)}/{len(self._written)}.png"
        self._write(self.folder / name)

    def overwrite(self, uri: str = "") -> None:
        """Overwrites a picture with another one, good or corrupt."""
        if self.pictures:
            self._write(Path(storage.local_path(uri or self._any())))

    def remove(self) -> None:
        if self.pictures:
            uri = self._any()
            del self.pictures[uri]
            os.unlink(storage.local_path(uri))

    def move(self) -> None:
        """Gives a picture another name, and mostly another folder: its label, and its group.

        Its time stays, and so what tells its content.
        """
        if self.pictures:
            uri = self._any()
            path = self.folder / self._chance.choice(FOLDERS) / f"{len(self._written)}.png"
            self._written.append((path, self.pictures[uri]))
            path.parent.mkdir(exist_ok=True)
            os.replace(storage.local_path(uri), path)
            self.pictures[path.as_uri()] = self.pictures.pop(uri)

    def restore(self) -> None:
        """Writes a file as it once was, with its old time."""
        self._put(self._chance.randrange(len(self._written)))

    def chosen(self, limit: int | None) -> dict[str, Picture]:
        """Returns what `--limit` selects."""
        ranked = sorted(self.pictures, key=lambda u: hashlib.sha256(f"{u}\0".encode()).digest())
        return {uri: self.pictures[uri] for uri in ranked[:limit]}

    def _any(self) -> str:
        return self._chance.choice(sorted(self.pictures))

    def _write(self, path: Path) -> None:
        kind = self._chance.choice(["good"] * 7 + ["empty", "not_an_image", "truncated"])
        self._written.append((path, Picture(kind, self._chance.randrange(12))))
        self._put(len(self._written) - 1)

    def _put(self, at: int) -> None:
        path, picture = self._written[at]
        path.parent.mkdir(exist_ok=True)
        new = self.folder.parent / "new"
        new.write_bytes(picture.data)
        os.utime(new, ns=(0, 1_700_000_000_000_000_000 + at))
        os.replace(new, path)
        self.pictures[path.as_uri()] = picture


@dataclass(frozen=True)
class WantedBuild:
    """The options of a request, without its place."""

    name: str
    options: Mapping[str, Any]


class Schedule:
    """One catalogue and two sources, and the steps that happen to them."""

    def __init__(self, seed: int, folder: Path, place: Place, oracle: Oracle) -> None:
        self.chance = random.Random(seed)
        self.oracle = oracle
        self.place = place
        self.memory = self.chance.random() < 0.3
        self.static = self.chance.random() < 0.3
        root = f"memory://{uuid.uuid4().hex}" if self.memory else str(folder / "catalogue")
        self.catalogue = Catalogue(root)
        self.engines = (InProcess(), InProcess())
        self.sources = {name: Source(folder / name / "all", self.chance) for name in NAMES}
        self.usual: dict[str, Any] = {
            "group_by": self.chance.choice([None, "1"]),
            "shard_images": self.chance.choice([1, 1, 2, 3, 8, None]),
            "cell_images": self.chance.choice([1, 1, 2, None]),
            "layer_gaussian": self.chance.random() < 0.3,
            "by": self.chance.choice([None, None, "1"]),
        }
        self.joins = not self.static and self.chance.random() < 0.4
        if self.joins:
            self.usual |= {"group_by": "1", "shard_images": None, "cell_images": 2}
        self.seen = 0
        self.truths: dict[tuple[str, str], Truth] = {}
        self.told: list[tuple[str, Version]] = []
        self.story: list[str] = []

    # Steps.

    def step(self) -> None:
        kind = self.chance.choice(
            ["die"] * 4
            + ["trouble"] * 2
            + ["both"] * 2
            + ["alone", "gc", "beside gc"]
            + ([] if self.static else ["change"] * 4 + ["change amid"] * 2)
        )
        self.story.append(kind)
        possible = self._possible()
        if kind == "change":
            for _ in range(self.chance.randint(1, 3)):
                self.sources[self.chance.choice(NAMES)].change()
            if self.joins:  # cells that were cut before are small now
                self.usual["cell_images"] = self.chance.choice([2, 12])
        elif kind == "gc":
            self._collect()
        elif kind == "beside gc":
            self._beside_gc()
        elif kind == "alone":
            self._alone(self._choose_wanted())
        elif kind == "both":
            self._both()
        else:
            process = self._process(kind)
            if kind == "change amid":
                process.change = lambda uri: self._change_amid(uri, possible)
            self._build(self._choose_wanted(), process)
        self._check(possible)

    def _process(self, kind: str) -> Process:
        at = self.chance.randint(1, 60)
        return Process(
            self.chance.randrange(2**32),
            die_at=at if kind == "die" else None,
            after=self.chance.random() < 0.5,
            trouble=self.chance.choice([0.02, 0.1]) if kind == "trouble" else 0,
            change_at=self.chance.randint(1, 4) if kind == "change amid" else None,
            like_s3=self.chance.random() < 0.5,
        )

    def _choose_wanted(self) -> list[WantedBuild]:
        names = self.chance.choice([NAMES[:1], NAMES[1:], NAMES, NAMES[::-1]])
        if self.static:
            return [WantedBuild(name, self.usual) for name in names]
        all_wanted = []
        for name in names:
            options = dict(self.usual)
            if self.chance.random() < 0.2:
                options["limit"] = self.chance.randint(1, 5)
            if self.chance.random() < 0.3:
                options["shard_images"] = self.chance.choice([1, 2, 3, 8, None])
            if self.chance.random() < 0.1:
                options["group_by"] = self.chance.choice([None, "1"])
            if self.chance.random() < 0.1:
                options["by"] = self.chance.choice([None, "1", ""])
            if self.chance.random() < 0.2:
                options["layer_gaussian"] = True
            if self.chance.random() < 0.15:
                options["max_failures"] = 0
            all_wanted.append(WantedBuild(name, options))
        return all_wanted

    def _request(self, wanted: WantedBuild) -> Request:
        options = {"max_failures": 1000, **self.place.options, **wanted.options}
        folder = str(self.sources[wanted.name].folder)
        return Request(wanted.name, folder, replace=True, **options)  # any loss is meant

    def _build(
        self,
        all_wanted: Sequence[WantedBuild],
        process: Process,
        engine: int = 0,
        meanwhile: tuple[type[Exception], ...] = (),
    ) -> bool:
        """Returns whether the build ended well; only errors that the faults cause may be raised."""
        context = copy_context()
        context.run(CURRENT.set, process)
        requests = [self._request(wanted) for wanted in all_wanted]
        FIGURES["builds"] += 1
        try:
            results = context.run(
                build_datasets, self.catalogue, requests, self.engines[engine], RESOURCES
            )
            self.told += [(result.name, result.version) for result in results]
            return True
        except Killed:
            FIGURES["builds killed"] += 1
        except (TransientError, GateError, *meanwhile):
            FIGURES["builds that ended with an error"] += 1
        except SourceError as error:
            changed = process.change_at is not None
            if not (changed or "holds no image" in str(error) or "none of" in str(error)):
                raise
        finally:
            if process.meet:
                process.meet.abort()
        return False

    def _alone(self, all_wanted: Sequence[WantedBuild]) -> None:
        """Builds without a fault: each dataset is built, or refused for a right reason."""
        for wanted in all_wanted:
            truth = self._truth(wanted)
            good = truth.images > 0 and ("max_failures" not in wanted.options or not truth.failed)
            process = Process(self.chance.randrange(2**32))
            before = self.catalogue.head().number
            built = self._build([wanted], process)
            # A stricter limit does not remove a version that is in the catalogue already.
            held = truth.images > 0 and built and self.catalogue.head().number == before
            assert built == good or held, "a build without a fault"
            if good:
                version = self.catalogue.find(wanted.name)
                assert (version.images, version.failed) == (truth.images, len(truth.failed))
                FIGURES["images counted"] += truth.images
                FIGURES["failures listed"] += len(truth.failed)

    def _both(self) -> None:
        """Runs two builders at once, with the same requests or not, one of which may die."""
        mine = self._choose_wanted()
        yours = self.chance.choice(
            [mine, self._choose_wanted(), [WantedBuild(NAMES[1], self.usual)]]
        )
        mine = mine if yours is mine or len(yours) > 1 else [WantedBuild(NAMES[0], self.usual)]
        dies = self.chance.random() < 0.4
        processes = [self._process("die" if dies else "live"), self._process("live")]
        barrier = threading.Barrier(2)
        for process in processes:
            process.slow, process.meet = 0.3, barrier
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(self._build, all_wanted, process, engine, (Conflict,))
                for engine, (all_wanted, process) in enumerate(
                    zip((mine, yours), processes, strict=True)
                )
            ]
            ended = [job.result() for job in jobs]
        plain = mine is yours and not dies and all("max_failures" not in w.options for w in mine)
        if plain and all(self._truth(wanted).images for wanted in mine):
            assert ended == [True, True], "two builders of the same disturbed each other"

    def _change_amid(self, uri: str, possible: dict[str, list[Truth]]) -> None:
        for source in self.sources.values():
            if uri in source.pictures:
                source.overwrite(uri)
        for name, truths in self._possible().items():
            possible[name] += truths

    def _collect(self) -> None:
        """Collects garbage between builds, when no object is safe because it is young."""
        process = self._process(self.chance.choice(["live", "die", "trouble"]))
        process.die_at = process.die_at and process.die_at // 2 + 1
        keep = self.chance.choice([None, None, 1, 2])
        context = copy_context()
        context.run(CURRENT.set, process)
        FIGURES["collections"] += 1
        with contextlib.suppress(Killed, TransientError):
            context.run(collect, self.catalogue, keep=keep, grace=timedelta(0))

    def _beside_gc(self) -> None:
        """Runs a build and a collection at once, when all objects are past the grace period."""
        if not self.memory:
            past = time.time() - 10 * 86400
            root = storage.local_path(self.catalogue.root)
            for folder, _, names in os.walk(root):
                for name in names:
                    os.utime(os.path.join(folder, name), (past, past))
        process = self._process("live")
        process.slow = 0.3
        with ThreadPoolExecutor(1) as pool:
            gone = (SourceError,)
            job = pool.submit(self._build, self._choose_wanted(), process, 0, gone)
            collect(self.catalogue, keep=self.chance.choice([None, 1]))
            job.result()

    # What must be true.

    def _possible(self) -> dict[str, list[Truth]]:
        """Returns what a build may commit now: today's pictures, limited or not, or a folder."""
        possible: dict[str, list[Truth]] = {}
        for name, source in self.sources.items():
            for part in ("", *FOLDERS):
                chosen = [source.chosen(limit) for limit in (None, *range(1, 6))]
                possible[f"{name}/{part}".rstrip("/")] = [
                    self.oracle.truth(its)
                    for pictures in chosen
                    if (its := {u: p for u, p in pictures.items() if f"/{part}/" in u or not part})
                ]
        return possible

    def _truth(self, wanted: WantedBuild) -> Truth:
        limit = wanted.options.get("limit")
        return self.oracle.truth(self.sources[wanted.name].chosen(limit))

    def _check(self, possible: Mapping[str, Sequence[Truth]]) -> None:
        """Checks every version that this step committed, and all that the newest commit holds."""
        head = self.catalogue.head()
        states = [self._versions(n) for n in range(self.seen, head.number + 1)]
        for told in self.told:
            assert any(told in state for state in states), f"{told}: told, and not committed"
        for before, after in pairwise(states):
            self.told += [of for of in after if of not in before]
            names = {name for name, _ in after}
            assert _layerwise(before) & names <= _layerwise(after), "layer Gaussians were dropped"
            new = [of for of in after if of not in before]
            FIGURES["versions committed"] += len(new)
            FIGURES["versions with joined cells"] += sum(self._joins_cells(*of) for of in new)
        for state in states:
            _require_parts(dict(state))
        for name, version in self.told:
            read = self._read(name, version)
            right = [truth for truth in possible[name] if not truth.differences(*read)]
            FIGURES["wrong versions"] += not right
            assert right, f"{name} {version.dna}: the truth of no moment in which it was built"
            self.truths[name, version.dna] = right[0]
        self.told = []
        self.seen = head.number
        for name, version in states[-1]:
            wrong = self.truths[name, version.dna].differences(*self._read(name, version))
            assert not wrong, f"{name} {version.dna}: {wrong} are not what was committed"
        if head.number and self.chance.random() < 0.2:
            assert [f for f in verify(self.catalogue) if not f.ok] == []

    def _joins_cells(self, name: str, version: Version) -> bool:
        if version.part_of:
            return False
        return any(head.runs for head in self.catalogue.manifest(name, version).heads)

    def _versions(self, number: int) -> list[tuple[str, Version]]:
        datasets = self.catalogue.commit(number).datasets if number else {}
        return [(name, version) for name, specs in datasets.items() for version in specs.values()]

    def _read(self, name: str, version: Version) -> tuple[DNA, list[Failure], Exemplars | None]:
        layerwise = LAYER_GAUSSIAN in version.products
        dna = self.catalogue.load_version(name, version, layer_gaussian=layerwise)
        kept = "exemplars" in version.sha256
        exemplars = self.catalogue.exemplars(name, version) if kept else None
        return dna, self.catalogue.failures(name, version), exemplars

    def end(self) -> None:
        """Builds until the truth of today is committed, and collects what dead builds left."""
        for name, source in self.sources.items():
            static = self.static and any(p.kind == "good" for p in source.pictures.values())
            while not any(p.kind == "good" for p in source.pictures.values()):
                source.add()
            possible = self._possible()
            wanted = WantedBuild(name, self.usual)
            process = Process(self.chance.randrange(2**32))
            started = time.monotonic()
            assert self._build([wanted], process)
            FIGURES["recoveries"] += 1
            FIGURES["recovery milliseconds"] += round(1000 * (time.monotonic() - started))
            FIGURES["recovery operations"] += process.operations
            self._check(possible)
            version, truth = self.catalogue.find(name), self._truth(wanted)
            assert truth.differences(*self._read(name, version)) == []
            FIGURES["images counted"] += truth.images
            FIGURES["failures listed"] += len(truth.failed)
            (again,) = build_datasets(
                self.catalogue, [self._request(wanted)], self.engines[0], RESOURCES
            )
            assert not again.changed
            if static:
                self._same_as_undisturbed(wanted, version)
        assert [f for f in verify(self.catalogue) if not f.ok] == []
        collect(self.catalogue, keep=1, grace=timedelta(0))
        self._check({})
        assert list(storage.leftovers(self.catalogue.root)) == []
        work = storage.join(self.catalogue.root, "_work")
        folders = {item.uri.split("/")[-2] for item in storage.walk(work)} - set(tiny_specs(self))
        assert {"partials"} <= folders <= {"partials", "cells"}

    def _same_as_undisturbed(self, wanted: WantedBuild, version: Version) -> None:
        """Checks that the shards, and so all bits, are those of an undisturbed build."""
        other = Catalogue(f"memory://{uuid.uuid4().hex}")
        (clean,) = build_datasets(other, [self._request(wanted)], self.engines[0], RESOURCES)
        assert (clean.version.dna, clean.version.sha256) == (version.dna, version.sha256)
        FIGURES["versions equal to the last bit to an undisturbed build's"] += 1

    def close(self) -> None:
        for engine in self.engines:
            engine._worker.close()
        for uri in [self.catalogue.root] if self.memory else []:
            storage.delete_tree(uri)


def _require_parts(versions: Mapping[str, Version]) -> None:
    """Checks that every image is in a part, since all images lie in folders."""
    for name in NAMES:
        parts = [version for version in versions.values() if version.part_of == name]
        if parts:
            FIGURES["parts"] += len(parts)
            assert sum(part.images for part in parts) == versions[name].images
            assert all(part.products == versions[name].products for part in parts)
        assert bool(parts) == (name in versions and versions[name].by != "")


def _layerwise(versions: Sequence[tuple[str, Version]]) -> set[str]:
    return {name for name, version in versions if LAYER_GAUSSIAN in version.products}


def tiny_specs(schedule: Schedule) -> set[str]:
    """Returns the folders that hold the notes of plans."""
    return {spec for specs in schedule.catalogue.head().datasets.values() for spec in specs}


def run_schedule(
    seed: int, folder: Path, place: Place, oracle: Oracle, least: int = 2, most: int = 8
) -> None:
    """Runs a schedule of at least and at most so many steps."""
    schedule = Schedule(seed, folder, place, oracle)
    FIGURES["schedules"] += 1
    try:
        for _ in range(schedule.chance.randint(least, most)):
            schedule.step()
        schedule.end()
    except BaseException as error:
        error.add_note(f"schedule {seed}: {', '.join(schedule.story)}")
        raise
    finally:
        schedule.close()


CHOSEN = (0, 1, 6, 7)
"""Together they have each kind of step, changing and static sources, and both kinds of storage; and
the first counts a changed image where the image that is read is not checked against the listing."""


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("seed", CHOSEN)
def test_each_image_counts_once_whatever_happens(
    tmp_path: Path, place: Place, oracle: Oracle, seed: int
) -> None:
    run_schedule(seed, tmp_path, place, oracle)


@pytest.mark.soak
@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("seed", chosen(range(100, 250)))
def test_each_image_counts_once_in_long_schedules(
    tmp_path: Path, place: Place, oracle: Oracle, seed: int
) -> None:
    """They are long, because their ends take longer than their steps."""
    run_schedule(seed, tmp_path, place, oracle, 4, 12)


# Real processes that are killed.


def deaths(
    place: Place, oracle: Oracle, folder: Path, step: int, first: int, chance: random.Random
) -> int:
    """Kills a build at some of its writes and runs it again; each result must be the truth."""
    source = Source(folder / "source" / "all", chance)
    while len(source.pictures) < 4:
        source.add()
    truth = oracle.truth(source.pictures)
    assert truth.images
    assert truth.failed
    tiny_folder = str(Path(place.weights).parent)
    command = [
        sys.executable,
        "-m",
        "tests.support.killed_builds",
        tiny_folder,
        str(source.folder.parent),
        str(folder),
    ]
    done = subprocess.run(
        [*command, str(step), str(first)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    clean = Catalogue(str(folder / "clean")).find("photos")
    for at, event in told.items():
        catalogue = Catalogue(str(folder / at))
        version = catalogue.find("photos")
        assert catalogue.head().number == 1, event
        assert (version.dna, version.sha256) == (clean.dna, clean.sha256), event
        dna = catalogue.load("photos", layer_gaussian=True)
        assert truth.differences(dna, catalogue.failures("photos", version)) == [], event
        assert [f for f in verify(catalogue) if not f.ok] == [], event
        collect(catalogue, grace=timedelta(0))
        assert list(storage.leftovers(catalogue.root)) == [], event
        assert list((folder / at).glob("_work/**/attempts/*")) == [], event
        assert catalogue.load("photos").images == truth.images, event
        FIGURES[f"SIGKILL at {event.split()[0]}"] += 1
    return len(told)


@pytest.mark.essential
@pytest.mark.soak
def test_a_build_killed_at_some_writes_is_completed_by_reruns(
    place: Place, oracle: Oracle, tmp_path: Path
) -> None:
    """It is killed at three writes, others in each run of the tests."""
    first = random.randint(1, 30)
    assert 2 <= deaths(place, oracle, tmp_path, 35, first, random.Random(1)) <= 4


@pytest.mark.essential
@pytest.mark.soak
def test_a_build_killed_at_every_write_is_completed_by_reruns(
    place: Place, oracle: Oracle, tmp_path: Path
) -> None:
    assert deaths(place, oracle, tmp_path, 1, 1, random.Random(1)) > 80
