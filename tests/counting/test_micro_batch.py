"""Tests how many images a network sees at a time, and where that is stated."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline import make_dna
from pipeline.building import Request, make_spec
from pipeline.counting import Extractor, Recipe, numerics, worker
from pipeline.counting.micro_batch import (
    FLOAT_BYTES,
    LEAST_BATCH,
    MEMORY_SHARE,
    MICRO_BATCH,
    MOST_BATCH,
    bytes_per_image,
    of_memory,
)
from pipeline.networks import Network, describe
from pipeline.networks.lookup import architecture
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

GIB = 2**30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@given(memory=st.integers(0, 2**50), per_image=st.integers(1, 2**40))
def test_a_micro_batch_fits_its_share_of_memory_and_the_next_does_not(
    memory: int, per_image: int
) -> None:
    found = of_memory(memory, per_image)
    assert LEAST_BATCH <= found <= MOST_BATCH
    assert found.bit_count() == 1
    assert found == LEAST_BATCH or found * per_image * MEMORY_SHARE <= memory
    assert found == MOST_BATCH or 2 * found * per_image * MEMORY_SHARE > memory


def test_half_the_memory_takes_half_the_images() -> None:
    each = 40 * 2**20
    sizes = [of_memory(gib * GIB, each) for gib in (80, 40, 20, 10, 5, 2, 1)]
    assert sizes == [128, 128, 128, 64, 32, 8, 8]
    assert of_memory(int(15.7 * GIB), each) == of_memory(16 * GIB - 1, each)


class Live(TorchDispatchMode):
    """Adds up the bytes of all tensors that exist at a time, but for those that it is told of."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def most_held(network: Network, images: int) -> float:
    """Returns the bytes that a pass holds of an image, with every tap kept as a recording does."""
    extractor = Extractor(network, micro_batch=images)
    model = extractor._model
    kept: list[torch.Tensor] = []
    with torch.no_grad(), Live([*model.parameters(), *model.buffers()]) as live:
        extractor._run(extractor._blank(), lambda index, x: kept.append(x.clone()))
    return live.most / images


@pytest.mark.soak  # watching every operation imports torch's compiler, which takes seconds
@pytest.mark.parametrize("kind", ["efficientnet", "vit", "resnet", "convnext"])
def test_no_more_memory_is_taken_than_estimated(kind: str, tmp_path: Path) -> None:
    name = f"timm:test_{kind}"
    weights = tmp_path / "weights.pt"
    torch.save(architecture(name).build(None).state_dict(), weights)
    network = describe(name, str(weights))
    taps = sum(tap.neurons * tap.positions for tap in network.taps)
    assert FLOAT_BYTES * taps < most_held(network, 2) < bytes_per_image(network)


def test_the_numerics_state_it(place: tiny.Place) -> None:
    network = place.network
    assert [numerics(network, kind).micro_batch for kind in MICRO_BATCH] == [8, 64]
    assert numerics(network, "cuda", micro_batch=16).micro_batch == 16
    extractor = Extractor(network, micro_batch=3)
    assert extractor.numerics == numerics(network, "cpu", micro_batch=3)
    assert extractor.numerics != Extractor(network).numerics


@pytest.mark.parametrize("on_device", [False, True])
def test_a_build_takes_what_is_asked_for(place: tiny.Place, on_device: bool) -> None:
    extractor = Extractor(place.network, micro_batch=3, on_device=on_device)
    with pytest.raises(ValueError, match="4 images do not make a micro-batch of 3"):
        extractor.observe(torch.zeros((4, tiny.SIDE, tiny.SIDE, 3)), lambda index, x: None)


def test_a_dna_in_memory_has_the_numerics_that_were_asked_for(
    place: tiny.Place, tmp_path: Path
) -> None:
    write_photos(tmp_path, 4)
    options: dict[str, Any] = place.options
    three, usual = (make_dna(tmp_path, micro_batch=n, threads=1, **options) for n in (3, None))
    assert [dna.numerics[0][0].micro_batch for dna in (three, usual)] == [3, 8]
    assert three.spec == usual.spec  # comparable, as only rounding differs
    rough = make_dna(tmp_path, micro_batch=3, precision="bf16", threads=1, **options)
    assert rough.spec.bf16_numerics == rough.numerics[0][0].in_bf16
    assert rough.numerics[0][0].micro_batch == 3


def recipe(place: tiny.Place, precision: str = "fp32", **resources: Any) -> Recipe:
    made = Resources(**resources)
    kind = "cuda" if made.gpus_per_worker else "cpu"
    request = Request("x", "x", precision=precision, **place.options)  # type: ignore[arg-type]  # fields by name
    spec = make_spec(request, place.network, "00", kind, made.micro_batch)
    return Recipe(spec, place.network, "ranges", made)


def test_a_worker_chooses_by_its_share_of_the_gpu(
    place: tiny.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = bytes_per_image(place.network) * MEMORY_SHARE
    gpu = SimpleNamespace(total_memory=64 * each)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)

    def chosen(recipe: Recipe) -> int:
        return worker._batch_of(recipe)[0]

    assert chosen(recipe(place, gpus_per_worker=1)) == 64
    assert chosen(recipe(place, gpus_per_worker=2)) == 64  # one of them computes
    assert chosen(recipe(place, gpus_per_worker=0.25)) == 16
    assert chosen(recipe(place, gpus_per_worker=1, micro_batch=5)) == 5
    assert chosen(recipe(place)) == MICRO_BATCH["cpu"]
    gpu.total_memory = 16 * each
    assert chosen(recipe(place, gpus_per_worker=1)) == 16
    # What the spec states, every worker takes; and a ranking mixes no numerics.
    stated = recipe(place, "bf16", gpus_per_worker=1)
    assert chosen(stated) == MICRO_BATCH["cuda"]
    assert chosen(recipe(place, "bf16", gpus_per_worker=1, micro_batch=32)) == 32
    rebuilt = replace(
        recipe(place, "bf16", gpus_per_worker=1, micro_batch=32), resources=Resources()
    )
    assert chosen(rebuilt) == 32
    ranks: Any = object()
    ranking = replace(recipe(place, gpus_per_worker=1), task=ranks)
    assert chosen(ranking) == MICRO_BATCH["cuda"]
    adapting = [recipe(place, gpus_per_worker=1), recipe(place, gpus_per_worker=1, micro_batch=5)]
    assert [worker._batch_of(one)[1] for one in adapting] == [True, True]
    fixed = [stated, rebuilt, ranking, recipe(place)]
    assert not any(worker._batch_of(one)[1] for one in fixed)
