"""Tests the hostile corpus as one dataset: every outcome is the one that its table states."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from pipeline.building import Request, Result, build_datasets, make_dna
from pipeline.catalogue import Catalogue
from pipeline.counting.decode_ahead import MemberRun
from pipeline.counting.decoder_threads import Decoders
from pipeline.engine import InProcess
from pipeline.errors import BadImage, SourceError, StorageError, UsageError
from pipeline.images.decoding import REASONS
from pipeline.sources import list_source
from pipeline.sources.rules import other_kind
from pipeline.spec import Resources
from pipeline.storage import local_path
from tests.support import hostile_files as hostile
from tests.support import tiny_network as tiny
from tests.support.builders import same_counts
from tests.support.hostile_files import (
    COUNTED,
    FILES,
    IGNORED,
    LISTS,
    PLACES,
    REFUSED,
    UNSEEN,
    Place,
)

ROOT = Path(__file__).parents[2]
QUICK = [kind for kind in FILES if not kind.slow]
SLOW = [kind for kind in FILES if kind.slow]


# The corpus


class Corpus:
    """One folder with all quick files and all places, built once."""

    def __init__(self, folder: Path, network: dict[str, object]) -> None:
        self.outcomes = hostile.write_files(folder / "files", QUICK)
        self.places = 0
        for i, place in enumerate(PLACES):
            here = folder / "files" / f"place{i}"
            here.mkdir()
            place.make(here)
            self.places += place.counted
        self.source = folder / "files"
        self.catalogue = Catalogue(str(folder / "catalogue"))
        self.request = Request("hostile", str(self.source), max_failures=10**6, **network)
        resources = Resources(workers=0, threads=2)
        (self.result,) = build_datasets(self.catalogue, [self.request], InProcess(), resources)

    def of(self, outcome: str) -> list[Path]:
        return [path for path, stated in self.outcomes.items() if stated == outcome]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Returns the fields of a request that name the small network: only files matter here."""
    return tiny.install(tmp_path_factory.mktemp("tiny")).options


@pytest.fixture(scope="module")
def corpus(network: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("hostile"), network)


def failures(result: Result) -> dict[Path, str]:
    return {Path(local_path(f.uri)): f.reason for f in result.failures}


def test_the_corpus_has_many_kinds_of_hostile_files() -> None:
    kinds = [*FILES, *PLACES, *LISTS]
    assert len(kinds) >= 45
    assert len({kind.title for kind in kinds}) == len(kinds)
    words = {COUNTED, IGNORED, UNSEEN, REFUSED, *REASONS}
    assert {kind.outcome for kind in kinds} <= words
    assert {"empty", "truncated", "corrupt", "not_an_image", "unsupported", "too_many_pixels"} <= {
        kind.outcome for kind in QUICK
    }


def test_each_hostile_file_fails_for_its_stated_reason(corpus: Corpus) -> None:
    stated = {
        path: outcome
        for path, outcome in corpus.outcomes.items()
        if outcome not in (COUNTED, IGNORED)
    }
    found = failures(corpus.result)
    assert {path: found.get(path) for path in stated} == stated
    assert found.keys() == stated.keys()
    assert all(
        failure.detail and not failure.nondeterministic for failure in corpus.result.failures
    )


def test_ignored_files_are_counted_by_kind(corpus: Corpus) -> None:
    kinds = Tally(other_kind(path.as_uri()) for path in corpus.of(IGNORED))
    assert corpus.result.ignored == kinds
    assert sum(kinds.values()) == 5


def test_counted_and_failed_are_all_candidates(corpus: Corpus) -> None:
    version = corpus.result.version
    candidates = len(list(list_source(corpus.source).entries))
    assert version.images == len(corpus.of(COUNTED)) + corpus.places
    assert version.images + version.failed == candidates
    assert candidates == len(corpus.outcomes) - len(corpus.of(IGNORED)) + corpus.places


def test_hostile_files_do_not_change_the_counts_of_the_others(
    corpus: Corpus, network: dict[str, object], tmp_path: Path
) -> None:
    for i, path in enumerate(corpus.of(COUNTED)):
        shutil.copy(path, tmp_path / f"{i}{path.suffix}")
    for i in range(corpus.places):
        (tmp_path / f"place{i}.jpg").write_bytes(hostile.JPEG)
    alone = make_dna(tmp_path, threads=2, **network)
    assert alone.failed == 0
    assert same_counts(corpus.catalogue.load("hostile"), alone)


def test_a_listing_in_another_order_gives_the_same_dataset(corpus: Corpus) -> None:
    uris = [entry.uri for entry in list_source(corpus.source).entries]
    assert len(set(uris)) == len(uris)
    (result,) = build_datasets(
        corpus.catalogue, [corpus.request], InProcess(), Resources(workers=0, threads=1)
    )
    assert not result.changed


@pytest.mark.parametrize("place", LISTS, ids=lambda place: place.title[:30])
def test_a_hostile_list_of_names_is_counted_or_refused(
    place: Place, network: dict[str, object], tmp_path: Path
) -> None:
    made = place.make(tmp_path)
    assert made is not None
    if place.outcome == REFUSED:
        with pytest.raises((UsageError, SourceError)) as caught:
            list(list_source(made).entries)
        assert "c0ffee" not in str(caught.value)
        assert "key:secret" not in str(caught.value)
    else:
        catalogue = Catalogue(str(tmp_path / "catalogue"))
        request = Request("list", str(made), **network)
        (result,) = build_datasets(catalogue, [request], InProcess())
        assert (result.version.images, result.duplicates) == (place.counted, 8)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_ends_the_build(tmp_path: Path) -> None:
    hostile.UNREADABLE.make(tmp_path)
    with pytest.raises(StorageError, match=r"secret\.jpg"):
        make_dna(tmp_path)


def test_the_document_of_hostile_files_is_up_to_date() -> None:
    document = ROOT / "docs" / "hostile.md"
    assert document.read_text() == hostile.table(), (
        "python -m tests.support.hostile_files docs/hostile.md"
    )


# Decoders that take too long


def done(value: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(value)
    return future


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(1)
    yield decoders
    decoders.close()


def test_the_time_limit_starts_when_decoding_begins(decoders: Decoders) -> None:
    """Waiting for a thread or for storage does not count as the image's time."""

    def decode(value: int) -> int:
        time.sleep(0.3)
        return value

    fetched: Future[int] = Future()
    late = decoders.after(fetched, decode, 1.5)
    queued = [decoders.after(done(i), decode, 1.5) for i in range(6)]
    assert [decoders.result(future) for future in reversed(queued)] == [5, 4, 3, 2, 1, 0]
    fetched.set_result(6)
    assert decoders.result(late) == 6


def test_a_stuck_decoder_does_not_hold_up_other_images(decoders: Decoders) -> None:
    release = threading.Event()
    stuck = decoders.after(done(1), lambda value: release.wait(60) and value, 0.2)
    other = decoders.after(done(2), lambda value: value, 5)
    assert decoders.result(other) == 2  # though it comes after, and there is one thread
    with pytest.raises(TimeoutError):
        decoders.result(stuck)
    release.set()
    assert decoders.result(decoders.after(done(3), lambda value: value, 5)) == 3
    with pytest.raises(TimeoutError):
        decoders.result(stuck)


def test_errors_of_a_decoder_or_its_fetch_are_raised(decoders: Decoders) -> None:
    failed: Future[int] = Future()
    failed.set_exception(BadImage("empty", "by the fetch"))
    with pytest.raises(BadImage, match="by the fetch"):
        decoders.result(decoders.after(failed, lambda value: value))
    with pytest.raises(ZeroDivisionError):
        decoders.result(decoders.after(done(0), lambda value: 1 / value))


@pytest.mark.parametrize("body", ["time.sleep(999)", "while True: pass"])
def test_a_stuck_decoder_does_not_keep_the_process_from_ending(body: str) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from concurrent.futures import Future
        from pipeline.counting.decoder_threads import Decoders
        def stuck(value):
            {body}
        first = Future()
        first.set_result(1)
        decoders = Decoders(1)
        try:
            decoders.result(decoders.after(first, stuck, 0.2))
        except TimeoutError:
            print("left")
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "left\n", "")


MADE = tiny.SIDE * tiny.SIDE * 3 * 4
"""The bytes of the small network's input."""


MICRO_BATCH = 8


def two_batches_wait() -> int:
    return 2 * MICRO_BATCH * MADE


def test_bytes_that_are_held_ahead_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.counting import preparing
    from pipeline.sources import Entry

    monkeypatch.setattr(preparing, "AHEAD_BYTES", 2_500 + 2 * MADE)
    sizes = [1_000, 1_000, 1_000, 9_000, 1_000, 1_000, 1_000]
    entries = tuple(Entry(f"memory://{i}", "", size, "") for i, size in enumerate(sizes))
    begun: list[str] = []

    def fetch(entry: Entry) -> bytes:
        begun.append(entry.uri)
        return hostile.JPEG

    images = preparing.Preparer(tiny.RULE, False, Resources(), 2, MICRO_BATCH)
    taken, most = 0, 0
    for _ in images.prepared([MemberRun(entries)], two_batches_wait, fetch):
        ahead = sizes[taken : len(begun)]
        assert len(ahead) == 1 or sum(ahead) + len(ahead) * MADE <= 2_500 + 2 * MADE
        most = max(most, len(ahead))
        taken += 1
    images.close()
    assert most == 2
    assert taken == len(begun) == len(sizes)


def test_few_images_of_unknown_size_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may turn out to be as large as an image may be. What was read counts as what it is."""
    from pipeline.counting import preparing
    from pipeline.sources import Entry

    monkeypatch.setattr(preparing, "AHEAD_BYTES", 4 * (10_000 + MADE))
    monkeypatch.setattr(preparing, "UNKNOWN_BYTES", 10_000)
    entries = tuple(Entry(f"memory://{i}", "", 0, "") for i in range(40))
    begun, release = [], threading.Event()

    def fetch(entry: Entry) -> bytes:
        begun.append(entry.uri)
        assert release.wait(60)
        return hostile.JPEG

    images = preparing.Preparer(tiny.RULE, False, Resources(), 2, MICRO_BATCH)
    taking: Future[int] = Future()

    def take() -> None:
        taken = 0
        for _ in images.prepared([MemberRun(entries)], two_batches_wait, fetch):
            held = (len(begun) - taken) * len(hostile.JPEG)
            assert held <= 4 * 10_000
            taken += 1
        taking.set_result(taken)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    time.sleep(0.3)
    assert len(begun) == 4
    release.set()
    assert taking.result(60) == len(begun) == len(entries)
    images.close()


# Memory and time of a decode


DECODE_ALL = """
import sys, time
from pathlib import Path
from pipeline import images
from pipeline.errors import BadImage
from tests.images.test_images import RULE
from dataclasses import replace
rule = replace(RULE, height=224, width=224)
images.load(Path(sys.argv[1]).read_bytes(), rule)  # compiles what it needs
def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024
before = peak()
for name in sys.argv[1:]:
    data = Path(name).read_bytes()
    began = time.process_time()
    outcome = "counted"
    try:
        images.load(data, rule)
    except BadImage as bad:
        outcome = bad.reason
    print(time.process_time() - began, peak() - before, outcome, name)
"""


def decode_all(paths: list[Path], address_space: int) -> list[tuple[float, int, str]]:
    """Returns (CPU seconds, MB of peak memory above the start, outcome) of each, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL, *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space,) * 2),
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert [name for *_, name in rows] == [*map(str, paths)]
    return [(float(seconds), int(peak), outcome) for seconds, peak, outcome, _ in rows]


def test_memory_and_time_of_quick_hostile_files_are_bounded(corpus: Corpus) -> None:
    measured = decode_all(list(corpus.outcomes), 6 * 2**30)
    assert len(measured) == len(corpus.outcomes)
    assert max(seconds for seconds, _, _ in measured) < 5
    assert measured[-1][1] < 600


@pytest.mark.optional
@pytest.mark.soak
def test_memory_and_time_of_the_largest_hostile_files_are_bounded(tmp_path: Path) -> None:
    large = [kind for kind in SLOW if kind.outcome == COUNTED]
    for path in hostile.write_files(tmp_path, large):
        (_, (seconds, peak, outcome)) = decode_all([_small(tmp_path), path], 8 * 2**30)
        assert outcome == COUNTED, path
        assert seconds < 40, path
        assert peak < 2_000, path


def _small(folder: Path) -> Path:
    (folder / "small.png").write_bytes(hostile.PNG)
    return folder / "small.png"


@pytest.mark.soak
def test_an_image_that_takes_too_long_is_listed_and_the_others_count(tmp_path: Path) -> None:
    source, good = tmp_path / "source", tmp_path / "good"
    for folder in (source, good):
        folder.mkdir()
        hostile._put(folder, "a.jpg", "b.jpg", "z.jpg")
    bombs = hostile.write_files(source, [kind for kind in SLOW if kind.outcome == "timeout"])
    request = Request("slow", str(source), max_failures=10)
    resources = Resources(workers=0, threads=1, decode_seconds=4)
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    (result,) = build_datasets(catalogue, [request], InProcess(), resources)
    assert failures(result) == bombs
    assert all(failure.nondeterministic for failure in result.failures)
    assert same_counts(catalogue.load("slow"), make_dna(good, threads=1))
