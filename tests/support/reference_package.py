"""Makes networks with random weights: ours, and the reference's classes on the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.counting import Extractor
from pipeline.dna import Ranges
from pipeline.networks.registry import architecture
from pipeline.networks.weights import without_random_values

State = dict[str, torch.Tensor]


def unset_network(name: str) -> Any:
    """Builds one of our networks, whose parameters hold whatever was in memory."""
    with without_random_values():
        return architecture(name).build(None)


def randomised(state: State, seed: int = 0) -> State:
    """Makes weights under which every part of a network matters, so that no branch is zero."""
    make = torch.Generator().manual_seed(seed)
    made: State = {}
    for key, value in state.items():
        floats = value.is_floating_point()
        noise = torch.randn(value.shape, generator=make) if floats else value
        if key.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif value.ndim >= 2 and key.endswith("weight"):
            noise = noise * (1.5 / value[0].numel()) ** 0.5
        elif value.is_floating_point():
            scale = 0.3 if key.endswith("weight") else 0.1
            noise = noise * scale + (0.6 if key.endswith("weight") else 0)
        made[key] = noise
    return made


def observed_ranges(extractor: Extractor, pixels: NDArray[np.float32]) -> Ranges:
    """Measures the extremes of every neuron over up to a micro-batch of prepared images."""
    low, high = {}, {}

    def visit(index: int, x: torch.Tensor) -> None:
        low[index], high[index] = x.numpy().min(axis=(0, 1)), x.numpy().max(axis=(0, 1))

    extractor.observe(pixels, visit)
    taps = extractor.network.taps
    ends = (np.concatenate([end[i] for i in range(len(taps))]) for end in (low, high))
    return Ranges(
        tuple((tap.name, tap.neurons) for tap in taps), *(end.astype(np.float64) for end in ends)
    )


class ReferenceNetworks:
    """Builds the networks of the reference package, their weights taken from local files."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        from vdna.utils.settings import ExtractionSettings

        self.patch, self.folder = patch, folder
        self.settings = ExtractionSettings(device="cpu")
        self.weights = folder / "weights.pth"
        self.ranges = folder / "activation_ranges.json"
        self.ranges.write_text(json.dumps({"mins_per_neuron": {}, "maxs_per_neuron": {}}))

    def hub(self, repo_id: str, filename: str) -> str:
        return str(self.weights if filename.endswith(".pth") else self.ranges)

    def save(self, state: object) -> str:
        torch.save(state, self.weights)
        return str(self.weights)

    def load(self, *_: object, **__: object) -> Any:
        return torch.load(self.weights, weights_only=True)

    def mugs_vit_small(self) -> Any:
        from vdna.networks import mugs_vit

        self.patch.setattr(mugs_vit, "hf_hub_download", self.hub)
        state = mugs_vit.vit_small(num_relation_blocks=1).state_dict()
        self.save({"state_dict": randomised(state)})
        return mugs_vit.MugsViTFeatExtractor("small", self.settings)

    def dino_vit_base(self) -> Any:
        from vdna.networks import dino_vit

        self.patch.setattr(dino_vit, "hf_hub_download", self.hub)
        self.patch.setattr(dino_vit, "load_state_dict_from_url", self.load)
        self.save(randomised(dino_vit.vit_base().state_dict()))
        return dino_vit.DINOViTFeatExtractor("base", self.settings)

    def inception(self) -> Any:
        from vdna.networks import get_feature_extractor, inception_pytorch

        self.patch.setattr(inception_pytorch, "hf_hub_download", self.hub)
        self.patch.setattr(inception_pytorch, "load_state_dict_from_url", self.load)
        self.save(randomised(unset_network("inception").state_dict()))
        return get_feature_extractor("inception", self.settings)

    def vgg16(self) -> Any:
        from torchvision import models
        from vdna.networks import vgg16

        model = models.vgg16(init_weights=False)
        features = {f"features.{k}": v for k, v in model.features.state_dict().items()}
        self.save(randomised(features))
        model.load_state_dict(self.load(), strict=False)
        self.patch.setattr(vgg16, "hf_hub_download", self.hub)
        self.patch.setattr(vgg16.models, "vgg16", lambda **_: model)
        return vgg16.VGG16FeatExtractor(self.settings)

    def rand_resnet50(self) -> Any:
        from vdna.networks import random_resnet50

        self.patch.setattr(random_resnet50, "hf_hub_download", self.hub)
        state = unset_network("rand_resnet50").state_dict()
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        self.save({"model_state_dict": randomised(state)})
        return random_resnet50.resnet50_feat_extractor(self.settings)

    def clip_im_vit_b16(self) -> Any:
        from vdna.networks import clip

        # The text tower is as small as can be; the image tower is the real one.
        model = clip.CLIP(512, 224, 12, 768, 16, 4, 8, 64, 1, 1)
        # What the reference holds in half precision is to be the same there.
        state = {k: v.half().float() for k, v in randomised(model.state_dict()).items()}
        model.load_state_dict(state)
        self.save(state)
        self.patch.setattr(clip, "hf_hub_download", self.hub)
        self.patch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: model)
        encoder = clip.CLIPImEncoder("vit_b16", self.settings)
        encoder.model.float()
        return encoder
