"""Records a network's forward pass once, and replays it.

    >>> graph = ForwardGraph(network, run, batch, CudaGraphs())               # doctest: +SKIP
    >>> graph.observe(pixels, lambda index, x: print(index, x.shape))         # doctest: +SKIP

A forward pass is hundreds of kernels, and Python takes longer to start them than a large GPU takes
to run them. A CUDA graph starts all of them by one call. They are the same kernels on the same
shapes, so every bit stays the same; that is checked once, when the pass has been recorded.

A graph reads and writes the memory that it was recorded with. So there is one batch, which each
micro-batch is copied into, and each tap's activations are overwritten by the next replay. One
stream does all of this in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pipeline.errors import UsageError
from pipeline.networks import Network
from pipeline.wording import option

if TYPE_CHECKING:
    import torch

Visit: TypeAlias = "Callable[[int, torch.Tensor], None]"
"""Is told of the index of a tap, and of its activations."""

Run: TypeAlias = "Callable[[torch.Tensor, Visit], None]"
"""Runs a network on a batch, and shows each tap's activations as soon as they are computed."""

Taps: TypeAlias = "list[torch.Tensor]"

WARM_UPS = 3
"""Passes before a recording, in which libraries choose kernels and take their memory."""


class Recorder(Protocol):
    """What records work on a device."""

    def record(self, work: Callable[[], Taps]) -> tuple[Taps, Callable[[], None]]:
        """Does the work, and records it.

        Args:
            work: The work. It reads and writes the same memory each time.

        Returns:
            What the work returned, and what does the same work again, into the same tensors.
        """


_OF_RECORDING = "captur"
"""What the errors of CUDA say that are raised as a recording ends, whatever has ended it."""

_recording = threading.Lock()
"""A process records one graph at a time."""


class CudaGraphs:
    """Records what a stream of a GPU is given."""

    def record(self, work: Callable[[], Taps]) -> tuple[Taps, Callable[[], None]]:
        """Does what `Recorder.record` says."""
        import torch

        here = torch.cuda.current_stream()
        # torch has a few streams, and gives them out again: those of other priority only to us.
        beside = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]  # torch's
        graph = torch.cuda.CUDAGraph()
        # A recording that fails would leave this thread on the other stream.
        with _recording, torch.cuda.stream(here):
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                for _ in range(WARM_UPS):
                    work()
            here.wait_stream(beside)
            # Other threads may use the GPU meanwhile, for the shards of another network.
            with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                taps = work()
        return taps, graph.replay


def require_sound(device: torch.device) -> None:
    """Waits for a GPU, so that an error of its own, of work before, is not taken for another's.

    Args:
        device: The device. A CPU computes at once.

    Raises:
        RuntimeError: If the GPU has failed.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ForwardGraph:
    """A network's recorded forward pass. Several threads may use it, if they use one stream."""

    def __init__(self, network: Network, run: Run, batch: torch.Tensor, recorder: Recorder) -> None:
        """Records the pass, and checks that a replay computes what the network does.

        Args:
            network: Describes the network.
            run: Runs it.
            batch: The memory of its input, (micro-batch, height, width, 3), on the device.
            recorder: What records.

        Raises:
            UsageError: If the pass cannot be recorded, or a replay computes something else. The
                message says how to do without.
            OutOfMemoryError: If the device has not the memory.
            RuntimeError: If the device itself has failed.
        """
        import torch

        self._batch = batch
        self._lock = threading.Lock()
        copied = overwritten(run, batch)

        def work() -> Taps:
            kept: dict[int, torch.Tensor] = {}

            def keep(index: int, x: torch.Tensor) -> None:
                kept[index] = x.clone() if index in copied else x

            run(batch, keep)
            return [kept[index] for index in range(len(kept))]

        without = option("cuda_graphs", False)
        with torch.inference_mode():
            try:
                self._taps, self._replay = recorder.record(work)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                require_sound(batch.device)
                why: BaseException = error
                if _OF_RECORDING in str(error) and error.__context__ is not None:
                    why = error.__context__  # torch has raised again, as the recording ended
                if isinstance(why, torch.OutOfMemoryError):
                    raise why from None
                raise UsageError(
                    f"{network.name} cannot be recorded as a CUDA graph: {why}. A network that "
                    "waits for the GPU in its forward pass, or decides by what it has computed, "
                    f"must be run by {without}"
                ) from error
        wrong = self._differing(run)
        if wrong:
            names = ", ".join(network.taps[index].name for index in wrong)
            raise UsageError(
                f"{network.name}, replayed from a CUDA graph, puts out other activations at "
                f"{names} than it does by itself, for the same images; use {without}"
            )

    def observe(self, pixels: torch.Tensor, visit: Visit) -> None:
        """Replays the pass, and shows each tap's activations.

        Args:
            pixels: Up to a micro-batch of images, on the device. The rest of the batch is zero.
            visit: Called with the index of each tap and its activations of the whole micro-batch.
                What it gives the current stream to do is done before the next replay.
        """
        import torch

        real = len(pixels)
        with self._lock, torch.inference_mode():
            self._batch[:real].copy_(pixels)
            self._batch[real:].zero_()
            self._replay()
            for index, x in enumerate(self._taps):
                visit(index, x)

    def _differing(self, run: Run) -> list[int]:
        """Returns the taps of which a replay puts out other bits than the network, for noise."""
        import torch

        noise = torch.randn(self._batch.shape, generator=torch.Generator().manual_seed(0))
        self.observe(noise.to(self._batch.device), lambda index, x: None)
        wrong = []

        def compare(index: int, x: torch.Tensor) -> None:
            replayed = self._taps[index]
            if not bool(((x == replayed) | (x.isnan() & replayed.isnan())).all()):
                wrong.append(index)

        with torch.inference_mode():
            run(self._batch, compare)
        return wrong


def overwritten(run: Run, batch: torch.Tensor) -> set[int]:
    """Finds the taps whose activations a later module overwrites, as an activation in place does.

    Args:
        run: Runs the network.
        batch: A micro-batch.

    Returns:
        The indices of these taps.
    """
    import torch

    seen: list[tuple[int, torch.Tensor, int]] = []
    with torch.no_grad():  # in inference mode, tensors do not count their versions
        run(batch, lambda index, x: seen.append((index, x, x._version)))
    return {index for index, x, version in seen if x._version != version}
