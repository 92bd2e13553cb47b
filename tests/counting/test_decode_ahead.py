"""Tests that a shard comes out the same wherever its images are decoded, whatever goes wrong."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from pipeline import images, storage
from pipeline.building import Request, make_spec
from pipeline.counting import Counter, Extractor, decode_run
from pipeline.counting import decode_ahead as module
from pipeline.counting.decode_ahead import Ahead, DecodedRun, DecodeWork, MemberRun, runs_of
from pipeline.counting.decode_choice import DecodeChoice
from pipeline.counting.stage_clock import StageMeter
from pipeline.counting.stream import Stream
from pipeline.dna import Partial
from pipeline.errors import ConservationError, SourceError
from pipeline.images import sending
from pipeline.networks import find_ranges
from pipeline.sources import Entry, Shard, list_source
from pipeline.spec import IMAGE_HASHES, PRODUCTS, Resources
from tests.images.test_noted import noise, saved, with_alpha
from tests.support import tiny_network as tiny
from tests.support.archives import arrow_bytes, parquet_bytes, tar_bytes, write_files, zip_bytes
from tests.support.decode_pools import ThreadedPool
from tests.support.hostile_files import JPEG

ROOM = 2**30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


def contents(chance: random.Random) -> dict[str, bytes]:
    """Makes images of many sizes, transparent, of one colour and bad ones, by name."""
    made = {}
    for at in range(chance.randint(20, 40)):
        image = noise(chance.randrange(99), chance.randint(1, 150), chance.randint(1, 150))
        image = image.resize((1, 1)).resize(image.size) if at % 5 == 1 else image
        image = with_alpha(image, 254) if at % 3 == 1 else image
        data = saved(image)
        if chance.random() < 0.15:
            data = chance.choice([b"", b"no image at all", JPEG[:-200], data[:-30]])
        made[f"{at:03d}.png"] = data
    return made


def write_mixture(folder: Path, images: dict[str, bytes]) -> Path:
    """Writes a third of the images as files, and the others into archives of five kinds."""
    pairs = list(images.items())
    size = len(pairs) // 8
    write_files(folder, dict(pairs[: 3 * size]))
    parts = [pairs[at * size : (at + 1) * size] for at in range(3, 7)]
    files = {
        "a.tar": tar_bytes(parts[0]),
        "b.zip": zip_bytes(parts[1], zipfile.ZIP_DEFLATED),
        "c.parquet": parquet_bytes(parts[2]),
        "d.tar.gz": tar_bytes(parts[3], "w:gz"),
        "e.arrow": arrow_bytes(pairs[7 * size :], stream=True),
    }
    write_files(folder, files)
    return folder


def shard_of(source: Path) -> Shard:
    return Shard(0, 0, tuple(list_source(source).entries))


def shard_of_pngs(folder: Path, count: int) -> Shard:
    """Writes small pictures, 00.png and so on, and returns the shard of them."""
    for at in range(count):
        (folder / f"{at:02d}.png").write_bytes(saved(noise(at, 9, 9)))
    return shard_of(folder)


class Bench:
    """Counts shards with and without others who decode."""

    def __init__(self, place: tiny.Place, on_device: bool, **rule: Any) -> None:
        self._ranges, _ = find_ranges(place.network, place.ranges, {})
        request = Request("x", "x", **place.options)  # type: ignore[arg-type]  # fields by name
        spec = make_spec(request, place.network, self._ranges.digest, "cpu")
        self.spec = replace(spec, preprocess=replace(spec.preprocess, **rule))
        self.extractor = Extractor(place.network, on_device=on_device)

    def counted(self, shard: Shard, ahead: Ahead | None = None, **resources: Any) -> Partial:
        with closing(self.counter((*PRODUCTS, IMAGE_HASHES), ahead, **resources)) as counter:
            return counter.count(shard, "key")

    def counter(
        self, products: Sequence[str], ahead: Ahead | None = None, **resources: Any
    ) -> Counter:
        resources = {"threads": 2, "fetch_ahead": 8} | resources
        return Counter(
            self.extractor, self.spec, self._ranges, Resources(**resources), products, ahead
        )


def test_an_image_without_its_hashes_is_not_counted(place: tiny.Place, tmp_path: Path) -> None:
    """Pixels that are decoded already have no file to hash."""
    bench = Bench(place, on_device=False)
    shard = shard_of_pngs(tmp_path, 3)
    pixels = images.Decoded(np.zeros((9, 9, 3), np.uint8))
    for products in ((*PRODUCTS, IMAGE_HASHES), PRODUCTS):
        with closing(bench.counter(products)) as counter:
            if IMAGE_HASHES not in products:
                assert counter.count(shard, "key", lambda _: pixels).dna.images == 3
                continue
            with pytest.raises(ConservationError, match=r"00\.png came without its hashes"):
                counter.count(shard, "key", lambda _: pixels)


@pytest.fixture(scope="module")
def on_cpu(place: tiny.Place) -> Bench:
    return Bench(place, on_device=False)


@pytest.fixture(scope="module")
def on_device(place: tiny.Place) -> Bench:
    return Bench(place, on_device=True)


@pytest.fixture
def pools() -> Iterator[list[ThreadedPool]]:
    made: list[ThreadedPool] = []
    yield made
    for pool in made:
        pool.close()


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_IMAGES", 4)


def idle(ahead: Ahead) -> bool:
    """Returns whether nothing is away any more, and no room is taken."""
    return (ahead._away, ahead._held) == (0, 0)


class Fickle(DecodeChoice):
    """Chooses at random, each time that it is asked."""

    def __init__(self, most: int, *, always: bool = False) -> None:
        self._chance = random.Random(most)

    runs = property(lambda self: self._chance.choice([0, 1, 2, 9]), lambda self, _: None)  # type: ignore[assignment]
    here = property(lambda self: self._chance.random() < 0.5, lambda self, _: None)  # type: ignore[assignment]

    def review(self, *_: object) -> None:
        pass

    came = lost = late = review  # type: ignore[assignment]


FAULTS = ["done"] * 6 + ["lost", "fails", "never"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", ["ahead", "mixed", "faults"])
def test_random_shards_come_out_the_same_wherever_they_are_decoded(
    on_cpu: Bench,
    on_device: Bench,
    pools: list[ThreadedPool],
    tmp_path: Path,
    short_runs: None,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    seed: int,
) -> None:
    chance = random.Random(f"{seed} {mode}")
    shard = shard_of(write_mixture(tmp_path, contents(chance)))
    monkeypatch.setattr(images, "load_isolated", lambda *a, **k: images.load(*a[:2], **k))
    if mode != "ahead":
        monkeypatch.setattr(module, "DecodeChoice", Fickle)
    pool = ThreadedPool(lambda _: chance.choice(FAULTS) if mode == "faults" else "done")
    pools.append(pool)
    bench = chance.choice([on_cpu, on_device])
    here = bench.counted(shard)
    ahead = Ahead(pool, ROOM + seed, always=True)
    seconds = 0.2 if mode == "faults" else 60.0
    there = bench.counted(shard, ahead, decode_seconds=seconds)
    assert there.identical(here)
    assert there.encode() == here.encode()
    assert idle(ahead)
    assert pool.asked
    if mode == "ahead":
        alone = [run for run in runs_of(shard.members, bench.spec.preprocess, True) if not run.room]
        assert ahead.news()[0] == len(shard.members) - sum(len(run.members) for run in alone)
        assert ahead.news()[0] == 0


def test_each_object_and_each_byte_of_an_archive_is_read_once(
    on_cpu: Bench,
    pools: list[ThreadedPool],
    tmp_path: Path,
    short_runs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_mixture(tmp_path, {f"{at:02d}.png": saved(noise(at, 9, 9)) for at in range(40)})
    shard = shard_of(source)
    whole: list[str] = []
    parts: list[tuple[str, int, int]] = []
    passes: list[str] = []
    read, read_range = storage.read, storage.read_range
    from pipeline.sources.archives import one_pass

    opened = one_pass.open_archive

    def spy(uri: str, *rest: Any) -> bytes:
        whole.append(uri)
        return read(uri, *rest)

    def spy_range(uri: str, start: int, length: int, *rest: Any) -> bytes:
        parts.append((uri, start, start + length))
        return read_range(uri, start, length, *rest)

    def spy_archive(uri: str, *rest: Any) -> Any:
        passes.append(uri)
        return opened(uri, *rest)

    monkeypatch.setattr(storage, "read", spy)
    monkeypatch.setattr(storage, "read_range", spy_range)
    monkeypatch.setattr(one_pass, "open_archive", spy_archive)
    monkeypatch.setattr(module, "DecodeChoice", Fickle)
    pools.append(pool := ThreadedPool())
    assert on_cpu.counted(shard, Ahead(pool, ROOM, always=True)).dna.images == len(shard.members)
    assert pool.asked
    assert whole
    assert parts
    assert passes
    assert len(set(whole)) == len(whole)
    assert len(set(passes)) == len(passes)
    tars = sorted(part for part in parts if part[0].endswith(".tar"))
    assert tars
    for (uri, _, end), (next_uri, start, _) in pairwise(tars):
        assert uri != next_uri or end <= start


def test_a_shard_is_cut_into_runs_that_hold_each_member_once_in_order() -> None:
    chance = random.Random(1)
    for on_device in (True, False):
        for _ in range(50):
            members = [
                Entry(
                    f"s3://b/{at}",
                    "",
                    chance.choice([0, 1, 10**3, 10**5, 10**6, 10**8]),
                    "etag",
                    access=chance.choice(["", "", "tar", "parquet 0 image", "tar gz"]),
                )
                for at in range(chance.randint(0, 300))
            ]
            rule = replace(tiny.RULE, height=224, width=224)
            runs = list(runs_of(members, rule, on_device))
            assert [entry for run in runs for entry in run.members] == members
            most = images.most_bytes(rule, on_device)
            for run in runs:
                stays = {entry.access in ("parquet 0 image", "tar gz") for entry in run.members}
                assert stays == {run.room == 0}
                if not run.room:
                    continue
                size = sum(entry.size for entry in run.members)
                assert len(run.members) <= module.RUN_IMAGES
                assert len(run.members) == 1 or size <= module.RUN_FILE_BYTES
                assert most <= run.room <= module.RUN_BYTES


def test_small_files_of_many_pixels_do_not_exceed_the_room_of_their_run(
    place: tiny.Place,
    pools: list[ThreadedPool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are decoded as far as they fit, and the rest here."""
    monkeypatch.setattr(sending, "DEVICE_PIXELS", 100 * 100)
    monkeypatch.setattr(sending, "UNPACKED", 4)
    for at in range(20):
        image = noise(at, 1, 1).resize((100, 100)) if at % 4 else noise(at, 90, 90)
        (tmp_path / f"{at:02d}.png").write_bytes(saved(image))
    shard, bench = shard_of(tmp_path), Bench(place, on_device=True)
    pools.append(pool := ThreadedPool())
    ahead = Ahead(pool, ROOM, always=True)
    assert bench.counted(shard, ahead).identical(bench.counted(shard))
    assert idle(ahead)
    assert 0 < ahead.news()[0] < 20
    for work in pool.asked:
        done = decode_run(work)
        assert done.spent["decode"] > 0 < done.spent["fetch"]
        assert 0 < done.nbytes <= work.run.room
        assert len(done.outcomes) <= len(work.run.members)
    assert any(len(decode_run(work).outcomes) < len(work.run.members) for work in pool.asked)


@pytest.mark.parametrize("shards", [1, 2])
def test_what_is_ahead_is_bounded(
    on_device: Bench,
    pools: list[ThreadedPool],
    tmp_path: Path,
    short_runs: None,
    shards: int,
) -> None:
    """The network stands still, so all that may be decoded ahead is."""
    for at in range(100):
        (tmp_path / f"{at:02d}.png").write_bytes(saved(noise(at, 20, 20)))
    shard = shard_of(tmp_path)
    (first, *_) = runs_of(shard.members, tiny.RULE, True)
    pools.append(pool := ThreadedPool())
    ahead = Ahead(pool, 3 * module.RUN_BYTES, always=True)
    stream = Stream(on_device.extractor, tiny.RULE, Resources(threads=1, fetch_ahead=4), ahead)
    go_on = threading.Event()

    def observe(_: Any, batch: Any) -> int:
        assert go_on.wait(60)
        return len(batch)

    found: list[int] = []

    def count() -> None:
        with closing(stream.observed(shard, observe)) as observed:
            found.append(sum(part[1] for part in observed))  # type: ignore[misc]

    threads = [threading.Thread(target=count) for _ in range(shards)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    held, away, asked = ahead._held, ahead._away, len(pool.asked)
    go_on.set()
    for thread in threads:
        thread.join()
    stream.close()
    assert found == [100] * shards
    assert held <= 3 * module.RUN_BYTES
    assert away <= 3
    if shards == 1:
        assert ahead.news()[0] == 100  # it waits for room rather than decode by itself
    # Two micro-batches wait for the network, and one is being filled.
    assert asked <= away + shards * (2 + 2 + 1) * 8 / len(first.members)
    assert idle(ahead)


def test_the_room_of_a_run_is_what_it_may_take_until_it_is_there(
    on_device: Bench, pools: list[ThreadedPool], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(saved(noise(1, 20, 20)))
    (run,) = runs_of(shard_of(tmp_path).members, tiny.RULE, True)
    pools.append(pool := ThreadedPool(lambda number: "never" if number == 1 else "done"))
    ahead = Ahead(pool, run.room + 1200, always=True)
    ahead._choice.runs = 9
    work = DecodeWork(run, tiny.RULE, True, Resources())
    first = ahead.give(work)
    assert first is not None
    assert ahead.give(work) is None
    first.end()
    second = ahead.give(work)
    assert second is not None
    outcomes, lost = second.outcomes()
    assert (len(outcomes), lost, ahead._held) == (1, False, 1200)
    third = ahead.give(work)
    assert third is not None
    second.end(1)
    second.end(1)  # as often as one likes
    third.end()
    assert idle(ahead)
    assert ahead.news()[0] == 1
    ahead.close()


def test_what_others_spent_on_a_run_counts_as_spent_for_its_worker() -> None:
    done = DecodedRun((), 0.1, {"decode": 1000.0})
    pending = SimpleNamespace(result=lambda: done, cancel=lambda: None)
    pool: Any = SimpleNamespace(ask=lambda _: pending, free_cpus=lambda: 0)
    ahead, meter = Ahead(pool, 1000, always=True), StageMeter()
    ahead._choice.runs = 1
    given = ahead.give(DecodeWork(MemberRun((), 10), tiny.RULE, True, Resources()))
    assert given is not None
    assert given.outcomes() == ((), False)
    assert meter.read()["decode"] >= 1000
    ahead.close()


def test_images_of_a_run_that_was_lost_are_decoded_apart(
    on_cpu: Bench,
    pools: list[ThreadedPool],
    tmp_path: Path,
    short_runs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = shard_of_pngs(tmp_path, 12)
    here = on_cpu.counted(shard)
    apart: list[bytes] = []

    def isolated(
        data: bytes, rule: Any, seconds: float, *, on_device: bool, hashed: bool
    ) -> images.Loaded:
        apart.append(data)
        return images.load(data, rule, on_device, hashed)

    monkeypatch.setattr(images, "load_isolated", isolated)
    pools.append(pool := ThreadedPool(lambda number: "lost" if number == 2 else "done"))
    ahead = Ahead(pool, ROOM, always=True)
    assert on_cpu.counted(shard, ahead).identical(here)
    assert ahead.news() == (8, "LostRun: its process ended")
    assert sorted(apart) == sorted(storage.read(entry.uri) for entry in shard.members[4:8])


def test_a_node_of_other_libraries_does_not_decode_for_a_worker(
    on_cpu: Bench,
    pools: list[ThreadedPool],
    tmp_path: Path,
    short_runs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pixels would depend on where an image was decoded, and the numerics name one version."""
    shard = shard_of_pngs(tmp_path, 12)
    stated = dict(module.decoding_versions())
    assert stated["pillow"] == version("pillow")
    worker = tuple((stated | {"pillow": "1.2.3"}).items())
    made = partial(DecodeWork, versions=worker)
    monkeypatch.setattr("pipeline.counting.preparing.DecodeWork", made)
    pools.append(pool := ThreadedPool())
    ahead = Ahead(pool, ROOM, always=True)
    assert on_cpu.counted(shard, ahead).identical(on_cpu.counted(shard))
    taken, why = ahead.news()
    assert taken == 0
    assert re.search(r"SpecMismatch: .* pillow is 1\.2\.3 there and .* here; install the same", why)


@pytest.mark.parametrize("fails", ["ask", "free_cpus"])
def test_a_pool_that_does_not_answer_ends_no_shard(
    on_cpu: Bench,
    pools: list[ThreadedPool],
    tmp_path: Path,
    fails: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = shard_of_pngs(tmp_path, 12)
    pools.append(pool := ThreadedPool())

    def refuse(*of: object) -> NoReturn:
        raise ConnectionError("the cluster does not answer")

    monkeypatch.setattr(pool, fails, refuse)
    monkeypatch.setattr(module, "REVIEW_BATCHES", 1)
    monkeypatch.setattr(module, "REVIEW_SECONDS", 0.0)
    ahead = Ahead(pool, ROOM, always=fails == "ask")
    assert on_cpu.counted(shard, ahead).identical(on_cpu.counted(shard))
    ahead.measured(1, 1.0, 1.0)
    expected = "ConnectionError: the cluster does not answer" if fails == "ask" else ""
    assert ahead.news() == (0, expected)
    assert idle(ahead)


def test_a_run_that_is_late_is_done_here_and_nothing_is_given_away_for_a_while(
    on_cpu: Bench, pools: list[ThreadedPool], tmp_path: Path, short_runs: None
) -> None:
    shard = shard_of_pngs(tmp_path, 40)
    pools.append(pool := ThreadedPool(lambda number: "never"))
    ahead = Ahead(pool, 2 * module.RUN_BYTES, always=True)
    there = on_cpu.counted(shard, ahead, decode_seconds=0.3)
    assert there.identical(on_cpu.counted(shard))
    assert len(pool.asked) == len(pool.cancelled) == 2
    assert ahead.news() == (0, "not decoded in 0.3 s")
    assert ahead.news() == (0, "")
    assert ahead.here
    assert idle(ahead)


def test_an_error_ends_what_was_given_away_and_is_the_same_as_without(
    on_cpu: Bench, pools: list[ThreadedPool], tmp_path: Path, short_runs: None
) -> None:
    shard = shard_of_pngs(tmp_path, 40)
    (tmp_path / "05.png").write_bytes(b"another content")
    errors = []
    pools.append(pool := ThreadedPool(lambda number: "done" if number < 4 else "never"))
    ahead = Ahead(pool, ROOM, always=True)
    for given in (None, ahead):
        with pytest.raises(SourceError) as caught:
            on_cpu.counted(shard, given)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert idle(ahead)
    assert "SourceError: " in ahead.news()[1]
    assert {work.run for work in pool.cancelled} >= {work.run for work in pool.asked[3:]}


@pytest.mark.parametrize("how", [{"isolated": True}, {"fetch": storage.read}])
def test_what_must_be_decoded_here_is(
    on_cpu: Bench, pools: list[ThreadedPool], tmp_path: Path, how: dict[str, Any], short_runs: None
) -> None:
    """A shard that has killed two workers kills no others, and a function does not travel."""
    (tmp_path / "a.png").write_bytes(saved(noise(1, 9, 9)))
    pools.append(pool := ThreadedPool())
    if "fetch" in how:
        how = {"fetch": lambda entry: storage.read(entry.uri)}
    stream = Stream(
        on_cpu.extractor, tiny.RULE, Resources(threads=1), Ahead(pool, ROOM, always=True)
    )
    noted: list[int] = []

    def observe(_: object, batch: Any) -> int:
        return len(batch)

    def note(place: int, _: images.Loaded) -> None:
        noted.append(place)

    with closing(stream.observed(shard_of(tmp_path), observe, note=note, **how)) as observed:
        assert list(observed) == [([0], 1)]
    assert noted == [0]
    stream.close()
    assert pool.asked == []


def test_only_a_device_gives_runs_away_by_itself(
    on_cpu: Bench,
    on_device: Bench,
    pools: list[ThreadedPool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    short_runs: None,
) -> None:
    """Where a CPU computes, the network lacks the same cores as the decoder."""
    monkeypatch.setattr(module, "REVIEW_SECONDS", 0)
    monkeypatch.setattr(module, "REVIEW_BATCHES", 1)
    monkeypatch.setattr("pipeline.counting.decode_choice.HUNGRY", -1)
    shard = shard_of_pngs(tmp_path, 100)
    taken = []
    for bench in (on_cpu, on_device):
        pools.append(pool := ThreadedPool())
        ahead = Ahead(pool, ROOM)
        assert bench.counted(shard, ahead).identical(bench.counted(shard))
        assert idle(ahead)
        taken.append(ahead.news()[0])
    assert taken[0] == 0
    assert 0 < taken[1] < 100  # it begins by itself


def test_a_process_that_decodes_loads_no_network() -> None:
    """A node has as many of them as cores."""
    script = (
        "import sys\n"
        "from pipeline.counting import DecodeWork, decode_run\n"
        "from pipeline.counting.decode_ahead import MemberRun\n"
        "from tests.support.builders import RULE\n"
        "from pipeline.spec import Resources\n"
        "decode_run(DecodeWork(MemberRun(()), RULE, True, Resources()))\n"
        "print(*{'torch', 'torchvision', 'timm', 'ray'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=root
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def test_what_a_gpu_decodes_stays_with_it(pools: list[ThreadedPool]) -> None:
    pools.append(pool := ThreadedPool())
    ahead = Ahead(pool, ROOM, always=True)
    assert ahead.suits(replace(tiny.RULE, decoder="raw16@1"), on_device=True)
    assert not ahead.suits(replace(tiny.RULE, decoder="nvjpeg@1.0"), on_device=True)
    ahead.close()
