"""Tests tiles: any division gives the same matrix, and only what changed is computed."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.catalogue import Catalogue, Version, collect, find_lens
from pipeline.comparing import (
    Effort,
    Matrix,
    all_pairs,
    comparison_job,
    kept_matrices,
    layer_cache,
    tile_files,
    tile_sums,
    tiles,
)
from pipeline.comparing import compare as compare_all
from pipeline.comparing.comparison_job import Job
from pipeline.comparing.distance import emd
from pipeline.comparing.tiles import Tile
from pipeline.dna import FileKind, Lens, SealedFile, sealed
from pipeline.errors import CorruptFile, NotFound, StorageError, UsageError
from pipeline.reporting.progress import Lines
from pipeline.spec import Tap
from pipeline.storage import open_files, temporary
from tests.comparing.test_matrix import computed, stored
from tests.golden.handmade import (
    SPEC,
    catalogue_of,
    commit_dataset,
    contents,
    empty_catalogue,
    planned,
)
from tests.support.killer import Killed

__all__ = ["computed"]  # a fixture

compare = partial(compare_all, error_bars=False)
SMALL = Effort(memory=1)
"""Allows one DNA on a side of each tile."""


def put(catalogue: Catalogue, name: str, images: int, first: int = 0) -> Version:
    return commit_dataset(catalogue, name, *planned(name, images, first, shard_images=1))


@functools.cache
def filled_objects(count: int) -> dict[str, bytes]:
    """Makes datasets of 8 images and more, once, and returns the objects of their catalogue."""
    catalogue = empty_catalogue()
    for n in range(count):
        put(catalogue, f"set/{n}", 8 + n)
    return contents(catalogue)


def filled(count: int = 6) -> Catalogue:
    return catalogue_of(filled_objects(count))


@pytest.fixture(scope="module")
def six_datasets() -> Catalogue:
    return filled()


@pytest.fixture
def place() -> Catalogue:
    return filled()


def on_disk(folder: Path, count: int) -> Catalogue:
    """Makes the same in a folder, for another process or a command."""
    catalogue = Catalogue(str(folder))
    for path, data in filled_objects(count).items():
        storage.create(catalogue.root + path, data)
    return catalogue


@pytest.fixture(autouse=True)
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tiles be committed however small their work is."""
    monkeypatch.setattr(all_pairs, "TILE_WORK", -1)


def left(catalogue: Catalogue) -> list[str]:
    return sorted(tile_files.present(catalogue.root))


def without_kept(catalogue: Catalogue) -> Catalogue:
    for uri in stored(catalogue):
        storage.delete(uri)
    return catalogue


def same(a: Matrix, b: Matrix) -> None:
    assert (a.names, a.layers, a.members, a.lens_digest) == (
        b.names,
        b.layers,
        b.members,
        b.lens_digest,
    )
    assert a.estimates.keys() == b.estimates.keys()
    for column in ("emd", "nfd", "fd", *a.estimates):
        assert np.array_equal(a.stacked(column), b.stacked(column), equal_nan=True), column


# Any division gives the same.


@settings(max_examples=8)
@given(
    names=st.lists(st.integers(0, 5), min_size=2, max_size=6, unique=True),
    memory=st.sampled_from([1, 4000, 10**9]),
    estimated=st.booleans(),
)
def test_any_division_into_tiles_gives_the_same_matrix(
    six_datasets: Catalogue, names: list[int], memory: int, estimated: bool
) -> None:
    chosen = [f"set/{n}" for n in names]
    whole = compare(without_kept(six_datasets), chosen, error_bars=estimated)
    cut = compare(
        without_kept(six_datasets), chosen, error_bars=estimated, effort=Effort(memory=memory)
    )
    same(cut, whole)
    dnas = [six_datasets.load(name) for name in chosen]
    for plane, layer in (("stem", "stem"), ("head", "head"), ("all", None)):
        plain = [[emd(a, b, layer=layer) for b in dnas] for a in dnas]
        assert np.allclose(cut.of(plane), plain, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert left(six_datasets) == []


def test_every_pair_is_in_one_tile() -> None:
    version = Version("", "", "", 1, 0, (), {}, "", "", "", ())
    job = Job("memory://x", SPEC, SPEC.layers, True)
    for old in (0, 1, 5, 9):
        for new in (1, 2, 7):
            for workers, memory in ((1, 10**9), (4, 10**9), (1, 1), (1, 3000)):
                members = [(f"{n}", replace(version, dna=f"{n}")) for n in range(old + new)]
                made = tiles.cut(replace(job, memory=memory), members[:old], members[old:], workers)
                seen = []
                for tile in made:
                    for i, a in enumerate(tile.a):
                        others = tile.b[i + 1 :] if tile.square else tile.b
                        seen += [frozenset((a[0], b[0])) for b in others]
                assert len(seen) == len(set(seen)) == new * (new - 1) // 2 + new * old
                assert sum(tile.pairs for tile in made) == len(seen)
                if workers > 1 and len(seen) > 20:
                    assert len(made) >= 3 * workers


def test_the_side_of_a_tile_fits_the_memory_and_the_time() -> None:
    wide = Job("memory://x", replace(SPEC, bins=1000), SPEC.layers, True, error_bars=False)
    for job in (wide, replace(wide, error_bars=True)):
        assert replace(job, memory=1).side == 1
        assert replace(job, memory=2**60).side ** 2 * job.values <= comparison_job.TILE_WORK
        sides = [replace(job, memory=2**power).side for power in range(60)]
        assert sides == sorted(sides)
        assert len(set(sides)) > 10


def test_covariances_fit_in_the_allowed_memory() -> None:
    """The covariances of a wide layer are larger than its curves."""
    wide = replace(SPEC, taps=(Tap("wide", 2048, 4),), bins=1000)
    plain = Job("memory://x", wide, wide.layers, True, error_bars=False)
    job = replace(plain, fd=True)
    curves, root = 2048 * 1000 * 4, 2048**2 * 8
    assert job.held("wide") * (curves + root) <= job.memory / 2
    assert plain.held("wide") > 4 * job.held("wide")
    assert job.loaders("wide") * 3 * root <= job.memory / 4 or job.loaders("wide") == 1


@given(
    a=st.integers(1, 40),
    b=st.integers(0, 40),
    held=st.integers(0, 170),
)
def test_steps_cover_all_pairs_once_and_fit_in_memory(a: int, b: int, held: int) -> None:
    """The tile is on the diagonal if `b` is 0."""
    version = Version("", "", "", 1, 0, (), {}, "", "", "", ())
    row = [(f"{n}", replace(version, dna=f"{n}")) for n in range(a + b)]
    job = Job("memory://x", SPEC, SPEC.layers, True)
    tile = Tile(job, tuple(row[:a]), tuple(row[a:] if b else row[:a]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "held", lambda job, layer: held)
        steps = tile.steps("stem")
    pairs = [(i, j) for step in steps for i in step.a for j in step.b]
    if b:
        assert sorted(pairs) == [(i, j) for i in range(a) for j in range(b)]
    else:
        once = {frozenset((i, j)) for i in range(a) for j in range(a)}
        assert {frozenset(pair) for pair in pairs} == once
        assert all(step.a == step.b or step.a.stop <= step.b.start for step in steps)
    before = 0
    for step in steps:
        beside = len(step.b) if b or step.a != step.b else 0
        assert len(step.a) + beside + (before if step.beside else 0) <= max(3, held)
        before = beside


@dataclass(frozen=True)
class Workers:
    """An engine whose workers are this process; `call` maps a function over items."""

    call: Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
    workers: int
    in_process = False

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, memory: int = 0
    ) -> Iterator[Any]:
        return self.call(function, items)


def map_here(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    return map(function, items)


@pytest.mark.parametrize("held", [1, 4, 7, 9])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_layer_that_does_not_fit_is_compared_in_steps(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch, held: int, workers: int
) -> None:
    whole = compare(place)
    without_kept(place)
    monkeypatch.setattr(Job, "held", lambda job, layer: held if layer == "head" else 99)
    effort = Effort(lambda values: nullcontext(Workers(map_here, workers)))
    same(compare(place, effort=effort), whole)


def test_the_name_of_a_tile_depends_on_all_that_decides_it() -> None:
    version = Version("", "", "", 1, 0, (), {}, "", "", "", ())
    a, b, c = (((n, replace(version, dna=f"dna-{n}")),) for n in "abc")
    job = Job("memory://x", SPEC, SPEC.layers, True)
    lens = Lens.chosen(SPEC, ["stem:0"])
    digests = {
        Tile(job, a, b).digest,
        Tile(job, b, a).digest,
        Tile(job, a, c).digest,
        Tile(job, a, a).digest,
        Tile(job, (*a, *b), c).digest,
        Tile(replace(job, fd=True), a, b).digest,
        Tile(replace(job, whole=False), a, b).digest,
        Tile(replace(job, layers=("stem",), whole=False), a, b).digest,
        Tile(replace(job, layers=("head",), whole=False), a, b).digest,
        Tile(replace(job, lens=lens), a, b).digest,
        Tile(replace(job, error_bars=False), a, b).digest,
        Tile(replace(job, spec=replace(SPEC, bins=7)), a, b).digest,
    }
    twin = (("twin", a[0][1]),)
    digests.add(Tile(job, a, twin).digest)  # the same DNAs, in a rectangle
    for constant, other in (("TILE", FileKind("tile", 2)), ("METHOD", "another")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comparison_job, constant, other)
            digests.add(Tile(replace(job), a, b).digest)
    assert len(digests) == 15
    how = replace(job, memory=7, threads=3, device="cuda")
    assert Tile(how, a, b).digest == Tile(job, a, b).digest


# Only what changed is computed.


def test_changing_one_of_six_datasets_recomputes_five_pairs(
    place: Catalogue, computed: list[int]
) -> None:
    compare(place, error_bars=True)
    assert sum(computed) == 15
    put(place, "set/3", 7)
    computed.clear()
    after = compare(place, error_bars=True)
    assert sum(computed) == 5
    same(after, compare(without_kept(place), error_bars=True))
    computed.clear()
    put(place, "set/new", 9)
    compare(place, error_bars=True)
    assert sum(computed) == 6
    computed.clear()
    less = compare(place, ["set/new", "set/0", "set/3"], error_bars=True)
    assert sum(computed) == 0
    same(less, compare(without_kept(place), ["set/new", "set/0", "set/3"], error_bars=True))


def test_the_kept_matrix_with_most_in_common_is_taken(
    place: Catalogue, computed: list[int]
) -> None:
    compare(place, [f"set/{n}" for n in range(5)])
    compare(place, ["set/0", "set/5"])  # newer, with less
    computed.clear()
    compare(place)
    assert sum(computed) == 5


def test_of_many_kept_matrices_the_newest_and_largest_are_read(
    place: Catalogue, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_matrices, "RECENT", 1)
    compare(place)
    for n in range(4):
        put(place, f"set/{n}", 7)
    compare(place, ["set/0", "set/1"])  # newest, of two
    computed.clear()
    compare(place, ["set/0", "set/1", "set/2", "set/3"])
    assert sum(computed) == 5
    computed.clear()
    compare(place)  # from the newest, of four: the largest has two of these, the oldest as well
    assert sum(computed) == 15 - 6
    for n in (4, 5):
        put(place, f"set/{n}", 7)
    compare(place, ["set/4", "set/5"])  # the newest one has nothing more
    computed.clear()
    compare(place)
    assert sum(computed) == 15 - 6


def test_small_comparisons_do_not_hide_the_large_kept_matrix(
    place: Catalogue, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_matrices, "RECENT", 4)
    compare(place)
    assert sum(computed) == 15
    for n in range(5):
        compare(place, [f"set/{n}", f"set/{n + 1}"])
    assert sum(computed) == 15
    assert len(stored(place)) == 1  # nothing was computed, so nothing is kept
    put(place, "set/3", 7)
    computed.clear()
    compare(place)
    assert sum(computed) == 5


def test_single_layers_are_taken_from_a_kept_matrix_of_all_layers(
    place: Catalogue, computed: list[int]
) -> None:
    fresh = compare(place, layers=["head"], error_bars=True)
    both = compare(place, layers=["head", "stem", "head"], error_bars=True)
    assert (sum(computed), both.layers) == (30, ("head", "stem"))
    whole = compare(place, error_bars=True)
    computed.clear()
    same(compare(place, layers=["head"], error_bars=True), fresh)
    same(compare(place, layers=["head", "stem"], error_bars=True), both)
    few = compare(place, ["set/4", "set/1", "set/2"], layers=["head"], error_bars=True)
    assert sum(computed) == 0
    assert np.array_equal(both.of("stem", "q"), whole.of("stem", "q"), equal_nan=True)
    put(place, "set/3", 7)
    changed = compare(place, layers=["head"], error_bars=True)
    assert sum(computed) == 5
    without_kept(place)
    same(few, compare(place, few.names, layers=["head"], error_bars=True))
    same(changed, compare(place, layers=["head"], error_bars=True))
    with pytest.raises(UsageError, match="no layer is chosen; tiny has stem, head"):
        compare(place, layers=[])


@pytest.mark.parametrize("memory", [1, 10**9])
def test_two_datasets_of_the_same_images_are_compared_as_a_pair(
    place: Catalogue, computed: list[int], memory: int
) -> None:
    def build_same_images(name: str, of: str, images: int) -> None:
        commit_dataset(place, name, *planned(of, images, shard_images=1))
        assert place.find(name).dna == place.find(of).dna

    effort = Effort(memory=memory)
    compare(place, error_bars=True, effort=effort)
    build_same_images("twin/2", "set/2", 10)
    computed.clear()
    grown = compare(place, error_bars=True, effort=effort)
    assert sum(computed) == 6
    build_same_images("twin/0", "set/0", 8)
    again = compare(place, error_bars=True, effort=effort)
    few = compare(place, ["twin/2", "set/5", "set/2"], error_bars=True, effort=effort)
    # With one dataset a tile, one tile serves both twins with the third dataset.
    assert sum(computed) == 6 + (6 if memory == 1 else 7)
    for found in (grown, again, few):
        without_kept(place)
        same(found, compare(place, found.names, error_bars=True, effort=effort))
        i, j = found.names.index("twin/2"), found.names.index("set/2")
        assert found.of("all", "emd")[i, j] == 0


def test_kept_numbers_of_another_kind_are_not_reused(
    place: Catalogue, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(place)
    lens = Lens.chosen(SPEC, ["stem:0"])
    for choice in ({"error_bars": True}, {"lens": lens}):
        computed.clear()
        compare(place, **choice)
        assert sum(computed) == 15
    monkeypatch.setattr(comparison_job, "METHOD", "another")
    computed.clear()
    compare(place, error_bars=True)
    assert sum(computed) == 15


def test_a_torn_kept_matrix_does_not_stop_a_comparison(
    place: Catalogue, computed: list[int]
) -> None:
    compare(place)
    (uri,) = stored(place)
    data = storage.read(uri)
    at = len(data) // 3
    put(place, "set/3", 7)
    for damaged in (
        data[:-9],
        data[: len(data) // 2],
        b"",
        bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]),
    ):
        storage.replace(uri, damaged)
        computed.clear()
        torn = compare(place)
        assert sum(computed) == 15
        for kept in stored(place):
            if kept != uri:
                storage.delete(kept)
        assert np.isfinite(torn.of()).all()


# Interrupted comparisons are resumed.


def test_existing_tiles_are_not_computed_again(
    place: Catalogue, computed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    def crash_at_a_write(
        function: Any, items: Sequence[Tile], /
    ) -> Iterator[tile_files.TileReceipt]:
        for item in items[:7]:
            yield function(item)
        raise InterruptedError("the engine died")

    dead = Effort(lambda values: nullcontext(Workers(crash_at_a_write, 1)), memory=1)
    with pytest.raises(InterruptedError):
        compare(place, effort=dead)
    before = sum(computed)
    assert len(left(place)) == 7
    assert stored(place) == []
    again = compare(place, effort=replace(SMALL, progress=Lines()))
    assert sum(computed) == 15
    assert before > 0
    told = capsys.readouterr().err
    assert "7 tiles are computed already, 14 are left" in told
    assert f"{15 - before}/{15 - before} pairs" in told
    assert left(place) == []
    same(again, compare(without_kept(place)))


KILLED = """
import os, signal, sys
from pipeline.catalogue import Catalogue
from pipeline.comparing import Effort, all_pairs, compare, tile_files
all_pairs.TILE_WORK = -1
left = [int(sys.argv[2])]
for name in ("create", "delete", "replace"):
    real = getattr(tile_files.storage, name)
    def crash_at_a_write(uri, *rest, real=real):
        if "_tiles" in uri or "/matrix/" in uri:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        return real(uri, *rest)
    setattr(tile_files.storage, name, crash_at_a_write)
    if name == "delete":
        tile_files.storage.discard.__globals__[name] = crash_at_a_write
compare(Catalogue(sys.argv[1]), error_bars=False, effort=Effort(memory=1))
"""


def killed_as_a_process(place: Catalogue, at: int) -> None:
    code = subprocess.run(
        [sys.executable, "-c", KILLED, place.root, str(at)], capture_output=True, check=False
    )
    assert code.returncode == -signal.SIGKILL, code.stderr.decode()


def killed_here(place: Catalogue, at: int) -> None:
    """Compares, and lets nothing be written from the write of that number on."""
    done: list[str] = []

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(uri: str, *rest: Any) -> Any:
            if "_tiles" in uri or "/matrix/" in uri:
                if len(done) == at:
                    raise Killed
                done.append(uri)
            return real(uri, *rest)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "delete", "replace"):
            patch.setattr(storage, name, dying(getattr(storage, name)))
        patch.setitem(storage.discard.__globals__, "delete", storage.delete)
        with pytest.raises(Killed):
            compare(place, effort=SMALL)


@pytest.mark.parametrize(
    ("at", "kill"), [(0, killed_here), (4, killed_as_a_process), (6, killed_here), (8, killed_here)]
)
def test_a_comparison_killed_at_any_write_is_completed_by_a_rerun(
    tmp_path: Path, at: int, kill: Callable[[Catalogue, int], None], computed: list[int]
) -> None:
    """The writes are six tiles, the matrix, and six removals."""
    place = on_disk(tmp_path / "dnas", 3)
    kill(place, at)
    computed.clear()
    there = left(place)
    done = sum(1 for uri in there)
    assert done == (min(at, 6) if at < 7 else 6 - (at - 7))
    again = compare(place, effort=SMALL)
    assert len(computed) == (6 - at if at < 7 else 0)
    assert len(stored(place)) == 1
    for uri in left(place):  # left by one that died while it removed them
        storage.delete(uri)
    without_kept(place)
    same(again, compare(place))


@pytest.mark.parametrize("how", ["torn", "empty", "another's", "flipped"])
def test_a_wrong_tile_is_computed_again(place: Catalogue, how: str, computed: list[int]) -> None:
    true = compare(place, effort=SMALL)
    without_kept(place)

    def map_then_damage(
        function: Any, items: Sequence[Tile], /
    ) -> Iterator[tile_files.TileReceipt]:
        for item in items:
            yield function(item)
        if len(items) == 1:  # the damaged tile alone, again
            return
        rectangles = [item for item in items if not item.square]
        uri, data = rectangles[0].uri, storage.read(rectangles[0].uri)
        at = len(data) // 3
        changed = {
            "torn": data[:-20],
            "empty": b"",
            "another's": storage.read(rectangles[1].uri),
            "flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        }
        storage.replace(uri, changed[how])
        with pytest.raises(CorruptFile, match=rectangles[0].digest):
            tile_files.decode_tile(storage.read(uri), rectangles[0])

    computed.clear()
    found = compare(
        place, effort=Effort(lambda values: nullcontext(Workers(map_then_damage, 1)), memory=1)
    )
    same(found, true)
    assert sum(computed) == 16


def test_other_numbers_in_the_place_of_a_tile_are_refused(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet's own checksums fit them, and so do the tile's digest and shape."""
    version = place.find("set/0")
    tile = Tile(Job(place.root, SPEC, SPEC.layers, True, error_bars=False), (("set/0", version),),
                (("set/1", place.find("set/1")),))  # fmt: skip
    block = tile_sums.compute(tile)
    data = tile_files.encode_tile(tile, block)
    assert tile_files.decode_tile(data, tile)["emd"].tolist() == block["emd"].tolist()
    take = sealed._HashingSink.take
    (true,) = SealedFile(data, comparison_job.TILE, "a tile").row_groups
    with monkeypatch.context() as patch:  # the checksum of the true numbers, beside others
        patch.setattr(
            sealed._HashingSink, "take", lambda written: take(written) | {"sha256": true.sha256}
        )
        other = tile_files.encode_tile(tile, block | {"emd": block["emd"] / 2})
    with pytest.raises(CorruptFile, match=rf"{tile.digest}.* has sha256 .*; its footer states"):
        tile_files.decode_tile(other, tile)


def test_a_comparison_works_without_permission_to_delete(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong tile stays, as do the others, until garbage collection."""
    true = compare(place, effort=SMALL)
    without_kept(place)

    def deny(uri: str) -> None:
        raise StorageError(f"{uri}: access denied")

    def torn(function: Any, items: Sequence[Tile], /) -> Iterator[tile_files.TileReceipt]:
        for item in items:
            yield function(item)
        if items:  # no tile is missing the next time
            storage.replace(items[0].uri, b"torn")

    monkeypatch.setitem(storage.discard.__globals__, "delete", deny)
    found = compare(place, effort=Effort(lambda values: nullcontext(Workers(torn, 1)), memory=1))
    same(found, true)
    assert len(left(place)) > 1
    assert len(stored(place)) == 1


class InterruptedCrew:
    """A crew that works in this process, and calls `act` after a number of tiles."""

    def __init__(self, after: int, act: Callable[[], object], times: int = 1) -> None:
        self.after, self.act, self.times = after, act, times
        self.spread: list[int] = []

    def __call__(self, function: Any, items: Sequence[Tile], /) -> Iterator[tile_files.TileReceipt]:
        self.spread.append(len(items))
        for number, item in enumerate(items):
            yield function(item)
            if self.times and number + 1 == min(self.after, len(items)):
                self.times -= 1
                self.act()

    @property
    def effort(self) -> Effort:
        return Effort(lambda values: nullcontext(Workers(self, 1)), memory=1)


@pytest.mark.parametrize("after", [1, 7, 20, 21])
def test_of_two_comparisons_at_once_the_second_returns_the_matrix_of_the_first(
    place: Catalogue, computed: list[int], after: int
) -> None:
    """The first computes some of 21 tiles, the other starts and finishes, and the first goes on."""
    others: list[Matrix] = []
    crew = InterruptedCrew(after, lambda: others.append(compare(place, effort=SMALL)))
    found = compare(place, effort=crew.effort)
    assert len(computed) == 21 + (after < 21)  # the tile that it was at
    assert crew.spread == [21]
    assert left(place) == []
    same(found, others[0])


def test_two_comparisons_of_one_layer_at_once_compute_it_once(
    place: Catalogue, computed: list[int]
) -> None:
    others: list[Matrix] = []
    crew = InterruptedCrew(21, lambda: others.append(compare(place, layers=["stem"], effort=SMALL)))
    found = compare(place, layers=["stem"], effort=crew.effort)
    assert crew.spread == [21]
    assert len(computed) == 21
    same(found, others[0])


def test_only_changed_pairs_of_one_layer_are_computed(
    place: Catalogue, computed: list[int]
) -> None:
    compare(place, ["set/0", "set/1", "set/2"], layers=["stem"])
    assert sum(computed) == 3
    compare(place, ["set/0", "set/1", "set/2"], layers=["stem"])
    assert sum(computed) == 3
    grown = compare(place, layers=["stem"])
    assert sum(computed) == 3 + 12
    same(grown, compare(without_kept(place), layers=["stem"]))
    computed.clear()
    compare(place, ["set/0", "set/1"])  # tiles of all layers, none of which can be used
    compare(place, ["set/0", "set/1", "set/3"], layers=["stem"])
    assert sum(computed) == 1


def test_tiles_that_are_always_removed_are_computed_by_the_driver(
    place: Catalogue, computed: list[int]
) -> None:
    def removed() -> None:
        for uri in left(place):
            storage.delete(uri)

    crew = InterruptedCrew(21, removed, times=99)
    found = compare(place, effort=crew.effort)
    assert crew.spread == [21] * all_pairs.ROUNDS
    assert len(computed) == 21 * (all_pairs.ROUNDS + 1)
    same(found, compare(without_kept(place)))


def test_a_kept_matrix_removed_while_it_is_read_is_computed_again(
    place: Catalogue, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = compare(place)
    (uri,) = stored(place)
    real = storage.exists

    def vanish_when_seen(of: str) -> bool:
        there = real(of)
        if of == uri:
            storage.delete(of)
        return there

    monkeypatch.setattr(storage, "exists", vanish_when_seen)
    same(compare(place), right)
    assert sum(computed) == 30


def test_gc_removes_abandoned_tiles(place: Catalogue) -> None:
    versions = list(place.head().datasets["set/0"].values())
    job = Job(place.root, SPEC, SPEC.layers, True)
    tile = Tile(job, (("set/0", versions[0]),), (("set/0", versions[0]),))
    tile_files.run(tile)
    assert left(place) == [tile.uri]
    collect(place)
    assert left(place) == [tile.uri]  # young
    collect(place, grace=timedelta(0))
    assert left(place) == []
    assert np.isfinite(compare(place).of()).all()


@pytest.mark.soak
def test_a_ray_cluster_computes_the_same_matrix(tmp_path: Path) -> None:
    from pipeline.engine import RayEngine
    from pipeline.spec import Resources

    place = on_disk(tmp_path / "dnas", 4)
    alone = compare(place)
    without_kept(place)
    with RayEngine(Resources(workers=1)) as engine:
        same(compare(place, effort=Effort(lambda values: nullcontext(engine))), alone)
    assert left(place) == []


# Lenses.


def test_a_matrix_through_a_lens_is_the_distance_through_it(place: Catalogue) -> None:
    signed = Lens(
        "signed", tuple((t.name, t.neurons) for t in SPEC.taps), np.array([3.0, -2, 0, 1, -1])
    )
    chosen = Lens.chosen(SPEC, ["stem:0,2"])
    dnas = [place.load(f"set/{n}") for n in range(3)]
    names = [f"set/{n}" for n in range(3)]
    for lens in (signed, chosen):
        found = compare(place, names, lens=lens, effort=SMALL)
        for plane, layer in (("stem", "stem"), ("head", "head"), ("all", None)):
            plain = [[emd(a, b, layer=layer, lens=lens) for b in dnas] for a in dnas]
            assert np.allclose(found.of(plane), plain, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert set(found.table["lens"].to_pylist()) == {lens.name}
        assert found.lens_digest == lens.digest
    assert np.isnan(found.of("head")).all()
    assert {uri.rpartition("/")[2] for uri in stored(place)} == {
        f"{signed.digest}-plain.parquet",
        f"{chosen.digest}-plain.parquet",
    }


def test_weights_below_zero_take_error_bars_from_their_own_layers_only(place: Catalogue) -> None:
    lens = Lens(
        "signed", tuple((t.name, t.neurons) for t in SPEC.taps), np.array([3.0, 2, 0, 1, -0.5])
    )
    whole = compare(place, lens=lens, error_bars=True, effort=SMALL)  # kept
    head = compare(place, layers=["head"], lens=lens, error_bars=True, effort=SMALL)
    stem = compare(place, layers=["stem"], lens=lens, error_bars=True, effort=SMALL)
    assert (whole.method, head.method, stem.method) == ("", "", comparison_job.METHOD)
    assert np.array_equal(stem.of("stem"), whole.of("stem"), equal_nan=True)
    positive = replace(lens, weights=np.abs(lens.weights))
    assert np.array_equal(
        stem.of("stem", "high"),
        compare(place, lens=positive, error_bars=True, effort=SMALL).of("stem", "high"),
        equal_nan=True,
    )


def test_a_lens_is_identified_by_its_digest(place: Catalogue, computed: list[int]) -> None:
    lens = Lens.chosen(SPEC, ["stem:0"])
    first = compare(place, lens=lens)
    renamed = compare(place, lens=replace(lens, name="mine"))
    assert sum(computed) == 15
    assert (renamed.lens, first.lens) == ("mine", "stem:0")
    assert np.array_equal(renamed.emd, first.emd, equal_nan=True)
    with pytest.raises(UsageError, match="lens other has weights for 0 neurons in head"):
        compare(place, lens=Lens("other", (("stem", 3),), np.ones(3)))
    with pytest.raises(UsageError, match="cannot be seen through lens stem:0; leave one of"):
        compare(place, lens=lens, fd=True)


def test_a_lens_is_read_from_the_catalogue_or_a_file(place: Catalogue, tmp_path: Path) -> None:
    lens = Lens.chosen(SPEC, ["stem:0", "head:1"])
    path = tmp_path / "mine.parquet"
    path.write_bytes(replace(lens, name="mine").encode())
    assert find_lens(place, str(path), SPEC).digest == lens.digest
    uri = storage.join(place.lenses_uri("eyes"), f"{lens.digest}.parquet")
    storage.create(uri, replace(lens, name="eyes").encode())
    assert find_lens(place, "eyes", SPEC).name == "eyes"
    for choice in ("stem:1", "stem:2", "head:0"):  # the newest, whatever its digest
        newer = Lens.chosen(SPEC, [choice])
        uri = storage.join(place.lenses_uri("eyes"), f"{newer.digest}.parquet")
        storage.create(uri, replace(newer, name="eyes").encode())
        assert find_lens(place, "eyes", SPEC).digest == newer.digest
    with pytest.raises(NotFound, match="has no lens 'nose'"):
        find_lens(place, "nose", SPEC)


def test_the_compare_command_uses_a_lens(tmp_path: Path) -> None:
    place = on_disk(tmp_path / "dnas", 3)
    lens = Lens.chosen(SPEC, ["stem:0"])
    path = tmp_path / "mine.parquet"
    path.write_bytes(lens.encode())

    def run(*options: str) -> Any:
        return CliRunner().invoke(app, ["compare", "-c", place.root, *options])

    by_file = json.loads(run("--json", "--lens", str(path)).stdout)
    by_name = json.loads(run("--json", "--neurons", "stem:0", "--workers", "0").stdout)
    assert by_file == by_name
    assert {row["lens"] for row in by_file} == {"stem:0"}
    both = run("--neurons", "stem:0", "--lens", str(path))
    assert both.exit_code == 2
    assert "give --lens or --neurons, not both" in both.output
    assert run("--neurons", "stem:9").exit_code == 2
    assert run("--memory", "0.01", "--layer", "stem").exit_code == 0
    assert os.environ.get("RAY_ADDRESS") is None


def test_the_device_option_reaches_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed here: the kernels have their own tests of torch."""
    place = on_disk(tmp_path / "dnas", 2)
    asked: list[str] = []
    real = tile_sums.distances

    def spy(*of: Any, device: str, **how: Any) -> Any:
        asked.append(device)
        return real(*of, **how)

    monkeypatch.setattr(tile_sums, "distances", spy)

    def run(*options: str) -> Any:
        without_kept(place)
        return CliRunner().invoke(app, ["compare", "-c", place.root, "--no-error-bars", *options])

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device, message in (
        ("cuda", "torch has no CUDA devices here"),
        ("gpu", "it must be cpu, cuda, or one of several GPUs, such as cuda:1"),
        ("cuda:x", "it must be cpu, cuda, or"),
    ):
        refused = run("--device", device)
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "torch has 2 CUDA devices here" in " ".join(run("--device", "cuda:2").output.split())
    for more in (("--workers", "2"), ("--ray-address", "somewhere:6379")):
        refused = run("--device", "cuda", *more)
        assert refused.exit_code == 2
        assert "leave --workers and --ray-address out" in " ".join(refused.output.split())
    assert asked == []
    for device in ("cpu", "cuda", "cuda:1"):
        asked.clear()
        assert run("--device", device).exit_code == 0
        assert set(asked) == {device}


# How a tile is cut, loaded and computed.


def members_of(count: int, first: int = 0) -> list[tiles.Member]:
    version = Version("", "", "", 1, 0, (), {}, "", "", "", ())
    return [(f"{n}", replace(version, dna=f"{n}")) for n in range(first, first + count)]


def sides(made: Sequence[Tile]) -> list[tuple[str, str]]:
    return [("".join(n for n, _ in tile.a), "".join(n for n, _ in tile.b)) for tile in made]


def test_pairs_are_cut_into_no_more_tiles_than_needed() -> None:
    job = Job("memory://x", SPEC, SPEC.layers, True)
    new, old = members_of(4), members_of(5, 4)
    assert sides(tiles.cut(job, old, new)) == [("0123", "0123"), ("0123", "45678")]
    two = [("01", "01"), ("01", "23"), ("01", "45"), ("01", "678")]
    two += [("23", "23"), ("23", "45"), ("23", "678")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "side", 3)
        assert sides(tiles.cut(job, old, new)) == two
    # 26 pairs for 2 workers: squares of 2 are the largest of which each gets three.
    fair = [("01", "01"), ("01", "23"), ("01", "4"), ("01", "56"), ("01", "78")]
    fair += [("23", "23"), ("23", "4"), ("23", "56"), ("23", "78")]
    assert sides(tiles.cut(job, old, new, workers=2)) == fair
    many = tiles.cut(job, [], members_of(8), workers=2)  # 28 pairs: 2 x 2
    assert {(len(tile.a), len(tile.b)) for tile in many} == {(2, 2)}
    assert len(tiles.cut(job, [], members_of(9), workers=4)) == 45  # 36 pairs: below 2 x 2
    assert len(tiles.cut(job, [], members_of(8), workers=3)) == 36  # 28 pairs: below 2 x 2


def test_the_steps_of_a_layer_are_as_few_as_memory_allows() -> None:
    job = Job("memory://x", SPEC, SPEC.layers, True)
    square = Tile(job, tuple(members_of(6)), tuple(members_of(6)))
    wide = Tile(job, tuple(members_of(3)), tuple(members_of(5, 3)))

    def steps(tile: Tile, held: int) -> list[tuple[range, range, bool]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Job, "held", lambda job, layer: held)
            found = tile.steps("stem")
        assert {step.layer for step in found} == {"stem"}
        return [(step.a, step.b, step.beside) for step in found]

    assert steps(square, 12) == [(range(6), range(6), True)]
    assert steps(wide, 16) == [(range(3), range(5), True)]
    assert steps(wide, 15) == [
        (range(3), range(3), False),
        (range(3), range(3, 5), True),
    ]
    # Of 6 one is streamed, and two beside it: what is held, what is compared and what is loaded.
    assert steps(square, 6) == [
        (range(4), range(4), False),
        (range(4), range(4, 5), True),
        (range(4), range(5, 6), True),
        (range(4, 6), range(4, 6), False),
    ]
    assert steps(square, 8) == [
        (range(4), range(4), False),
        (range(4), range(4, 6), True),
        (range(4, 6), range(4, 6), False),
    ]
    one_by_one = [(range(3), range(at, at + 1), at > 0) for at in range(5)]
    assert steps(wide, 6) == one_by_one
    large = Tile(job, tuple(members_of(100)), tuple(members_of(40, 100)))
    for held, few, rows in ((48, 4, {40, 20}), (96, 8, {80, 20}), (200, 16, {100})):
        found = steps(large, held)
        assert {len(of) for of, *_ in found} == rows
        assert max(len(of) for _, of, _ in found) == few


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> layer_cache.TileCache:
    """Replaces the cache of this thread by an empty one."""
    empty = layer_cache.TileCache()
    monkeypatch.setattr(layer_cache._of_thread, "cache", empty)
    return empty


def whole_tile(catalogue: Catalogue, a: Sequence[int], b: Sequence[int], **of_job: Any) -> Tile:
    job = Job(catalogue.root, SPEC, SPEC.layers, True, **of_job)
    rows, columns = (
        tuple((f"set/{n}", catalogue.find(f"set/{n}")) for n in side) for side in (a, b)
    )
    return Tile(job, rows, columns)


def test_what_a_process_has_loaded_never_changes_the_numbers_of_another_tile(
    place: Catalogue, cache: layer_cache.TileCache
) -> None:
    """Tiles that differ in one thing are computed after each other, in both orders, and alone."""
    first = whole_tile(place, [0, 1], [2, 3])
    put(place, "set/0", 7)
    job = first.job
    made = [
        first,
        whole_tile(place, [0, 1], [2, 3]),  # another version of a dataset
        whole_tile(place, [1, 0], [2, 3]),
        whole_tile(place, [0, 1], [0, 1]),
        whole_tile(place, [0, 1], [1, 0]),
        *(replace(first, job=replace(job, **change)) for change in (
            {"error_bars": False}, {"fd": True}, {"layers": ("head",), "whole": False},
            {"lens": Lens.chosen(SPEC, ["stem:0"])}, {"lens": Lens.chosen(SPEC, ["stem:1"])},
        )),
    ]  # fmt: skip
    alone = []
    for tile in made:
        cache.clear()
        alone.append(tile_sums.compute(tile))
        assert alone[-1].keys() == set(tile.job.columns)
        for numbers in alone[-1].values():
            assert numbers.shape == (tile.job.planes, len(tile.a), len(tile.b))
    # Each after all others, and the first one after each other alone.
    orders = [[*range(len(made)), *range(len(made))], *([n, 0] for n in range(1, len(made)))]
    for order in orders:
        cache.clear()
        for at in order:
            found = tile_sums.compute(made[at])
            for name, numbers in alone[at].items():
                assert np.array_equal(found[name], numbers, equal_nan=True), (made[at], name)


def test_threads_that_compare_at_once_share_no_open_file(
    place: Catalogue, cache: layer_cache.TileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile, barrier = whole_tile(place, [0, 1], [2, 3]), threading.Barrier(3)
    real, caches = layer_cache.TileCache._load, list[int]()

    def noting(self: layer_cache.TileCache, *given: Any) -> Any:
        caches.append(id(self))
        return real(self, *given)

    def compute(_: int) -> tile_sums.Block:
        barrier.wait()
        return tile_sums.compute(tile)

    monkeypatch.setattr(layer_cache.TileCache, "_load", noting)
    with ThreadPoolExecutor(3) as pool:
        blocks = list(pool.map(compute, range(3)))
    assert len(set(caches)) == 3
    assert id(cache) not in caches
    for block in blocks[1:]:
        for name, numbers in block.items():
            assert np.array_equal(numbers, blocks[0][name], equal_nan=True), name


def test_a_dataset_without_folds_has_distances_and_no_error_bars(
    place: Catalogue, cache: layer_cache.TileCache
) -> None:
    whole = whole_tile(place, [0], [1, 2])
    version = whole.a[0][1]
    sha256 = {kind: digest for kind, digest in version.sha256.items() if kind != "folds"}
    without = replace(whole, a=(("set/0", replace(version, sha256=sha256)),))
    found = tile_sums.compute(without)
    cache.clear()
    expected = tile_sums.compute(whole)
    assert np.isfinite(found["emd"]).all()
    for name in ("emd", "nfd"):
        assert np.array_equal(found[name], expected[name])
    assert np.isnan(found["se"]).all()
    assert np.isfinite(expected["se"][0]).all()


def test_a_process_keeps_the_layers_it_will_need_within_half_of_its_memory(
    place: Catalogue, cache: layer_cache.TileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = layer_cache.TileCache._load

    def spy(self: layer_cache.TileCache, job: Job, members: Any, layer: str) -> Any:
        read.append(layer)
        return load(self, job, members, layer)

    monkeypatch.setattr(layer_cache.TileCache, "_load", spy)
    tile_sums.compute(whole_tile(place, [0], [1, 2]))
    tile_sums.compute(whole_tile(place, [0], [3]))
    assert sorted(read) == ["head"] * 3 + ["stem"] * 3  # the rows are there already
    assert {name for _, name, *_ in cache.files} == {"set/0", "set/3"}  # the last tile's
    for rows, columns, held in (([1], [3], {"set/3"}), ([3], [1], {"set/3"}), ([1], [2], set())):
        cache.keep_only(whole_tile(place, rows, columns))
        assert {name for _, name, *_ in cache.files} == held
    cache.clear()
    both = size_of_layers(place, cache)
    for memory in (2 * both, 2 * both - 2, both, 1):
        for other in (1, 2, 3, 4):
            tile_sums.compute(whole_tile(place, [0], [other], memory=memory))
            held = sum(data.nbytes for data in cache.loaded.values())
            assert held <= memory / 2 or len(cache.loaded) == 1
            assert len(cache.loaded) == 4 or memory < 2 * both  # all that there is room for
    assert len(cache.loaded) == 1


def size_of_layers(place: Catalogue, cache: layer_cache.TileCache) -> int:
    tile_sums.compute(whole_tile(place, [0], [1]))
    size = sum(data.nbytes for data in cache.loaded.values())
    cache.clear()
    return size


def test_only_what_fits_beside_is_loaded_ahead(
    place: Catalogue, cache: layer_cache.TileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead: list[tiles.Step] = []

    class Pool(tile_sums.ThreadPoolExecutor):
        def submit(self, function: Any, /, *of: Any, **how: Any) -> Any:
            if function is tile_sums._load:
                ahead.append(of[2])
            return super().submit(function, *of, **how)

    monkeypatch.setattr(tile_sums, "ThreadPoolExecutor", Pool)
    for held in (99, 6, 3):
        monkeypatch.setattr(Job, "held", lambda job, layer, held=held: held)
        tile = whole_tile(place, range(6), range(6), error_bars=False)
        ahead.clear()
        tile_sums.compute(tile)
        steps = [step for layer in tile.job.layers for step in tile.steps(layer)]
        assert ahead == [step for step in steps[1:] if step.beside]


@pytest.mark.parametrize("error_bars", [False, True])
def test_threads_and_device_reach_the_kernels(
    place: Catalogue,
    cache: layer_cache.TileCache,
    monkeypatch: pytest.MonkeyPatch,
    error_bars: bool,
) -> None:
    asked: list[dict[str, Any]] = []
    for name in ("distances", "fold_sums"):
        real = getattr(tile_sums, name)

        def spy(*of: Any, real: Any = real, **how: Any) -> Any:
            asked.append(how)
            return real(*of, threads=1)

        monkeypatch.setattr(tile_sums, name, spy)
    of_job = {"error_bars": error_bars, "threads": 3, "device": "cuda:1"}
    tile_sums.compute(whole_tile(place, [0], [1], **of_job))
    assert asked == [{"threads": 3, "device": "cuda:1"}] * 2


def limit_of_four_more() -> int:
    """Returns the limit under which this process can open four more files: it is one of numbers."""
    taken = set(map(int, os.listdir("/proc/self/fd")))
    return next(islice((number for number in count() if number not in taken), 4, None))


def test_more_dnas_are_compared_than_a_process_may_have_files_open_at_first(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each DNA of a tile is an open file, and many systems permit 1,024 unless asked for more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files.allow_open_files.cache_clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_of_four_more(), before[1]))
    try:
        assert np.isfinite(compare(place).of()).all()
        with monkeypatch.context() as patched:
            patched.setattr(temporary, "allow_open_files", lambda: None)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit_of_four_more(), before[1]))
            with pytest.raises(StorageError, match=r"Too many open files.*; allow more open files"):
                compare(without_kept(place))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        open_files.allow_open_files.cache_clear()


def test_an_unknown_mean_leaves_the_distance_of_gaussians_out(
    place: Catalogue, cache: layer_cache.TileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the reference package may have histograms alone."""
    tile = whole_tile(place, [0, 1], [2], error_bars=False)
    known = tile_sums.compute(tile)
    assert np.isfinite(known["nfd"]).all()
    read = layer_cache.DnaFile.read

    def without_means(self: Any, layers: Any) -> Any:
        dna = read(self, layers)
        return replace(dna, unknown=frozenset({"mean"})) if "set/1" in self.name else dna

    monkeypatch.setattr(layer_cache.DnaFile, "read", without_means)
    cache.clear()
    found = tile_sums.compute(tile)
    assert np.array_equal(found["emd"], known["emd"])
    assert np.array_equal(found["nfd"][:, 0], known["nfd"][:, 0])
    assert np.isnan(found["nfd"][:, 1]).all()
