"""Builds EfficientNet-lite0 in torch alone: importing timm takes longer than counting 100 images.

>>> EfficientNetLite0()(torch.zeros(1, 3, 224, 224)).shape       # doctest: +SKIP
torch.Size([1, 1000])

Its modules, their names and its numbers to the last bit are those of timm's `tf_efficientnet_lite0`
(Apache-2.0, https://github.com/huggingface/pytorch-image-models), which this follows. A test holds
them side by side.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LITE0_STAGES = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)
"""The blocks of each stage, their channels, the side of their kernels, the stride of the first, and
by how much a block expands its channels."""

STEM, HEAD, CLASSES = 32, 1280, 1000

EPSILON = 1e-3
"""What the norms add to variances, as TensorFlow does."""


class SamePaddedConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME" does: more after the image than before it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Pads and convolves.

        Args:
            input: (images, channels, height, width).

        Returns:
            (images, channels, height / stride, width / stride), both rounded up.
        """
        pads: list[int] = []
        for side, kernel, stride in zip(
            input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            lacking = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [lacking // 2, lacking - lacking // 2]
        padded = functional.pad(input, pads)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


def _conv(inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(inputs, outputs, side, 1, side // 2, groups=groups, bias=False)
    return SamePaddedConv(inputs, outputs, side, stride, groups=groups, bias=False)


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm and the activation after it."""

    def __init__(self, channels: int, *, activated: bool = True) -> None:
        super().__init__(channels, eps=EPSILON)
        self.act = nn.ReLU6(inplace=True) if activated else nn.Identity()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises, and lets the activation follow."""
        activated: torch.Tensor = self.act(super().forward(input))
        return activated


class SeparableBlock(nn.Module):
    """The block of the first stage: a convolution of each channel, then one of all channels."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.conv_dw = _conv(inputs, inputs, side, groups=inputs)
        self.bn1 = ActivatedNorm(inputs)
        self.conv_pw = _conv(inputs, outputs)
        self.bn2 = ActivatedNorm(outputs, activated=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        out: torch.Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return out


class InvertedBlock(nn.Module):
    """The block of the other stages: it expands the channels, and adds its input if it can."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.conv_pw = _conv(inputs, wide)
        self.bn1 = ActivatedNorm(wide)
        self.conv_dw = _conv(wide, wide, side, stride, groups=wide)
        self.bn2 = ActivatedNorm(wide)
        self.conv_pwl = _conv(wide, outputs)
        self.bn3 = ActivatedNorm(outputs, activated=False)
        self.has_skip = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        wide = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        out: torch.Tensor = self.bn3(self.conv_pwl(wide))
        return out + x if self.has_skip else out


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _conv(3, STEM, 3, stride=2)
        self.bn1 = ActivatedNorm(STEM)
        stages, inputs = [], STEM
        for number, outputs, side, stride, expansion in LITE0_STAGES:
            blocks: list[nn.Module] = []
            for at in range(number):
                if expansion == 1:
                    blocks.append(SeparableBlock(inputs, outputs, side))
                else:
                    own = stride if at == 0 else 1
                    blocks.append(InvertedBlock(inputs, outputs, side, own, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _conv(inputs, HEAD)
        self.bn2 = ActivatedNorm(HEAD)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the logits.

        Args:
            x: Normalised images, (images, 3, height, width).

        Returns:
            (images, 1000).
        """
        features = self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(x)))))
        logits: torch.Tensor = self.classifier(self.global_pool(features))
        return logits
