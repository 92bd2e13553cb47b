"""Tests every network name: its layers, its weights, and agreement with the reference."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from numpy.typing import NDArray

from pipeline import networks, storage
from pipeline.building import Request, build_datasets, make_dna, make_spec
from pipeline.catalogue import Catalogue
from pipeline.counting import Extractor, numerics
from pipeline.counting.micro_batch import MICRO_BATCH
from pipeline.dna import Ranges
from pipeline.engine import InProcess
from pipeline.errors import (
    CorruptFile,
    SpecMismatch,
    StorageError,
    TransientError,
    UsageError,
    VdnaError,
)
from pipeline.networks import (
    BUILT_IN,
    Network,
    default_layers,
    describe,
    encode_ranges,
    fold_batch_norms,
    load_model,
    lookup,
    rows,
)
from pipeline.networks.probe import discover_taps
from pipeline.networks.taps import matching
from pipeline.networks.weights import Hub, fetch, load_state
from pipeline.spec import Tap
from tests.counting.test_extractor import seen
from tests.support import tiny_network as tiny
from tests.support.builders import photo, write_photos
from tests.support.pickle_bomb import PickleBomb
from tests.support.reference_package import (
    ReferenceNetworks,
    observed_ranges,
    randomised,
    unset_network,
)

State = dict[str, torch.Tensor]
Weights = Callable[[str], str]

TOLERANCE = 1e-4
"""Largest difference from the reference's activations, of the largest one of the layer."""


@pytest.fixture(scope="module", autouse=True)
def _small_batches() -> Iterator[None]:
    """Uses two images a pass, which is four times as fast; no test here depends on it."""
    patch = pytest.MonkeyPatch()
    patch.setitem(MICRO_BATCH, "cpu", 2)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    """Returns a function that writes random weights for a name, once."""
    folder = tmp_path_factory.mktemp("weights")
    files: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in files:
            files[name] = str(folder / f"{len(files)}.pt")
            state = unset_network(name).state_dict()
            if "vgg" in name:  # most of its parameters, and no tap needs them
                state = {key: v for key, v in state.items() if not key.startswith("classifier")}
            torch.save(randomised(state), files[name])
        return files[name]

    yield of
    for file in files.values():
        Path(file).unlink()


@pytest.fixture
def nothing(tmp_path: Path) -> str:
    """Writes a file of which describing a network only takes the digest."""
    path = tmp_path / "nothing.pt"
    path.write_bytes(b"nothing")
    return str(path)


def inputs(network: Network, count: int = 2) -> NDArray[np.float32]:
    shape = (count, network.height, network.width, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def plain(network: Network, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Returns what the modules put out in plain torch: nothing folded, no Extractor."""
    model, found = load_model(network), {}
    modules = dict(model.named_modules())
    for notation in network.observed:

        def keep(module: Any, _: Any, output: torch.Tensor, notation: str = notation) -> None:
            found[notation] = rows(output, notation, len(output)).numpy().copy()

        modules[networks.parse(notation)[0]].register_forward_hook(keep)
    with torch.inference_mode():
        model(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    return [found[notation] for notation in network.observed]


def assert_alike(
    network: Network, ours: list[NDArray[np.float32]], expected: list[NDArray[np.float32]]
) -> None:
    for tap, a, b in zip(network.taps, ours, expected, strict=True):
        assert a.shape == b.shape == (len(a), tap.positions, tap.neurons), tap
        assert np.isfinite(b).all(), tap
        assert b.std() > 1e-6, tap
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max(), tap


# The reference's names


VIT12 = (*(f"block_{i}" for i in range(12)), "last_norm")
VIT24 = (*(f"block_{i}" for i in range(24)), "last_norm")
RESNET = tuple(f"layer{s}_{i}" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(n))
VGG = tuple(f"relu_{s}_{i + 1}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n))
REFERENCE: dict[str, tuple[tuple[str, ...], int, Tap, Tap]] = {
    "mugs_vit_small": (VIT12, 13 * 384, Tap("block_0", 384, 197), Tap("last_norm", 384, 197)),
    "mugs_vit_base": (VIT12, 9984, Tap("block_0", 768, 197), Tap("last_norm", 768, 197)),
    "mugs_vit_large": (VIT24, 25 * 1024, Tap("block_0", 1024, 197), Tap("last_norm", 1024, 197)),
    "dino_vit_small": (VIT12, 13 * 384, Tap("block_0", 384, 197), Tap("last_norm", 384, 197)),
    "dino_vit_base": (VIT12, 9984, Tap("block_0", 768, 197), Tap("last_norm", 768, 197)),
    "clip_im_vit_b16": (VIT12, 9984, Tap("block_0", 768, 197), Tap("last_norm", 768, 1)),
    "clip_im_vit_b32": (VIT12, 9984, Tap("block_0", 768, 50), Tap("last_norm", 768, 1)),
    "clip_im_vit_l14": (VIT24, 25600, Tap("block_0", 1024, 257), Tap("last_norm", 1024, 1)),
    "dino_resnet50": (RESNET, 15104, Tap("layer1_0", 256, 3136), Tap("layer4_2", 2048, 49)),
    "rand_resnet50": (RESNET, 15104, Tap("layer1_0", 256, 3136), Tap("layer4_2", 2048, 49)),
    "vgg16": (VGG, 4224, Tap("relu_1_1", 64, 50176), Tap("relu_5_3", 512, 196)),
    "inception": (
        ("block_0", "block_1", "block_2", "block_3"),
        64 + 192 + 768 + 2048,
        Tap("block_0", 64, 73 * 73),
        Tap("block_3", 2048, 1),
    ),
}


def test_every_network_name_of_the_reference_is_known() -> None:
    assert set(REFERENCE) == set(BUILT_IN) - {"efficientnet_lite0"}


@pytest.mark.parametrize("name", REFERENCE)
def test_layers_of_the_reference(name: str, nothing: str) -> None:
    layers, neurons, first, last = REFERENCE[name]
    network = describe(name, nothing)
    assert tuple(tap.name for tap in network.taps) == layers == default_layers(name)
    assert sum(tap.neurons for tap in network.taps) == neurons
    assert (network.taps[0], network.taps[-1]) == (first, last)
    assert len(network.observed) == len(layers)
    side = 299 if name == "inception" else 224
    assert (network.height, network.width) == (side, side)
    assert hash(network) == hash(pickle.loads(pickle.dumps(network)))
    assert len(pickle.dumps(network)) < 4000


def test_preprocessing_of_the_reference(nothing: str) -> None:
    assert describe("vgg16", nothing).mean == (0.485, 0.456, 0.406)
    assert describe("mugs_vit_base", nothing).std == (0.229, 0.224, 0.225)
    assert describe("clip_im_vit_b16", nothing).mean == (0.48145466, 0.4578275, 0.40821073)
    assert describe("inception", nothing).mean == (0.5, 0.5, 0.5)


def some_in_the_soak(small: list[str], large: list[str]) -> list[Any]:
    return [*small, *(pytest.param(name, marks=pytest.mark.soak) for name in large)]


@pytest.mark.parametrize(
    "name",
    some_in_the_soak(
        ["dino_vit_small"],
        ["mugs_vit_base", "mugs_vit_large", "clip_im_vit_b32", "clip_im_vit_l14"],
    ),
)
def test_networks_of_the_reference_run(name: str, weights: Weights) -> None:
    network = describe(name, weights(name))
    pixels = inputs(network)
    assert_alike(network, seen(Extractor(network), pixels), plain(network, pixels))


@pytest.mark.parametrize(
    "name",
    some_in_the_soak(
        ["mugs_vit_small", "inception", "rand_resnet50"],
        ["dino_vit_base", "clip_im_vit_b16", "vgg16"],
    ),
)
def test_networks_of_the_reference_give_the_same_activations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns about its own deprecated arguments
        reference = ReferenceNetworks(monkeypatch, tmp_path)
        model = getattr(reference, name)().eval()
    network = describe(name, str(reference.weights))
    pixels = inputs(network)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        if name == "rand_resnet50":  # its forward moves images to a GPU
            found = model.forward_backbone(images)[1]
        else:
            found = model.get_features(images)
    assert list(found) == [tap.name for tap in network.taps]
    if name == "clip_im_vit_b16":  # (1, C, B, 1): it takes the batch for tokens there
        found["last_norm"] = found["last_norm"].permute(2, 1, 0, 3)
    expected = [x.permute(0, 2, 3, 1).flatten(1, 2).numpy() for x in found.values()]
    assert_alike(network, seen(Extractor(network), pixels), expected)
    reference.weights.unlink()


# timm and torchvision


FAMILIES: list[tuple[str, int, Tap, Tap]] = [
    ("timm:vit_tiny_patch16_224", 13, Tap("blocks.0", 192, 197), Tap("norm", 192, 197)),
    ("timm:deit_tiny_distilled_patch16_224", 13, Tap("blocks.0", 192, 198), Tap("norm", 192, 198)),
    ("timm:beit_base_patch16_224", 13, Tap("blocks.0", 768, 197), Tap("fc_norm", 768, 1)),
    ("timm:eva02_tiny_patch14_224", 13, Tap("blocks.0", 192, 257), Tap("fc_norm", 192, 1)),
    ("timm:resnet18.a1_in1k", 8, Tap("layer1.0", 64, 3136), Tap("layer4.1", 512, 49)),
    ("timm:resnet18@96", 8, Tap("layer1.0", 64, 576), Tap("layer4.1", 512, 9)),
    (
        *("timm:convnext_atto", 12),
        *(Tap("stages.0.blocks.0", 40, 3136), Tap("stages.3.blocks.1", 320, 49)),
    ),
    (
        *("timm:swin_tiny_patch4_window7_224", 12),
        *(Tap("layers.0.blocks.0", 96, 3136), Tap("layers.3.blocks.1", 768, 49)),
    ),
    ("timm:efficientnet_b0", 18, Tap("bn1", 32, 12544), Tap("bn2", 1280, 49)),
    ("timm:vgg11_bn", 8, Tap("features.2", 64, 50176), Tap("features.27", 512, 196)),
    ("timm:inception_v3", 4, Tap("Pool1", 64, 5329), Tap("global_pool", 2048, 1)),
    (
        "timm:vit_base_patch14_dinov2.lvd142m@224",
        13,
        Tap("blocks.0", 768, 257),
        Tap("norm", 768, 257),
    ),
    ("timm:vit_small_patch14_reg4_dinov2@98", 13, Tap("blocks.0", 384, 54), Tap("norm", 384, 54)),
    ("torchvision:vgg16", 13, Tap("features.1", 64, 50176), Tap("features.29", 512, 196)),
    (
        *("torchvision:resnet50.IMAGENET1K_V2", 16),
        *(Tap("layer1.0", 256, 3136), Tap("layer4.2", 2048, 49)),
    ),
    (
        *("torchvision:vit_b_16", 13),
        *(Tap("encoder.layers.encoder_layer_0", 768, 197), Tap("encoder.ln", 768, 197)),
    ),
    ("torchvision:swin_t", 8, Tap("features.0", 96, 3136), Tap("features.7", 768, 49)),
    ("torchvision:convnext_tiny", 8, Tap("features.0", 96, 3136), Tap("features.7", 768, 49)),
    ("torchvision:inception_v3", 4, Tap("maxpool1", 64, 5329), Tap("avgpool", 2048, 1)),
    ("torchvision:mobilenet_v2", 19, Tap("features.0", 32, 12544), Tap("features.18", 1280, 49)),
]


@pytest.mark.parametrize(("name", "count", "first", "last"), FAMILIES, ids=lambda v: str(v)[:24])
def test_default_taps_follow_the_architecture(
    name: str, count: int, first: Tap, last: Tap, nothing: str
) -> None:
    network = describe(name, nothing)
    assert len(network.taps) == count
    assert (network.taps[0], network.taps[-1]) == (first, last)


@pytest.mark.parametrize(
    "name",
    some_in_the_soak(
        [
            *("timm:vit_tiny_patch16_224", "timm:resnet18", "timm:convnext_atto", "timm:test_vit2"),
            *("timm:efficientnet_b0", "torchvision:resnet18"),
            "timm:deit_tiny_distilled_patch16_224",
        ],
        [
            *("torchvision:swin_t", "torchvision:vgg11_bn", "torchvision:mobilenet_v2"),
            *("timm:resnet26d", "inception"),
        ],
    ),
)
def test_an_extractor_gives_the_activations_of_the_plain_network(
    name: str, weights: Weights
) -> None:
    network = describe(name, weights(name))
    pixels = inputs(network)
    extractor = Extractor(network)
    assert_alike(network, seen(extractor, pixels), plain(network, pixels))
    left = [m for m in extractor._model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert network.folded == extractor.numerics.folded == numerics(network, "cpu").folded
    assert not (network.folded and left)


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("efficientnet_lite0", True),
        ("inception", True),
        ("rand_resnet50", True),
        ("timm:resnet18", True),
        ("timm:seresnet50", True),
        ("timm:efficientnet_b0", True),
        ("torchvision:resnet18", True),
        ("torchvision:vgg11_bn", True),
        ("torchvision:inception_v3", True),
        ("vgg16", False),  # it has no norms
        ("dino_vit_small", False),
        ("timm:resnet26d", False),  # its stem's last norm is in another module
        ("timm:res2net50_26w_4s", False),
        ("timm:skresnet18", False),  # a ResNet of other blocks
        ("timm:densenet121", False),  # norms come before convolutions
        ("torchvision:densenet121", False),
        ("torchvision:mobilenet_v2", False),  # a family whose order is not known
    ],
)
def test_folding_only_where_the_order_is_known(name: str, folded: bool, nothing: str) -> None:
    assert describe(name, nothing).folded is folded


def test_a_tapped_convolution_is_not_folded(weights: Weights) -> None:
    name = "timm:resnet18"
    network = describe(name, weights(name), "layer1.0.conv*,layer1.0.bn2")
    assert not network.folded
    pixels = inputs(network)
    ours = seen(Extractor(network), pixels)
    assert_alike(network, ours, plain(network, pixels))
    norm = replace(describe(name, weights(name), "layer1.0.bn*"), folded=True)
    assert_alike(norm, seen(Extractor(norm), pixels), plain(norm, pixels))


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("efficientnet_lite0", "bn1.act"),
        ("timm:test_efficientnet", "bn1.drop,**.bn1.act"),
    ],
)
def test_a_part_of_a_norm_is_tapped_before_it_is_folded_away(
    name: str, taps: str, weights: Weights
) -> None:
    assert describe(name, weights(name)).folded
    network = describe(name, weights(name), taps)
    assert not network.folded
    pixels = inputs(network)
    assert_alike(network, seen(Extractor(network), pixels), plain(network, pixels))


def test_a_squeezed_norm_is_not_folded_across_what_lies_between() -> None:
    """Between a convolution and its norm there may only be modules that do nothing."""
    between = torch.nn.Sequential(
        torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU(), torch.nn.BatchNorm2d(3)
    )
    with pytest.raises(CorruptFile, match=r"follow no convolution: \['2'\]"):
        fold_batch_norms(between.eval())


def test_in_place_activations_after_a_tap_do_not_change_it(weights: Weights) -> None:
    name = "torchvision:resnet18"
    network = describe(name, weights(name), "bn1")
    (before,) = seen(Extractor(network), inputs(network))
    assert before.min() < 0
    features = describe(
        "torchvision:vgg11_bn", weights("torchvision:vgg11_bn"), "features.1,features.2"
    )
    norm, relu = seen(Extractor(features), inputs(features))
    np.testing.assert_array_equal(np.maximum(norm, 0), relu)
    assert norm.min() < 0


def test_heads_that_no_tap_needs_are_removed(weights: Weights) -> None:
    for name, parameters in (("torchvision:vgg11_bn", 10e6), ("inception", 22e6)):
        extractor = Extractor(describe(name, weights(name)))
        assert sum(p.numel() for p in extractor._model.parameters()) < parameters
    kept = describe("timm:resnet18", weights("timm:resnet18"), "layer4.1,fc")
    assert kept.taps == (Tap("layer4.1", 512, 49), Tap("fc", 1000, 1))
    assert kept.spare == ()
    assert_alike(kept, seen(Extractor(kept), inputs(kept)), plain(kept, inputs(kept)))


def test_torchvisions_inception_takes_its_own_means(nothing: str) -> None:
    """torchvision undoes the usual normalisation in the network, wherever it loads weights."""
    assert unset_network("torchvision:inception_v3").transform_input
    assert not unset_network("inception").transform_input
    assert describe("torchvision:inception_v3", nothing).mean == (0.485, 0.456, 0.406)


def test_a_size_resamples_position_embeddings(tmp_path: Path, weights: Weights) -> None:
    from timm.layers import resample_abs_pos_embed

    file = weights("timm:vit_tiny_patch16_224")
    state = torch.load(file, weights_only=True)
    embedding = resample_abs_pos_embed(state["pos_embed"], [7, 7], [14, 14], num_prefix_tokens=1)
    network = describe("timm:vit_tiny_patch16_224@112", file)
    model = load_model(network)
    torch.testing.assert_close(model.pos_embed.detach(), embedding)
    assert (network.height, network.taps[0].positions) == (112, 50)
    state = unset_network("torchvision:vit_b_16@32").state_dict()
    zeros = {key: torch.zeros(1).expand(value.shape) for key, value in state.items()}
    torch.save(zeros, tmp_path / "vit.pt")  # a small file
    larger = load_model(describe("torchvision:vit_b_16@64", str(tmp_path / "vit.pt")))
    assert larger.encoder.pos_embedding.shape == (1, 17, 768)


def test_taps_of_a_library_s_network_are_found_once_and_those_of_a_user_s_each_time(
    nothing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user may define the class anew in the same process."""
    runs: list[str] = []

    def spy(name: str, *rest: Any) -> Any:
        runs.append(name)
        return discover_taps(name, *rest)

    monkeypatch.setattr(lookup, "discover_taps", spy)
    lookup._lasting_taps.cache_clear()
    tiny.register()
    names = ("timm:test_vit", "timm:test_vit@32", tiny.NAME)
    found = [describe(name, nothing) for name in names]
    assert [describe(name, nothing) for name in names] == found
    assert runs == [*names, tiny.NAME]
    assert [network.taps[0].positions for network in found] == [101, 5, 16]
    assert describe(names[0], nothing, "norm").taps == (Tap("norm", 64, 101),)
    assert runs == [*names, tiny.NAME, names[0]]


# Taps that are asked for


NAMES = ("a", "a.b", "a.b.c", "a.bc", "norm", "blocks.0", "blocks.10")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("a", ["a"]),
        ("a.*", ["a.b", "a.bc"]),
        ("a.**", ["a.b", "a.b.c", "a.bc"]),
        ("**.b*", ["a.b", "a.bc"]),
        ("**", list(NAMES)),
        ("*", ["a", "norm"]),
        ("blocks.?", ["blocks.0"]),
        ("norm, a", ["a", "norm"]),
        ("norm[0],norm", ["norm", "norm[0]"]),
        ("a,a,*", ["a", "norm"]),
    ],
)
def test_patterns_match_module_names(patterns: str, found: list[str]) -> None:
    assert list(matching(patterns, NAMES)) == found


@pytest.mark.parametrize("patterns", ["", "a,", "nor", "a.d", "blocks.0[1]", "a.b.c.*", "[a]"])
def test_patterns_that_match_nothing_are_refused(patterns: str) -> None:
    with pytest.raises(UsageError, match=r"match no module; similar names: .*[a-z]"):
        matching(patterns, NAMES)


def test_errors_suggest_similar_module_names(nothing: str) -> None:
    with pytest.raises(
        UsageError, match=r"taps 'block.11' match no module; similar names: .*blocks\.11"
    ):
        describe("timm:vit_tiny_patch16_224", nothing, "block.11")
    with pytest.raises(UsageError, match=r"'block_4' match no module; similar names: .*block_3"):
        describe("inception", nothing, "block_4")


def test_a_tap_can_take_the_first_token_only(weights: Weights) -> None:
    name = "timm:vit_tiny_patch16_224"
    network = describe(name, weights(name), "norm,norm[0]")
    assert network.taps == (Tap("norm", 192, 197), Tap("norm[0]", 192, 1))
    every, first = seen(Extractor(network), inputs(network))
    np.testing.assert_array_equal(every[:, :1], first)
    with pytest.raises(UsageError, match=r"layer1.0\[0\] asks for a token"):
        describe("timm:resnet18", weights("timm:resnet18"), "layer1.0[0]")


def test_layers_of_the_reference_are_asked_for_by_its_names(nothing: str) -> None:
    assert describe("inception", nothing, "block_3").taps == (Tap("block_3", 2048, 1),)
    network = describe("clip_im_vit_b16", nothing, "block_1?,last_*,block_0[0]")
    assert [tap.name for tap in network.taps] == ["block_0[0]", "block_10", "block_11", "last_norm"]
    assert network.modules == ("blocks.0[0]", "blocks.10", "blocks.11", "norm[0]")
    assert [tap.positions for tap in network.taps] == [1, 197, 197, 1]


def test_channels_are_distinguished_from_positions(nothing: str) -> None:
    """Channels keep their number when the image grows; a network's layout alone says little."""
    inner = describe(
        "timm:convnext_tiny", nothing, "stages.0.blocks.0.mlp,stages.0.blocks.0.conv_dw"
    )
    assert inner.modules == ("stages.0.blocks.0.conv_dw", "stages.0.blocks.0.mlp[hwc]")
    assert {(tap.neurons, tap.positions) for tap in inner.taps} == {(96, 3136)}
    swin = describe("timm:swin_tiny_patch4_window7_224", nothing, "patch_embed.proj,norm")
    assert swin.modules == ("patch_embed.proj", "norm[hwc]")
    assert swin.taps == (Tap("patch_embed.proj", 96, 3136), Tap("norm", 768, 49))


def test_channels_last_are_read_row_by_row(weights: Weights) -> None:
    name = "timm:swin_tiny_patch4_window7_224"
    network = describe(name, weights(name), "norm")
    pixels = inputs(network)
    with torch.inference_mode():
        expected = load_model(network).forward_features(
            torch.from_numpy(pixels).permute(0, 3, 1, 2)
        )
    assert expected.shape == (2, 7, 7, 768)
    assert_alike(network, seen(Extractor(network), pixels), [expected.reshape(2, 49, 768).numpy()])


@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        ("torchvision:resnet50", "layer1.0.relu", r"layer1.0.relu \(ReLU\) runs 3 times"),
        (
            "timm:swin_tiny_patch4_window7_224",
            "**.attn.qkv",
            r"layers.0.blocks.0.attn.qkv returns shape",
        ),
        (
            "torchvision:vit_b_16",
            "**.self_attention",
            "encoder_layer_0.self_attention returns a value of type tup",
        ),
        (
            "torchvision:googlenet",
            None,
            "no rule says what to tap in a GoogLeNet.*`taps`.*maxpool1",
        ),
        (
            "timm:mvitv2_tiny",
            None,
            "no rule says what to tap in a MultiScaleVit, since module stages.0.blocks.0 returns a "
            "value of type tuple, not a tensor; name modules by `taps`, such as "
            "patch_embed,.* norm",
        ),
        (
            "timm:mvitv2_tiny",
            "stages.1.*.*",
            "type tuple, not a tensor; tap another module by `taps`",
        ),
        (
            "torchvision:inception_v3",
            "AuxLogits",
            r"AuxLogits \(InceptionAux\) does not run.*by `taps`",
        ),
    ],
)
def test_outputs_that_cannot_be_tapped_are_refused(
    name: str, taps: str | None, message: str, nothing: str
) -> None:
    with pytest.raises(UsageError, match=message):
        describe(name, nothing, taps)


@pytest.mark.parametrize(
    ("shape", "notation"), [((3, 4), "m"), ((2,), "m"), ((2, 3, 4, 5, 6), "m"), ((), "m")]
)
def test_other_shapes_are_refused(shape: tuple[int, ...], notation: str) -> None:
    with pytest.raises(UsageError, match="m returns shape"):
        rows(torch.zeros(shape), notation, 2)


def test_outputs_are_turned_into_rows() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    torch.testing.assert_close(rows(x, "m", 2)[1, 7], x[1, :, 1, 2])
    torch.testing.assert_close(rows(x, "m[hwc]", 2)[1, 7], x[1, 1, 3])
    assert rows(x[:, 0], "m", 2).shape == (2, 4, 5)
    torch.testing.assert_close(rows(x[:, 0], "m[0]", 2), x[:, 0, :1])
    torch.testing.assert_close(rows(x[:, 0, 0], "m", 2), x[:, 0, :1])


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "no extractor 'resnet18'; there are: efficientnet_lite0, mugs.*timm:NAME"),
        ("timm:", "no extractor 'timm:'"),
        ("keras:resnet50", "no extractor 'keras:resnet50'"),
        ("timm:resnet19", "timm has no model 'resnet19'; similar names: .*resnet1"),
        ("timm:resnet18.nope", r"Invalid pretrained tag \(nope\).*Its tags: .*a1_in1k"),
        ("timm:resnet18@big", "size 'big' is not a number of pixels; write resnet18@224"),
        ("timm:resnet18@0", "size '0'"),
        ("torchvision:vit_b_16@100", "does not run on images of 100 x 100: .*@SIZE"),
        ("timm:vit_tiny_patch16_224@100", "patches of 16 x 16, but its size 100 x 100 is not"),
        ("torchvision:resnet9", "torchvision has no model 'resnet9'; similar names: "),
        ("torchvision:resnet50.V9", "no weights V9; there are IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no model"),
        ("vgg16@64", "no extractor 'vgg16@64'"),
    ],
)
def test_unknown_network_names_are_refused(name: str, message: str, nothing: str) -> None:
    with pytest.raises(UsageError, match=message):
        describe(name, nothing)


# Weights


VIT = "timm:test_vit@32"


@pytest.fixture(scope="module")
def state() -> State:
    return randomised(unset_network(VIT).state_dict())


def loaded(path: Path, content: object, name: str = VIT, taps: str | None = None) -> Any:
    torch.save(content, path)
    return load_model(describe(name, str(path), taps))


def assert_holds(model: Any, state: State) -> None:
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


def test_safetensors_are_read(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.of-any-name"
    path.write_bytes(safetensors.torch.save(state))
    assert_holds(load_model(describe(VIT, str(path))), state)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:8] + b"{" * 40, whole[:9]):
        with pytest.raises(CorruptFile):
            load_state(damaged)


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        *((wrapper, "") for wrapper in ("state_dict", "model_state_dict", "model")),
        *(("teacher", prefix) for prefix in ("module.", "backbone.", "module.backbone.")),
        ("state_dict", "_orig_mod."),
    ],
)
def test_wrapped_weights_are_read(tmp_path: Path, state: State, wrapper: str, prefix: str) -> None:
    content = {wrapper: {prefix + key: v for key, v in state.items()}, "epoch": 7}
    assert_holds(loaded(tmp_path / "w.pt", content), state)


def test_weights_wrapped_twice_are_read(tmp_path: Path, state: State) -> None:
    assert_holds(loaded(tmp_path / "w.pt", {"model": {"state_dict": state, "step": 1}}), state)


def test_ambiguous_wrappers_are_refused(tmp_path: Path, state: State) -> None:
    with pytest.raises(CorruptFile, match="several state dicts, teacher and student"):
        loaded(tmp_path / "w.pt", {"teacher": state, "student": state})
    with pytest.raises(CorruptFile, match=r"w.pt: weights hold odd as type dict"):
        loaded(tmp_path / "w.pt", {"odd": state})


def test_a_prefix_of_only_some_weights_is_not_removed(tmp_path: Path, state: State) -> None:
    content = {f"module.{key}": value for key, value in state.items()}
    content["norm.bias"] = content.pop("module.norm.bias")
    with pytest.raises(CorruptFile, match=r"w.pt: weights do not fit .*unknown: module\."):
        loaded(tmp_path / "w.pt", content)


@pytest.mark.parametrize("name", [VIT, "timm:resnet18", "dino_vit_small"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_runs_nothing(tmp_path: Path, name: str, zipped: bool) -> None:
    planted = tmp_path / "planted"
    file = tmp_path / "bomb.pt"
    for content in ({"x": PickleBomb(planted)}, {"state_dict": {"x": PickleBomb(planted)}}):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CorruptFile, match="not a state dict of tensors"):
            load_model(describe(name, str(file)))
        assert not planted.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    """OpenAI publishes CLIP as such an archive, and it holds code."""
    file = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
    with pytest.raises(CorruptFile, match="TorchScript"):
        load_model(describe("clip_im_vit_b16", str(file)))


def test_wrong_keys_are_named(tmp_path: Path, state: State) -> None:
    missing = {key: value for key, value in state.items() if key != "blocks.3.attn.qkv.bias"}
    with pytest.raises(CorruptFile, match=r"1 missing: blocks\.3\.attn\.qkv\.bias$"):
        loaded(tmp_path / "w.pt", missing)
    with pytest.raises(CorruptFile, match=r"1 unknown: blocks\.6\.odd$"):
        loaded(tmp_path / "w.pt", state | {"blocks.6.odd": torch.zeros(1)})
    wrong = state | {"norm.bias": torch.zeros(7)}
    with pytest.raises(CorruptFile, match=r"norm\.bias of shape \(7,\) where \(64,\) belongs"):
        loaded(tmp_path / "w.pt", wrong)
    with pytest.raises(CorruptFile, match=r"78 missing: .*, …; 3 unknown: a, b, c$"):
        loaded(tmp_path / "w.pt", {key: torch.zeros(1) for key in "abc"})


@pytest.mark.parametrize("change", ["missing", "other classes", "more"])
def test_a_head_that_no_tap_needs_may_differ(tmp_path: Path, state: State, change: str) -> None:
    other = {key: value for key, value in state.items() if not key.startswith("head.")}
    if change == "other classes":
        other |= {"head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}
    elif change == "more":
        other |= {"head.mlp.weight": torch.zeros(7, 64)}
    model = loaded(tmp_path / "w.pt", other)
    assert isinstance(model.head, torch.nn.Identity)
    with pytest.raises(CorruptFile, match=r"head"):
        loaded(tmp_path / "w.pt", other, taps="norm,head")


def test_relation_blocks_of_mugs_are_dropped_and_others_are_not(tmp_path: Path) -> None:
    state = unset_network("mugs_vit_small").state_dict()
    extra = {"relation_blocks.0.norm1.weight": torch.zeros(384), "head.mlp.0.bias": torch.zeros(9)}
    loaded(tmp_path / "w.pt", {"state_dict": state | extra}, "mugs_vit_small")
    with pytest.raises(CorruptFile, match=r"unknown: relation_blocks"):
        loaded(tmp_path / "w.pt", {"state_dict": state | extra}, "dino_vit_small")


def test_old_batch_norms_without_a_counter_are_read(tmp_path: Path) -> None:
    state = randomised(unset_network("timm:resnet18").state_dict())
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    model = loaded(tmp_path / "w.pt", old, "timm:resnet18")
    torch.testing.assert_close(model.bn1.running_var, state["bn1.running_var"])


def test_old_names_of_densenet_are_read(tmp_path: Path) -> None:
    state = randomised(unset_network("torchvision:densenet121").state_dict())
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in key else key: v
        for key, v in state.items()
    }
    assert old.keys() != state.keys()
    assert_holds(loaded(tmp_path / "w.pt", old, "torchvision:densenet121"), state)


def test_weights_that_change_are_noticed(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "w.pt")
    network = describe(VIT, str(tmp_path / "w.pt"))
    torch.save(state | {"norm.bias": torch.ones(64)}, tmp_path / "w.pt")
    with pytest.raises(SpecMismatch, match=r"sha256 \w+ found, \w+ expected"):
        load_model(network)


def test_weights_are_checked_once_per_process(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Network] = []

    def load(network: Network) -> Any:
        loads.append(network)
        return load_model(network)

    monkeypatch.setattr(lookup, "load_model", load)
    torch.save(state, tmp_path / "w.pt")
    torch.save({"norm.bias": torch.zeros(7)}, tmp_path / "wrong.pt")
    (tmp_path / "empty").mkdir()
    place = Catalogue(str(tmp_path / "dnas"))

    def refused(weights: str, message: str, *names: str) -> None:
        common: dict[str, Any] = {"extractor": VIT, "weights": str(tmp_path / weights)}
        common |= {"ranges": str(tmp_path / "r.parquet")}
        asked = [Request(name, str(tmp_path / "empty"), **common) for name in names]
        with pytest.raises(VdnaError, match=message):
            build_datasets(place, asked, InProcess())

    network = describe(VIT, str(tmp_path / "w.pt"))
    taps = tuple((tap.name, tap.neurons) for tap in network.taps)
    total = sum(tap.neurons for tap in network.taps)
    some = Ranges(taps, np.zeros(total), np.ones(total))
    (tmp_path / "r.parquet").write_bytes(encode_ranges(some, network))
    refused("w.pt", "empty", "a", "b")
    refused("w.pt", "empty", "c")
    assert loads == [network]
    refused("wrong.pt", "weights do not fit", "a")
    refused("wrong.pt", "weights do not fit", "a")  # only a fit is remembered


# Pretrained weights


def answer(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LocalEntryNotFoundError("no way there"), TransientError),
        (ConnectionError("no way there"), TransientError),
        (OSError("no way there"), TransientError),
        (RepositoryNotFoundError("no way there", response=answer(404)), StorageError),
        (HfHubHTTPError("no way there", response=answer(403)), StorageError),
        (HfHubHTTPError("no way there", response=answer(503)), TransientError),
        (EntryNotFoundError("no way there"), StorageError),
    ],
)
def test_errors_of_the_hub_name_another_way_to_get_weights(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    for name, place in (
        ("mugs_vit_base", r"bramtoula/visual-dna-models \(Mugs/mugs_vit_base/weights.pth\)"),
        ("timm:vit_tiny_patch16_224", "timm/vit_tiny_patch16_224.augreg"),
        ("clip_im_vit_b16", "timm/vit_base_patch16_clip_224.openai"),
    ):
        with pytest.raises(StorageError, match=f"{place}.*no way there.*by `weights`") as caught:
            describe(name)
        assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (URLError("no way there"), TransientError),
        (HTTPError("https://x", 503, "no way there", {}, None), TransientError),
        (HTTPError("https://x", 404, "no way there", {}, None), StorageError),
        (RuntimeError("invalid hash value, no way there"), TransientError),
    ],
)
def test_errors_of_a_web_site_name_another_way_to_get_weights(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, **_: object) -> str:
        raise error

    monkeypatch.setattr("timm.models._hub.download_cached_file", fail)
    for name, place in (
        ("inception", "pt_inception-2015-12-05-6726825d.pth"),
        ("dino_vit_base", "dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain"),
        ("torchvision:resnet18", "download.pytorch.org/models/resnet18-"),
    ):
        with pytest.raises(StorageError, match=f"{place}.*no way there.*by `weights`") as caught:
            describe(name)
        assert type(caught.value) is kind


def test_a_network_without_weights_says_so() -> None:
    with pytest.raises(UsageError, match="timm:mixer_s32_224 has no weights of its own"):
        describe("timm:mixer_s32_224")


def test_pretrained_weights_come_from_the_hub(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the hub's safetensors, or else its pickle of tensors; the digest is of that file."""
    name = "timm:test_vit.r160_in1k@32"
    asked: list[str] = []

    def give(repo_id: str, filename: str, revision: str | None) -> str:
        asked.append(f"{repo_id} {filename} {revision}")
        if filename == "model.safetensors":
            raise EntryNotFoundError("not here")
        torch.save(state, tmp_path / filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    network = describe(name)
    repo = "timm/test_vit.r160_in1k"
    assert asked == [f"{repo} model.safetensors None", f"{repo} pytorch_model.bin None"]
    assert network.weights_uri is None
    assert_holds(load_model(network), state)
    path = fetch(Hub("a/b@v2", ("x.bin",)), name)
    assert (asked[-1], path) == ("a/b x.bin v2", storage.canonical(str(tmp_path / "x.bin")))


def test_pretrained_weights_come_from_the_web(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = randomised(unset_network("torchvision:mobilenet_v2").state_dict())
    torch.save(state, tmp_path / "w.pth")
    asked: list[str] = []

    def give(url: str, progress: bool) -> str:
        asked.append(url)
        return str(tmp_path / "w.pth")

    monkeypatch.setattr("timm.models._hub.download_cached_file", give)
    assert_holds(load_model(describe("torchvision:mobilenet_v2.IMAGENET1K_V1")), state)
    assert set(asked) == {"https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"}


# From images to DNAs


def test_a_dataset_is_built_with_a_network_from_timm(tmp_path: Path, weights: Weights) -> None:
    name, taps = "timm:test_resnet@64", "layer3.*,layer4.0"
    network = describe(name, weights("timm:test_resnet"), taps)
    extractor = Extractor(network)
    measured = observed_ranges(extractor, inputs(network))
    file = tmp_path / "ranges.parquet"
    file.write_bytes(encode_ranges(measured, network))
    write_photos(tmp_path / "photos", 5)
    options: dict[str, Any] = {
        "extractor": name,
        "weights": weights("timm:test_resnet"),
        "taps": taps,
        "ranges": str(file),
        "bins": 20,
        "exif": "ignore",
        "crop": "center",
    }
    catalogue = Catalogue(str(tmp_path / "dnas"))
    request = Request("photos", str(tmp_path / "photos"), **options)
    (result,) = build_datasets(catalogue, [request], InProcess())
    dna = catalogue.load("photos")
    assert (result.version.images, dna.layers) == (5, ("layer3.0", "layer4.0"))
    assert (dna.spec.extractor, dna.spec.preprocess.height) == (name, 64)
    assert (dna.spec.preprocess.exif, dna.spec.preprocess.crop) == ("ignore", "center")
    again = make_dna(tmp_path / "photos", **options)
    assert again.spec.digest == dna.spec.digest
    np.testing.assert_array_equal(again.counts, dna.counts)
    whole = make_dna(tmp_path / "photos", **(options | {"crop": "none"}))
    assert whole.spec.differences(dna.spec) == {"preprocess.crop": ("none", "center")}
    assert not np.array_equal(whole.counts, dna.counts)
    rough = make_dna(tmp_path / "photos", **(options | {"precision": "bf16"}))
    assert rough.spec.bf16_numerics == numerics(network, "cpu", precision="bf16").in_bf16


@pytest.mark.parametrize(
    ("field", "value"), [("crop", "left"), ("exif", "maybe"), ("alpha", "grey"), ("jpeg", "half")]
)
def test_rules_that_are_unknown_are_refused(field: str, value: str, nothing: str) -> None:
    network = describe("inception", nothing)
    wrong: dict[str, Any] = {field: value}
    with pytest.raises(UsageError, match=f"{field} is '{value}'; choose"):
        make_spec(Request("a", "b", **wrong), network, "00", "cpu")


def test_exif_applies_to_images_in_memory(weights: Weights, tmp_path: Path) -> None:
    name = "timm:test_resnet@64"
    network = describe(name, weights("timm:test_resnet"), "layer1.0")
    measured = observed_ranges(Extractor(network), inputs(network))
    (tmp_path / "r.parquet").write_bytes(encode_ranges(measured, network))
    picture = photo(0)
    picture.getexif()[0x0112] = 6

    def dna(exif: Any) -> NDArray[np.int64]:
        return make_dna(
            [picture],
            extractor=name,
            weights=weights("timm:test_resnet"),
            taps="layer1.0",
            ranges=str(tmp_path / "r.parquet"),
            exif=exif,
        ).counts

    assert not np.array_equal(dna("apply"), dna("ignore"))


def test_timm_names_are_looked_up_with_their_tag(nothing: str) -> None:
    """Two sets of weights of one architecture may differ in mean and size."""
    openai = describe("timm:vit_base_patch16_clip_quickgelu_224.openai", nothing)
    assert openai.mean == describe("clip_im_vit_b16", nothing).mean
    assert timm.is_model("vit_base_patch16_clip_quickgelu_224")
    assert describe("timm:vit_base_patch16_224.dino", nothing).mean == (0.485, 0.456, 0.406)
    assert describe("timm:vit_base_patch16_224.augreg_in1k", nothing).mean == (0.5, 0.5, 0.5)
    assert describe("timm:vit_large_patch14_dinov2.lvd142m@224", nothing, "norm[0]").taps == (
        Tap("norm[0]", 1024, 1),
    )
