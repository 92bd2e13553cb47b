"""Tests that OpenVINO counts what torch counts, up to rounding, and that its files are checked."""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pipeline.building import Request, build_datasets, make_dna
from pipeline.catalogue import Catalogue
from pipeline.comparing.distance import emd
from pipeline.counting import Extractor, converted_networks, numerics, openvino_forward
from pipeline.engine import InProcess
from pipeline.errors import SpecMismatch, UsageError
from pipeline.networks import Network, describe
from pipeline.networks.registry import register_network
from pipeline.spec import Resources
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


def test_threads_that_observe_at_once_see_the_taps_of_their_own_images(network: Network) -> None:
    extractor = Extractor(network, backend="openvino", threads=3)
    alone = [activations(extractor, pixels(1 + seed % 8, seed)) for seed in range(40)]
    with ThreadPoolExecutor(6) as pool:
        found = list(
            pool.map(lambda seed: activations(extractor, pixels(1 + seed % 8, seed)), range(40))
        )
    for mine, expected in zip(found, alone, strict=True):
        assert [x.tobytes() for x in mine] == [x.tobytes() for x in expected]


@pytest.mark.parametrize("error", [ValueError("a full disk"), KeyboardInterrupt()])
def test_an_error_while_a_tap_is_seen_is_raised_as_it_is(
    network: Network, error: BaseException
) -> None:
    extractor = Extractor(network, backend="openvino")
    seen: list[int] = []

    def visit(index: int, x: torch.Tensor) -> None:
        seen.append(index)
        raise error

    with pytest.raises(type(error)) as raised:
        extractor.observe(pixels(8), visit)
    assert raised.value is error
    assert len(seen) == 1
    assert len(activations(extractor, pixels(8))) == len(network.taps)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_tap_that_openvino_loses_is_an_error_and_the_next_call_is_right(
    network: Network, monkeypatch: pytest.MonkeyPatch, threads: int, failing: int
) -> None:
    extractor = Extractor(network, backend="openvino", threads=threads)
    expected = activations(extractor, pixels(8))
    evaluate, left = openvino_forward._ShowTap.evaluate, [failing]

    def fails_once(tap: Any, outputs: Any, inputs: Any) -> Any:
        if left == [tap._index]:
            left.clear()
            raise MemoryError
        return evaluate(tap, outputs, inputs)

    monkeypatch.setattr(openvino_forward._ShowTap, "evaluate", fails_once)
    with pytest.raises(RuntimeError):
        activations(extractor, pixels(8, 1))
    for _ in range(3):
        found = activations(extractor, pixels(8))
        assert [x.tobytes() for x in found] == [x.tobytes() for x in expected]


@pytest.mark.parametrize("shown", [[0], [1, 0, 1], [0, 0], []])
def test_a_call_that_did_not_see_each_tap_once_is_an_error(shown: list[int]) -> None:
    calls, seen = openvino_forward._Calls(), list[int]()
    call = calls.begin(lambda index, x: seen.append(index), 2)
    number = call.__enter__()
    for index in shown:
        calls.show(number, index, np.zeros((1, 1, 1), np.float32))
    with pytest.raises(RuntimeError, match="not each of 2 once"):
        call.__exit__(None, None, None)
    assert seen == list(dict.fromkeys(shown))


def test_a_network_that_is_not_used_any_more_is_freed(network: Network) -> None:
    extractor = Extractor(network, backend="openvino")
    forward = extractor._openvino
    assert isinstance(forward, openvino_forward.OpenVinoForward)
    taps = forward._calls.taps
    assert len(taps) >= 2 * len(network.taps)  # with the copies that are made to compile
    before = {tap.input_value(0).get_node().get_type_name() for tap in taps}
    del extractor, forward
    gc.collect()
    assert "Parameter" not in before
    assert {tap.input_value(0).get_node().get_type_name() for tap in taps} == {"Parameter"}


def test_no_tap_is_copied_to_an_output(network: Network) -> None:
    forward = Extractor(network, backend="openvino")._openvino
    assert isinstance(forward, openvino_forward.OpenVinoForward)
    assert {tuple(output.shape) for output in forward._compiled.outputs} == {(1,)}


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


@pytest.mark.parametrize("harm", ["flipped", "digest", "torn", "empty", "gone", "a folder"])
def test_a_kept_network_that_is_damaged_is_converted_again(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    first = activations(Extractor(network, backend="openvino"), pixels(8))
    (kept,) = cache.iterdir()
    data = bytearray(kept.read_bytes())
    data[3 if harm == "digest" else len(data) // 2] ^= 0x80
    kept.unlink()
    if harm == "a folder":
        kept.mkdir()
    elif harm != "gone":
        size = {"torn": len(data) // 3, "empty": 0}.get(harm, len(data))
        kept.write_bytes(data[:size])
    names = converting(monkeypatch)
    again = activations(Extractor(network, backend="openvino"), pixels(8))
    assert names == ["tiny"]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    if harm != "a folder":
        Extractor(network, backend="openvino")
        assert names == ["tiny"]
        assert list(cache.iterdir()) == [kept]


def test_processes_that_convert_at_once_all_load_a_whole_network(
    network: Network, cache: Path
) -> None:
    start = threading.Barrier(4)
    path = cache / "kept"
    model = (b"graph" * 1000, b"weights" * 10_000)

    def keep() -> list[bool]:
        start.wait()
        seen = []
        for _ in range(50):
            converted_networks.keep_converted(model, path)
            seen.append(converted_networks.read_converted(path) == model)
        return seen

    with ThreadPoolExecutor(4) as pool:
        seen = [done.result() for done in [pool.submit(keep) for _ in range(4)]]
    assert all(map(all, seen))
    assert list(cache.iterdir()) == [path]


def test_a_network_is_converted_anew_where_nothing_can_be_kept(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    names = converting(monkeypatch)
    for _ in range(2):
        activations(Extractor(network, backend="openvino"), pixels(8))
    assert names == ["tiny", "tiny"]


def test_a_kept_network_that_no_longer_fits_the_code_is_converted_again(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Extractor(network, backend="openvino")
    (kept,) = cache.iterdir()
    torch.manual_seed(9)
    model = tiny.Tiny().eval()
    converted_networks.keep_converted(
        openvino_forward._serialised(openvino_forward._converted(model, network, SHAPE)), kept
    )
    names = converting(monkeypatch)
    mine = activations(Extractor(network, backend="openvino"), pixels(8))
    assert names == ["tiny"]
    np.testing.assert_allclose(mine[0], activations(Extractor(network), pixels(8))[0], atol=1e-5)


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
    with pytest.raises(SpecMismatch, match="other activations of tiny than torch does: a is"):
        Extractor(network, backend="openvino")


def test_images_that_come_out_at_other_places_are_noticed(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Turned(openvino_forward.OpenVinoForward):
        def __call__(self, pixels: Any, show: Any) -> None:
            super().__call__(pixels, lambda index, x: show(index, np.roll(x, 1, axis=0)))

    monkeypatch.setattr(openvino_forward, "OpenVinoForward", Turned)
    with pytest.raises(SpecMismatch, match="other activations of tiny than torch does"):
        Extractor(network, backend="openvino")


def test_a_network_with_other_taps_than_stated_is_refused(network: Network) -> None:
    taps = (*network.taps[:-1], replace(network.taps[-1], positions=network.taps[-1].positions + 1))
    with pytest.raises(SpecMismatch, match="the spec states"):
        Extractor(replace(network, taps=taps), backend="openvino")


def test_a_network_that_cannot_be_converted_says_what_to_use(
    network: Network, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no rule for aten::this\nand more")

    monkeypatch.setattr(openvino_forward.openvino, "convert_model", fails)
    with pytest.raises(UsageError, match=r"cannot convert tiny \(no rule for aten::this\)"):
        Extractor(network, backend="openvino")
    assert not cache.exists()


def test_a_converted_network_that_does_not_run_says_what_to_use(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such operation on CPU")

    monkeypatch.setattr(openvino_forward.openvino, "save_model", fails)
    with pytest.raises(UsageError, match=r"cannot run tiny \(no such operation on CPU\); use"):
        Extractor(network, backend="openvino")


def test_an_error_without_words_is_told_by_its_kind(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(openvino_forward.openvino, "convert_model", fails)
    with pytest.raises(UsageError, match=r"cannot convert tiny \(RuntimeError\)"):
        Extractor(network, backend="openvino")


def test_openvino_that_is_missing_is_told_before_anything_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = tiny.install(tmp_path).options
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="which is not installed"):
        make_dna(tmp_path / "nothing", backend="openvino", **options)
    with pytest.raises(UsageError, match="which is not installed"), InProcess() as engine:
        build_datasets(
            Catalogue(str(tmp_path / "dnas")),
            [Request("a", str(tmp_path / "nothing"), **options)],
            engine,
            Resources(backend="openvino"),
        )


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


# Layers past the last tap.


class NotedConv(torch.nn.Conv2d):
    """A convolution to 3 channels, each run of which is noted."""

    runs: ClassVar[list[None]] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.runs.append(None)
        return super().forward(input)


class EndsNoted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 4, 3)
        self.b = NotedConv(4, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


@pytest.fixture
def by_taps(tmp_path: Path) -> Callable[[str], Network]:
    weights = tmp_path / "weights.pt"
    torch.save(EndsNoted().state_dict(), weights)
    register_network("ends_noted", EndsNoted, preprocess=tiny.RULE, taps="a,b")
    return lambda taps: describe("ends_noted", str(weights), taps)


def test_torch_runs_no_layer_past_the_last_tap(by_taps: Callable[[str], Network]) -> None:
    whole, early = Extractor(by_taps("a,b")), Extractor(by_taps("a"))
    NotedConv.runs.clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: activations(early, pixels(8, seed)), range(16)))
    assert NotedConv.runs == []
    for seed, (mine,) in enumerate(found):
        np.testing.assert_array_equal(mine, activations(whole, pixels(8, seed))[0])
    assert len(NotedConv.runs) == 16


def test_openvino_holds_no_layer_past_the_last_tap(by_taps: Callable[[str], Network]) -> None:
    def convolutions(taps: str) -> int:
        forward = Extractor(by_taps(taps), backend="openvino")._openvino
        assert isinstance(forward, openvino_forward.OpenVinoForward)
        graph = forward._compiled.get_runtime_model()
        kinds = [node.get_rt_info()["layerType"].astype(str) for node in graph.get_ops()]
        return kinds.count("Convolution")

    assert convolutions("a,b") == 2
    assert convolutions("a") == 1
