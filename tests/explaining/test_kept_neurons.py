"""Tests that the neurons of pairs that have not changed are found once, and stay the same."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from pipeline import storage
from pipeline.catalogue import Catalogue, collect
from pipeline.catalogue.garbage_collection import GRACE
from pipeline.comparing import compare
from pipeline.errors import CorruptFile, StorageError, TransientError
from pipeline.events import Event, Said, Started
from pipeline.explaining import NearestPairs, PairNeuron, find_pair_neurons, pair_neurons
from pipeline.sources import plan
from tests.golden.handmade import commit_dataset, entries, hand_made

NAMES = ("a", "b", "c")


@pytest.fixture
def place() -> Catalogue:
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    for at, name in enumerate(NAMES):
        commit(catalogue, name, 3 + at, 100 * at)
    return catalogue


def commit(catalogue: Catalogue, name: str, count: int, first: int) -> None:
    manifest = plan(entries(name, count, first))
    commit_dataset(catalogue, name, manifest, [hand_made(shard) for shard in manifest.shards])


def found(catalogue: Catalogue, **options: Any) -> tuple[NearestPairs, list[Event]]:
    """Returns the neurons of all pairs, and what was said meanwhile."""
    events: list[Event] = []
    matrix = compare(catalogue, **options)
    versions = catalogue.find_all(matrix.names)
    (pairs,) = find_pair_neurons(catalogue, [matrix], [None], versions, progress=events.append)
    return pairs, events


def computed(events: list[Event]) -> bool:
    return any(isinstance(event, Started) for event in events)


def kept(catalogue: Catalogue) -> list[str]:
    return [item.uri for item in storage.walk(catalogue.root) if "/_pair_neurons/" in item.uri]


def test_the_second_time_nothing_is_read_and_all_is_the_same(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, events = found(place)
    assert computed(events)
    assert len(first.neurons) == 3
    assert all(first.neurons.values())
    monkeypatch.setattr(pair_neurons, "_LayerCache", None)  # what reads layers
    second, events = found(place)
    assert second == first
    assert list(second.neurons) == list(first.neurons)
    assert events == []


def test_whatever_decides_the_neurons_has_neurons_of_its_own(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(place)
    assert computed(found(place, error_bars=False)[1])
    assert computed(found(place, layers=["head"])[1])
    assert computed(found(place, names=["a", "b"])[1])
    for version in ("NEURONS_METHOD", "METHOD"):
        with monkeypatch.context() as patch:
            patch.setattr(pair_neurons, version, "another")
            assert computed(found(place)[1])
    commit(place, "a", 5, 900)
    assert computed(found(place)[1])
    assert not computed(found(place)[1])
    assert len(kept(place)) == 7


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"null", b'{"checksum": "x"}'])
def test_damaged_neurons_are_found_again(place: Catalogue, damage: bytes) -> None:
    first, _ = found(place)
    (uri,) = kept(place)
    data = storage.read(uri)
    for wrong in (damage, data[:-3], data.replace(b'"pairs": 3', b'"pairs": 4')):
        storage.replace(uri, wrong)
        again, events = found(place)
        assert computed(events)
        assert again == first
        assert storage.read(uri) == data


def test_a_file_gives_back_the_neurons() -> None:
    neuron = PairNeuron(
        "stem", 3, 1 / 3, -1.5, 2.0, (0, 999), (5, 7), 1 / 7, -0.1, (0.1, -0.2, 0.3), 1e-9
    )
    plain = replace(neuron, corrected=None, q=None)
    pairs = NearestPairs({(1, 2): [neuron, plain], (0, 5): []}, 7)
    again = NearestPairs.decode(pairs.encode(), "x")
    assert again == pairs
    assert list(again.neurons) == [(1, 2), (0, 5)]
    with pytest.raises(CorruptFile, match="x: "):
        NearestPairs.decode(pairs.encode().replace(b"999", b"998"), "x")


def test_a_catalogue_that_cannot_be_written_shows_its_neurons_and_says_so(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = found(place)
    storage.delete(*kept(place))

    def refuse(error: Exception) -> None:
        def create(uri: str, data: bytes) -> bool:
            raise error

        monkeypatch.setattr(storage, "create", create)

    refuse(StorageError("the disk is full"))
    again, events = found(place)
    assert again == first
    assert isinstance(events[-1], Said)
    assert "not kept for the next time: the disk is full" in events[-1].message
    refuse(TransientError("no answer"))
    with pytest.raises(TransientError, match="no answer"):
        found(place)


def test_kept_neurons_go_with_the_garbage(place: Catalogue) -> None:
    found(place)
    assert len(kept(place)) == 1
    collect(place, grace=GRACE)
    assert len(kept(place)) == 1
    collect(place, grace=0 * GRACE)
    assert kept(place) == []
