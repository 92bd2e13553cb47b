"""Tests that nothing that is read is ever run: planted pickles, and forbidden calls in code."""

from __future__ import annotations

import ast
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jobs.app import app
from pipeline import networks, storage
from pipeline.catalogue import Catalogue
from pipeline.errors import CorruptFile
from pipeline.images import load
from pipeline.networks import lookup, registry, weights
from pipeline.sources import plan
from pipeline.spec import Preprocess
from tests.golden.handmade import commit_dataset, entries, hand_made
from tests.support.pickle_bomb import PickleBomb

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Returns the file that a bomb writes; at the end, the fixture checks that the bomb works."""
    mark = tmp_path / "it ran"
    yield mark
    assert not mark.exists()
    pickle.loads(pickle.dumps(PickleBomb(mark)))
    assert mark.exists()


def saved(value: object, *, legacy: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, _use_new_zipfile_serialization=not legacy)
    return data.getvalue()


def npy(value: object) -> bytes:
    array = np.empty(1, object)
    array[0] = value
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def npz(value: object) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("block_0.npy", npy(value))
    return data.getvalue()


def planted(mark: Path) -> dict[str, bytes]:
    """Returns a bomb in every wrapping that some library would open."""
    bomb = PickleBomb(mark)
    return {
        "pickle": pickle.dumps(bomb),  # as joblib's files are, too
        "old pickle": pickle.dumps(bomb, 0),
        "torch": saved(bomb),
        "torch, beside tensors": saved({"weight": torch.zeros(1), "bomb": bomb}),
        "torch, wrapped": saved({"state_dict": {"weight": bomb}}),
        "torch, legacy": saved({"weight": bomb}, legacy=True),
        "npy": npy(bomb),
        "npz": npz(bomb),
    }


WRAPPINGS = tuple(planted(Path("nowhere")))


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_tensors_or_refused(mark: Path, wrapping: str) -> None:
    with pytest.raises(CorruptFile, match="weights are not a state dict of tensors"):
        weights.load_state(planted(mark)[wrapping])


@pytest.mark.parametrize(
    "extractor", ["efficientnet_lite0", "timm:resnet10t", "torchvision:squeezenet1_1"]
)
@pytest.mark.parametrize("whose", ["own", "given"])
def test_weights_of_every_family_are_named_and_not_run(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: str, whose: str
) -> None:
    """`own` is a file from a cache or a hub that someone has replaced."""
    path = tmp_path / "planted.pth"
    path.write_bytes(saved({"weight": PickleBomb(mark)}))
    uri = path.as_uri()
    monkeypatch.setattr(lookup, "fetch", lambda *_: uri)
    monkeypatch.setattr(lookup, "EFFICIENTNET_LITE0_SHA256", weights.sha256_of(uri))
    network = networks.describe(extractor, str(path) if whose == "given" else None)
    source = "planted.pth" if whose == "given" else str(registry.architecture(extractor).source)
    with pytest.raises(CorruptFile, match="holds Python objects") as caught:
        networks.load_model(network)
    assert source in str(caught.value)


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code in (1, 2, 3), done.output
    return str(done.output)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_ranges_and_files_of_the_reference_are_named_and_not_run(
    mark: Path, tmp_path: Path, wrapping: str
) -> None:
    data = planted(mark)[wrapping]
    (tmp_path / "images").mkdir()
    (tmp_path / "x.npz").write_bytes(data)
    for good_json in (True, False):
        about = (
            b'{"type": "histogram", "vdna_version": "0.1.1", "num_images": 1, "neurons_list": '
            b'{"block_0": 1}, "feature_extractor_name": "inception", "data_settings": {}, '
            b'"extraction_settings": {}, "distribution": {"hist_nb_bins": 2}}'
        )
        (tmp_path / "x.json").write_bytes(about if good_json else data)
        told = run("import", tmp_path / "x.npz", "x", "-c", tmp_path / "c")
        assert f"{tmp_path}/x." in told
    place = ("-c", tmp_path / "c", "--workers", 0)
    assert "x.npz" in run("build", "a", tmp_path / "images", "--ranges", tmp_path / "x.npz", *place)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns every file of a catalogue, by its path."""
    folder = tmp_path_factory.mktemp("catalogue")
    for name in ("a", "b"):
        manifest = plan(entries(name, 5))
        partials = [hand_made(shard) for shard in manifest.shards]
        commit_dataset(Catalogue(str(folder)), name, manifest, partials)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


READ_BY = {
    "_log": ("ls",),
    "dna": ("verify",),
    "failures": ("verify",),
    "folds": ("verify",),
    "manifests": ("verify",),
    "ranges": ("verify",),
    "specs": ("verify",),
    "_work": ("verify",),
}


@pytest.mark.parametrize("kind", READ_BY)
def test_files_of_a_catalogue_are_named_and_not_run(
    mark: Path, tmp_path: Path, built: dict[str, bytes], kind: str
) -> None:
    spoilt = next(p for p in sorted(built) if p.startswith(kind) and not p.endswith("_latest"))
    spoilt = "_log/00000000000000000002.json" if kind == "_log" else spoilt
    assert spoilt in built
    for data in planted(mark).values():
        for path, own in built.items():
            target = tmp_path / "copy" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data if path == spoilt else own)
        assert spoilt in run(*READ_BY[kind], "-c", tmp_path / "copy")


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_pickle_that_is_named_as_an_image_is_refused(mark: Path, wrapping: str) -> None:
    from pipeline.errors import BadImage

    with pytest.raises(BadImage):
        load(planted(mark)[wrapping], Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3))


def test_a_list_and_a_config_are_read_as_text(mark: Path, tmp_path: Path) -> None:
    for data in planted(mark).values():
        (tmp_path / "list.txt").write_bytes(data)
        (tmp_path / "datasets.yaml").write_bytes(data)
        place = ("-c", tmp_path / "c", "--workers", 0)
        assert "list.txt" in run("build", "a", tmp_path / "list.txt", *place)
        assert "datasets.yaml" in run("refresh", "--config", tmp_path / "datasets.yaml", *place)
    assert not storage.exists(Catalogue(str(tmp_path / "c")).log_uri(1))


# What the code may not call.

BANNED_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "_pickle"}
BANNED_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "tempfile.mktemp", "pandas.read_pickle", "torch.jit.load"),
    *("torch.hub.load", "torch.package.PackageImporter", "yaml.unsafe_load", "yaml.full_load"),
    *("yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all", "subprocess.getoutput"),
}
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
LOADERS = {"_Loader"}
"""Subclasses of yaml.SafeLoader, which the test below sees to."""


def faults(code: str) -> list[str]:
    """Returns what a module does that no module may do."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            from_yaml = node.module in ("yaml", "torch", "numpy", "subprocess", "tempfile")
            hidden = {"load", "unsafe_load", "full_load", "mktemp", "system", "getoutput"}
            found += [f"from {node.module} import {a.name}" for a in node.names
                      if from_yaml and a.name in hidden]  # fmt: skip
        else:
            names = []
        found += [f"imports {name}" for name in names if name.split(".")[0] in BANNED_MODULES]
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        options = {word.arg: word.value for word in node.keywords}
        if call in BANNED_CALLS:
            found.append(f"calls {call}")
        if call in REQUIRED:
            name, wanted = REQUIRED[call]
            value = options.get(name)
            if not isinstance(value, ast.Constant) or value.value is not wanted:
                found.append(f"calls {call} without {name}={wanted}")
        if call == "yaml.load" and not (
            len(node.args) == 2 and ast.unparse(node.args[1]) in LOADERS
        ):
            found.append("calls yaml.load with a loader that may not be safe")
        shell = options.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            found.append(f"calls {call} with a shell")
    return found


MODULES = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]


def test_no_module_runs_what_it_reads() -> None:
    assert len(MODULES) > 40
    for path in MODULES:
        assert faults(path.read_text()) == [], path


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "import joblib.numpy_pickle",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=x)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(t)",
        "yaml.load(t, yaml.Loader)",
        "yaml.load(t, Loader=yaml.UnsafeLoader)",
        "yaml.unsafe_load(t)",
        "from yaml import unsafe_load",
        "from torch import load",
        "eval(t)",
        "exec(t)",
        "os.system(t)",
        "subprocess.run(t, shell=True)",
        "subprocess.run(t, shell=x)",
        "tempfile.mktemp()",
        "from tempfile import mktemp",
    ],
)
def test_forbidden_calls_in_code_are_found(code: str) -> None:
    assert faults(code)


def test_our_loader_of_yaml_is_a_safe_one() -> None:
    import yaml

    from pipeline.refreshing import config

    for name in LOADERS:
        assert issubclass(getattr(config, name), yaml.SafeLoader)
        assert not issubclass(getattr(config, name), yaml.FullLoader | yaml.UnsafeLoader)
