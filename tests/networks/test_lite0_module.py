"""Tests the embedded network's own modules beside those of timm, which they follow."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch

from pipeline.networks.lite0_module import EfficientNetLite0

SHAPES = [(2, 3, 224, 224), (1, 3, 97, 65), (1, 3, 64, 33)]


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """Makes both networks, with the same random weights and statistics."""
    torch.manual_seed(0)
    own = EfficientNetLite0().eval()
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for name, values in theirs.state_dict().items():
        if name.endswith("running_var"):
            values.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "bias")):
            values.normal_(0, 0.1)
    own.load_state_dict(theirs.state_dict())
    return own, theirs


def test_parameters_have_the_names_and_the_order_of_timm(both: tuple[Any, Any]) -> None:
    own, theirs = (model.state_dict() for model in both)
    assert list(own) == list(theirs)
    assert [values.shape for values in own.values()] == [v.shape for v in theirs.values()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_every_tap_is_that_of_timm_to_the_last_bit(
    both: tuple[Any, Any], shape: tuple[int, ...], order: torch.memory_format
) -> None:
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    seen: list[dict[str, torch.Tensor]] = []
    for model in both:
        found: dict[str, torch.Tensor] = {}
        named = dict(model.named_modules())
        tapped = ["bn1", "bn2", "classifier", *(n for n in named if n.startswith("blocks."))]
        hooks = [
            named[name].register_forward_hook(
                lambda _, __, out, name=name, found=found: found.update({name: out.clone()})
            )
            for name in tapped
        ]
        with torch.no_grad():
            model(pixels.to(memory_format=order))
        for hook in hooks:
            hook.remove()
        seen.append(found)
    own, theirs = seen
    assert len(own) > 100
    for name, values in own.items():
        assert torch.equal(values, theirs[name]), name


def test_the_embedded_network_is_loaded_without_timm() -> None:
    """Its import takes seconds, of every worker."""
    code = (
        "import sys; from pipeline.counting import Extractor; from pipeline.networks import *;"
        "Extractor(describe('efficientnet_lite0'));"
        "assert not {'timm', 'torchvision'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
