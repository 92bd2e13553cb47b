"""An image decoder of the user's own: registered by name, stated by specs, run in any process."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import images
from pipeline.counting import Recipe
from pipeline.errors import BadImage, SpecMismatch, TransientError, UsageError
from pipeline.images import decode, load, load_isolated, register_decoder, stated_decoder
from pipeline.spec import Preprocess, Resources, Spec
from tests.support import tiny_network as tiny
from tests.support.builders import tiny_spec
from tests.support.own_decoders import flat, odd, written
from tests.support.ray_commands import REPOSITORY

RULE = Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3)
EXAMPLE = REPOSITORY / "examples" / "own_decoder"


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)


def rule_of(function: Any, version: str = "1") -> Preprocess:
    name = f"own-{uuid.uuid4().hex}"
    register_decoder(name, function, version=version)
    return replace(RULE, decoder=stated_decoder(name))


def test_its_pixels_are_those_that_count() -> None:
    rule = rule_of(flat)
    assert np.array_equal(decode(written(pixels()), rule), pixels())
    assert np.array_equal(load(written(pixels()), rule), images.prepare(pixels(), rule))


def test_in_a_process_apart_it_is_the_same_to_the_last_bit() -> None:
    rule = rule_of(flat)
    assert np.array_equal(load_isolated(written(pixels()), rule, 60), load(written(pixels()), rule))


@pytest.mark.parametrize("how", [decode, lambda data, rule: load_isolated(data, rule, 60)])
@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("raise ValueError('no magic')", BadImage, "corrupt: own-.*@1: ValueError: no magic"),
        ("raise BadImage('truncated', 'half')", BadImage, "truncated: half"),
        ("raise BadImage('gone', 'odd')", BadImage, "corrupt: own-.*@1: gone: odd"),
        ("raise BadImage('timeout', 'x')", BadImage, "corrupt: own-.*@1: timeout: x"),
        ("raise TransientError('no licence')", TransientError, "no licence"),
        ("None", UsageError, r"own-.*@1 returned NoneType of shape \(\).*uint8"),
        ("np.ones((4, 4, 3))", UsageError, r"returned float64 of shape \(4, 4, 3\)"),
        ("np.ones((4, 4), np.uint8)", UsageError, r"returned uint8 of shape \(4, 4\)"),
        ("np.ones((0, 4, 3), np.uint8)", UsageError, r"returned uint8 of shape \(0, 4, 3\)"),
    ],
)
def test_what_it_raises_or_returns_is_told(
    how: Any, task: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        how(task.encode(), rule_of(odd))


def test_the_rules_limits_hold_for_it() -> None:
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


def test_one_that_kills_its_process() -> None:
    with pytest.raises(BadImage, match="killed by SIGKILL, 2 times") as caught:
        load_isolated(b"die", rule_of(odd), 60, attempts=2)
    assert caught.value.reason == "decoder_crashed"


def test_names_and_versions() -> None:
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


def test_specs_without_one_are_what_they_were() -> None:
    spec, _ = tiny_spec()
    assert "decoder" not in spec.to_json()["preprocess"]
    assert spec.digest == Spec.from_json(spec.to_json()).digest
    with_one = replace(spec, preprocess=replace(spec.preprocess, decoder="raw16@1"))
    assert with_one.digest != spec.digest
    assert Spec.from_json(with_one.to_json()) == with_one
    assert spec.differences(with_one) == {"preprocess.decoder": (None, "raw16@1")}


def test_a_recipe_carries_it_to_processes_that_know_no_name(tmp_path: Path) -> None:
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
        "assert (images.load_isolated(data, rule, 60) == images.load(data, rule)).all()\n"
        "print(images.decode(data, rule).sum())"
    )
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == str(pixels().sum()), done.stderr
