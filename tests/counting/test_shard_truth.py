"""Tests the count of one shard of a small network against numbers added up image by image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import images
from pipeline.building import Request, make_spec
from pipeline.counting import Counter, DeviceRanges, Extractor
from pipeline.counting.stream import Stream
from pipeline.dna import ExemplarSettings, Failure, Partial
from pipeline.errors import ConservationError
from pipeline.networks import find_ranges
from pipeline.sources import Shard, list_source
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN, PRODUCTS, Resources
from tests.support import tiny_network as tiny

KEEP = ExemplarSettings(3)
ALL = (*PRODUCTS, LAYER_GAUSSIAN, KEEP.product, IMAGE_HASHES)
PICTURES = [*(tiny.Picture("good", seed) for seed in range(16)), tiny.Picture("empty", 0)]
PICTURES += [tiny.Picture("not_an_image", 1), tiny.Picture("truncated", 2)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def counter(place: tiny.Place) -> Iterator[Counter]:
    made = counter_of(place, Resources(threads=2))
    yield made
    made.close()


def counter_of(place: tiny.Place, resources: Resources, products: tuple[str, ...] = ALL) -> Counter:
    ranges, _ = find_ranges(place.network, place.ranges, {})
    request = Request("x", "x", **place.options)  # type: ignore[arg-type]  # fields by name
    spec = make_spec(request, place.network, ranges.digest, "cpu")
    return Counter(Extractor(place.network), spec, ranges, resources, products)


def filled(folder: Path, pictures: list[tiny.Picture]) -> tuple[Shard, dict[str, tiny.Picture]]:
    named = {folder / f"{at:02d}.png": picture for at, picture in enumerate(pictures)}
    for path, picture in named.items():
        path.write_bytes(picture.data)
    return (
        Shard(0, 0, tuple(list_source(folder).entries)),
        {path.as_uri(): picture for path, picture in named.items()},
    )


def test_a_shard_that_is_counted_as_on_a_gpu_has_the_same_numbers(
    place: tiny.Place, tmp_path: Path
) -> None:
    members, pictures = filled(tmp_path, PICTURES)
    counter = counter_of(place, Resources(threads=1))  # a GPU's tables have one thread
    assert counter._on_gpu is None
    counter._extractor.on_device = True
    counter._on_gpu = DeviceRanges.on("cpu", counter._ranges.low, counter._ranges.high, tiny.BINS)
    partial = counter.count(members, "key")
    counter.close()
    truth = tiny.Oracle(place).truth(pictures)
    assert truth.differences(partial.dna, partial.failures, partial.exemplars) == []


@pytest.mark.parametrize("isolated", [False, True], ids=["here", "isolated"])
def test_every_number_of_a_shard_is_that_of_its_images(
    isolated: bool, place: tiny.Place, counter: Counter, tmp_path: Path, monkeypatch: Any
) -> None:
    apart = []
    real = images.load_isolated
    monkeypatch.setattr(
        images, "load_isolated", lambda *a, **b: (apart.append(a[0]), real(*a, **b))[1]
    )
    members, pictures = filled(tmp_path, PICTURES)
    partial = counter.count(members, "key", isolated=isolated)
    truth = tiny.Oracle(place).truth(pictures)
    assert truth.differences(partial.dna, partial.failures, partial.exemplars) == []
    assert partial.exemplars is not None
    assert partial.image_hashes is not None
    by_name = dict(
        zip(
            [entry.uri for entry in members.members],
            partial.image_hashes.by_shard["key"],
            strict=True,
        )
    )
    for uri, picture in pictures.items():
        hashes = None
        if picture.kind == "good":
            hashes = images.load(picture.data, tiny.RULE, hashed=True).hashes
        assert tuple(by_name[uri]) == (hashes or (0, 0, 0))
    assert partial.dna.scatter is not None
    assert [count for _, count in partial.dna.numerics] == [16]
    assert partial.shards == ("key",)
    assert bool(apart) == isolated
    apart.clear()
    made = counter.make(members, "key", isolated=isolated)
    assert (made.images, made.failures) == (16, 3)
    assert Partial.decode(made.data, "partial").identical(partial)
    assert bool(apart) == isolated
    apart.clear()
    assert counter.count(members, "key").identical(partial)
    assert apart == []


def test_what_no_product_asks_for_is_not_kept(place: tiny.Place, tmp_path: Path) -> None:
    members, pictures = filled(tmp_path, PICTURES)
    counter = counter_of(place, Resources(threads=1), PRODUCTS)
    partial = counter.count(members, "key")
    counter.close()
    assert (partial.exemplars, partial.image_hashes, partial.dna.scatter) == (None, None, None)
    assert tiny.Oracle(place).truth(pictures).differences(partial.dna, partial.failures) == []


def test_a_shard_without_a_readable_image_is_of_no_numerics(
    place: tiny.Place, counter: Counter, tmp_path: Path
) -> None:
    members, _ = filled(tmp_path, [tiny.Picture("empty", 0)])
    partial = counter.count(members, "key")
    assert (partial.dna.images, partial.dna.failed, partial.dna.numerics) == (0, 1, ())


def test_the_counts_of_all_threads_are_added(
    place: tiny.Place, counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, pictures = filled(tmp_path, PICTURES)
    both = threading.Barrier(2, timeout=20)
    threads = set()
    real = Extractor.observe

    def at_once(self: Extractor, pixels: Any, visit: Callable[[int, torch.Tensor], None]) -> None:
        threads.add(threading.get_ident())
        both.wait()
        real(self, pixels, visit)

    monkeypatch.setattr(Extractor, "observe", at_once)
    partial = counter.count(members, "key")
    monkeypatch.undo()
    assert len(threads) == 2
    assert tiny.Oracle(place).truth(pictures).differences(partial.dna, partial.failures) == []


def test_a_zero_has_no_sign(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeros(self: Extractor, pixels: Any, visit: Callable[[int, torch.Tensor], None]) -> None:
        for index, width in enumerate(tiny.WIDTHS):
            visit(index, -torch.zeros(len(pixels), (4 // (index + 1)) ** 2, width))

    monkeypatch.setattr(Extractor, "observe", zeros)
    members, _ = filled(tmp_path, [tiny.Picture("good", 1)])
    dna = counter.count(members, "key").dna
    assert not np.signbit([*dna.min, *dna.max]).any()


def test_values_that_are_no_numbers_are_counted_apart(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_nan(self: Extractor, pixels: Any, visit: Callable[[int, torch.Tensor], None]) -> None:
        for index, width in enumerate(tiny.WIDTHS):
            x = torch.zeros(len(pixels), (4 // (index + 1)) ** 2, width)
            x[0, 0, 1] = torch.nan
            visit(index, x)

    monkeypatch.setattr(Extractor, "observe", one_nan)
    members, _ = filled(tmp_path, [tiny.Picture("good", 1)])
    dna = counter.count(members, "key").dna
    assert dna.nonfinite.tolist() == [0, 1, 0, 0, 0, 1, 0]


def test_a_closed_counter_has_no_threads(counter: Counter, tmp_path: Path) -> None:
    members, _ = filled(tmp_path, PICTURES)
    counter.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        counter.count(members, "key")


def test_a_shard_that_counts_wrongly_is_refused_before_it_is_encoded(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.counting import histogram

    add = histogram.LayerCounts.add

    def lose_one(self: histogram.LayerCounts, x: np.ndarray) -> np.ndarray:
        means = add(self, x)
        self._recent[0, int(self._recent[0].argmax())] -= 1
        return means

    monkeypatch.setattr(histogram.LayerCounts, "add", lose_one)
    with pytest.raises(ConservationError, match=r"shard 0: neuron a\[0\]"):
        counter.count(filled(tmp_path, PICTURES)[0], "key")


@pytest.mark.parametrize("change", ["an image less", "an image twice"])
def test_a_shard_in_which_a_candidate_is_missing_or_extra_is_refused(
    counter: Counter, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = Stream.observed
    members, _ = filled(tmp_path, PICTURES)

    def lying(self: Stream, _: Shard, *rest: Any, **options: Any) -> Iterator[Any]:
        seen = members
        if change == "an image less":
            seen = replace(members, members=members.members[1:])
        else:
            yield [0], Failure("file:///x.jpg", "", "empty", "")
        yield from observed(self, seen, *rest, **options)

    monkeypatch.setattr(Stream, "observed", lying)
    told = {
        "an image less": "shard 0: 15 counted and 3 failed of 19 candidates",
        "an image twice": r"shard 0: .*/00\.png came twice",
    }
    with pytest.raises(ConservationError, match=told[change]):
        counter.count(members, "key")
