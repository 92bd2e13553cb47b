"""Tests a user's own network, registered by a call or an entry point, built in any process."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import runpy
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from pipeline.counting import Extractor
from pipeline.errors import SpecMismatch, UsageError
from pipeline.networks import Network, describe, load_model, network_of
from pipeline.networks.registry import register_network
from pipeline.spec import Preprocess, Spec, Tap
from tests.support import tiny_network as tiny
from tests.support.ray_commands import REPOSITORY, write_distribution

RULE = Preprocess(8, 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


class Cat(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whiskers = torch.nn.Conv2d(3, 5, 2)
        self.tail = torch.nn.Conv2d(5, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.whiskers(x))

    @classmethod
    def grown(cls) -> Cat:
        return cls()

    def itself(self) -> Cat:
        return self


class Shuffled(ResNet):
    """A network that is a ResNet by its class, but not by its forward pass."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], width_per_group=64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer1(self.relu(self.bn1(x[:, :1].expand(-1, 64, -1, -1))))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "cat.pt"
    torch.save(Cat().state_dict(), path)
    return str(path)


def unused() -> str:
    """Returns a name that no other test has registered."""
    return f"cat-{uuid.uuid4().hex}"


def registered(build: Callable[[], torch.nn.Module] = Cat, **options: Any) -> str:
    name = unused()
    register_network(name, build, **{"preprocess": RULE} | options)
    return name


def test_a_registered_network_is_described_like_any_other(weights: str) -> None:
    name = registered(taps="**", weights=weights)
    network = describe(name)
    assert network.name == name
    assert network.weights_sha256 == hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert network.taps == (Tap("whiskers", 5, 49), Tap("tail", 2, 25))
    assert (network.height, network.width) == (8, 8)
    assert (network.mean, network.std) == (RULE.mean, RULE.std)
    assert describe(name, taps="tail").taps == network.taps[1:]


def test_the_weights_may_be_given_by_each_build_and_must_be(weights: str, tmp_path: Path) -> None:
    name = registered(taps="tail")
    assert describe(name, weights).taps == (Tap("tail", 2, 25),)
    with pytest.raises(UsageError, match=f"{name} has no weights of its own; give some by `weig"):
        describe(name)
    other = tmp_path / "other.pt"
    torch.save({key: value + 1 for key, value in Cat().state_dict().items()}, other)
    with_own = registered(taps="tail", weights=Path(weights))
    assert describe(with_own).weights_sha256 == describe(name, weights).weights_sha256
    assert describe(with_own, str(other)).weights_sha256 != describe(with_own).weights_sha256


def test_without_taps_a_rule_or_the_build_must_choose_them(weights: str) -> None:
    name = registered(weights=weights)
    with pytest.raises(UsageError, match=r"no rule says what to tap in a Cat.*whiskers, tail"):
        describe(name)
    network = describe(name, taps="tail")
    assert network.taps == (Tap("tail", 2, 25),)
    spec = Spec(name, network.weights_sha256, network.taps, RULE, "ranges")
    assert network_of(spec) == network, "its images can be counted again"
    with pytest.raises(SpecMismatch, match="built with other"):
        network_of(replace(spec, weights_sha256="other"))


@pytest.mark.parametrize("build", [Cat, Cat.grown])
def test_a_class_or_its_method_builds_a_registered_network(
    build: Callable[[], Any], weights: str
) -> None:
    network = describe(registered(build, taps="tail", weights=weights))
    assert isinstance(load_model(network), Cat)
    assert network.built_by == f"{__name__}:{build.__qualname__}"


def local() -> Callable[[], Cat]:
    def build() -> Cat:
        return Cat()

    return build


@pytest.mark.parametrize(
    "build",
    [lambda: Cat(), local(), functools.partial(Cat), Cat().itself],
    ids=["lambda", "local", "partial", "bound method"],
)
def test_a_network_that_workers_cannot_import_is_refused(build: Callable[[], Any]) -> None:
    with pytest.raises(UsageError, match=r"cannot import .* top level of a module"):
        registered(build)


def test_a_network_defined_in_the_running_program_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from pipeline import Preprocess, register_network\n"
        "import torch\n"
        "class Net(torch.nn.Module): pass\n"
        "rule = Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3)\n"
        "register_network('net', Net, preprocess=rule)\n"
    )
    defined = r"Net is defined in the program that runs \(__main__\)(?s:.*)Put it into a module"
    with pytest.raises(UsageError, match=defined):
        runpy.run_path(str(program), run_name="__main__")


def test_a_name_that_exists_is_refused(weights: str) -> None:
    name = registered(taps="tail")
    register_network(name, Cat, preprocess=RULE, taps="tail")  # as a notebook's cell does again
    with pytest.raises(UsageError, match=f"network '{name}' is registered already"):
        register_network(name, Cat, preprocess=RULE, taps="whiskers")
    with pytest.raises(UsageError, match="'inception' is a network that comes with vdna-pipeline"):
        register_network("inception", Cat, preprocess=RULE)


@pytest.mark.parametrize("name", ["", "timm:cat", "a/b", "../cat", "-cat", "two words"])
def test_names_with_special_characters_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a network"):
        register_network(name, Cat, preprocess=RULE)


def test_options_of_a_build_cannot_be_registered() -> None:
    rule = Preprocess(8, 8, RULE.mean, RULE.std, resize="fast")
    with pytest.raises(UsageError, match=r"resize='fast'.*a build chooses the rest"):
        register_network(unused(), Cat, preprocess=rule)


def test_an_unknown_name_lists_those_that_are_registered() -> None:
    name = registered()
    with pytest.raises(UsageError, match=rf"no extractor 'cot'; there are: .*inception.*{name}"):
        describe("cot")
    with pytest.raises(UsageError, match=r"entry point of the group vdna\.networks for the comm"):
        describe("cot")


def test_batch_norms_of_an_unknown_forward_pass_are_not_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Shuffled().state_dict(), tmp_path / "w.pt")
    name = registered(Shuffled, taps="bn1,layer1.0", weights=tmp_path / "w.pt")
    network = describe(name)
    assert not network.folded
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    seen: list[np.ndarray] = []
    Extractor(network).observe(pixels, lambda i, x: seen.append(x.numpy().copy()))
    first = torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, :1].expand(-1, 64, -1, -1)
    right = load_model(network).bn1(first).permute(0, 2, 3, 1).flatten(1, 2)
    assert np.allclose(seen[0], right.numpy(), atol=1e-5)


def run(*words: str, path: tuple[Path, ...] = (), stdin: bytes = b"") -> Any:
    paths = [*map(str, path), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, input=stdin, env=environment, check=False
    )
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def test_a_process_that_receives_a_network_needs_no_registration(weights: str) -> None:
    """Ray's workers get the network this way."""
    network = describe(registered(taps="tail", weights=weights))
    code = (
        "import pickle, sys\n"
        "from pipeline.networks import load_model\n"
        "print(type(load_model(pickle.load(sys.stdin.buffer))).__name__)"
    )
    done = run("-c", code, stdin=pickle.dumps(network))
    assert done.stdout.strip() == "Cat", done.stderr


def test_a_worker_that_lacks_the_module_says_what_it_needs(weights: str) -> None:
    network = describe(registered(taps="tail", weights=weights))
    lost = Network(**vars(network) | {"built_by": "no_such_module:Cat"})
    with pytest.raises(UsageError, match=r"no_such_module:Cat cannot be imported here.*PYTHONPATH"):
        load_model(lost)


def test_other_weights_than_described_are_refused(weights: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(weights).read_bytes())
    network = describe(registered(taps="tail", weights=copy))
    torch.save({key: value + 1 for key, value in Cat().state_dict().items()}, copy)
    with pytest.raises(SpecMismatch, match="sha256"):
        load_model(network)


# Entry points.


def register_silently() -> None:
    """Is an entry point that registers nothing."""


def register_badly() -> None:
    raise RuntimeError("no licence")


def distribution(
    folder: Path, patch: pytest.MonkeyPatch, entries: str, name: str = "vdna_tests"
) -> None:
    write_distribution(folder, f"[vdna.networks]\n{entries}\n", name)
    patch.syspath_prepend(folder)


def test_an_entry_point_registers_a_network_in_every_process(weights: str, tmp_path: Path) -> None:
    write_distribution(tmp_path, "[vdna.networks]\ntiny = tests.support.tiny_network:register")
    place = tiny.install(tmp_path)
    code = f"from pipeline.networks import describe; print(describe('tiny', {place.weights!r}))"
    done = run("-c", code, path=(tmp_path,))
    assert done.stdout.strip() == repr(place.network), done.stderr
    again = run("-c", code)
    assert "no extractor 'tiny'" in again.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no_such_module:register", "cannot be loaded: ModuleNotFoundError"),
        (f"{__name__}:no_such_function", "cannot be loaded: AttributeError"),
        (f"{__name__}:register_badly", r"cannot be loaded: RuntimeError\('no licence'\)"),
        (f"{__name__}:register_silently", "was loaded, but it did not register"),
    ],
)
def test_a_bad_entry_point_is_named(
    entry: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unused()
    distribution(tmp_path, monkeypatch, f"{name} = {entry}")
    with pytest.raises(UsageError, match=f"the network '{name}' of vdna.tests .*{message}"):
        describe(name)
    with pytest.raises(UsageError, match=f"there are: .*{name}"):
        describe("cot")


def test_two_distributions_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unused()
    for each in ("one", "two"):
        (tmp_path / each).mkdir()
        entry = f"{name} = {each}:register"
        distribution(tmp_path / each, monkeypatch, entry, f"vdna_{each}")
    with pytest.raises(UsageError, match=r"several .*vdna.one \(one:register\) and vdna.two"):
        describe(name)
