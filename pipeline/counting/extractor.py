"""Runs a frozen, pretrained network and shows what its taps put out.

    >>> net = describe("efficientnet_lite0")                          # doctest: +SKIP
    >>> Extractor(net).observe(pixels, lambda i, x: print(net.taps[i].name, x.shape))

`pipeline.networks` says what a name means. An `Extractor` owns weights and is built where it is
used. The network runs in channels-last order, with batch norms folded into convolutions if
`Network.folded` says so, and always on micro-batches of one shape, so that an image's activations
do not depend on its neighbours.
"""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.counting.allocator import keep_memory
from pipeline.counting.device_counts import default_kernel, require_compiler
from pipeline.counting.device_order import device_here
from pipeline.counting.faults import NO_GPU
from pipeline.counting.feed import Feed, Prepared
from pipeline.counting.forward_graph import CudaGraphs, ForwardGraph, Recorder, Visit
from pipeline.counting.instructions import cpu_instructions
from pipeline.counting.micro_batch import MICRO_BATCH
from pipeline.counting.torch_switches import set_exact_switches
from pipeline.errors import SpecMismatch, UsageError
from pipeline.networks import Network, drop, fold_batch_norms, load_model, parse, rows
from pipeline.spec import (
    ANY_INSTRUCTIONS,
    Backend,
    BackendChoice,
    Numerics,
    Precision,
    Preprocess,
    Tap,
)
from pipeline.wording import option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.counting.openvino_forward import OpenVinoForward

INTRA_OP_THREADS = 1
"""Threads of one forward pass on a CPU; as many passes run at once as there are cores."""


def numerics(
    network: Network,
    device: str,
    backend: Backend = "torch",
    on_device: bool | None = None,
    micro_batch: int | None = None,
    precision: Precision = "fp32",
) -> Numerics:
    """States how the extractor computes a network.

    Args:
        network: The network.
        device: The kind of device, `cpu` or `cuda`.
        backend: What runs the network. OpenVINO is named among the versions if it does.
        on_device: Whether images are resized on the device; None for a GPU only.
        micro_batch: Images per forward pass; None for those of `MICRO_BATCH`.
        precision: The numbers that it computes with. In bf16 the CPU's instructions are stated.

    Returns:
        What may change the rounding of a count.
    """
    libraries = ["numba", "numpy", "pillow", "simplejpeg", "timm", "torch", "torchvision"]
    if backend == "openvino":
        libraries.insert(2, backend)
    told = precision == "bf16" and device == "cpu"
    return Numerics(
        device=device,
        compiled=False,
        folded=network.folded,
        micro_batch=micro_batch or MICRO_BATCH[device],
        threads=INTRA_OP_THREADS,
        versions=tuple((library, _version_of(library)) for library in libraries),
        resized=images.DEVICE_RULE if _is_on_device(device, on_device) else "cpu",
        instructions=cpu_instructions() if told else ANY_INSTRUCTIONS,
    )


@cache  # each shard asks, and a file is parsed for each answer
def _version_of(library: str) -> str:
    return version(library)


def _is_on_device(device: str, chosen: bool | None) -> bool:
    return device == "cuda" if chosen is None else chosen


def require_backend(backend: BackendChoice, precision: Precision, device: str) -> None:
    """Checks that a backend can run here.

    Args:
        backend: What is to run the network. `auto` can run anywhere.
        precision: The numbers that it computes with.
        device: The kind of device, `cpu` or `cuda`.

    Raises:
        UsageError: If it cannot; the message says what to do.
    """
    if backend in ("auto", "torch"):
        return
    if precision != "fp32" or device != "cpu":
        raise UsageError(
            f"backend {backend!r} computes in fp32 on CPUs, and the precision is {precision} and "
            f"the device {device}; use {option('backend', 'torch')}"
        )
    if importlib.util.find_spec(backend) is None:
        raise UsageError(
            f"backend is {backend!r}, which is not installed on {socket.gethostname()}; pip "
            f"install 'vdna-pipeline[{backend}]' there, or use {option('backend', 'torch')}"
        )


class _AllTapsSeen(Exception):
    """Ends a forward pass: what the network would compute now, nobody sees."""


class Extractor:
    """A network with its weights on a device, ready to be observed from several threads.

    Attributes:
        network: Its description.
        device: The device of torch that it is on.
        on_device: Whether the network's input is made on the device.
        micro_batch: Images per forward pass.
        weight_bytes: How large its weights are.
    """

    def __init__(
        self,
        network: Network,
        precision: Precision = "fp32",
        device: str = "cpu",
        backend: Backend = "torch",
        threads: int = 1,
        on_device: bool | None = None,
        micro_batch: int | None = None,
        graphs: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        """Loads the weights and checks the taps.

        Args:
            network: The description of the network.
            precision: The numbers that it computes with.
            device: The kind of device, `cpu` or `cuda`.
            backend: What runs the network: torch, or OpenVINO in float32 on a CPU.
            threads: How many threads will observe at once. Only OpenVINO must know.
            on_device: Whether the network's input is made, and activations are counted, by tensors
                on the device; None for a GPU only.
            micro_batch: Images per forward pass; None for those of `MICRO_BATCH`.
            graphs: Whether a GPU records the forward pass once and replays it.
            recorder: What records it; None takes CUDA's graphs on a GPU, and nothing on a CPU.

        Raises:
            SpecMismatch: If the weights or the taps are not those that the description states.
            UsageError: If there is no GPU that torch can use, a tapped module does not exist, the
                backend is not installed or cannot run the network, the forward pass cannot be
                recorded, or a GPU's memory is too small for it.
        """
        import torch

        require_backend(backend, precision, device)
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError(f"{NO_GPU}; compute on the CPU (device 'cpu', gpus_per_worker 0)")
        if default_kernel(device) == "triton":
            require_compiler()
        keep_memory()
        set_exact_switches()
        self.network = network
        self.device = device_here(device)
        self.on_device = _is_on_device(device, on_device)
        self.micro_batch = micro_batch or MICRO_BATCH[self.device.type]
        self._precision: Precision = precision
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._visit = threading.local()
        self._ends_early = False
        model = load_model(network)
        for name in network.spare:
            drop(model, name)
        if network.folded:
            fold_batch_norms(model)
        self._model = model.to(self.device, self._dtype).to(memory_format=torch.channels_last)
        self.weight_bytes = sum(each.nbytes for each in self._model.state_dict().values())
        self._backend = backend
        modules = dict(self._model.named_modules())
        for notation in network.observed:
            if parse(notation)[0] not in modules:
                raise UsageError(f"{network.name} has no module {parse(notation)[0]!r} to tap")
        self._openvino: OpenVinoForward | None = None
        if backend == "openvino":
            from pipeline.counting.openvino_forward import OpenVinoForward

            self._openvino = OpenVinoForward(
                self._model, network, batch=self.micro_batch, streams=threads
            )
            del self._model
        else:
            for index, notation in enumerate(network.observed):
                modules[parse(notation)[0]].register_forward_hook(self._hook(index, notation))
        self._graph: ForwardGraph | None = None
        if recorder is None and graphs and device == "cuda":
            recorder = CudaGraphs()
        try:
            self._require_taps()
            self._ends_early = True
            if recorder is not None:
                self._graph = ForwardGraph(network, self._run, self._blank(), recorder)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"{network.name} takes more memory than the GPU has, at {self.micro_batch} images "
                f"at a time; give fewer by {option('micro_batch', max(1, self.micro_batch // 2))}"
            ) from error

    @property
    def numerics(self) -> Numerics:
        """How this extractor computes."""
        return numerics(
            self.network,
            self.device.type,
            self._backend,
            self.on_device,
            self.micro_batch,
            self._precision,
        )

    def batches(self, rule: Preprocess) -> Callable[[Sequence[NDArray[Any]]], Prepared]:
        """Returns what makes micro-batches of `Loaded.values`.

        Args:
            rule: How images were loaded.

        Returns:
            A function. On a GPU, one thread at a time may call it.
        """
        return Feed(self.device, rule) if self.on_device else np.stack

    def observe(self, pixels: Prepared, visit: Visit) -> None:
        """Runs up to a micro-batch through the network, and shows each tap's activations.

        Args:
            pixels: Normalised images, float32 (B, height, width, 3). A GPU is not waited for if
                they are a tensor on it.
            visit: Called with the index of a tap and its activations, (B, positions, neurons), as
                soon as they are computed, or on their way on a GPU. On a CPU they are C-contiguous
                float32; on a GPU they are as the network puts them out, in any layout. The tensor
                is only valid during the call.

        Raises:
            ValueError: If there are no images, or more than a micro-batch.
        """
        import torch

        real = len(pixels)
        if not 0 < real <= self.micro_batch:
            raise ValueError(f"{real} images do not make a micro-batch of {self.micro_batch}")
        if self._openvino is not None:
            whole = np.asarray(pixels)
            if real < self.micro_batch:
                whole = np.zeros((self.micro_batch, *pixels.shape[1:]), np.float32)
                whole[:real] = pixels

            def show_real(index: int, activations: NDArray[np.float32]) -> None:
                visit(index, torch.from_numpy(activations[:real]))

            self._openvino(whole, show_real)
            return
        if self.device.type == "cpu":
            torch.set_num_threads(INTRA_OP_THREADS)
        given = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels

        def show(index: int, x: torch.Tensor) -> None:
            shown = x[:real]
            visit(index, shown.float().contiguous() if shown.device.type == "cpu" else shown)

        if self._graph is not None:
            self._graph.observe(given, show)
            return
        batch = self._blank()
        batch[:real] = given
        with torch.inference_mode():
            self._run(batch, show)

    def _blank(self) -> torch.Tensor:
        import torch

        shape = (self.micro_batch, self.network.height, self.network.width, 3)
        return torch.zeros(shape, dtype=self._dtype, device=self.device)

    def _run(self, batch: torch.Tensor, visit: Visit) -> None:
        """Runs the network on a micro-batch, whose taps are shown as they are computed.

        Each is shown at once, as a module after it may write into the same memory.
        """
        self._visit.current, self._visit.left = visit, len(self.network.taps)
        with suppress(_AllTapsSeen):
            self._model(batch.permute(0, 3, 1, 2))  # channels last

    def _hook(self, index: int, notation: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            self._visit.current(index, rows(output, notation, self.micro_batch))
            self._visit.left -= 1
            if not self._visit.left and self._ends_early:
                raise _AllTapsSeen

        return hook

    def _require_taps(self) -> None:
        found: dict[int, Tap] = {}
        names = [tap.name for tap in self.network.taps]

        def visit(index: int, x: torch.Tensor) -> None:
            if index in found:
                raise SpecMismatch(f"{names[index]} of {self.network.name} runs twice")
            found[index] = Tap(names[index], x.shape[2], x.shape[1])

        if self._openvino is not None:
            found = {i: Tap(names[i], *reversed(s)) for i, s in enumerate(self._openvino.shapes)}
        else:
            blank = np.zeros((1, self.network.height, self.network.width, 3), np.float32)
            self.observe(blank, visit)
        yielded = tuple(found[index] for index in sorted(found))
        if yielded != self.network.taps:
            raise SpecMismatch(
                f"{self.network.name} yields {list(yielded)}, the spec states "
                f"{list(self.network.taps)}"
            )
