"""Tests datasets.yaml: every error names the file, the field and the value."""

from __future__ import annotations

import os
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import monotonic

import pytest

from pipeline.building import Request
from pipeline.errors import SourceError, UsageError
from pipeline.refreshing import load_config
from pipeline.refreshing.config import MAX_BYTES

GOOD = """
catalogue: s3://bucket/dnas
defaults:
  max_failures: 5
  bins: 500
datasets:
  - name: city/day
    source: s3://bucket/day
  - name: city/night
    source: photos/night
    bins: 100
    precision: bf16
    resize: fast
    exif: ignore
    crop: center
    taps: blocks.*
    limit: 10
    include: "*.png"
    exclude: "*-mask.png"
    group_by: 1
    max_failures: 0.5
    shard_images: 64
    layer_gaussian: true
    extractor: other
    weights: weights.pt
    ranges: ranges.parquet
"""


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "datasets.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refusal(folder: Path, text: str | bytes) -> str:
    """Returns the message of the error, which always names the file."""
    path = write(folder, text)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert path in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def one(**settings: str) -> str:
    lines = {"name": "a", "source": "photos"} | settings
    return "datasets:\n  - " + "\n    ".join(f"{k}: {v}" for k, v in lines.items()) + "\n"


def test_a_valid_file_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.catalogue == "s3://bucket/dnas"
    day, night = config.requests()
    assert day == Request("city/day", "s3://bucket/day", bins=500, max_failures=5)
    assert night == Request(
        "city/night", "photos/night", extractor="other", weights="weights.pt", bins=100,
        precision="bf16", ranges="ranges.parquet", resize="fast", exif="ignore",
        crop="center", taps="blocks.*", limit=10, include="*.png",
        exclude="*-mask.png", group_by="1", max_failures=0.5, shard_images=64,
        layer_gaussian=True,
    )  # fmt: skip


def test_the_smallest_valid_file_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, one()))
    assert config.catalogue is None
    assert config.requests() == [Request("a", "photos")]


def test_a_dataset_may_reset_a_default(tmp_path: Path) -> None:
    text = "defaults: {limit: 5}\n" + one(limit="null")
    assert load_config(write(tmp_path, text)).requests() == [Request("a", "photos")]


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"binz": "100"}, "datasets.0.binz", "100"),
        ({"bins": "many"}, "datasets.0.bins", "'many'"),
        ({"bins": '"100"'}, "datasets.0.bins", "'100'"),
        ({"bins": "1"}, "datasets.0.bins", "1"),
        ({"bins": "10.5"}, "datasets.0.bins", "10.5"),
        ({"limit": "0"}, "datasets.0.limit", "0"),
        ({"limit": "true"}, "datasets.0.limit", "True"),
        ({"shard_images": "-8"}, "datasets.0.shard_images", "-8"),
        ({"max_failures": "-0.1"}, "datasets.0.max_failures", "-0.1"),
        ({"max_failures": ".nan"}, "datasets.0.max_failures", "nan"),
        ({"precision": "fp16"}, "datasets.0.precision", "'fp16'"),
        ({"resize": "dirty"}, "datasets.0.resize", "'dirty'"),
        ({"crop": "left"}, "datasets.0.crop", "'left'"),
        ({"exif": "maybe"}, "datasets.0.exif", "'maybe'"),
        ({"name": "7"}, "datasets.0.name", "7"),
        ({"source": "[a, b]"}, "datasets.0.source", "['a', 'b']"),
        ({"source": "null"}, "datasets.0.source", "None"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(
    tmp_path: Path, settings: dict[str, str], field: str, value: str
) -> None:
    message = refusal(tmp_path, one(**settings))
    assert field in message
    assert value in message


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("datasets:\n  - source: photos\n", "datasets.0.name", "photos"),
        ("datasets:\n  - name: a\n", "datasets.0.source", "'a'"),
        ("catalog: x\n" + one(), "catalog", "'x'"),
        ("catalogue: 5\n" + one(), "catalogue", "5"),
        ("defaults: {name: x}\n" + one(), "defaults.name", "'x'"),
        ("datasets: []\n", "datasets is []: it must have entries, at least 1", "`- {name: NAME"),
        ("5: x\n" + one(), "5 is 5", "a field's name must be text"),
        ("datasets: photos\n", "datasets", "'photos'"),
        ("datasets: {a: photos}\n", "datasets", "write a line `- {name: NAME, source: FOLDER}`"),
        ("catalogue: x\n", "datasets", "is missing in"),
        ("", "the whole", "None"),
        ("just words", "the whole", "'just words'"),
    ],
)
def test_a_wrong_shape_is_named(tmp_path: Path, text: str, field: str, value: str) -> None:
    message = refusal(tmp_path, text)
    assert field in message
    assert value in message


def test_several_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, one(bins="1", resize="dirty") + "  - name: b\n")
    for field in ("datasets.0.bins", "datasets.0.resize", "datasets.1.source"):
        assert field in message


@pytest.mark.parametrize(
    "text", ["datasets: [", "a: b: c", "\tdatasets:", b"\xff\xfe\xff", "*nowhere", "a: 1\n--- \nb"]
)
def test_what_is_not_yaml_is_refused(tmp_path: Path, text: str | bytes) -> None:
    message = refusal(tmp_path, text)
    assert "is not YAML" in message
    assert "in quotes" not in message


@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"]
)
def test_tags_that_would_run_code_are_refused_and_run_nothing(tmp_path: Path, tag: str) -> None:
    planted = tmp_path / "planted"
    message = refusal(tmp_path, f"datasets: !!python/{tag} ['{planted}']\n")
    assert f"tag:yaml.org,2002:python/{tag}" in message
    assert not planted.exists()


def laughs(levels: int, form: str) -> str:
    """Makes a document whose lines refer nine times to the one above: 9^levels values in all."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {form.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "aliases of aliases": (laughs(40, "[{}]"), "values or more, its aliases"),
    "merges of merges": (laughs(40, "{{<<: [{}]}}"), "values or more, its aliases"),
    "an alias of itself": ("datasets: &a [*a]\n", "values or more, its aliases"),
    "lists in lists": ("[" * 400_000, "nested too deeply"),
    "maps in maps": ("{a: " * 100_000, "nested too deeply"),
    "indented lists": ("- " * 200_000, "nested too deeply"),
    "a large file": ("#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes"),
    "a number of many digits": (one(bins="9" * 5000), "is not YAML"),
    "a day that is none": (one(limit="2024-13-45"), "is not YAML"),
    "a tagged number": (one(bins="!!int many"), "is not YAML"),
    "a tagged number of no digits": (one(bins="!!int ''"), "is not YAML"),
    "a tagged time": (one(bins="!!timestamp soon"), "is not YAML"),
    "a tagged truth": (one(bins="!!bool perhaps"), "is not YAML"),
    "a list as a key": ("? [a]\n: b\n", "is not YAML"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_document_is_refused_quickly_and_in_little_memory(
    tmp_path: Path, what: str
) -> None:
    text, message = HOSTILE[what]
    began, held = monotonic(), getrusage(RUSAGE_SELF).ru_maxrss
    found = refusal(tmp_path, text)
    assert message in found
    assert len(found) < 1000
    assert monotonic() - began < 20
    assert getrusage(RUSAGE_SELF).ru_maxrss - held < 128 * 2**10  # in KiB


def test_the_largest_accepted_document_is_read_quickly(tmp_path: Path) -> None:
    lines = [f"  - {{name: d{i}, source: s}}\n" for i in range(2000)]
    began = monotonic()
    assert len(load_config(write(tmp_path, "datasets:\n" + "".join(lines))).datasets) == 2000
    assert monotonic() - began < 20


def test_aliases_that_repeat_little_are_accepted(tmp_path: Path) -> None:
    text = (
        "defaults: &all {bins: 5, resize: fast}\n"
        "datasets:\n"
        "  - &first {<<: *all, name: a, source: s, bins: 7}\n"
        "  - {<<: *first, name: b}\n"
    )
    a, b = load_config(write(tmp_path, text)).requests()
    assert (a.bins, a.resize, b.name, b.bins) == (7, "fast", "b", 7)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("catalogue: a\n" + one() + "catalogue: b\n", "catalogue", (1, 5)),
        (one(bins="5") + "    bins: 6\n", "bins", (4, 5)),
        (one() + "datasets: []\n", "datasets", (1, 4)),
        ("defaults: {limit: 1, 'limit': 2}\n" + one(), "limit", (1, 1)),
    ],
)
def test_a_repeated_key_is_named_with_both_its_lines(
    tmp_path: Path, text: str, key: str, lines: tuple[int, int]
) -> None:
    message = refusal(tmp_path, text)
    assert f"the key {key!r} is given twice, first in line {lines[0]}" in message
    assert f"line {lines[1]}," in message


def test_a_name_that_no_dataset_may_have_is_refused_with_the_file(tmp_path: Path) -> None:
    assert "'a b'" in refusal(tmp_path, one(name="a b"))


def test_two_datasets_of_one_name_are_refused_with_the_file(tmp_path: Path) -> None:
    text = one() + "  - {name: b, source: x}\n  - {name: a, source: y}\n"
    message = refusal(tmp_path, text)
    assert "'a'" in message


@pytest.mark.timeout(20)
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "datasets.yaml")
    with pytest.raises(SourceError, match=r"datasets.yaml is a named pipe"):
        load_config(str(tmp_path / "datasets.yaml"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere.yaml does not exist"):
        load_config(str(tmp_path / "nowhere.yaml"))
