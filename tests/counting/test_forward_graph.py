"""Tests that a recorded forward pass shows what the network computes, with a model of recording.

No GPU runs here. `Again` records as CUDA's graphs do, as far as memory is concerned: the work reads
and writes the same tensors each time, and all of it is done before anyone looks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import VisionTransformer

from pipeline.counting import Extractor, forward_graph
from pipeline.counting.forward_graph import CudaGraphs, Taps, overwritten
from pipeline.errors import UsageError
from pipeline.networks import Network, describe
from pipeline.networks.lookup import architecture
from pipeline.networks.registry import register_network
from pipeline.spec import Precision, Preprocess
from pipeline.wording import options_as_flags

Pixels = NDArray[np.float32]
RULE = Preprocess(16, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Again:
    """Does the work once more at each replay, and puts the result where the first one was."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, work: Callable[[], Taps]) -> tuple[Taps, Callable[[], None]]:
        taps = work()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            for static, found in zip(taps, work(), strict=True):
                static.copy_(found)

        return taps, replay


class InPlace(nn.Module):
    """Has a tap that an activation overwrites, also by a view, and taps that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, stride=2)
        self.b = nn.Conv2d(4, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.c = nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.a(x)
        first[:, 1:].mul_(0.5)  # through a view
        return self.c(self.relu(self.b(first)))


def made(module: type[nn.Module], taps: str, folder: Path) -> Network:
    register_network(module.__name__, module, preprocess=RULE, taps=taps)
    torch.manual_seed(3)
    weights = folder / f"{module.__name__}.pt"
    torch.save(module().state_dict(), weights)
    return describe(module.__name__, str(weights))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return made(InPlace, "a,b,relu,c", tmp_path_factory.mktemp("weights"))


def noise(images: int, seed: int = 0, side: int = 16) -> Pixels:
    return np.random.default_rng(seed).standard_normal((images, side, side, 3), np.float32)


def seen(extractor: Extractor, pixels: Any) -> list[NDArray[np.float32]]:
    found: dict[int, NDArray[np.float32]] = {}
    extractor.observe(pixels, lambda index, x: found.__setitem__(index, x.numpy().copy()))
    return [found[index] for index in range(len(found))]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def test_replays_show_what_the_network_computes(network: Network) -> None:
    """Full micro-batches, the partial last one, and one after NaN, in any order."""
    recorder = Again()
    recorded, plain = Extractor(network, recorder=recorder), Extractor(network)
    before = recorder.replayed
    broken = noise(8, 9)
    broken[3] = np.nan
    for pixels in (noise(8), broken, noise(3, 1), noise(1, 2), noise(8, 3)):
        shown = seen(recorded, pixels)
        assert same(shown, seen(plain, pixels))
        assert [len(x) for x in shown] == [len(pixels)] * 4
    assert (recorder.recorded, recorder.replayed - before) == (1, 5)
    assert recorded.numerics == plain.numerics


@pytest.mark.parametrize("kind", ["efficientnet", "vit"])
def test_networks_of_timm_are_replayed_to_the_bit(kind: str, tmp_path: Path) -> None:
    network = by_timm(kind, tmp_path)
    pixels = noise(2, side=network.height)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        recorded = Extractor(network, precision, micro_batch=2, recorder=Again())
        plain = Extractor(network, precision, micro_batch=2)
        assert same(seen(recorded, pixels), seen(plain, pixels))


def test_taps_that_are_overwritten_are_found(network: Network) -> None:
    extractor = Extractor(network)
    assert overwritten(extractor._run, extractor._blank()) == {0, 1}


def test_a_tap_keeps_what_it_was_before_it_was_overwritten(network: Network) -> None:
    """`b` holds negative values, which the activation in place would have made zero."""
    shown = seen(Extractor(network, recorder=Again()), noise(8))
    assert (shown[1] < 0).any()
    assert np.array_equal(np.maximum(shown[1], 0), shown[2])


def test_the_images_that_are_missing_from_a_micro_batch_are_zero(network: Network) -> None:
    extractor = Extractor(network, recorder=Again())
    seen(extractor, noise(8))
    seen(extractor, noise(2, 1))
    assert extractor._graph is not None
    batch = extractor._graph._batch
    assert np.array_equal(batch[:2].numpy(), noise(2, 1))
    assert not batch[2:].any()


class Fails:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def record(self, work: Callable[[], Taps]) -> tuple[Taps, Callable[[], None]]:
        work()
        raise self.error


def test_a_network_that_cannot_be_recorded_is_refused_with_the_remedy(network: Network) -> None:
    error = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    refused = r"InPlace cannot be recorded as a CUDA graph: CUDA error: operation not permitted.*"
    with pytest.raises(UsageError, match=refused + "by `cuda_graphs=False`"):
        Extractor(network, recorder=Fails(error))
    with options_as_flags(), pytest.raises(UsageError, match=refused + "by --no-cuda-graphs"):
        Extractor(network, recorder=Fails(error))


def test_the_reason_is_told_and_not_that_the_recording_failed_of_it(network: Network) -> None:
    """torch raises the second as the recording ends, while it handles the first."""
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = ValueError("this module waits for the GPU")
    with pytest.raises(UsageError, match="cannot be recorded as a CUDA graph: this module waits"):
        Extractor(network, recorder=Fails(error))
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(UsageError, match=r"InPlace takes more memory .* at 8 .*`micro_batch=4`"):
        Extractor(network, recorder=Fails(error))
    own = RuntimeError("this network needs a package")
    own.__context__ = KeyError("x")  # which the network has handled
    with pytest.raises(UsageError, match="graph: this network needs a package"):
        Extractor(network, recorder=Fails(own))


def test_a_device_that_has_failed_is_not_taken_for_a_network_that_cannot_be_recorded(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(device: torch.device) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(forward_graph, "require_sound", failed)
    with pytest.raises(RuntimeError, match="uncorrectable ECC"):
        Extractor(network, recorder=Fails(RuntimeError("CUDA error: capture has failed")))


def test_too_little_memory_is_told_apart(network: Network) -> None:
    with pytest.raises(UsageError, match=r"InPlace takes more memory .* at 8 .*`micro_batch=4`"):
        Extractor(network, recorder=Fails(torch.OutOfMemoryError("CUDA out of memory")))


@pytest.mark.parametrize("fault", ["a tap", "the input", "a value that Python has decided"])
def test_a_replay_that_computes_something_else_is_refused(fault: str, network: Network) -> None:
    class Wrong(Again):
        def record(self, work: Callable[[], Taps]) -> tuple[Taps, Callable[[], None]]:
            taps, again = super().record(work)

            def replay() -> None:
                if fault == "the input":
                    return  # what was recorded stays
                again()
                if fault == "a tap":
                    taps[2].view(-1)[7] += 1e-6
                else:
                    taps[3].zero_()

            return taps, replay

    names = {"a tap": "relu", "the input": "a, b, relu, c"}.get(fault, "c")
    with pytest.raises(UsageError, match=rf"InPlace, replayed .* at {names} than it does by it"):
        Extractor(network, recorder=Wrong())


def test_a_network_of_nan_is_recorded_too(network: Network, tmp_path: Path) -> None:
    state = torch.load(str(network.weights_uri).removeprefix("file://"))
    state["b.bias"][2] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    broken = describe("InPlace", str(tmp_path / "nan.pt"))
    shown = seen(Extractor(broken, recorder=Again()), noise(2))
    assert np.isnan(shown[3]).all()
    assert same(shown, seen(Extractor(broken), noise(2)))


def test_a_cpu_records_nothing_by_itself(network: Network) -> None:
    assert Extractor(network, on_device=True)._graph is None


def test_torch_s_own_graphs_take_the_same_calls() -> None:
    """No GPU runs here; this finds a name or an argument that torch does not have."""
    inspect.signature(torch.cuda.graph.__init__).bind(
        None, None, stream=None, capture_error_mode="thread_local"
    )
    inspect.signature(torch.cuda.Stream.__new__).bind(None, priority=-1)
    inspect.signature(torch.cuda.set_device).bind(torch.device("cuda", 1))
    inspect.signature(torch.cuda.CUDAGraph.replay).bind(None)
    inspect.signature(torch.cuda.Stream.wait_stream).bind(None, None)
    inspect.signature(torch.cuda.get_device_properties).bind(0)
    assert inspect.signature(CudaGraphs.record) == inspect.signature(Again.record)


# What the forward pass runs.


class Functions(TorchFunctionMode):
    """Notes which functions of torch are called, and with which keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[str, dict[str, Any]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.called.append((getattr(func, "__name__", ""), kwargs or {}))
        return func(*args, **(kwargs or {}))


class SmallViT(VisionTransformer):
    """torchvision's, small."""

    def __init__(self) -> None:
        super().__init__(16, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)


def by_timm(kind: str, folder: Path) -> Network:
    name, weights = f"timm:test_{kind}", folder / "weights.pt"
    torch.save(architecture(name).build(None).state_dict(), weights)
    return describe(name, str(weights))


def test_attention_is_one_kernel(tmp_path: Path) -> None:
    """Without it a ViT keeps a matrix of all pairs of tokens for each head."""
    for network in (
        by_timm("vit", tmp_path),
        made(SmallViT, "encoder.layers.*", tmp_path),
    ):
        extractor = Extractor(network, micro_batch=1)
        with torch.inference_mode(), Functions() as functions:
            extractor._run(extractor._blank(), lambda index, x: None)
        called = dict(functions.called)
        assert not {"softmax", "baddbmm", "bmm"} & called.keys(), network.name
        if "multi_head_attention_forward" in called:
            assert called["multi_head_attention_forward"]["need_weights"] is False
        else:
            assert "scaled_dot_product_attention" in called, network.name


@pytest.mark.parametrize("kind", ["efficientnet", "resnet", "convnext"])
def test_convolutions_run_with_channels_last(kind: str, tmp_path: Path) -> None:
    """In any other order, cuDNN and oneDNN would reorder what goes in and comes out."""
    extractor = Extractor(by_timm(kind, tmp_path), micro_batch=2)
    orders: list[bool] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        for x in (inputs[0], output, module.weight):
            orders.append(x.is_contiguous(memory_format=torch.channels_last))

    convolutions = [m for m in extractor._model.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(note)
    with torch.inference_mode():
        extractor._run(extractor._blank(), lambda index, x: None)
    assert len(orders) >= 3 * len(convolutions) > 0
    assert all(orders)
