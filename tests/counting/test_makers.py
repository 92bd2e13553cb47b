"""Tests that fewer images are taken at a time where a device's memory runs out, and where not."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.counting import Extractor, Made, numerics, worker
from pipeline.counting.makers import Makers
from pipeline.dna import DNA
from pipeline.engine import InProcess
from pipeline.errors import UnexpectedError
from pipeline.sources import Shard
from pipeline.spec import Numerics, Resources
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

SHARD: Any = None


class FakeMaker:
    """Makes a shard if its device holds so many images at a time."""

    def __init__(self, batch: int, room: int, meet: Callable[[], object] = lambda: None) -> None:
        self.batch = batch
        self.closed = False
        self._room = room
        self._meet = meet

    def make(self, shard: Shard, key: str, **_: object) -> Made:
        assert not self.closed
        self._meet()
        if self.batch > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Made(key.encode(), self.batch, 0)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("loading", [False, True])
@pytest.mark.parametrize(("start", "room"), [(128, 128), (64, 9), (5, 1), (3, 0), (1, 0)])
def test_images_at_a_time_are_halved_until_they_fit_and_then_stay(
    start: int, room: int, loading: bool
) -> None:
    """Memory may run out while the network is loaded, too, of which the extractor tells."""
    made: list[FakeMaker] = []

    def load(recipe: str, batch: int) -> FakeMaker:
        if loading and batch > room:
            raise ValueError("too small") from torch.OutOfMemoryError("CUDA out of memory")
        made.append(FakeMaker(batch, room))
        return made[-1]

    makers = Makers(load, lambda recipe: (start, True))
    if not room:
        with pytest.raises(
            UnexpectedError,
            match=r"too small for 1 image at a time; use devices with more memory\. ",
        ):
            makers.make("a", SHARD, "k", isolated=False)
        return
    fits = start
    while fits > room:
        fits //= 2
    for _ in range(2):
        assert makers.make("a", SHARD, "k", isolated=False).images == fits
    assert [maker.batch for maker in made if not maker.closed] == [fits]
    assert len(made) == 1 if loading else made[0].batch == start
    makers.close()
    assert all(maker.closed for maker in made)


def test_a_number_that_is_stated_stays() -> None:
    makers = Makers(lambda recipe, batch: FakeMaker(batch, 8), lambda recipe: (64, False))
    with pytest.raises(
        UnexpectedError, match=r"64 images at a time, as is stated for all workers; .*fewer"
    ):
        makers.make("a", SHARD, "k", isolated=False)


def test_other_errors_are_not_of_the_memory() -> None:
    def load(recipe: str, batch: int) -> FakeMaker:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        Makers(load, lambda recipe: (64, True)).make("a", SHARD, "k", isolated=False)


def made_at_once(makers: Makers[str]) -> list[int]:
    """Makes a shard in each of two threads, and returns how many images they took at a time."""
    found: list[int] = []

    def run() -> None:
        found.append(makers.make("a", SHARD, "k", isolated=False).images)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_two_shards_at_once_halve_it_once_and_one_is_not_cut_off() -> None:
    """Both run out of memory at 64 images, at the same moment."""
    barrier = threading.Barrier(2)
    made: list[FakeMaker] = []

    def load(recipe: str, batch: int) -> FakeMaker:
        made.append(FakeMaker(batch, 32, barrier.wait if batch == 64 else lambda: None))
        return made[-1]

    makers = Makers(load, lambda recipe: (64, True))
    assert made_at_once(makers) == [32, 32]
    assert [(maker.batch, maker.closed) for maker in made] == [(64, True), (32, False)]


def test_no_thread_loads_it_again_before_its_memory_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shard runs out of memory, and then another, while the first waits to end the network."""
    made: list[FakeMaker] = []
    both, second_fails = threading.Barrier(2, timeout=10), threading.Event()

    def meet() -> None:
        if both.wait():
            second_fails.wait(10)

    def load(recipe: str, batch: int) -> FakeMaker:
        if not all(maker.closed for maker in made):
            raise ValueError("no room") from torch.OutOfMemoryError("CUDA out of memory")
        made.append(FakeMaker(batch, 32, meet if batch == 64 else lambda: None))
        return made[-1]

    class Quick(threading.Condition):
        """The thread that waits for the other is the last to go on."""

        def wait(self, timeout: float | None = None) -> bool:
            second_fails.set()
            woken = super().wait(timeout)
            self.release()
            time.sleep(0.2)
            self.acquire()
            return woken

    makers = Makers(load, lambda recipe: (64, True))
    monkeypatch.setattr(makers, "_changed", Quick())
    assert made_at_once(makers) == [32, 32]
    assert [(maker.batch, maker.closed) for maker in made] == [(64, True), (32, False)]


def test_two_shards_that_load_at_once_halve_it_once() -> None:
    """One loads after the other, and both have failed at 64 images before either takes fewer."""
    both = threading.Barrier(2, timeout=10)

    class LoadError(ValueError):
        def __str__(self) -> str:
            both.wait()
            return "too small"

    def load(recipe: str, batch: int) -> FakeMaker:
        if batch > 32:
            raise LoadError from torch.OutOfMemoryError("CUDA out of memory")
        return FakeMaker(batch, 32)

    makers = Makers(load, lambda recipe: (64, True))
    assert made_at_once(makers) == [32, 32]


def test_what_was_given_up_is_ended_by_the_last_who_uses_it() -> None:
    made: list[FakeMaker] = []
    begun, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert goes_on.wait(20)

    def load(recipe: str, batch: int) -> FakeMaker:
        made.append(FakeMaker(batch, 8, wait if recipe == "slow" else lambda: None))
        return made[-1]

    makers = Makers(load, lambda recipe: (8, True))
    makers.make("quick", SHARD, "k", isolated=False)
    makers.give_up("quick")
    makers.give_up("quick")
    assert [maker.closed for maker in made] == [True]
    thread = threading.Thread(
        target=makers.make, args=("slow", SHARD, "k"), kwargs={"isolated": False}, daemon=True
    )
    thread.start()
    assert begun.wait(20)
    makers.give_up("slow")
    assert not made[1].closed
    goes_on.set()
    thread.join(20)
    assert made[1].closed
    makers.make("quick", SHARD, "k", isolated=False)
    assert len(made) == 3


def test_networks_that_nobody_uses_do_not_pile_up() -> None:
    made: dict[str, list[FakeMaker]] = {}

    def load(recipe: str, batch: int) -> FakeMaker:
        made.setdefault(recipe, []).append(FakeMaker(batch, 8))
        return made[recipe][-1]

    makers = Makers(load, lambda recipe: (8, True))
    for recipe in ("a", "b", "a", "b", "a", "c", "d", "a"):
        makers.make(recipe, SHARD, "k", isolated=False)
    assert {recipe: [maker.closed for maker in of] for recipe, of in made.items()} == {
        "a": [False],
        "b": [True],
        "c": [False],
        "d": [False],
    }


def test_images_are_not_halved_as_long_as_a_network_that_nobody_uses_takes_memory() -> None:
    """The device holds one network, and the second one runs out of memory beside the first."""
    made: list[FakeMaker] = []

    def load(recipe: str, batch: int) -> FakeMaker:
        if any(not maker.closed for maker in made):
            raise torch.OutOfMemoryError("CUDA out of memory")
        made.append(FakeMaker(batch, batch))
        return made[-1]

    for may_halve in (True, False):
        makers = Makers(load, lambda recipe, may_halve=may_halve: (64, may_halve))
        assert makers.make("a", SHARD, "k", isolated=False).images == 64
        assert makers.make("b", SHARD, "k", isolated=False).images == 64
        makers.close()


def test_memory_that_is_freed_for_one_of_two_shards_is_tried_by_both() -> None:
    both, made = threading.Barrier(2, timeout=10), list[FakeMaker]()

    class LoadError(ValueError):
        def __str__(self) -> str:
            both.wait()
            return "too small"

    def load(recipe: str, batch: int) -> FakeMaker:
        if recipe == "a" and not made[0].closed:
            raise LoadError from torch.OutOfMemoryError("CUDA out of memory")
        made.append(FakeMaker(batch, batch))
        return made[-1]

    makers = Makers(load, lambda recipe: (64, True))
    makers.make("idle", SHARD, "k", isolated=False)
    assert made_at_once(makers) == [64, 64]
    assert [(maker.batch, maker.closed) for maker in made] == [(64, True), (64, False)]


# The same, with a network.


class FourAtATime(Extractor):
    """Computes on the CPU as on a GPU that holds 4 images."""

    def __init__(self, network: Any, precision: Any, device: str, *rest: Any, **how: Any) -> None:
        super().__init__(network, precision, "cpu", *rest, on_device=True, **how)
        self.loaded = True

    @property
    def numerics(self) -> Numerics:
        return numerics(self.network, "cuda", "torch", True, self.micro_batch, self._precision)

    def observe(self, pixels: Any, visit: Any) -> None:
        if hasattr(self, "loaded") and self.micro_batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().observe(pixels, visit)


def built(folder: Path, name: str, **options: Any) -> tuple[DNA, dict[str, str]]:
    place = Catalogue((folder / name).as_uri())
    small: dict[str, Any] = tiny.install(folder).options
    resources = Resources(gpus_per_worker=1, micro_batch=options.pop("micro_batch", None))
    request = Request("photos", str(folder / "photos"), shard_images=5, **small, **options)
    with InProcess() as engine:
        (result,) = build_datasets(place, [request], engine, resources)
    return place.load("photos"), dict(result.version.sha256)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(worker, "Extractor", FourAtATime)
    write_photos(tmp_path / "photos", 13)
    return tmp_path


def test_a_dna_states_how_many_images_a_small_device_takes_and_counts_as_if_asked_for(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dna, files = built(small, "halved")
    assert [one.micro_batch for one, _ in dna.numerics] == [4]
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert [re.search(r"for (\d+) images .* takes (\d+) there", text)[1] for text in told] == [  # type: ignore[index]
        "8"
    ]
    asked, same = built(small, "asked", micro_batch=4)
    assert (dna.images, files) == (13, same)
    assert asked.spec == dna.spec


def test_in_bf16_the_number_is_part_of_the_spec_and_stays(small: Path) -> None:
    with pytest.raises(UnexpectedError, match=r"64 images at a time, as is stated for all workers"):
        built(small, "rough", precision="bf16")
