"""Tests that a job's driver chooses what runs the network, and that a dataset stays with it."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import VisualDNA, storage
from pipeline.building import Request, build_datasets, calibrate, make_dna
from pipeline.building.calibration import CalibrationRequest
from pipeline.catalogue import Catalogue, Version, recount
from pipeline.counting import (
    ShardJob,
    ShardReceipt,
    Worker,
    backends,
    choose_backend,
    counted_by,
    openvino_forward,
)
from pipeline.counting.backends import ChosenBackend
from pipeline.engine import InProcess
from pipeline.errors import UsageError
from pipeline.events import Event, Said
from pipeline.explaining import RankRequest, rank
from pipeline.networks import Network, describe
from pipeline.networks.lookup import discover_taps
from pipeline.networks.registry import architecture, register_network
from pipeline.spec import Backend, Precision, Resources, backend_of
from tests.support import tiny_network as tiny
from tests.support.builders import NUMERICS
from tests.support.tiny_network import Picture

NAME = "tiny_depthwise"
BY_OPENVINO = replace(NUMERICS, versions=(("numpy", "2"), ("openvino", "2026"), ("torch", "2.6")))
IS_TORCH = ChosenBackend("torch")
IS_OPENVINO = ChosenBackend("openvino")


class TinyDepthwise(torch.nn.Module):
    def __init__(self, groups: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(channels, 6, 3, stride=2, groups=groups)
        self.b = torch.nn.Conv2d(6, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class TinyPlain(TinyDepthwise):
    def __init__(self) -> None:
        super().__init__(groups=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns where the network is kept once it was converted."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a machine with OpenVINO, whose cache the tests share unless they take another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(backends, "openvino_is_installed", lambda: True)
    backends._conversion_problem.cache_clear()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns fields of a request for a network with depthwise convolutions."""
    folder = tmp_path_factory.mktemp("network")
    weights, ranges = folder / "weights.pt", folder / "ranges.parquet"
    torch.manual_seed(5)
    torch.save(TinyDepthwise().state_dict(), weights)
    register_network(NAME, TinyDepthwise, preprocess=tiny.RULE, taps="a,b")
    source = write(folder / "images", 4)
    named = {"extractor": NAME, "weights": str(weights)}
    calibrate(CalibrationRequest([str(source)], str(ranges), **named), InProcess())
    return named | {"ranges": str(ranges), "bins": 50}


@pytest.fixture
def network(options: dict[str, Any]) -> Network:
    return describe(NAME, options["weights"])


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "openvino_is_installed", lambda: False)


def write(folder: Path, images: int, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in range(first, first + images):
        (folder / f"{seed:03}.png").write_bytes(Picture("good", seed).data)
    return folder


class NotingEngine(InProcess):
    """Notes what is to run the network."""

    def __init__(self) -> None:
        super().__init__()
        self.backends: set[Backend] = set()

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        self.backends |= {job.recipe.backend for job, _ in work}
        return super().run_shards(work)


class Place:
    """A catalogue and a folder of images, and what is said of builds."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.catalogue = Catalogue(str(folder / "dnas"))
        self.images = write(folder / "images", 4)
        self.said: list[str] = []
        self._options = options

    def build(self, *others: Request, backend: Any = "auto") -> Version:
        """Builds the dataset of the folder, and other ones beside it."""
        self.said.clear()
        requests = [Request("a", str(self.images), **self._options), *others]
        build_datasets(
            self.catalogue, requests, InProcess(), Resources(backend=backend), self.listen
        )
        return self.catalogue.find("a")

    def recounted(self, backend: Any = "auto") -> tuple[set[Backend], list[str]]:
        """Counts all shards again; returns by what, and what was found of each."""
        engine = NotingEngine()
        found = recount(
            self.catalogue,
            engine=engine,
            sample=None,
            weights=self._options["weights"],
            resources=Resources(workers=0, threads=1, backend=backend),
            progress=self.listen,
        )
        findings = list(found)
        assert all(finding.ok for finding in findings), findings
        details = [one.detail for one in findings if one.check.startswith("shard")]
        return engine.backends, details

    def listen(self, event: Event) -> None:
        told = event.message if isinstance(event, Said) else "listing"
        if "listing" not in told and " to read, about " not in told:
            self.said.append(told)


@pytest.fixture
def place(tmp_path: Path, options: dict[str, Any]) -> Place:
    return Place(tmp_path, options)


def counted(version: Version) -> dict[Backend, int]:
    """How many images each backend has counted."""
    return {backend_of(entry["numerics"]): entry["images"] for entry in version.numerics}


# What is known of networks.


@pytest.mark.parametrize(("groups", "channels", "expected"), [(1, 3, False), (3, 3, True)])
def test_a_network_with_a_group_for_each_channel_is_depthwise(
    groups: int, channels: int, expected: bool
) -> None:
    known = replace(
        architecture("efficientnet_lite0"), build=lambda side: TinyDepthwise(groups, channels)
    )
    assert discover_taps("x", known, "a").depthwise is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnet_lite0", True),
        ("timm:mobilenetv3_small_100", True),
        ("torchvision:resnet18", False),
        ("torchvision:resnext50_32x4d", False),  # in groups of several channels
        ("dino_vit_small", False),
    ],
)
def test_depthwise_networks_are_known_by_their_structure(name: str, expected: bool) -> None:
    known = architecture(name)
    assert discover_taps(name, known, known.taps).depthwise is expected


def test_what_is_stated_of_the_embedded_network_is_what_is_found() -> None:
    assert describe("efficientnet_lite0").depthwise


def test_a_driver_chooses_openvino_without_an_import_of_it_or_of_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.networks import describe;"
        "from pipeline.counting import choose_backend, converted_networks;"
        "network = describe('efficientnet_lite0');"
        "path = converted_networks.converted_path(network, 8);"
        "path.parent.mkdir(parents=True); path.touch();"
        "print(choose_backend('auto', network, 'fp32', 'cpu').backend,"
        "sorted({'openvino', 'torch', 'timm', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "openvino []"


# The choice.


@pytest.mark.parametrize(
    ("depthwise", "precision", "device", "installed"),
    list(itertools.product([True, False], ["fp32", "bf16"], ["cpu", "cuda"], [True, False])),
)
def test_openvino_is_chosen_only_where_it_can_run_and_is_faster(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    depthwise: bool,
    precision: Precision,
    device: str,
    installed: bool,
) -> None:
    monkeypatch.setattr(backends, "openvino_is_installed", lambda: installed)
    monkeypatch.setattr(backends, "_conversion_problem", lambda *of: "")
    network = replace(network, depthwise=depthwise)
    best = depthwise and precision == "fp32" and device == "cpu" and installed
    chosen = choose_backend("auto", network, precision, device)
    assert chosen == (IS_OPENVINO if best else IS_TORCH)


def test_what_is_asked_for_is_taken_or_refused(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(network, depthwise=False)
    assert choose_backend("torch", network, "fp32", "cpu") == IS_TORCH
    assert choose_backend("torch", network, "fp32", "cpu", "openvino") == IS_TORCH
    assert choose_backend("openvino", plain, "fp32", "cpu", "torch") == IS_OPENVINO
    with pytest.raises(UsageError, match="the precision is bf16"):
        choose_backend("openvino", network, "bf16", "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="is not installed on"):
        choose_backend("openvino", network, "fp32", "cpu")


def test_a_dataset_stays_with_what_has_counted_it(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(network, depthwise=False)
    monkeypatch.setattr(backends, "_conversion_problem", lambda *of: "")
    assert choose_backend("auto", plain, "fp32", "cpu", "openvino") == IS_OPENVINO
    assert choose_backend("auto", plain, "fp32", "cpu", "torch") == IS_TORCH
    stayed = choose_backend("auto", network, "fp32", "cpu", "torch")
    assert stayed.backend == "torch"
    assert "`backend='openvino'` is faster" in stayed.note
    without_openvino(monkeypatch)
    assert choose_backend("auto", network, "fp32", "cpu", "torch") == IS_TORCH
    lost = choose_backend("auto", network, "fp32", "cpu", "openvino")
    assert lost.backend == "torch"
    assert "OpenVINO has counted the dataset so far, and is not installed here" in lost.note


def test_most_images_say_what_has_counted_a_dataset() -> None:
    def entries(**images: int) -> list[dict[str, Any]]:
        known = {
            "torch": NUMERICS,
            "openvino": BY_OPENVINO,
            "gpu": replace(NUMERICS, device="cuda"),
        }
        return [{"numerics": known[of].to_json(), "images": n} for of, n in images.items()]

    assert counted_by([]) is None
    assert counted_by(entries(gpu=9)) is None
    assert counted_by(entries(torch=1, gpu=9)) == "torch"
    assert counted_by(entries(torch=1, openvino=2)) == "openvino"
    assert counted_by(entries(openvino=2, torch=3)) == "torch"
    assert counted_by(entries(openvino=2, torch=2)) == "torch"
    updated = replace(NUMERICS, versions=(("numpy", "3"), ("torch", "2.7"))).to_json()
    assert (
        counted_by([*entries(torch=2, openvino=3), {"numerics": updated, "images": 2}]) == "torch"
    )


# Builds.


def test_a_new_dataset_is_counted_by_openvino_and_its_network_converted_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert counted(place.build()) == {"openvino": 4}
    assert place.said == [f"converting {NAME} for OpenVINO, once on this machine"]
    write(place.images, 2, first=10)
    assert counted(place.build()) == {"openvino": 6}
    assert place.said == []


def test_a_dataset_of_torch_is_refreshed_by_torch(
    place: Place, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        without_openvino(patch)
        assert counted(place.build()) == {"torch": 4}
        assert place.said == []
    assert counted(place.build()) == {"torch": 4}
    assert place.said == []  # it is up to date
    write(place.images, 2, first=10)
    new = Request("new", str(write(tmp_path / "new", 2)), **options)
    version = place.build(new)
    assert counted(version) == {"torch": 6}
    assert len(version.numerics) == 1
    assert [message for message in place.said if "torch runs" in message] == [
        "torch runs the network, as it has counted the dataset so far; `backend='openvino'` is "
        "faster"
    ]
    assert counted(place.catalogue.find("new")) == {"openvino": 2}
    used, details = place.recounted()
    assert used == {"torch", "openvino"}
    assert len(details) == 8
    assert all("all numbers are equal" in detail for detail in details)


def test_a_dataset_of_openvino_goes_on_by_torch_where_that_is_missing_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.build()
    write(place.images, 6, first=10)
    with monkeypatch.context() as patch:
        without_openvino(patch)
        version = place.build()
        assert counted(version) == {"openvino": 4, "torch": 6}
        (note,) = place.said
        assert "is not installed here" in note
        used, details = place.recounted()
        assert used == {"torch"}
        assert sum("all numbers are equal" in detail for detail in details) >= 3
    write(place.images, 2, first=20)
    assert counted(place.build()) == {"openvino": 4, "torch": 8}  # most are of torch by now


def test_the_backend_that_is_asked_for_counts_what_is_new_and_no_more(place: Place) -> None:
    place.build(backend="torch")
    write(place.images, 2, first=10)
    version = place.build(backend="openvino")
    assert counted(version) == {"torch": 4, "openvino": 2}
    assert {entry["images"] for entry in version.numerics} == {2, 4}


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_shards_are_counted_again_by_what_has_counted_them(place: Place, backend: Backend) -> None:
    place.build(backend=backend)
    used, details = place.recounted()
    assert used == {backend}
    assert len(details) == 4
    assert all("all numbers are equal" in detail for detail in details)
    assert not any("torch runs" in message for message in place.said)
    other = "torch" if backend == "openvino" else "openvino"
    assert place.recounted(other)[0] == {other}  # within what rounding explains


def test_a_build_that_was_interrupted_goes_on_by_what_it_began_with(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Worker.run

    def dies(self: Worker, job: ShardJob, index: int) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return run(self, job, index)

    with monkeypatch.context() as patch:
        without_openvino(patch)
        patch.setattr(Worker, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            place.build()
    assert counted(place.build()) == {"torch": 4}


def test_a_plan_that_cannot_be_read_says_nothing_of_a_backend(place: Place) -> None:
    spec = place.build().spec
    assert place.catalogue.planned_backend("a", spec) == "openvino"
    assert place.catalogue.planned_backend("b", spec) is None
    for text in (b"{", b"[]", b"{}", b'{"backend": "abacus"}', b'{"backend": ["torch"]}'):
        storage.replace(place.catalogue.plan_uri("a", spec), text)
        assert place.catalogue.planned_backend("a", spec) is None


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_images_are_ranked_by_what_has_counted_the_dataset(
    place: Place, backend: Backend, options: dict[str, Any], tmp_path: Path
) -> None:
    place.build(backend=backend)
    source = write(tmp_path / "ranked", 2, first=30)
    request = RankRequest(str(source), "a", weights=options["weights"])
    resources = Resources(workers=0, threads=1)
    ranking = rank(place.catalogue, request, InProcess(), resources=resources)
    assert not [note for note in ranking.notes if "numerics" in note]
    other: Backend = "torch" if backend == "openvino" else "openvino"
    asked = replace(resources, backend=other)
    (note,) = rank(place.catalogue, request, InProcess(), resources=asked).notes
    assert note == f"numerics differ: a was counted under backend {backend}, {other} here"


# Failures.


@pytest.fixture
def unconvertible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[None]:
    """Makes OpenVINO refuse all networks; returns how often it was asked."""
    asked: list[None] = []

    def refuses(*args: object, **kwargs: object) -> None:
        asked.append(None)
        raise RuntimeError("no rule for aten::this")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino_forward.openvino, "convert_model", refuses)
    return asked


def test_a_network_that_cannot_be_converted_is_run_by_torch_and_that_is_said_once(
    place: Place, unconvertible: list[None], options: dict[str, Any]
) -> None:
    other = Request("b", str(place.images), **options)
    assert counted(place.build(other)) == {"torch": 4}
    assert counted(place.catalogue.find("b")) == {"torch": 4}
    assert len(unconvertible) == 1
    assert place.said[0] == f"converting {NAME} for OpenVINO, once on this machine"
    assert place.said[1].startswith(
        f"torch runs {NAME}, as OpenVINO cannot: OpenVINO cannot convert {NAME} (no rule for"
    )
    assert len(place.said) == 2


def test_a_network_that_cannot_be_converted_is_an_error_if_openvino_is_asked_for(
    place: Place, unconvertible: list[None]
) -> None:
    with pytest.raises(Exception, match="OpenVINO cannot convert"):
        place.build(backend="openvino")
    assert place.catalogue.head().datasets == {}


def test_a_network_in_memory_that_cannot_be_converted_is_told_by_a_warning(
    place: Place, unconvertible: list[None], options: dict[str, Any]
) -> None:
    with pytest.warns(UserWarning, match=f"torch runs {NAME}, as OpenVINO cannot"):
        dna = make_dna(place.images, **options)
    assert [backend_of(numerics.to_json()) for numerics, _ in dna.numerics] == ["torch"]
    with pytest.warns(UserWarning, match=f"torch runs {NAME}, as OpenVINO cannot"):
        VisualDNA(**options)


def test_images_in_memory_are_counted_by_openvino_too(
    place: Place, options: dict[str, Any]
) -> None:
    dna = make_dna(place.images, **options)
    assert [backend_of(numerics.to_json()) for numerics, _ in dna.numerics] == ["openvino"]
    metric = VisualDNA(**options)
    metric.update([torch.zeros(3, 8, 8)])
    numerics = metric.compute().numerics
    assert [backend_of(one.to_json()) for one, _ in numerics] == ["openvino"]


def test_a_worker_without_openvino_says_where_and_what_to_do(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match="which is not installed") as raised:
        place.build()  # the driver has it
    assert f"on {socket.gethostname()}; pip install 'vdna-pipeline[openvino]'" in str(raised.value)
    assert "use `backend='torch'`" in str(raised.value)
