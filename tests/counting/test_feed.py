"""Tests how images reach a GPU, on a CPU: what is computed, and in which order memory is used."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import images
from pipeline.building import Request, make_spec
from pipeline.building.images_metric import VisualDNA
from pipeline.counting import Counter, Extractor, device_counts, feed
from pipeline.counting.decode_ahead import MemberRun
from pipeline.counting.feed import SLOTS, Feed
from pipeline.counting.preparing import Preparer
from pipeline.counting.stream import Stream
from pipeline.dna import Partial
from pipeline.images import prepare
from pipeline.images.sending import sent
from pipeline.networks import find_ranges
from pipeline.sources import Entry, Shard, list_source
from pipeline.spec import Preprocess, Resources
from tests.images.test_noted import noise, saved, with_alpha
from tests.support import tiny_network as tiny
from tests.support.builders import same_counts
from tests.support.hostile_files import JPEG

CPU = torch.device("cpu")
LEVELS = Preprocess(40, 50, (0, 0, 0), (1 / 255,) * 3)
"""A rule whose normalised values are grey levels."""

TOLERANCE = 1e-4
"""In grey levels, as the kernel of the CPU keeps to PIL."""

Array = NDArray[np.uint8]


def pixels(height: int, width: int, seed: int = 0) -> Array:
    """Returns noise, which is all black and white if the seed is odd: that rounds worst."""
    made = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return ((made > 127) * 255).astype(np.uint8) if seed % 2 else made


def fed(rule: Preprocess, *arrays: Array) -> NDArray[np.float32]:
    found: NDArray[np.float32] = Feed(CPU, rule)([sent(each, rule) for each in arrays]).numpy()
    return found


def test_feeding_reads_nothing_of_the_device() -> None:
    """Tensors on `meta` have no values: an operation that needs one on the host is an error."""
    to_meta = Feed(torch.device("meta"), LEVELS)
    for sizes in ([(40, 50), (60, 70)], [(60, 70), (20, 300)]):
        batch = to_meta([sent(pixels(*size), LEVELS) for size in sizes])
        assert batch.shape == (2, 40, 50, 3)
    with pytest.raises(NotImplementedError, match="meta"):
        batch.cpu()


# What is computed.


SIDES = st.one_of(st.integers(1, 4), st.integers(1, 90), st.integers(200, 700))


@settings(max_examples=60)
@given(SIDES, SIDES, st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(0, 9))
def test_the_device_resizes_as_the_cpu(
    height: int, width: int, to_height: int, to_width: int, crop: bool, seed: int
) -> None:
    rule = replace(LEVELS, height=to_height, width=to_width, crop="center" if crop else "none")
    image = pixels(height, width, seed)
    assert np.abs(fed(rule, image)[0] - prepare(image, rule)).max() < TOLERANCE


@pytest.mark.parametrize(
    "size", [(1023, 1025), (500, 400), (224, 224), (1, 1), (3, 900), (7000, 1)]
)
def test_the_device_resizes_to_the_size_of_real_networks_as_the_cpu(size: tuple[int, int]) -> None:
    rule = replace(LEVELS, height=224, width=224)
    for seed in (0, 1):
        image = pixels(*size, seed)
        assert np.abs(fed(rule, image)[0] - prepare(image, rule)).max() < TOLERANCE


def test_images_that_the_cpu_resizes_arrive_as_they_are() -> None:
    for image in (pixels(1024, 1025), pixels(40 * 32 + 1, 3)):
        assert sent(image, LEVELS).shape == (40, 50, 3)
        assert np.abs(fed(LEVELS, image)[0] - prepare(image, LEVELS)).max() < TOLERANCE


def test_what_is_resized_with_rounding_is_equal_to_the_last_bit() -> None:
    rule = Preprocess(40, 50, (0.48, 0.45, 0.4), (0.22, 0.23, 0.25), resize="fast")
    arrays = [pixels(64, 80), pixels(13, 17), pixels(40, 50), pixels(1024, 1025)]
    found = fed(rule, *arrays)
    for one, image in zip(found, arrays, strict=True):
        assert np.array_equal(one, prepare(image, rule))


def test_the_device_normalises_as_the_cpu() -> None:
    rule = Preprocess(40, 50, (0.48, 0.45, 0.4), (0.22, 0.23, 0.25))
    for image in (pixels(64, 80), pixels(40, 50)):
        # A grey level is 0.018 of the network's input here.
        assert np.abs(fed(rule, image)[0] - prepare(image, rule)).max() < TOLERANCE * 0.02


@settings(max_examples=4)
@given(st.permutations(range(6)), st.integers(2, 6))
def test_an_image_does_not_depend_on_its_neighbours(order: list[int], count: int) -> None:
    sizes = [(64, 80), (40, 50), (1281, 2), (1, 700), (333, 77), (64, 80)]
    arrays = [pixels(*sizes[at], at) for at in order[:count]]
    for one, image in zip(fed(LEVELS, *arrays), arrays, strict=True):
        assert np.array_equal(one, fed(LEVELS, image)[0])


def test_the_matrices_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MATRIX_BYTES", 4 * 50 * 100 * 3)
    one = Feed(CPU, LEVELS)
    for seed in range(12):
        image = pixels(60 + seed * 7 % 40, 100 - seed * 3 % 40, seed)
        assert np.array_equal(one([sent(image, LEVELS)]).numpy(), fed(LEVELS, image))
        assert len(one._matrices) >= 2
        assert sum(each.nbytes for each in one._matrices.values()) <= feed.MATRIX_BYTES
    one([sent(pixels(20, 1200), LEVELS)])  # the latter matrix is too large beside any other
    assert list(one._matrices) == [(1200, 50)]


# In which order memory is used.


class Hazards(TorchDispatchMode):
    """Plays a GPU, and finds memory that is used while others may still be using it.

    Streams work when they like: only marks put them and the host in order. Each knows how far the
    others have come at least, and must know that they have done with the memory that it uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = "compute"
        self.done = dict.fromkeys(("host", "compute", "copies"), 0)
        self.known = {who: dict(self.done) for who in self.done}
        self.uses: dict[int, dict[str, int]] = {}  # of each memory, by whom, when last
        self.born: dict[int, int] = {}
        self.found: list[str] = []
        self.copies_knew: list[int] = []
        self.kept: list[torch.Tensor] = []  # no address is given out twice

    def learn(self, who: str, seen: dict[str, int]) -> None:
        self.known[who] = {other: max(at, seen[other]) for other, at in self.known[who].items()}

    def use(self, who: str, tensor: torch.Tensor) -> None:
        uses = self.uses.setdefault(tensor.untyped_storage().data_ptr(), {})
        self.found += [
            f"{who} beside {other}" for other, when in uses.items() if self.known[who][other] < when
        ]
        self.done[who] += 1
        self.known[who][who] = uses[who] = self.done[who]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.kept.append(out)
        name = func.overloadpacket.__name__
        self.learn(self.current, self.known["host"])
        if name == "empty":  # of memory that this stream may still be using for something else
            self.done[self.current] += 1
            self.known[self.current][self.current] = self.done[self.current]
            self.born[out.untyped_storage().data_ptr()] = self.done[self.current]
        elif self.current == "copies" and name == "copy_":
            there, host = args[:2]
            self.copies_knew.append(self.known["copies"]["compute"])
            self.use("host", host)  # has packed it
            self.learn("copies", self.known["host"])
            self.use("copies", host)
            self.uses.setdefault(
                there.untyped_storage().data_ptr(),
                {"compute": self.born[there.untyped_storage().data_ptr()]},
            )
            self.use("copies", there)
        elif self.current == "compute":
            for tensor in args:
                if isinstance(tensor, torch.Tensor) and self._is_sent(tensor):
                    self.use("compute", tensor)
        return out

    def _is_sent(self, tensor: torch.Tensor) -> bool:
        uses = self.uses.get(tensor.untyped_storage().data_ptr(), {})
        return "copies" in uses and "host" not in uses

    def work(self) -> int:
        """Lets the network compute something; returns when."""
        self.done["compute"] += 1
        self.known["compute"]["compute"] = self.done["compute"]
        return self.done["compute"]

    # As an order of streams.

    def mark(self) -> FakeMark:
        return FakeMark(self)

    @contextmanager
    def copying(self) -> Iterator[None]:
        self.current = "copies"
        yield
        self.current = "compute"


class FakeMark:
    def __init__(self, device: Hazards) -> None:
        self._device = device
        self._seen = dict.fromkeys(device.done, 0)

    def record(self) -> None:
        self._seen = dict(self._device.known[self._device.current])

    def wait(self) -> None:
        self._device.learn(self._device.current, self._seen)

    def synchronize(self) -> None:
        self._device.learn("host", self._seen)


def batch(seed: int, height: int = 44) -> list[Array]:
    return [sent(pixels(height, 60, seed + at), LEVELS) for at in range(3)]


def test_no_memory_is_used_while_others_use_it() -> None:
    heights = [44, 44, 44, 90, 44, 200, 44, 44, 44]  # slots grow in between
    with Hazards() as device:
        one = Feed(CPU, LEVELS, device)
        for seed, height in enumerate(heights):
            levels = batch(seed, height)
            found = one(levels)
            device.work()
            assert torch.equal(found, Feed(CPU, LEVELS)(levels))
    assert len(device.copies_knew) == len(heights)
    assert device.found == []


def test_a_micro_batch_travels_while_those_before_are_computed() -> None:
    """Its copy waits until the memory was read that it takes, and not for the batch before it."""
    begun, computed = [], []
    with Hazards() as device:
        one = Feed(CPU, LEVELS, device)
        for seed in range(8):
            begun.append(device.work())
            one(batch(seed))
            computed.append(device.work())
    for at in range(SLOTS + 1, 8):
        assert begun[at - SLOTS] < device.copies_knew[at] < begun[at - SLOTS + 1]


def test_memory_is_allocated_for_the_largest_micro_batch_only() -> None:
    one = Feed(CPU, LEVELS)
    for seed in range(SLOTS):
        one(batch(seed, 90))
    memory = [(slot.host.data_ptr(), slot.there.data_ptr()) for slot in one._slots]
    for seed in range(2 * SLOTS):
        one(batch(seed, 44 + seed))
    assert [(slot.host.data_ptr(), slot.there.data_ptr()) for slot in one._slots] == memory


class NoRoom:
    nbytes = 3

    def reshape(self, _: int) -> None:
        raise MemoryError


@pytest.mark.parametrize("fault", ["packing", "resizing"])
def test_after_an_error_the_memory_is_used_again(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with Hazards() as device:
        one = Feed(CPU, LEVELS, device)
        for seed in range(4):
            levels, bad = batch(seed), [NoRoom()] if fault == "packing" else []
            with monkeypatch.context() as patch:
                if fault == "resizing":
                    patch.setattr(one, "_resized", fail)
                with pytest.raises(MemoryError):
                    one([*levels, *bad])
            assert torch.equal(one(levels), Feed(CPU, LEVELS)(levels))
        assert len({id(slot) for slot in one._slots}) == SLOTS
    assert device.found == []


def test_torch_s_own_streams_and_events_take_the_same_calls() -> None:
    """No GPU runs here; this finds a name or an argument that torch does not have."""
    for name in ("record", "wait", "synchronize"):
        inspect.signature(getattr(torch.cuda.Event, name)).bind(None)
    inspect.signature(torch.cuda.Event.__new__).bind(None, blocking=True)
    inspect.signature(torch.cuda.Stream.__new__).bind(None, CPU)
    inspect.signature(torch.cuda.stream).bind(None)


# A whole shard.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """Images of many sizes, transparent and of one colour, and files that are no images."""
    folder = tmp_path_factory.mktemp("images")
    for at in range(21):
        image = noise(at, 3 + 17 * at, 200 - 9 * at)
        image = image.resize((1, 1)).resize(image.size) if at % 5 == 1 else image
        image = with_alpha(image, 254) if at % 3 == 1 else image
        (folder / f"{at:02d}.png").write_bytes(saved(image))
    (folder / "30.jpg").write_bytes(b"this is no image at all, it only says so")
    (folder / "31.jpg").write_bytes(JPEG[:-200])
    (folder / "32.png").write_bytes(saved(noise(1, 1024, 1025)))
    return Shard(0, 0, tuple(list_source(folder).entries))


def counter_of(place: tiny.Place, on_device: bool, **rule: Any) -> Counter:
    ranges, _ = find_ranges(place.network, place.ranges, {})
    request = Request("x", "x", **place.options)  # type: ignore[arg-type]  # fields by name
    spec = make_spec(request, place.network, ranges.digest, "cpu")
    spec = replace(spec, preprocess=replace(spec.preprocess, **rule))
    extractor = Extractor(place.network, on_device=on_device)
    return Counter(extractor, spec, ranges, Resources(threads=2))


def counted(
    place: tiny.Place, shard: Shard, on_device: bool, *, isolated: bool = False, **rule: Any
) -> Partial:
    counter = counter_of(place, on_device, **rule)
    try:
        return counter.count(shard, "key", isolated=isolated)
    finally:
        counter.close()


MOVED = 1e-3
"""The share of activations that rounding may move to the bin beside theirs."""


def assert_nearly_equal(there: Partial, here: Partial) -> None:
    a, b = there.dna, here.dna
    assert there.failures == here.failures
    for name in ("images", "failed", "transparent", "single_colour"):
        assert getattr(a, name) == getattr(b, name)
    whole = [np.column_stack([d.underflow, d.counts, d.overflow]) for d in (a, b)]
    moved = np.abs(np.diff(np.cumsum(whole, axis=2), axis=0)).sum()
    assert moved <= MOVED * whole[0].sum()
    assert np.allclose(a.mean, b.mean, atol=1e-5)
    assert np.allclose(a.m2, b.m2, rtol=1e-3)


def test_a_shard_counts_the_same_on_the_device(place: tiny.Place, shard: Shard) -> None:
    there, here = (counted(place, shard, on_device) for on_device in (True, False))
    assert (there.dna.images, len(there.failures)) == (22, 2)
    assert there.dna.transparent == 7
    assert there.dna.single_colour >= 4
    assert_nearly_equal(there, here)
    assert not np.array_equal(there.dna.max, here.dna.max)  # the device's arithmetic was used
    assert counted(place, shard, True).identical(there)


def test_the_kernel_of_gpus_counts_a_whole_shard(
    place: tiny.Place, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's interpreter runs it on the taps of a network; torch counts the same."""
    by_torch = counted(place, shard, True).dna
    monkeypatch.setattr(device_counts, "default_kernel", lambda device: "triton")
    by_triton = counted(place, shard, True).dna
    assert same_counts(by_triton, by_torch)
    assert np.allclose(by_triton.mean, by_torch.mean, rtol=0, atol=1e-7)


def test_the_order_of_images_changes_no_count_on_the_device(
    place: tiny.Place, shard: Shard
) -> None:
    few = shard.members[:12]
    one, other = (counted(place, Shard(0, 0, each), True) for each in (few, few[::-1]))
    assert same_counts(one.dna, other.dna)


def test_images_are_decoded_apart_for_the_device_too(place: tiny.Place, shard: Shard) -> None:
    few = Shard(0, 0, (*shard.members[:4], *shard.members[-3:]))
    apart, here = (counted(place, few, True, isolated=isolated) for isolated in (True, False))
    assert apart.identical(here)


def test_a_cropped_shard_counts_the_same_on_the_device(place: tiny.Place, shard: Shard) -> None:
    there, here = (counted(place, shard, on, crop="center") for on in (True, False))
    assert_nearly_equal(there, here)


def test_a_shard_resized_with_rounding_has_equal_counts(place: tiny.Place, shard: Shard) -> None:
    there, here = (counted(place, shard, on_device, resize="fast") for on_device in (True, False))
    assert there.failures == here.failures
    for name in ("counts", "underflow", "overflow", "min", "max"):
        assert np.array_equal(getattr(there.dna, name), getattr(here.dna, name))


def test_a_metric_counts_the_same_on_the_device(
    place: tiny.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [pixels(20 + at, 60 - at, at) for at in range(19)]
    dnas = []
    for on_device in (True, False):
        made = partial(Extractor, on_device=on_device)
        monkeypatch.setattr("pipeline.counting.Extractor", made)
        metric = VisualDNA(**place.options)  # type: ignore[arg-type]  # fields by name
        metric.update(arrays)
        dnas.append(metric.compute())
    assert_nearly_equal(*(Partial(dna, ("key",), ()) for dna in dnas))
    assert not np.array_equal(dnas[0].max, dnas[1].max)
    assert [dna.numerics[0][0].resized for dna in dnas] == [images.DEVICE_RULE, "cpu"]


def test_the_numerics_say_where_images_were_resized(place: tiny.Place, shard: Shard) -> None:
    few = Shard(0, 0, shard.members[:2])
    for on_device, where in ((True, images.DEVICE_RULE), (False, "cpu")):
        ((used, count),) = counted(place, few, on_device).dna.numerics
        assert (used.resized, count) == (where, 2)


# What waits for the network.


def test_what_waits_for_the_network_is_reckoned_with(
    place: tiny.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded images count from when they are made until the network has taken them."""
    stream = Stream(Extractor(place.network, on_device=True), tiny.RULE, Resources(threads=1))
    one = images.loaded(images.Decoded(pixels(10, 20)), tiny.RULE, True)
    seen: list[int] = []
    go_on = threading.Event()

    def prepared(self: Preparer, runs: object, waiting: Any, *_: object, **__: object) -> Any:
        for at in range(20):
            seen.append(waiting())
            if at == 17:
                go_on.set()
            yield one

    monkeypatch.setattr(Preparer, "prepared", prepared)

    def observe(_: Any, batch: Any) -> int:
        assert go_on.wait(20)
        return len(batch)

    found = [got for _, got in stream.observed(Shard(0, 0, ()), observe)]  # type: ignore[misc]
    stream.close()
    assert found == [8, 8, 4]
    assert seen[:18] == [600 * at for at in range(18)]


@pytest.mark.parametrize("waiting", [0, 1, 2, 9])
def test_decoded_images_that_wait_are_bounded(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a few bytes may be an image of many."""
    from pipeline.counting import preparing
    from pipeline.images import sending

    file = saved(noise(0, 1, 1).resize((100, 100)))
    each = 100 * 100 * 3 + len(file)
    monkeypatch.setattr(sending, "DEVICE_PIXELS", 100 * 100)
    monkeypatch.setattr(preparing, "AHEAD_BYTES", 4 * each)
    preparer = Preparer(tiny.RULE, True, Resources(), threads=2, micro_batch=8)
    entries = tuple(Entry(f"memory://{at}", "", len(file), "") for at in range(12))
    begun: list[Entry] = []
    begin = preparer.begin

    def spy(entry: Entry, *rest: Any) -> Any:
        begun.append(entry)
        return begin(entry, *rest)

    monkeypatch.setattr(preparer, "begin", spy)
    batches = 2 * 8 * 100 * 100 * 3
    found = preparer.prepared(
        [MemberRun(entries)], lambda: batches + waiting * each, lambda _: file
    )
    most = 0
    for taken, image in enumerate(found):
        assert image.values.nbytes == 100 * 100 * 3  # type: ignore[union-attr]
        most = max(most, len(begun) - taken)
    preparer.close()
    assert most == max(1, 4 - waiting)
