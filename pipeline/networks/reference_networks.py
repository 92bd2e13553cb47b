"""Describes the networks of the reference, vdna 0.1.1, built by timm and torchvision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.networks.families import build_torchvision, timm_filter
from pipeline.networks.network import Architecture, Triple
from pipeline.networks.weights import Hub, Source, Web

if TYPE_CHECKING:
    import torch


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


def _vit(
    model: str,
    source: Source,
    depth: int = 12,
    rule: Rule = IMAGENET_RULE,
    norm: str = "norm",
    ignored: tuple[str, ...] = (),
) -> Architecture:
    """Returns a ViT of which all tokens are counted, after every block and the last norm."""

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
        convert=timm_filter,
    )


def mugs_vit(size: str, depth: int = 12) -> Architecture:
    """Describes a ViT of Mugs; its file also holds blocks that only the training used.

    Args:
        size: `small`, `base` or `large`.
        depth: How many blocks it has.

    Returns:
        The architecture.
    """
    source = Hub(REFERENCE_REPO, (f"Mugs/mugs_vit_{size}/weights.pth",))
    return _vit(f"vit_{size}_patch16_224", source, depth, ignored=("relation_blocks",))


def dino_vit(size: str, file: str) -> Architecture:
    """Describes a ViT of DINO.

    Args:
        size: `small` or `base`.
        file: The name of the file of weights, without its ending.

    Returns:
        The architecture.
    """
    return _vit(f"vit_{size}_patch16_224", Web(f"{DINO_URL}/{file}/{file}.pth"))


def clip_vit(size: str, depth: int = 12) -> Architecture:
    """Describes the image tower of a CLIP.

    As in the reference, only the class token of the last norm is counted. The weights are timm's
    copy of OpenAI's. OpenAI's own file is a TorchScript archive, which is code, and is not read.

    Args:
        size: Size and patch in timm's spelling.
        depth: How many blocks it has.

    Returns:
        The architecture.
    """
    source = Hub(f"timm/vit_{size}_clip_224.openai", ("model.safetensors", "pytorch_model.bin"))
    return _vit(f"vit_{size}_clip_quickgelu_224", source, depth, CLIP_RULE, norm="norm[0]")


def reference_resnet50(source: Source) -> Architecture:
    """Describes torchvision's ResNet-50.

    The reference pads by 1 and then by 2 in the first convolution, which together is the 3 of
    torchvision.

    Args:
        source: Where its weights are.

    Returns:
        The architecture.
    """

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


def reference_vgg16() -> Architecture:
    """Describes torchvision's VGG-16, observed after each ReLU of its convolutions.

    Returns:
        The architecture.
    """
    relus = [f"{stage}_{i + 1}" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
    places = (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29)
    return Architecture(
        functools.partial(build_torchvision, "vgg16", 224),
        *(224, 224, *IMAGENET_RULE),
        Web(VGG16_URL),
        heads=("classifier",),
        layers=tuple(
            (f"relu_{relu}", f"features.{place}") for relu, place in zip(relus, places, strict=True)
        ),
    )


def reference_inception() -> Architecture:
    """Describes the Inception v3 of FID.

    Returns:
        The architecture.
    """
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
    """Returns torchvision's Inception v3, patched as FID's weights need it."""
    # The patches follow pytorch-fid (Maximilian Seitzer, 2020, Apache License 2.0): its classes
    # FIDInceptionA, FIDInceptionC, FIDInceptionE_1 and FIDInceptionE_2, which change the forward
    # passes of torchvision (BSD 3-Clause). The TensorFlow network that the weights come from leaves
    # padding out of its average pools, and takes the maximum in the last block.
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
