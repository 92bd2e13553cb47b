"""Tests that a loaded network is lent to one at a time, and only to who asks for the same one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.building import make_dna
from pipeline.counting import Extractor, kept_extractor, lent_extractor
from pipeline.networks import Network, describe
from pipeline.networks.registry import register_network
from pipeline.spec import Backend
from tests.support import tiny_network as tiny

PIXELS = list(np.random.default_rng(5).integers(0, 256, (11, 12, 10, 3), np.uint8))


@pytest.fixture(autouse=True)
def none_kept() -> Iterator[None]:
    kept_extractor._kept.clear()
    yield
    kept_extractor._kept.clear()


@pytest.fixture
def place(tmp_path: Path) -> tiny.Place:
    return tiny.install(tmp_path)


@pytest.fixture
def network(place: tiny.Place) -> Network:
    return replace(place.network, built_by="")


def lent(network: Network, *others: Any, threads: int = 1, device: str = "cpu") -> Extractor:
    """Borrows an extractor and gives it back."""
    with lent_extractor(network, "fp32", device, "torch", threads, *others) as extractor:
        return extractor


def test_the_same_network_is_loaded_once(network: Network) -> None:
    first = lent(network)
    assert lent(replace(network)) is first is lent(network)


@pytest.mark.parametrize(
    "other",
    [
        lambda network: lent(network, threads=2),
        lambda network: lent(network, 4),
        lambda network: lent(replace(network, taps=network.taps[:1], modules=network.observed[:1])),
    ],
)
def test_another_is_loaded_and_takes_the_place_of_the_first(network: Network, other: Any) -> None:
    first = lent(network)
    second = other(network)
    assert second is not first
    assert [*kept_extractor._kept.values()] == [second]
    assert lent(network) is not first


def test_two_at_a_time_have_each_their_own(network: Network) -> None:
    settings: tuple[Any, ...] = (network, "fp32", "cpu", "torch", 1)
    kept = lent(network)
    with lent_extractor(*settings) as first, lent_extractor(*settings) as second:
        assert first is kept is not second
    assert lent(network) is first  # the one that was given back last


def test_one_that_saw_an_error_is_not_lent_again(network: Network) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        lent_extractor(network, "fp32", "cpu", "torch", 1),
    ):
        raise KeyboardInterrupt
    assert not kept_extractor._kept


def test_a_registered_network_is_loaded_each_time(network: Network) -> None:
    """Its function may be another one by then."""
    lent(replace(network, built_by="tests.support.tiny_network:Tiny"))
    assert not kept_extractor._kept


def test_large_networks_and_those_of_a_gpu_are_not_kept(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(each.nbytes for each in lent(network)._model.state_dict().values())
    assert len(kept_extractor._kept) == 1
    kept_extractor._kept.clear()
    monkeypatch.setattr(kept_extractor, "KEPT_BYTES", weights - 1)
    lent(network)
    assert not kept_extractor._kept
    monkeypatch.undo()
    monkeypatch.setattr(kept_extractor, "Extractor", lambda *_, **__: made)
    made = Extractor(network)
    lent(network, device="cuda")
    assert not kept_extractor._kept


def test_a_forked_process_has_none_of_its_parents(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that ran it are not there any more."""
    first = lent(network)
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert lent(network) is not first


def test_dnas_of_a_kept_network_have_the_same_bits_and_random_numbers_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def counted(*given: Any, **options: Any) -> Extractor:
        made.append(Extractor(*given, **options))
        return made[-1]

    monkeypatch.setattr(kept_extractor, "Extractor", counted)
    torch.manual_seed(1)
    expected = torch.rand(1)
    dnas = []
    for _ in range(2):
        torch.manual_seed(1)
        dnas.append(make_dna(PIXELS, threads=1, bins=16, backend="torch"))
        assert torch.equal(torch.rand(1), expected)
    assert len(made) == 1
    assert dnas[0].identical(dnas[1])


class Dice(tiny.Tiny):
    """A network that draws a number of its own when it is made, as a user's may."""

    def __init__(self) -> None:
        super().__init__()
        torch.rand(1)


def test_what_a_network_draws_as_it_is_loaded_is_not_taken_from_the_borrower(
    place: tiny.Place,
) -> None:
    register_network("dice", Dice, preprocess=tiny.RULE, taps="a,b")
    network = describe("dice", place.weights)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    lent(network)
    assert torch.equal(torch.rand(1), expected)


class Drawing:
    """A dataset that draws a random number for each image, as those do that augment."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, at: int) -> np.ndarray:
        self.drawn.append(torch.rand(1).item())
        return PIXELS[at]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_random_numbers_that_images_draw_are_drawn_once(backend: Backend) -> None:
    """Else every call would augment alike, and a spread that is estimated so would be none."""
    torch.manual_seed(1)
    images = Drawing()
    for _ in range(2):
        make_dna(images, threads=1, bins=16, backend=backend)
    assert len(images.drawn) >= 2 * len(PIXELS)
    torch.manual_seed(1)
    assert images.drawn == torch.rand(len(images.drawn)).tolist()
