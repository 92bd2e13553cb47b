"""Chooses what runs the network: torch, or OpenVINO on a CPU.

    >>> choose_backend("auto", network, "fp32", "cpu").backend        # doctest: +SKIP
    'openvino'

A job's driver chooses, and all its workers follow. No timing decides, as two nights would count
differently then: it is known of which networks OpenVINO is the faster runner, and a dataset stays
with what has counted it.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.counting.converted_networks import converted_path
from pipeline.counting.extractor import Extractor, require_backend
from pipeline.counting.micro_batch import MICRO_BATCH
from pipeline.errors import SpecMismatch, UsageError
from pipeline.networks import Network
from pipeline.spec import Backend, BackendChoice, Precision, backend_of
from pipeline.wording import option


@dataclass(frozen=True)
class ChosenBackend:
    """What runs the network of a job.

    Attributes:
        backend: The backend.
        note: Why it is not the expected one, for people; empty if it is.
    """

    backend: Backend
    note: str = ""


_CONVERTING = threading.Lock()
"""Several datasets are planned at a time, and one of them converts a network."""


def choose_backend(
    asked: BackendChoice,
    network: Network,
    precision: Precision,
    device: str,
    before: Backend | None = None,
    say: Callable[[str], None] = lambda message: None,
    micro_batch: int | None = None,
) -> ChosenBackend:
    """Chooses what runs a network.

    By `auto` it is what has counted the dataset before. A new dataset is counted by OpenVINO if
    that is installed, the network has depthwise convolutions, and it can be converted. It is
    converted here, unless it is kept from before. All else is counted by torch.

    Args:
        asked: What was asked for.
        network: The network.
        precision: The numbers that it computes with.
        device: The kind of device, `cpu` or `cuda`.
        before: What has counted the dataset's images until now; None for a new dataset.
        say: Is told if the network is converted, which takes a while.
        micro_batch: Images per forward pass; None for those of `MICRO_BATCH`.

    Returns:
        The choice, the same for the same network, dataset and installation.

    Raises:
        UsageError: What was asked for cannot run here.
    """
    if asked != "auto":
        require_backend(asked, precision, device)
        return ChosenBackend(asked)
    if precision != "fp32" or device != "cpu":
        return ChosenBackend("torch")
    if before == "torch":
        faster = network.depthwise and openvino_is_installed()
        note = (
            "torch runs the network, as it has counted the dataset so far; "
            f"{option('backend', 'openvino')} is faster"
        )
        return ChosenBackend("torch", note if faster else "")
    if not openvino_is_installed():
        note = (
            "torch runs the network: OpenVINO has counted the dataset so far, and is not installed "
            "here"
        )
        return ChosenBackend("torch", note if before == "openvino" else "")
    if before is None and not network.depthwise:
        return ChosenBackend("torch")
    with _CONVERTING:
        if converted_path(network, micro_batch or MICRO_BATCH["cpu"]).exists():
            return ChosenBackend("openvino")  # it was tried then, and each worker tries it again
        say(f"converting {network.name} for OpenVINO, once on this machine")
        problem = _conversion_problem(network, micro_batch)
    if problem:
        return ChosenBackend("torch", f"torch runs {network.name}, as OpenVINO cannot: {problem}")
    return ChosenBackend("openvino")


def openvino_is_installed() -> bool:
    """Tells whether OpenVINO is there for `auto` to choose."""
    try:
        return bool(version("openvino"))
    except PackageNotFoundError:
        return False


def counted_by(numerics: Iterable[Mapping[str, Any]]) -> Backend | None:
    """Returns what has counted most of a version's images on CPUs.

    Args:
        numerics: The numerics of the version, each with its number of `images`.

    Returns:
        The backend; torch where two counted as many. None if no image was counted on a CPU.
    """
    images: Counter[Backend] = Counter()
    for entry in numerics:
        if entry["numerics"]["device"] == "cpu":
            images[backend_of(entry["numerics"])] += entry["images"]
    return max(images, key=lambda of: (images[of], of == "torch"), default=None)


@functools.lru_cache(maxsize=64)
def _conversion_problem(network: Network, micro_batch: int | None) -> str:
    """Converts a network and keeps it; returns why OpenVINO cannot run it, empty if it can."""
    try:
        Extractor(network, backend="openvino", micro_batch=micro_batch)
    except (UsageError, SpecMismatch, ImportError) as error:
        return str(error)
    return ""
