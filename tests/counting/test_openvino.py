"""Tests that OpenVINO counts what torch counts, up to rounding, and that its files are checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.building import make_dna
from pipeline.comparing.distance import emd
from pipeline.counting import Extractor, numerics, openvino_forward
from pipeline.errors import SpecMismatch, UsageError
from pipeline.networks import Network, describe
from pipeline.networks.registry import register_network
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

SHAPE = (8, tiny.SIDE, tiny.SIDE, 3)


class InPlace(torch.nn.Module):
    """Writes into the memory of its first layer's activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 4, 3)
        self.act = torch.nn.ReLU(inplace=True)
        self.b = torch.nn.Conv2d(4, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vdna" / "openvino"


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return tiny.install(tmp_path).network


def pixels(images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (images, *SHAPE[1:])).astype(np.float32)


def activations(extractor: Extractor, images: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    extractor.observe(images, lambda index, x: found.append(x.numpy().copy()))
    return found


def converting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes the name of each network that is converted."""
    names: list[str] = []
    converted = openvino_forward._converted

    def noted(model: Any, network: Network, shape: tuple[int, ...]) -> Any:
        names.append(network.name)
        return converted(model, network, shape)

    monkeypatch.setattr(openvino_forward, "_converted", noted)
    return names


def test_activations_are_those_of_torch_up_to_rounding(network: Network) -> None:
    images = pixels(5)
    pairs = zip(
        activations(Extractor(network, backend="openvino"), images),
        activations(Extractor(network), images),
        strict=True,
    )
    for mine, theirs in pairs:
        assert mine.shape == theirs.shape
        assert mine.dtype == np.float32
        assert mine.flags.c_contiguous
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


def test_an_image_has_the_same_bits_at_any_place_of_a_batch(network: Network) -> None:
    extractor = Extractor(network, backend="openvino")
    images = pixels(8)
    whole = activations(extractor, images)
    for place in range(8):
        alone = activations(extractor, images[[place]])
        moved = activations(extractor, images[place:])
        for all_of_it, one, first in zip(whole, alone, moved, strict=True):
            assert one[0].tobytes() == all_of_it[place].tobytes() == first[0].tobytes()


def test_a_layer_that_a_later_one_writes_into_is_seen_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "weights.pt"
    torch.save(InPlace().state_dict(), weights)
    register_network("in_place", InPlace, preprocess=tiny.RULE, taps="a,b")
    network = describe("in_place", str(weights))
    images = pixels(8)
    mine = activations(Extractor(network, backend="openvino"), images)
    theirs = activations(Extractor(network), images)
    assert (mine[0] < 0).any()
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_converted_network_is_kept_and_loaded_again(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = converting(monkeypatch)
    first = activations(Extractor(network, backend="openvino"), pixels(8))
    again = activations(Extractor(network, backend="openvino"), pixels(8))
    assert names == ["tiny"]
    assert len(list(cache.iterdir())) == 1
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("file", ["model.bin", "model.xml", "sha256"])
@pytest.mark.parametrize("harm", ["flipped", "torn", "gone"])
def test_a_kept_network_that_is_damaged_is_converted_again(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch, file: str, harm: str
) -> None:
    first = activations(Extractor(network, backend="openvino"), pixels(8))
    (kept,) = cache.iterdir()
    data = bytearray((kept / file).read_bytes())
    data[len(data) // 2] ^= 1
    ways: dict[str, Callable[[], object]] = {
        "flipped": lambda: (kept / file).write_bytes(data),
        "torn": lambda: (kept / file).write_bytes(data[: len(data) // 3]),
        "gone": lambda: (kept / file).unlink(),
    }
    ways[harm]()
    names = converting(monkeypatch)
    again = activations(Extractor(network, backend="openvino"), pixels(8))
    assert names == ["tiny"]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    assert [entry.name for entry in cache.iterdir()] == [kept.name]


def test_other_weights_are_not_taken_for_those_that_are_kept(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Extractor(network, backend="openvino")
    names = converting(monkeypatch)
    weights = tmp_path / "other.pt"
    torch.manual_seed(2)
    torch.save(tiny.Tiny().state_dict(), weights)
    other = describe(tiny.NAME, str(weights))
    mine = activations(Extractor(other, backend="openvino"), pixels(8))
    assert names == ["tiny"]
    np.testing.assert_allclose(mine[0], activations(Extractor(other), pixels(8))[0], atol=1e-5)


def test_a_network_that_is_converted_wrongly_is_refused(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = openvino_forward._converted

    def wrongly(model: torch.nn.Module, network: Network, shape: tuple[int, ...]) -> Any:
        other = tiny.Tiny()
        other.load_state_dict({name: 1.01 * x for name, x in model.state_dict().items()})
        return converted(other, network, shape)

    monkeypatch.setattr(openvino_forward, "_converted", wrongly)
    with pytest.raises(SpecMismatch, match="other activations of a of tiny than torch"):
        Extractor(network, backend="openvino")


def test_a_network_that_cannot_be_converted_says_what_to_use(
    network: Network, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no rule for aten::this\nand more")

    monkeypatch.setattr(openvino_forward.openvino, "convert_model", fails)
    with pytest.raises(UsageError, match=r"cannot convert tiny \(no rule for aten::this\)"):
        Extractor(network, backend="openvino")
    assert not cache.exists()


@pytest.mark.parametrize(("precision", "device"), [("bf16", "cpu"), ("fp32", "cuda")])
def test_openvino_is_refused_where_it_does_not_compute(
    network: Network, precision: Any, device: str
) -> None:
    with pytest.raises(UsageError, match=f"the precision is {precision} and the device {device}"):
        Extractor(network, precision, device, "openvino")


def test_openvino_that_is_missing_is_named_with_its_remedy(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'vdna-pipeline\[openvino\]'"):
        Extractor(network, backend="openvino")


def test_nobody_is_told_of_a_conversion() -> None:
    from openvino.tools.ovc import convert_impl

    assert convert_impl.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_the_numerics_name_openvino_only_where_it_runs(network: Network) -> None:
    assert "openvino" in dict(Extractor(network, backend="openvino").numerics.versions)
    assert "openvino" not in dict(Extractor(network).numerics.versions)
    versions = numerics(network, "cpu", "openvino").versions
    assert versions == tuple(sorted(versions))


def test_a_dna_by_openvino_is_that_of_torch_but_for_rounding(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    write_photos(folder, 6)
    by_torch = make_dna(folder, bins=100)
    by_openvino = make_dna(folder, bins=100, backend="openvino", threads=2)
    by_openvino.check()
    moved = np.abs(by_openvino.counts - by_torch.counts).sum() / 2 / by_torch.counts.sum()
    assert 0 < moved < 1e-4
    assert emd(by_torch, by_openvino) < 1e-3
    np.testing.assert_allclose(by_openvino.mean, by_torch.mean, rtol=1e-4, atol=1e-4)
