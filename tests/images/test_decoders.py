"""Tests a user's own image decoder: registered by name, stated in specs, run in any process."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import images, make_dna
from pipeline.building import Request, build_datasets, make_spec
from pipeline.catalogue import Catalogue
from pipeline.counting import Recipe
from pipeline.engine import InProcess
from pipeline.errors import BadImage, SpecMismatch, TransientError, UsageError
from pipeline.images import load, load_isolated, stated_decoder
from pipeline.images.decoders import register_decoder
from pipeline.images.decoding import decode
from pipeline.reporting.html.thumbnails import THUMBNAIL, thumbnail
from pipeline.spec import Preprocess, Resources, Spec
from tests.support import tiny_network as tiny
from tests.support.builders import tiny_spec
from tests.support.own_decoders import flat, odd, written
from tests.support.ray_commands import REPOSITORY, ended, start, write_distribution

RULE = Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3)
EXAMPLE = REPOSITORY / "examples" / "own_decoder"


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)


def rule_of(function: Any, version: str = "1") -> Preprocess:
    name = f"own-{uuid.uuid4().hex}"
    register_decoder(name, function, version=version)
    return replace(RULE, decoder=stated_decoder(name))


def test_the_pixels_of_an_own_decoder_are_counted() -> None:
    rule = rule_of(flat)
    assert np.array_equal(decode(written(pixels()), rule).pixels, pixels())
    assert np.array_equal(load(written(pixels()), rule).values, images.prepare(pixels(), rule))


def test_an_own_decoder_gives_the_same_pixels_in_isolation() -> None:
    rule = rule_of(flat)
    assert np.array_equal(
        load_isolated(written(pixels()), rule, 60).values, load(written(pixels()), rule).values
    )


@pytest.mark.parametrize("how", [decode, lambda data, rule: load_isolated(data, rule, 60).values])
@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("raise ValueError('no magic')", BadImage, "corrupt: own-.*@1: ValueError: no magic"),
        ("raise BadImage('truncated', 'half')", BadImage, "truncated: half"),
        ("raise BadImage('gone', 'odd')", BadImage, "corrupt: own-.*@1: gone: odd"),
        ("raise BadImage('timeout', 'x')", BadImage, "corrupt: own-.*@1: timeout: x"),
        ("raise TransientError('no licence')", TransientError, "no licence"),
        ("raise type('Busy', (TransientError,), {})('no licence')", TransientError, "no licence"),
        ("None", UsageError, r"own-.*@1 returned NoneType of shape \(\).*uint8"),
        ("np.ones((4, 4, 3))", UsageError, r"returned float64 of shape \(4, 4, 3\)"),
        ("np.ones((4, 4), np.uint8)", UsageError, r"returned uint8 of shape \(4, 4\)"),
        ("np.ones((0, 4, 3), np.uint8)", UsageError, r"returned uint8 of shape \(0, 4, 3\)"),
    ],
)
def test_errors_and_wrong_results_of_an_own_decoder_are_reported(
    how: Any, task: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        how(task.encode(), rule_of(odd))


def test_the_limits_on_size_apply_to_an_own_decoder() -> None:
    rule = rule_of(flat)
    data = written(pixels())
    with pytest.raises(BadImage, match="too_many_pixels: 7 x 9 is 63 pixels; the limit is 62"):
        decode(data, replace(rule, max_pixels=62))
    with pytest.raises(BadImage, match="too_many_bytes"):
        decode(data, replace(rule, max_bytes=10))
    with pytest.raises(BadImage, match="empty"):
        decode(b"", rule)


def test_memory_running_out_is_not_the_images_fault() -> None:
    with pytest.raises(MemoryError):
        decode(b"raise MemoryError()", rule_of(odd))


def test_an_own_decoder_that_kills_its_process_is_a_failure_of_the_image() -> None:
    with pytest.raises(BadImage, match="killed by SIGKILL, 2 times") as caught:
        load_isolated(b"die", rule_of(odd), 60, attempts=2)
    assert caught.value.reason == "decoder_crashed"


def test_names_and_versions_of_decoders_are_checked() -> None:
    rule = rule_of(flat, "2.0")
    name, _, version = str(rule.decoder).partition("@")
    assert version == "2.0"
    register_decoder(name, flat, version="2.0")  # as a notebook's cell does again
    with pytest.raises(UsageError, match=f"decoder '{name}' is registered already"):
        register_decoder(name, flat, version="3")
    with pytest.raises(SpecMismatch, match=f"states the decoder {name}@1; .* has version 2.0"):
        decode(b"x", replace(rule, decoder=f"{name}@1"))
    with pytest.raises(UsageError, match=rf"no decoder 'nobody'; there are: .*{name}"):
        stated_decoder("nobody")
    for wrong in ("", "1 2", "a@b"):
        with pytest.raises(UsageError, match="version of the decoder"):
            register_decoder("x", flat, version=wrong)
        with pytest.raises(UsageError, match="cannot be the name of a decoder"):
            register_decoder(wrong, flat, version="1")
    with pytest.raises(UsageError, match="cannot import"):
        register_decoder("x", lambda data: flat(data), version="1")


# In the spec.


def test_a_spec_mentions_the_decoder_only_if_there_is_one() -> None:
    spec, _ = tiny_spec()
    assert "decoder" not in spec.to_json()["preprocess"]
    assert spec.digest == Spec.from_json(spec.to_json()).digest
    with_one = replace(spec, preprocess=replace(spec.preprocess, decoder="raw16@1"))
    assert with_one.digest != spec.digest
    assert Spec.from_json(with_one.to_json()) == with_one
    assert spec.differences(with_one) == {"preprocess.decoder": (None, "raw16@1")}


def test_a_recipe_brings_the_decoder_to_processes_that_did_not_register_it(tmp_path: Path) -> None:
    place = tiny.install(tmp_path)
    rule = rule_of(flat)
    spec, _ = tiny_spec()
    spec = replace(spec, preprocess=rule)
    recipe = Recipe(spec, place.network, place.ranges, Resources())
    assert recipe.decoder == "tests.support.own_decoders:flat"
    code = (
        "from pipeline import images; from pipeline.spec import Preprocess\n"
        f"images.use_decoder({rule.decoder!r}, {recipe.decoder!r})\n"
        f"rule = Preprocess(8, 8, (.5,)*3, (.5,)*3, decoder={rule.decoder!r})\n"
        f"data = {written(pixels())!r}\n"
        "apart, here = images.load_isolated(data, rule, 60), images.load(data, rule)\n"
        "assert (apart.values == here.values).all()\n"
        "print(images.decode(data, rule).pixels.sum())"
    )
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == str(pixels().sum()), done.stderr


# In builds, by the example.


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes twelve good files of the example's format, a truncated one and one of another."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for i in range(12):
        grey = rng.integers(0, 5000, (10, 12)).astype("<u2")
        data = struct.pack("<4sII", b"RAW1", 12, 10) + grey.tobytes()
        (folder / f"{i}.raw16").write_bytes(data)
    (folder / "cut.raw16").write_bytes(data[:-9])
    (folder / "other.raw16").write_bytes(b"JUNK" + data[4:])
    return folder


@pytest.fixture
def raw16(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLE)
    import raw16

    raw16.register()
    return raw16


def test_the_example_decoder_reads_its_format(scans: Path, raw16: Any) -> None:
    values = np.array([[0, 4095, 2048], [4095, 65535, 1]], "<u2")
    data = struct.pack("<4sII", b"RAW1", 3, 2) + values.tobytes()
    assert decode(data, replace(RULE, decoder="raw16@1")).pixels[:, :, 0].tolist() == [
        [0, 255, 127],
        [255, 255, 0],
    ]


@pytest.mark.soak
def test_an_own_decoder_counts_the_same_on_ray(scans: Path, raw16: Any, tmp_path: Path) -> None:
    """An entry point brings the decoder to a command and to Ray's workers; failures are listed."""
    place = tiny.install(tmp_path)
    options = place.options | {"decoder": "raw16"}
    alone = Catalogue(str(tmp_path / "alone"))
    request = Request("photos", str(scans), max_failures=2, shard_images=2, **options)
    with closing(InProcess()) as engine:
        (built,) = build_datasets(alone, [request], engine, Resources(workers=0, threads=1))
    assert (built.version.images, built.version.failed) == (12, 2)
    reasons = {Path(f.uri).name: f"{f.reason}: {f.detail}" for f in built.failures}
    assert "corrupt: raw16@1: ValueError: buffer is smaller" in reasons["cut.raw16"]
    assert "begins with RAW1, this one with b'JUNK'" in reasons["other.raw16"]
    assert alone.load("photos").spec.preprocess.decoder == "raw16@1"

    site = tmp_path / "site"
    site.mkdir()
    write_distribution(
        site,
        "[vdna.networks]\ntiny = tests.support.tiny_network:register\n"
        "[vdna.decoders]\nraw16 = raw16:register\n",
    )
    paths = [str(site), str(EXAMPLE), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    words = [f"--{name}={value}" for name, value in options.items()]
    process = start(
        *(scans, tmp_path / "ray", *words),
        env={"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    with ended(process):
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out)["dna"] == built.version.dna
    with pytest.warns(UserWarning, match="2 of 14"):
        dna = make_dna(scans, max_failures=2, **options)  # type: ignore[arg-type]  # of any kind
    assert np.array_equal(dna.counts, alone.load("photos").counts)


def test_a_decoder_is_refused_for_images_in_memory(raw16: Any) -> None:
    with pytest.raises(
        UsageError, match="decoder is 'raw16'; images in memory are decoded already"
    ):
        make_dna([pixels()], decoder="raw16")


def test_the_decoder_is_stated_in_the_spec(raw16: Any, tmp_path: Path) -> None:
    network = tiny.install(tmp_path).network
    spec = make_spec(Request("x", "x", decoder="raw16"), network, "00", "cpu")
    assert spec.preprocess.decoder == "raw16@1"
    with pytest.raises(UsageError, match="no decoder 'nobody'"):
        make_spec(Request("x", "x", decoder="nobody"), network, "00", "cpu")
    with pytest.raises(UsageError, match="alpha is 'white', and the decoder raw16@1 returns"):
        make_spec(Request("x", "x", decoder="raw16", alpha="white"), network, "00", "cpu")


def test_pages_show_images_of_an_own_decoder(scans: Path, raw16: Any) -> None:
    data = (scans / "0.raw16").read_bytes()
    rule = replace(THUMBNAIL, decoder="raw16@1")
    assert thumbnail(data, rule).startswith("data:image/webp;base64,")
    with pytest.raises(BadImage, match="not_an_image"):
        thumbnail(data)
