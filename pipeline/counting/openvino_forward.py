"""Runs a network on a CPU by OpenVINO instead of torch, with all taps as its outputs.

    >>> forward = OpenVinoForward(model, network, batch=8, streams=2)              # doctest: +SKIP
    >>> forward(pixels)[0].shape                                                   # doctest: +SKIP
    (8, 12544, 32)

OpenVINO computes the same network in float32 with kernels of its own, so its activations differ
from torch's by rounding. It pays for networks with depthwise convolutions (docs/performance.md).
Converting a network takes several seconds. So the result is kept in the user's cache folder, under
a name that says of what weights, taps and versions it is, with the digest of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import SpecMismatch, UsageError
from pipeline.networks import Network, parse, rows
from pipeline.wording import option

# OpenVINO tells its makers of every conversion where it finds this module, and works without it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as Python documents
import openvino  # noqa: E402  # after the line above

CLOSE = 1e-4
"""How far an activation may be from torch's, as a part of the largest of its layer. Rounding is
some 1e-6; a network that was converted wrongly is far beyond."""

LAYOUT = 1
"""Version of how a network is converted and kept."""

logger = logging.getLogger(__name__)


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
            UsageError: If OpenVINO cannot convert the network.
            SpecMismatch: If it computes other activations than torch does.
        """
        self._local = threading.local()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        shape = (batch, network.height, network.width, 3)
        kept = _cache_folder() / _name(network, batch)
        core = openvino.Core()
        if not _is_whole(kept):
            _keep(_converted(model, network, shape), kept)
        self._compiled = core.compile_model(core.read_model(kept / "model.xml"), "CPU", settings)
        self._require_same(model, network, shape)

    def __call__(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Runs the network.

        Args:
            pixels: Normalised images, float32 (batch, height, width, 3).

        Returns:
            Each tap's activations, float32 (batch, positions, neurons), valid until this thread's
            next call.
        """
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer([pixels], share_inputs=True)
        return [request.get_output_tensor(i).data for i in range(len(self._compiled.outputs))]

    def _require_same(self, model: nn.Module, network: Network, shape: tuple[int, ...]) -> None:
        """Compares random images' activations with torch's."""
        pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
        with _tapped(model, network, shape[0]) as tapped:
            expected = tapped(torch.from_numpy(pixels))
        for tap, mine, theirs in zip(network.taps, self(pixels), expected, strict=True):
            apart = np.abs(mine - theirs.numpy()).max() / max(float(theirs.abs().max()), 1e-30)
            if not apart <= CLOSE:
                raise SpecMismatch(
                    f"OpenVINO computes other activations of {tap.name} of {network.name} than "
                    f"torch does: {apart:.1e} of the layer's maximum apart; use "
                    f"{option('backend', 'torch')}"
                )


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
    try:
        with _tapped(model, network, shape[0]) as tapped:
            return openvino.convert_model(tapped, example_input=torch.zeros(shape), input=[shape])
    except Exception as error:  # it documents no kinds of its own
        raise UsageError(
            f"OpenVINO cannot convert {network.name} ({str(error).splitlines()[0]}); use "
            f"{option('backend', 'torch')}"
        ) from error


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "vdna" / "openvino"


def _name(network: Network, batch: int) -> str:
    """Returns the name of a converted network's folder: a digest of all that it depends on."""
    what = {
        "layout": LAYOUT,
        "network": [network.name, network.built_by, network.weights_sha256, network.folded],
        "input": [batch, network.height, network.width],
        "taps": network.observed,
        "versions": {name: version(name) for name in ("openvino", "timm", "torch", "torchvision")},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _keep(converted: Any, folder: Path) -> None:
    """Writes a converted network whole, with its digest; another process may do the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        openvino.save_model(converted, made / "model.xml", compress_to_fp16=False)
        (made / "sha256").write_text(_digest(made))
        if folder.exists():  # damaged
            shutil.rmtree(folder, ignore_errors=True)
        try:
            made.rename(folder)
        except OSError:  # another process was quicker
            if not _is_whole(folder):
                raise


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / "sha256").read_text() == _digest(folder)
    except OSError:
        return False


def _digest(folder: Path) -> str:
    both = hashlib.sha256()
    for name in ("model.xml", "model.bin"):
        both.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return both.hexdigest()
