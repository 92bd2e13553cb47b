"""Tests that the network is the stated one, and that images of a batch do not affect each other."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from pipeline.counting import Extractor, numerics
from pipeline.counting.micro_batch import MICRO_BATCH
from pipeline.counting.torch_switches import _products
from pipeline.errors import CorruptFile, SourceError, SpecMismatch, UsageError
from pipeline.images import DEVICE_RULE, load
from pipeline.networks import Network, describe, fold_batch_norms, load_model, lookup
from pipeline.networks.lite0 import EFFICIENTNET_LITE0_SHA256
from pipeline.networks.weights import load_state
from pipeline.spec import Numerics, Preprocess, Spec, Tap
from tests.support.builders import photo
from tests.support.pickle_bomb import PickleBomb

CATS = {281, 282, 285}  # tabby, tiger cat, Egyptian cat
CUPS = {967, 968, 504, 550}  # espresso, cup, coffee mug, espresso maker

Pixels = NDArray[np.float32]
Activations = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def network() -> Network:
    return describe("efficientnet_lite0")


@pytest.fixture(scope="module")
def extractor(network: Network) -> Extractor:
    return Extractor(network)


@pytest.fixture(scope="module")
def state(network: Network) -> dict[str, torch.Tensor]:
    """Returns the weights under the names of the architecture."""
    return load_model(network).state_dict()


@pytest.fixture(scope="module")
def pixels(network: Network) -> Pixels:
    rule = rule_of(network)
    return np.stack([load(png(photo(seed)), rule).values for seed in range(8)])


def rule_of(network: Network) -> Preprocess:
    return Preprocess(network.height, network.width, network.mean, network.std)


def png(image: Image.Image | NDArray[np.uint8]) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def seen(extractor: Extractor, pixels: Pixels) -> Activations:
    found: dict[int, NDArray[np.float32]] = {}

    def visit(index: int, x: torch.Tensor) -> None:
        assert index not in found
        found[index] = x.float().cpu().numpy().copy()

    extractor.observe(pixels, visit)
    return [found[i] for i in range(len(extractor.network.taps))]


def weights_file(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize(("picture", "classes"), [("chelsea", CATS), ("coffee", CUPS)])
def test_the_default_network_recognises_photographs(
    network: Network, picture: str, classes: set[int]
) -> None:
    import skimage

    file = Path(skimage.__file__).parent / "data" / f"{picture}.png"
    image = load(png(Image.open(file)), rule_of(network)).values
    with torch.inference_mode():
        logits = load_model(network)(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    assert len(logits) == 1000
    assert int(logits.argmax()) in classes


def test_a_description_names_the_weights_and_taps(network: Network) -> None:
    assert network.weights_sha256 == EFFICIENTNET_LITE0_SHA256
    assert (network.height, network.width) == (224, 224)
    assert len(network.taps) == 18
    assert network.taps[0] == Tap("bn1", 32, 112 * 112)
    assert network.taps[-1] == Tap("bn2", 1280, 49)
    assert sum(tap.neurons for tap in network.taps) == 3120


def test_describing_a_network_does_not_import_torch() -> None:
    code = (
        "import sys; from pipeline.networks import describe; describe('efficientnet_lite0');"
        "print(sorted({'torch', 'timm', 'ray', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_networks_are_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match="no extractor 'resnet9000'; there are: efficientnet_lite0"
    ):
        describe("resnet9000")


def test_every_tap_has_the_shape_it_states(
    network: Network, extractor: Extractor, pixels: Pixels
) -> None:
    for tap, found in zip(network.taps, seen(extractor, pixels[:3]), strict=True):
        assert found.shape == (3, tap.positions, tap.neurons)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()


def test_positions_follow_the_image_row_by_row(network: Network, extractor: Extractor) -> None:
    """An image that is bright only in its upper half differs only at upper positions."""
    dark = np.full((1, 224, 224, 3), -1, np.float32)
    half = dark.copy()
    half[:, :112] = 1
    stem = seen(extractor, half)[0][0] - seen(extractor, dark)[0][0]
    changed = np.abs(stem).sum(axis=1).reshape(112, 112)
    assert changed[:55].any()
    assert not changed[57:].any()


@pytest.mark.parametrize("fill", [1, 3, 8])
def test_activations_of_an_image_do_not_depend_on_its_batch(
    extractor: Extractor, pixels: Pixels, fill: int
) -> None:
    alone = seen(extractor, pixels[:1])
    for position in {0, fill - 1}:
        batch = np.roll(pixels, position, axis=0)[:fill]
        for one, among in zip(alone, seen(extractor, batch), strict=True):
            np.testing.assert_array_equal(one[0], among[position])


def test_nonfinite_images_in_a_batch_do_not_change_others(
    extractor: Extractor, pixels: Pixels
) -> None:
    batch = pixels[:3].copy()
    batch[1], batch[2] = np.nan, np.inf
    for one, among in zip(seen(extractor, pixels[:1]), seen(extractor, batch), strict=True):
        np.testing.assert_array_equal(one[0], among[0])


def test_several_threads_give_the_same_activations_as_one(
    extractor: Extractor, pixels: Pixels
) -> None:
    alone = [seen(extractor, pixels[i : i + 1]) for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda i: seen(extractor, pixels[i : i + 1]), range(2)))
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_second_extractor_gives_the_same_activations(
    network: Network, extractor: Extractor, pixels: Pixels
) -> None:
    for a, b in zip(seen(extractor, pixels), seen(Extractor(network), pixels), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_network_always_runs_on_one_batch_shape(extractor: Extractor, pixels: Pixels) -> None:
    """Libraries choose kernels by shape, and kernels round differently."""
    shapes: set[tuple[int, ...]] = set()
    stem = extractor._model.conv_stem
    handle = stem.register_forward_pre_hook(lambda _, inputs: shapes.add(tuple(inputs[0].shape)))
    for fill in (1, 3, 8):
        extractor.observe(pixels[:fill], lambda i, x: None)
    handle.remove()
    assert shapes == {(8, 3, 224, 224)}


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_or_too_many_images_for_a_micro_batch_are_refused(
    extractor: Extractor, count: int
) -> None:
    with pytest.raises(ValueError, match=f"{count} images do not make a micro-batch of 8"):
        extractor.observe(np.zeros((count, 224, 224, 3), np.float32), lambda i, x: None)
    assert extractor.micro_batch == MICRO_BATCH["cpu"] == 8


def test_folding_changes_no_tap_by_more_than_rounding(
    network: Network, extractor: Extractor, pixels: Pixels
) -> None:
    model = load_model(network)
    modules = dict(model.named_modules())
    plain: Activations = []
    for tap in network.taps:
        modules[tap.name].register_forward_hook(
            lambda module, inputs, out: plain.append(
                out.permute(0, 2, 3, 1).flatten(1, 2).numpy().copy()
            )
        )
    with torch.inference_mode():
        model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    for tap, a, b in zip(network.taps, plain, seen(extractor, pixels), strict=True):
        assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max(), tap.name
        assert a.std() > 0.01


def test_folding_removes_all_batch_norms_and_refuses_an_unexpected_one(network: Network) -> None:
    folded = fold_batch_norms(load_model(network))
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    stray = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm2d(3)).eval()
    with pytest.raises(CorruptFile, match=r"batch norms that follow no convolution: \['1'\]"):
        fold_batch_norms(stray)


def test_bf16_gives_different_but_near_activations(
    network: Network, extractor: Extractor, pixels: Pixels
) -> None:
    few = pixels[:2]
    rough = seen(Extractor(network, "bf16"), few)
    for tap, a, b in zip(network.taps, seen(extractor, few), rough, strict=True):
        assert a.shape == b.shape
        assert b.dtype == np.float32
        assert not np.array_equal(a, b)
        np.testing.assert_array_equal(b, torch.from_numpy(b).bfloat16().float().numpy())
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97, tap.name


def test_numerics_state_how_an_extractor_computes(network: Network, extractor: Extractor) -> None:
    assert extractor.numerics == numerics(network, "cpu")
    assert (extractor.numerics.micro_batch, extractor.numerics.threads) == (8, 1)
    assert extractor.numerics.folded
    assert not extractor.numerics.compiled
    assert dict(extractor.numerics.versions)["torch"] == torch.__version__
    assert {each.fp32_precision for each in _products()} == {"ieee"}
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic


def test_the_numerics_of_a_cpu_are_written_as_ever_and_those_of_a_gpu_say_who_resized(
    network: Network,
) -> None:
    here, there = (numerics(network, device) for device in ("cpu", "cuda"))
    fields = ["compiled", "device", "folded", "micro_batch", "threads", "versions"]
    assert sorted(here.to_json()) == fields
    assert there.to_json()["resized"] == DEVICE_RULE
    for one in (here, there, numerics(network, "cpu", on_device=True)):
        assert Numerics.from_json(json.loads(json.dumps(one.to_json()))) == one
    taps, rule = network.taps, rule_of(network)
    specs = [
        Spec("x", "y", taps, rule, "z", precision="bf16", bf16_numerics=each)
        for each in (here, replace(here, resized=DEVICE_RULE))
    ]
    assert specs[0].digest != specs[1].digest
    assert specs[0].differences(specs[1]) == {"bf16_numerics.resized": ("cpu", DEVICE_RULE)}
    assert [Spec.from_json(spec.to_json()) for spec in specs] == specs


def test_a_tensor_is_observed_as_its_array(extractor: Extractor, pixels: Pixels) -> None:
    for a, b in zip(
        seen(extractor, pixels[:3]), seen(extractor, torch.from_numpy(pixels[:3])), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_taps_that_the_network_lacks_are_refused(network: Network) -> None:
    with pytest.raises(UsageError, match=r"efficientnet_lite0 has no module 'blocks.9' to tap"):
        Extractor(replace(network, taps=(Tap("blocks.9", 1, 1),)))
    first, *others = network.taps
    with pytest.raises(SpecMismatch, match=r"neurons=32.*the spec states .*neurons=33"):
        Extractor(replace(network, taps=(replace(first, neurons=33), *others)))


# Weights


def test_other_weights_than_those_described_are_refused_with_both_digests(
    network: Network,
) -> None:
    with pytest.raises(SpecMismatch) as caught:
        load_model(replace(network, weights_sha256="ab" * 32))
    assert EFFICIENTNET_LITE0_SHA256 in str(caught.value)
    assert "ab" * 32 in str(caught.value)


def test_a_wheel_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tampered = hashlib.sha256(b"tampered").hexdigest()
    monkeypatch.setattr(lookup, "sha256_of", lambda uri: tampered)
    with pytest.raises(CorruptFile) as caught:
        describe("efficientnet_lite0")
    assert EFFICIENTNET_LITE0_SHA256 in str(caught.value)
    assert tampered in str(caught.value)


def test_weights_are_read_from_a_url(
    tmp_path: Path,
    network: Network,
    extractor: Extractor,
    state: dict[str, torch.Tensor],
    pixels: Pixels,
) -> None:
    url = weights_file(tmp_path / "same.pt", state)
    same = describe("efficientnet_lite0", url)
    assert same.weights_uri == storage.canonical(url)
    assert same.weights_sha256 == hashlib.sha256(Path(url).read_bytes()).hexdigest()
    assert same.weights_sha256 != network.weights_sha256
    for a, b in zip(seen(extractor, pixels), seen(Extractor(same), pixels), strict=True):
        np.testing.assert_array_equal(a, b)
    changed = dict(state)
    changed["conv_stem.weight"] = state["conv_stem.weight"] * 1.5
    other = describe("efficientnet_lite0", weights_file(tmp_path / "other.pt", changed))
    assert other.weights_sha256 not in (same.weights_sha256, network.weights_sha256)
    assert not np.array_equal(seen(extractor, pixels[:1])[0], seen(Extractor(other), pixels[:1])[0])


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere.pt does not exist"):
        describe("efficientnet_lite0", str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, zipped: bool
) -> None:
    planted = tmp_path / "planted"
    file = tmp_path / "bomb.pt"
    torch.save({"x": PickleBomb(planted)}, file, _use_new_zipfile_serialization=zipped)
    bomb = describe("efficientnet_lite0", str(file))
    with pytest.raises(CorruptFile, match="not a state dict of tensors"):
        load_model(bomb)
    assert not planted.exists()
    torch.load(file, weights_only=False)  # the bomb does work
    assert planted.exists()


@pytest.mark.parametrize(
    "change", ["missing", "extra", "shape", "number", "integer key", "foreign"]
)
def test_a_state_dict_that_does_not_fit_is_refused(
    tmp_path: Path, state: dict[str, torch.Tensor], change: str
) -> None:
    wrong: dict[object, object] = dict(state)
    name = "conv_stem.weight"
    if change == "missing":
        del wrong[name]
    elif change == "extra":
        name = "extra.weight"
        wrong[name] = torch.zeros(1)
    elif change == "shape":
        wrong[name] = torch.zeros(3)
    elif change == "number":
        wrong[name] = 1.5
    elif change == "integer key":
        name = "7"
        wrong[7] = torch.zeros(1)
    else:
        name = "_blocks.99.odd"
        wrong = {"_conv_stem.weight": torch.zeros(1), "_blocks.99.odd.weight": torch.zeros(1)}
    network = describe("efficientnet_lite0", weights_file(tmp_path / "wrong.pt", wrong))
    with pytest.raises(CorruptFile, match=f"(?s)weights .*{name}"):
        load_model(network)


def test_weights_of_another_kind_are_refused() -> None:
    for value, kind in (([torch.zeros(1)], "list"), (torch.zeros(1), "Tensor")):
        data = io.BytesIO()
        torch.save(value, data)
        with pytest.raises(
            CorruptFile, match=f"weights hold an object of type {kind}, not a state dict"
        ):
            load_state(data.getvalue())


def test_a_torn_or_damaged_file_is_refused_by_its_own_name() -> None:
    data = io.BytesIO()
    torch.save({"a": torch.arange(20.0)}, data)
    old = io.BytesIO()
    torch.save({"a": torch.arange(20.0)}, old, _use_new_zipfile_serialization=False)
    damaged = [b"", b"\0" * 64, b"not weights", b"PK\3\4", b"\x80\x02.", b"\x80\x02}q\0(u."]
    for whole in (data.getvalue(), old.getvalue()):
        damaged += [whole[:n] for n in (1, 10, len(whole) // 2, len(whole) - 1)]
    for wrong in damaged:
        with pytest.raises(CorruptFile):
            load_state(wrong)


def test_damaged_weights_raise_no_unexpected_error() -> None:
    old = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, old, _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(old.getvalue())
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        try:
            load_state(bytes(data))
        except CorruptFile:
            continue
