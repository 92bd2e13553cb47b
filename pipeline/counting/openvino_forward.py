"""Runs a network on a CPU by OpenVINO instead of torch, and shows each tap's activations.

    >>> forward = OpenVinoForward(model, network, batch=8, streams=2)              # doctest: +SKIP
    >>> forward(pixels, lambda index, x: print(index, x.shape))                    # doctest: +SKIP
    0 (8, 12544, 32)

OpenVINO computes the same network in float32 with kernels of its own, so its activations differ
from torch's by rounding. It pays for networks with depthwise convolutions (docs/performance.md).
Converting a network takes some ten seconds, so the result is kept (`converted_networks`). Where it
cannot be kept, each process converts anew.
"""

from __future__ import annotations

import itertools
import logging
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.counting.converted_networks import (
    Kept,
    converted_path,
    keep_converted,
    read_converted,
)
from pipeline.errors import SpecMismatch, UsageError
from pipeline.networks import Network, parse, rows
from pipeline.wording import option

# OpenVINO tells its makers of every conversion where it finds this module, and works without it.
# (A program that has imported both of them before, by itself, keeps the setting of its own.)
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as Python documents
import openvino  # noqa: E402  # after the line above
from openvino import opset13 as opset  # noqa: E402  # likewise

CLOSE = 1e-4
"""How far an activation may be from torch's, as a part of the largest of its layer. By rounding it
is some 1e-6 to 1e-5; a network that was converted wrongly is far beyond."""

IMAGES_COMPARED = 2
"""How many images OpenVINO and torch are compared on, each time a network is loaded."""

logger = logging.getLogger(__name__)


Show = Callable[[int, NDArray[np.float32]], None]
"""Takes the number of a tap and its activations, float32 (batch, positions, neurons)."""


class _Calls:
    """The calls of a network that are under way; each has a number.

    OpenVINO may pass over an error of an operation, leave out those after it, and repeat a pass. So
    a call is only good if each tap was shown to it once.

    Attributes:
        taps: The operations that show taps, with the copies that OpenVINO has made of them.
    """

    def __init__(self) -> None:
        self.taps: list[_ShowTap] = []
        self._numbers = itertools.count()
        self._shown: dict[int, Show] = {}
        self._seen: dict[int, list[int]] = {}
        self._errors: dict[int, BaseException] = {}

    @contextmanager
    def begin(self, show: Show, taps: int) -> Iterator[int]:
        """Begins a call; at its end raises what `show` raised.

        Args:
            show: Takes the taps.
            taps: How many there are.

        Yields:
            The number of the call.

        Raises:
            RuntimeError: If a tap was not shown once.
        """
        number = next(self._numbers)
        self._shown[number], self._seen[number] = show, []
        try:
            yield number
        finally:
            del self._shown[number]
            seen, error = self._seen.pop(number), self._errors.pop(number, None)
        if error is not None:
            raise error
        if sorted(seen) != list(range(taps)):
            raise RuntimeError(f"OpenVINO has shown the taps {seen}, and not each of {taps} once")

    def show(self, number: int, index: int, activations: NDArray[np.float32]) -> None:
        """Shows a tap to the one who called. After an error, or twice, it is not shown."""
        if number in self._errors:
            return
        try:
            again = index in self._seen[number]
            self._seen[number].append(index)
            if not again:
                self._shown[number](index, activations)
        except BaseException as error:  # OpenVINO would make a RuntimeError of it, or nothing
            self._errors[number] = error


class _ShowTap(openvino.Op):  # type: ignore[misc]  # openvino has no types
    """An operation of a network that shows a tap's activations as soon as they are computed.

    Its inputs are the activations and the number of the call; nobody reads its output. An output of
    the network would be copied, as the next layer reads it, too; and it would be read when it is no
    longer in the cache.
    """

    def __init__(self, calls: _Calls, index: int, inputs: Sequence[Any] | None = None) -> None:
        super().__init__(self)
        self._calls, self._index = calls, index
        calls.taps.append(self)
        if inputs is not None:
            self.set_arguments(list(inputs))
            self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, openvino.Type.i64, openvino.PartialShape([1]))

    def clone_with_new_inputs(self, new_inputs: Sequence[Any]) -> _ShowTap:
        return _ShowTap(self._calls, self._index, new_inputs)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> bool:
        activations, number = inputs[0], inputs[1]  # which is faster than to iterate over them
        self._calls.show(int(number.data[0]), self._index, activations.data)
        return True


def _with_taps(model: Any, calls: _Calls) -> Any:
    """Makes a network that shows its outputs instead of putting them out."""
    number = opset.parameter([1], np.int64, name="call")
    shown = [
        opset.result(_ShowTap(calls, index, [result.input_value(0), number.output(0)]).output(0))
        for index, result in enumerate(model.get_results())
    ]
    return openvino.Model(shown, [*model.get_parameters(), number], "taps")


def _let_go(taps: Sequence[_ShowTap]) -> None:
    """Has operations give up the network before them: one in Python is never freed itself."""
    nothing = opset.parameter([1, 1, 1]), opset.parameter([1], np.int64)
    for tap in taps:
        tap.set_arguments([each.output(0) for each in nothing])


class OpenVinoForward:
    """A network that several threads may run at once, each with one core."""

    def __init__(self, model: nn.Module, network: Network, *, batch: int, streams: int) -> None:
        """Converts the network, or loads what an earlier process has converted.

        Args:
            model: The network as torch runs it on the CPU, in float32.
            network: Its description.
            batch: How many images it takes at a time.
            streams: How many threads will run it at once.

        Raises:
            UsageError: If OpenVINO cannot convert the network, or cannot run it.
            SpecMismatch: If it computes other activations than torch does.
        """
        self._calls = _Calls()
        # As the process ends, nothing need be freed, and a thread may still run the network.
        weakref.finalize(self, _let_go, self._calls.taps).atexit = False
        self._local = threading.local()
        self._settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        try:
            self._load(model, network, batch)
        except RuntimeError as error:  # it has no kinds of its own
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"OpenVINO cannot run {network.name} ({why}); use {option('backend', 'torch')}"
            ) from error

    def _load(self, model: nn.Module, network: Network, batch: int) -> None:
        shape = (batch, network.height, network.width, 3)
        path = converted_path(network, batch)
        kept = read_converted(path)
        if kept is not None:
            if self._compiled_wrongly(kept, model, network, shape) is None:
                return
            logger.info("%s is not this network any more; it is converted again", path)
        made = _serialised(_converted(model, network, shape))
        wrong = self._compiled_wrongly(made, model, network, shape)
        if wrong is not None:
            raise SpecMismatch(
                f"OpenVINO computes other activations of {network.name} than torch does: {wrong}; "
                f"use {option('backend', 'torch')}"
            )
        keep_converted(made, path)

    def _compile(self, kept: Kept) -> None:
        graph, weights = kept
        core = openvino.Core()
        tensor = openvino.Tensor(np.frombuffer(weights, np.uint8).copy())
        read = core.read_model(graph, tensor)
        self._shapes = [tuple(output.shape) for output in read.outputs]
        self._compiled = core.compile_model(_with_taps(read, self._calls), "CPU", self._settings)
        self._local = threading.local()  # requests are of the network that was compiled before

    def __call__(self, pixels: NDArray[np.float32], show: Show) -> None:
        """Runs the network.

        Args:
            pixels: Normalised images, float32 (batch, height, width, 3).
            show: Called once with each tap, as soon as it is computed, in this thread or in one of
                OpenVINO. The activations are only valid during the call.

        Raises:
            RuntimeError: If OpenVINO fails, or has not shown each tap once.
        """
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()

        def run(show: Show) -> None:
            with self._calls.begin(show, len(self._shapes)) as number:
                request.infer([pixels, np.array([number])], share_inputs=True, share_outputs=True)

        try:
            run(show)
        except BaseException:
            # The pass after one that failed may be done twice; so that is not the next call's.
            with suppress(RuntimeError):
                run(lambda index, activations: None)
            raise

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The positions and neurons of each tap."""
        return [(positions, neurons) for _, positions, neurons in self._shapes]

    def _compiled_wrongly(
        self, made: Kept, model: nn.Module, network: Network, shape: tuple[int, ...]
    ) -> str | None:
        """Compiles a network, and compares its activations of random images with torch's.

        A few images fill the batch, in random places: torch computes each only once, while the
        network is compiled.

        Returns:
            Where activations are too far apart, or None.
        """
        rng = np.random.default_rng(0)
        pixels = rng.standard_normal((IMAGES_COMPARED, *shape[1:]), np.float32)
        chosen = rng.permutation(np.arange(shape[0]) % IMAGES_COMPARED)
        with ThreadPoolExecutor(1, "compile") as pool:
            compiled = pool.submit(self._compile, made)
            with _tapped(model, network, IMAGES_COMPARED) as tapped:
                expected = tapped(torch.from_numpy(pixels))
            compiled.result()
        found: dict[int, NDArray[np.float32]] = {}
        self(pixels[chosen], lambda index, x: found.update({index: x.copy()}))
        for index, (tap, theirs) in enumerate(zip(network.taps, expected, strict=True)):
            mine = found[index]
            if mine.shape != (shape[0], *theirs.shape[1:]):
                return f"{tap.name} has shape {mine.shape}, and not {tuple(theirs.shape)}"
            largest = max(float(theirs.abs().max()), 1e-30)
            apart = np.abs(mine - theirs.numpy()[chosen]).max() / largest
            if not apart <= CLOSE:
                return f"{tap.name} is {apart:.1e} of the layer's maximum apart"
        return None


class _Tapped(nn.Module):
    """Maps images (batch, height, width, 3) to every tap's activations."""

    def __init__(self, model: nn.Module, network: Network, batch: int) -> None:
        super().__init__()
        self.model = model
        self._batch = batch
        self._found: dict[int, torch.Tensor] = {}
        modules = dict(model.named_modules())
        self._hooks = [
            modules[parse(notation)[0]].register_forward_hook(self._hook(index, notation))
            for index, notation in enumerate(network.observed)
        ]
        self.eval()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._found = {}
        self.model(pixels.permute(0, 3, 1, 2))
        return tuple(self._found[index] for index in range(len(self._hooks)))

    def release(self) -> None:
        """Leaves the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, index: int, notation: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            if index in self._found:
                raise SpecMismatch(f"{notation} runs twice")
            # A copy, as a module after this one may write into the same memory.
            self._found[index] = rows(output, notation, self._batch).clone()

        return hook


@contextmanager
def _tapped(model: nn.Module, network: Network, batch: int) -> Iterator[_Tapped]:
    tapped = _Tapped(model, network, batch)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Tracing follows no branch, and the branches on shapes are the same for all images.
            warnings.simplefilter("ignore")
            yield tapped
    finally:
        tapped.release()


def _converted(model: nn.Module, network: Network, shape: tuple[int, ...]) -> Any:
    logger.info("converting %s for OpenVINO", network.name)
    with _tapped(model, network, shape[0]) as tapped:
        tapped(torch.zeros(shape))  # what torch cannot run either fails here, by its own error
        try:
            return openvino.convert_model(tapped, example_input=torch.zeros(shape), input=[shape])
        except MemoryError:
            raise
        except Exception as error:  # it documents no kinds of its own
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"OpenVINO cannot convert {network.name} ({why}); use {option('backend', 'torch')}"
            ) from error


def _serialised(converted: Any) -> Kept:
    """Returns OpenVINO's two files of a network: what it is, and its weights."""
    with tempfile.TemporaryDirectory(prefix="vdna-openvino-") as scratch:
        path = Path(scratch, "model.xml")
        openvino.save_model(converted, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
