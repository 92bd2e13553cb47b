"""Tests that we agree with the reference, vdna 0.1.1: network, weights, ranges and images.

There are two separate claims. *The rule is the same*: where both see the same activations,
histograms are equal to the last count, extremes to the last bit, and Gaussians to the rounding of
its float32. For this the reference runs its own loader, loop, normalisation, counting and fitting
on a network that gives our extractor's activations. *The whole is the same*: its own network,
resize and arithmetic agree with ours from files to distances, within a stated tolerance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vdna import EMD, FD, NFD
from vdna.networks import FeatureExtractionModel
from vdna.networks.feature_extraction_model import get_pre_hist_norm_params_from_min_max
from vdna.utils.im import ResizeDataset
from vdna.utils.settings import DataSettings, ExtractionSettings, NetworkSettings
from vdna.utils.stats import frechet_distance_multidim
from vdna.vdnas import get_vdna
from vdna.vdnas.vdna_base import VDNA

from pipeline import emd, fd, images, make_dna, nfd
from pipeline.comparing import frechet
from pipeline.counting import Extractor
from pipeline.counting.micro_batch import MICRO_BATCH
from pipeline.dna import DNA
from pipeline.networks import describe
from pipeline.networks.weights import without_random_values
from pipeline.spec import Preprocess
from tests.support.builders import photo
from tests.support.reference_package import ReferenceNetworks, randomised, unset_network

BINS = 1000
SETS = ("day", "night")
FEW_AT_A_TIME = 2
"""Images that a slow network takes at a time: a shard has few, and is filled up to a multiple."""


@pytest.fixture(scope="module", autouse=True)
def _small_batches() -> Iterator[None]:
    """Lets six images be two batches, the last of which is not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MICRO_BATCH, "cpu", 4)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Writes two sets of photographs of several sizes, as lossless files."""
    found = {}
    for number, name in enumerate(SETS):
        folder = tmp_path_factory.mktemp(name)
        for i in range(6):
            image = photo(100 * number + i, 90 + 40 * (i % 4), 240 - 30 * (i % 3))
            if number:
                image = image.point(lambda value: value // 2)
            image.save(folder / f"{i:02d}.png")
        found[name] = folder
    return found


# A network of each family: a CNN, a ViT, and Inception with its patched pooling.
NETWORKS = (
    "efficientnet_lite0",
    *(pytest.param(n, marks=pytest.mark.soak) for n in ("timm:vit_tiny_patch16_224", "inception")),
)


def random_weights(name: str, place: Path) -> str:
    """Writes a file of seeded random weights of the real architecture."""
    path = place / "weights.pth"
    if not path.exists():
        torch.save(randomised(unset_network(name).state_dict()), path)
    return str(path)


class BothSides:
    """One network for both sides, whose ranges both read from one file of the reference."""

    def __init__(self, name: str, place: Path, folders: dict[str, Path]) -> None:
        self.options: dict[str, Any] = {"extractor": name, "bins": BINS, "threads": 2}
        self.options |= {"exif": "ignore", "layer_gaussian": True}
        if name != "efficientnet_lite0":
            self.options |= {"weights": random_weights(name, place), "micro_batch": FEW_AT_A_TIME}
        self.network = describe(name, self.options.get("weights"))
        self.extractor = Extractor(self.network, micro_batch=self.options.get("micro_batch"))
        self.folders = folders
        self.seen: dict[bytes, Features] = {}
        self.extremes = self.reference_dna("activation-ranges", "day")
        self.ranges = as_ranges(self.extremes)
        file = place / "activation_ranges.json"
        file.write_text(json.dumps(self.ranges))
        self.options["ranges"] = str(file)

    def reference_dna(self, kind: str, name: str) -> VDNA:
        vdna = get_vdna(kind)
        ranges = getattr(self, "ranges", {"mins_per_neuron": {}, "maxs_per_neuron": {}})
        with pytest.MonkeyPatch.context() as patch:
            same_pixels(self.network, patch)
            vdna.fill_vdna(
                _Observed(self.extractor, ranges, self.seen),
                DataSettings(source=str(self.folders[name])),
            )
        return vdna

    def our_dna(self, name: str) -> DNA:
        return make_dna(self.folders[name], **self.options)


def as_ranges(extremes: VDNA) -> dict[str, Any]:
    """Returns what the reference's `activation_ranges.json` holds."""
    return {
        f"{end}s_per_neuron": {
            layer: {str(i): float(value) for i, value in enumerate(values[end])}
            for layer, values in extremes.data.items()
        }
        for end in ("min", "max")
    }


def quiet_settings(batch_size: int) -> ExtractionSettings:
    return ExtractionSettings(device="cpu", batch_size=batch_size, num_workers=0, verbose=False)


Features = dict[str, torch.Tensor]


def once(
    features: Callable[[torch.Tensor], Features], seen: dict[bytes, Features]
) -> Callable[[torch.Tensor], Features]:
    """Keeps the activations of each batch, since every kind of DNA needs the same ones."""

    def found(batch: torch.Tensor) -> Features:
        key = hashlib.sha256(batch.numpy().tobytes()).digest()
        if key not in seen:
            seen[key] = features(batch)
        return dict(seen[key])

    return found


class _Observed(FeatureExtractionModel):
    """A model of the reference whose features are what our extractor gives for its batch."""

    def __init__(
        self, extractor: Extractor, ranges: dict[str, Any], seen: dict[bytes, Features]
    ) -> None:
        network = extractor.network
        super().__init__(
            NetworkSettings(
                list(network.mean),
                list(network.std),
                {tap.name: tap.neurons for tap in network.taps},
                (network.height, network.width),
                network.name,
            ),
            quiet_settings(extractor.micro_batch),
            ranges,
        )
        self.name = network.name
        self._extractor = extractor
        self._once = once(self._observed, seen)

    def get_features(self, batch: torch.Tensor) -> Features:
        return self._once(batch)

    def _observed(self, batch: torch.Tensor) -> Features:
        found: Features = {}

        def visit(index: int, x: torch.Tensor) -> None:
            found[self._extractor.network.taps[index].name] = x.transpose(1, 2).unsqueeze(3).clone()

        pixels = batch.permute(0, 2, 3, 1).contiguous().numpy()
        self._extractor.observe(pixels, visit)
        return found


def same_pixels(network: Any, patch: pytest.MonkeyPatch) -> None:
    """Lets the reference's dataset give our pixels, since its own differ by rounding."""
    rule = Preprocess(network.height, network.width, network.mean, network.std, exif="ignore")

    def item(dataset: ResizeDataset, index: int) -> torch.Tensor:
        pixels = images.load(Path(dataset.file_paths[index]).read_bytes(), rule).values
        return torch.from_numpy(pixels).permute(2, 0, 1)

    patch.setattr(ResizeDataset, "__getitem__", item)


@pytest.fixture(scope="module", params=NETWORKS)
def both(
    request: pytest.FixtureRequest,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> BothSides:
    return BothSides(request.param, tmp_path_factory.mktemp("network"), folders)


@pytest.fixture(scope="module")
def our_dnas(both: BothSides) -> dict[str, DNA]:
    return {name: both.our_dna(name) for name in SETS}


@pytest.fixture(scope="module")
def reference_dnas(both: BothSides) -> dict[str, dict[str, VDNA]]:
    kinds = (f"histogram-{BINS}", "gaussian", "layer-gaussian")
    return {name: {kind: both.reference_dna(kind, name) for kind in kinds} for name in SETS}


def clamped(dna: DNA, layer: str) -> NDArray[np.int64]:
    """Returns counts with values outside in the end bins, where the reference counts them."""
    part = dna.select([layer])
    counts = part.counts.copy()
    counts[:, 0] += part.underflow
    counts[:, -1] += part.overflow
    return counts


def test_histograms_are_equal_to_the_last_count(
    our_dnas: dict[str, DNA], reference_dnas: dict[str, dict[str, VDNA]]
) -> None:
    for name, dna in our_dnas.items():
        histograms = reference_dnas[name][f"histogram-{BINS}"].data
        assert list(histograms) == list(dna.layers)
        for layer, counts in histograms.items():
            assert np.array_equal(clamped(dna, layer), counts.numpy()), layer
    night = our_dnas["night"]
    assert night.underflow.sum() + night.overflow.sum() > 0  # so that the end bins are tested


def test_extremes_are_equal_to_the_last_bit(both: BothSides, our_dnas: dict[str, DNA]) -> None:
    for layer, values in both.extremes.data.items():
        part = our_dnas["day"].select([layer])
        assert np.array_equal(part.min, values["min"].numpy())
        assert np.array_equal(part.max, values["max"].numpy())


def test_gaussians_are_equal_up_to_the_references_rounding(
    our_dnas: dict[str, DNA], reference_dnas: dict[str, dict[str, VDNA]]
) -> None:
    """The reference averages positions and images in float32; we do so in float64."""
    for name, dna in our_dnas.items():
        for layer, found in reference_dnas[name]["gaussian"].data.items():
            part = dna.select([layer])
            variance = part.m2 / (part.images - 1)
            scale = float(np.abs(part.mean).max() + np.sqrt(variance.max()))
            assert np.allclose(found["mu"], part.mean, rtol=1e-5, atol=1e-6 * scale)
            assert np.allclose(found["var"], variance, rtol=1e-3, atol=1e-6 * scale**2)
        for layer, found in reference_dnas[name]["layer-gaussian"].data.items():
            part = dna.select([layer])
            covariance = part.scatter_of(layer) / (part.images - 1)
            scale = float(np.abs(covariance).max() + np.abs(part.mean).max() ** 2)
            assert np.allclose(found["sigma"], covariance, rtol=1e-3, atol=1e-6 * scale)


def as_reference_dna(dna: DNA, kind: str) -> VDNA:
    """Makes the reference's object of our numbers, in float64."""
    vdna = get_vdna(kind)
    vdna.feature_extractor_name = dna.spec.extractor
    vdna.neurons_list = {tap.name: tap.neurons for tap in dna.spec.taps}
    for layer in dna.layers:
        part = dna.select([layer])
        mean = torch.from_numpy(part.mean)
        vdna.data[layer] = {
            f"histogram-{BINS}": lambda part=part, layer=layer: torch.from_numpy(
                clamped(part, layer)
            ),
            "gaussian": lambda part=part, mean=mean: {
                "mu": mean,
                "var": torch.from_numpy(part.m2 / (part.images - 1)),
            },
            "layer-gaussian": lambda part=part, mean=mean, layer=layer: {
                "mu": mean,
                "sigma": torch.from_numpy(part.scatter_of(layer) / (part.images - 1)),
            },
        }[kind]()
    return vdna


@pytest.mark.parametrize(
    ("our_distance", "reference_distance", "kind"),
    [(emd, EMD, f"histogram-{BINS}"), (nfd, NFD, "gaussian")],
    ids=["emd", "nfd"],
)
def test_distances_of_equal_inputs_are_equal(
    our_dnas: dict[str, DNA],
    our_distance: Callable[..., Any],
    reference_distance: Callable[..., Any],
    kind: str,
) -> None:
    a, b = our_dnas.values()
    x, y = as_reference_dna(a, kind), as_reference_dna(b, kind)
    layer = a.layers[len(a.layers) // 2]
    exact = {"rel": 1e-9, "abs": 1e-12}
    assert our_distance(a, b) == pytest.approx(float(reference_distance(x, y)), **exact)
    each = reference_distance(x, y, return_neuron_wise=True)
    per_layer = our_distance(a, b).layers
    for name, found in each.items():
        found = found.double().numpy()
        one = reference_distance(x, y, use_neurons_from_layer=name)
        assert per_layer[name] == pytest.approx(float(one), **exact)
        if kind == "gaussian":  # which it stores in float32
            exact_each = {"rel": 1e-6, "abs": 1e-6 * float(found.max())}
        else:
            exact_each = exact
        assert our_distance(a, b, layer=name, per_neuron=True) == pytest.approx(found, **exact_each)
    chosen = reference_distance(x, y, use_neurons_from_layer=layer, use_neuron_index=3)
    assert our_distance(a, b, layer=layer).neurons[3] == pytest.approx(float(chosen), **exact)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_fd_of_equal_inputs_is_equal(our_dnas: dict[str, DNA]) -> None:
    """The reference's matrix square root limits the agreement on whole layers.

    The covariance of ten images is singular there, which costs half of the digits. The covariance
    of a few neurons is not.
    """
    a, b = our_dnas.values()
    layer = min(a.layers, key=lambda name: a.spec.tap(name).neurons)
    x, y = (
        as_reference_dna(a.select([layer]), "layer-gaussian"),
        as_reference_dna(b, "layer-gaussian"),
    )
    expected = float(FD(x, y, use_neurons_from_layer=layer))
    assert fd(a, b, layer=layer) == pytest.approx(expected, rel=1e-5)
    for name in a.layers:
        numbers = []
        for dna in (a, b):
            part = dna.select([name])
            covariance = part.scatter_of(name) / (part.images - 1)
            alive = np.flatnonzero(np.diagonal(covariance) > 1e-3 * np.diagonal(covariance).max())
            numbers.append((part.mean, covariance, set(alive[:400].tolist())))
        few = sorted(numbers[0][2] & numbers[1][2])[::7][:4]
        parts = [(mean[few], covariance[np.ix_(few, few)]) for mean, covariance, _ in numbers]
        tensors = [torch.from_numpy(v) for part in parts for v in part]
        expected = float(frechet_distance_multidim(*tensors))
        roots = [np.linalg.cholesky(covariance) for _, covariance in parts]
        ours_of_few = frechet(parts[0][0], roots[0], parts[1][0], roots[1])
        assert ours_of_few == pytest.approx(expected, rel=1e-9), name


# End to end: its own networks, files, resize and arithmetic.

OWN = ("vgg16", "mugs_vit_small", "inception")


@pytest.mark.soak
@pytest.mark.parametrize("name", OWN)
@pytest.mark.filterwarnings("ignore")
def test_whole_pipelines_agree_within_rounding(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 1 in 1,000 activations is in another bin, and by one bin only.

    So both DNAs of one set differ by less than 0.001 bins of EMD, and distances of two sets are
    equal to 1 in 10,000.
    """
    reference = ReferenceNetworks(monkeypatch, tmp_path)
    seen: dict[bytes, Features] = {}

    def made() -> Any:
        """Makes the network, with the ranges that are in the file now."""
        reference.settings = quiet_settings(4)
        with without_random_values():
            model = getattr(reference, name)().eval()
        model.name = name
        monkeypatch.setattr(model, "get_features", once(model.get_features, seen))
        if name == "mugs_vit_small":  # the reference publishes no ranges for it, and reads none
            model.norm_means_per_layer, model.norm_stds_per_layer = (
                get_pre_hist_norm_params_from_min_max(json.loads(reference.ranges.read_text()), 1.2)
            )
        return model

    def of(model: Any, kind: str, folder: str) -> VDNA:
        model.extraction_settings = quiet_settings(4)  # a DNA changes them, so each needs its own
        vdna = get_vdna(kind)
        vdna.fill_vdna(model, DataSettings(source=str(folders[folder])))
        return vdna

    extremes = of(made(), "activation-ranges", "day")
    reference.ranges.write_text(json.dumps(as_ranges(extremes)))
    kinds, model = (f"histogram-{BINS}", "gaussian", "layer-gaussian"), made()
    found = {folder: {kind: of(model, kind, folder) for kind in kinds} for folder in SETS}
    ours = {
        folder: make_dna(
            folders[folder],
            extractor=name,
            weights=str(reference.weights),
            ranges=str(reference.ranges),
            exif="ignore",
            layer_gaussian=True,
            threads=2,
            micro_batch=FEW_AT_A_TIME,
        )
        for folder in SETS
    }
    for folder, dna in ours.items():
        histograms = found[folder][f"histogram-{BINS}"].data
        assert {layer: len(counts) for layer, counts in histograms.items()} == {
            tap.name: tap.neurons for tap in dna.spec.taps
        }
        for layer, counts in histograms.items():
            mine, other = clamped(dna, layer), counts.numpy()
            assert np.array_equal(mine.sum(axis=1), other.sum(axis=1))
            moved = np.abs(mine - other).sum() / 2
            assert moved <= 1e-3 * other.sum(), layer
            earth = np.abs(np.cumsum(mine - other, axis=1)).sum()
            assert earth <= 1e-3 * other.sum(), layer
    a, b = ours.values()
    (x, y) = (found[folder] for folder in SETS)
    close = {"rel": 1e-4}
    reference_emd = EMD(x[f"histogram-{BINS}"], y[f"histogram-{BINS}"])
    assert emd(a, b) == pytest.approx(float(reference_emd), **close)
    reference_nfd = NFD(x["gaussian"], y["gaussian"])
    assert nfd(a, b) == pytest.approx(float(reference_nfd), rel=1e-3)
    # The last one whose covariance the reference's matrix square root takes no ten seconds for.
    last = [layer for layer in a.layers if a.spec.tap(layer).neurons <= 768][-1]
    reference_fd = FD(x["layer-gaussian"], y["layer-gaussian"], use_neurons_from_layer=last)
    assert fd(a, b, layer=last) == pytest.approx(float(reference_fd), rel=1e-3)
    reference.weights.unlink()
