"""OpenVINO beside torch on a CPU: how quick it is, and how far it moves what is counted.

    python -m benchmarks.backends FOLDER [--networks NAME...] [--limit 200] [--weights FOLDER]

Both run the same micro-batches in one process, one after the other, each on one core. A row has:

    depthwise   whether the network has depthwise convolutions
    cpu_ms      CPU time of a forward pass, an image, by each of the two
    ratio       how many times as quick OpenVINO is, in CPU time
    moved       the share of activations that fall into another bin
    farthest    by how many bins the farthest of them moved
    emd         the distance of OpenVINO's DNA from torch's, in bins
    halves      the distance of one half of the images from the other, both by torch

or `refused`, if OpenVINO cannot run the network. The embedded network has its own weights and
ranges. The others have `NAME.safetensors` of the folder of weights, or else random weights of one
seed, and ranges measured on the images. A colon in a name is a hyphen in that of its file. Random
weights round as trained ones do, but how far apart they find images says nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks import measure
from pipeline import emd, images
from pipeline.building import Request, make_spec
from pipeline.counting import Extractor, bins_of, scale_of
from pipeline.dna import DNA, Ranges
from pipeline.errors import BadImage, SpecMismatch, UsageError
from pipeline.networks import Network, describe, find_ranges, widen_ranges
from pipeline.networks.registry import architecture
from pipeline.spec import Preprocess, Spec

EMBEDDED = "efficientnet_lite0"
NETWORKS = (
    EMBEDDED,
    "timm:mobilenetv3_large_100",
    "timm:convnext_tiny",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:inception_v3",
    "timm:vit_base_patch16_224",
)
WARM, TIMED = 2, 12
"""How many micro-batches are run before the time is taken, and how many while it is."""

NORMED = 32
"""How many images give a random network the statistics of its norms."""

Batch = NDArray[np.float32]


def described(
    name: str, folder: Path | None, scratch: Path, files: Sequence[Path]
) -> tuple[Network, str]:
    """The network, and whose its weights are; random ones are written to a file first."""
    if name == EMBEDDED:
        return describe(name), "its own"
    file = f"{name.replace(':', '-')}.safetensors"
    if folder and (folder / file).exists():
        return describe(name, str(folder / file)), "given"
    known = architecture(name)
    rule = Preprocess(known.height, known.width, known.mean, known.std)
    torch.manual_seed(0)
    model = with_norms(known.build(None), batches(files[:NORMED], rule, NORMED))
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    save_file(state, scratch / file)
    return describe(name, str(scratch / file)), "random"


def with_norms(model: torch.nn.Module, pixels: Iterable[Batch]) -> torch.nn.Module:
    """Gives a new network scales, shifts, and the statistics of images, as training would.

    New norms have ones and zeros, by which nothing is rounded, and layers that hardly vary.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean of all that it sees
        model.train()
        for batch in pixels:
            model(torch.from_numpy(batch).permute(0, 3, 1, 2))
    return model


def batches(files: Sequence[Path], rule: Preprocess, size: int) -> Iterator[Batch]:
    """The images as the network takes them, without those that cannot be read."""
    held = []
    for file in files:
        try:
            held.append(images.load(file.read_bytes(), rule).values)
        except BadImage as error:
            print(f"{file}: {error}", file=sys.stderr)
        if len(held) == size:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def activations(extractor: Extractor, pixels: Batch) -> list[Batch]:
    """A copy of each tap's activations, (images, positions, neurons)."""
    found: list[Batch] = []
    extractor.observe(pixels, lambda index, x: found.append(x.numpy().copy()))
    return found


def measured_ranges(extractor: Extractor, pixels: Iterator[Batch], taps: Any) -> Ranges:
    """Each neuron's least and greatest activation by torch, widened as a calibration does."""
    low = high = None
    for batch in pixels:
        found = activations(extractor, batch)
        least = np.concatenate([x.min(axis=(0, 1)) for x in found]).astype(float)
        most = np.concatenate([x.max(axis=(0, 1)) for x in found]).astype(float)
        low = least if low is None else np.minimum(low, least)
        high = most if high is None else np.maximum(high, most)
    if low is None or high is None:
        raise UsageError("no image could be read")
    return widen_ranges(Ranges(taps, low, high))


def cpu_ms(extractor: Extractor, pixels: Batch) -> float:
    """Milliseconds of CPU time of a forward pass, an image; other threads of its own included."""
    for _ in range(WARM):
        extractor.observe(pixels, lambda index, x: None)
    began = time.process_time()
    for _ in range(TIMED):
        extractor.observe(pixels, lambda index, x: None)
    return 1000 * (time.process_time() - began) / (TIMED * len(pixels))


class Tables:
    """Counts of bins by torch for either half of the images, and by OpenVINO for all."""

    def __init__(self, spec: Spec, ranges: Ranges) -> None:
        self._spec, self._ranges = spec, ranges
        self._scales = [
            scale_of(ranges.low[at].copy(), ranges.high[at].copy()) for at in spec.slices
        ]
        self._counts = np.zeros((3, spec.neurons, spec.bins), np.int64)
        self._images = [0, 0, 0]
        self.activations = self.moved = self.farthest = 0

    def add(self, half: int, by_torch: list[Batch], by_openvino: list[Batch]) -> None:
        """Adds a micro-batch."""
        bins = self._spec.bins
        for at, scale, mine, theirs in zip(
            self._spec.slices, self._scales, by_openvino, by_torch, strict=True
        ):
            for x, y in zip(mine, theirs, strict=True):
                found = bins_of(x, scale, bins), bins_of(y, scale, bins)
                apart = np.abs(found[0] - found[1])
                self.activations += apart.size
                self.moved += int((apart > 0).sum())
                self.farthest = max(self.farthest, int(apart.max()))
                for table, placed in zip((2, half), found, strict=True):
                    flat = placed + bins * np.arange(len(placed))[:, None]
                    flat = flat[placed < bins]  # others are not finite
                    self._counts[table, at] += np.bincount(
                        flat, minlength=bins * len(placed)
                    ).reshape(len(placed), bins)
        self._images[2] += len(by_torch[0])
        self._images[half] += len(by_torch[0])

    def dna(self, *tables: int) -> DNA:
        """The sum of some tables."""
        counts = sum(self._counts[table] for table in tables)
        number = sum(self._images[table] for table in tables)
        return replace(DNA.empty(self._spec, self._ranges), counts=counts, images=number)


def row(name: str, files: Sequence[Path], weights: Path | None) -> dict[str, Any]:
    """Measures one network."""
    with tempfile.TemporaryDirectory() as scratch:
        network, whose = described(name, weights, Path(scratch), files)
        by_torch = Extractor(network)
        try:
            began = time.process_time()
            by_openvino = Extractor(network, backend="openvino")
        except (UsageError, SpecMismatch) as error:
            return {"weights": whose, "refused": str(error)}
        loading = time.process_time() - began
    size = by_torch.micro_batch
    request = Request("a", "b", extractor=name)
    spec = make_spec(request, network, "0" * 32, "cpu")
    if name == EMBEDDED:
        ranges, _ = find_ranges(network, None, {})
    else:
        ranges = measured_ranges(by_torch, batches(files, spec.preprocess, size), spec.shape)
    spec = make_spec(request, network, ranges.digest, "cpu")
    tables = Tables(spec, ranges)
    number = 0
    for number, pixels in enumerate(batches(files, spec.preprocess, size)):
        if number == 0:
            times = [cpu_ms(extractor, pixels) for extractor in (by_torch, by_openvino) * 2]
        tables.add(number % 2, activations(by_torch, pixels), activations(by_openvino, pixels))
    torch_ms, openvino_ms = min(times[::2]), min(times[1::2])
    return {
        "weights": whose,
        "images": tables.dna(2).images,
        "neurons": spec.neurons,
        "loading_cpu_seconds": round(loading, 1),
        "cpu_ms": {"torch": round(torch_ms, 1), "openvino": round(openvino_ms, 1)},
        "ratio": round(torch_ms / openvino_ms, 2),
        "moved": float(f"{tables.moved / tables.activations:.2g}"),
        "farthest": tables.farthest,
        "emd": float(f"{float(emd(tables.dna(0, 1), tables.dna(2))):.2g}"),
        "halves": float(f"{float(emd(tables.dna(0), tables.dna(1))):.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--limit", type=int, default=200, help="images, chosen by one seed")
    parser.add_argument("--weights", type=Path, help="folder of NAME.safetensors")
    chosen = parser.parse_args()
    files = sorted(path for path in chosen.folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(files)
    rows = {}
    for name in chosen.networks:
        rows[name] = row(name, files[: chosen.limit], chosen.weights)
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    slower = [name for name, of in rows.items() if of.get("ratio", 0) < 1]
    measure.emit(rows, f"OpenVINO is slower than torch for: {', '.join(slower) or 'none'}")


if __name__ == "__main__":
    main()
