"""Tests the commands as people and scripts run them: their output and their exit codes."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import click.testing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from jobs.app import app
from jobs.output import Rows, print_json
from pipeline import engine, storage
from pipeline.catalogue import Catalogue, FarImage, Outliers, keep_outliers
from pipeline.comparing import all_pairs
from pipeline.counting.allocator import NEW_OBJECTS
from pipeline.engine import InProcess
from pipeline.errors import StorageError
from pipeline.networks import describe
from pipeline.reporting import matrix_rows
from pipeline.spec import Resources
from pipeline.wording import in_units
from tests.reporting.test_report import matrix_of, with_estimates
from tests.support import tiny_network as tiny
from tests.support.builders import photo, write_photos
from tests.support.ray_commands import SLOW, Small, small

__all__ = ["small"]  # a fixture

IMAGES = 6
REPOSITORY = Path(__file__).parents[2]
RUNNER = CliRunner()
Outcome = click.testing.Result

SMALL: list[object] = []
"""Options of a build with a small network, for tests in which the counts do not matter."""

FEWER_BINS = ("--bins", 4, "--spec", "new")


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    network = tiny.install(tmp_path_factory.mktemp("tiny"))
    SMALL[:] = [word for k, v in network.options.items() for word in (f"--{k}", v)]
    return network


def vdna(*words: object, exits: int = 0, env: dict[str, str] | None = None) -> Outcome:
    """Runs the command in this process; our errors end in an exit code, never in a traceback."""
    done = RUNNER.invoke(app, [str(word) for word in words], env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == exits, done.output
    return done


def vdna_json(*words: object, exits: int = 0) -> Any:
    """Returns what the command prints on stdout, which is one JSON text and nothing else."""
    return json.loads(vdna(*words, "--json", exits=exits).stdout)


def build(name: str, source: Path, place: Path, *options: object, exits: int = 0) -> Outcome:
    words = ("build", name, source, "-c", place, "--workers", 0, "--threads", 2)
    return vdna(*words, *options, exits=exits)


def build_json(name: str, source: Path, place: Path, *options: object) -> Any:
    return json.loads(build(name, source, place, "--json", *options).stdout)


def run(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env=os.environ | (env or {}),
    )


def refused(done: Outcome, *parts: str) -> None:
    """Checks that there is one message on stderr, and no traceback anywhere."""
    assert done.stdout == ""
    assert "error: " in done.stderr
    assert "Traceback" not in done.output
    for part in parts:
        assert part in done.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, IMAGES)
    (folder / "notes.txt").write_text("of another kind")
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    write_photos(folder, 4, first_seed=500)
    return folder


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes four images, one of them truncated."""
    folder = tmp_path_factory.mktemp("spoilt")
    cut = write_photos(folder, 4, first_seed=700)[-1]
    cut.write_bytes(cut.read_bytes()[:-200])
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, photos: Path, others: Path) -> Path:
    """Builds `a` and `b/other` with a small network, and `a` again with 4 bins."""
    place = tmp_path_factory.mktemp("catalogue")
    build("a", photos, place, *SMALL)
    build("b/other", others, place, *SMALL)
    build("a", photos, place, *SMALL, *FEWER_BINS)
    return place


@pytest.fixture(scope="module")
def specs(place: Path) -> dict[int, str]:
    """Maps the number of bins to the digest of the spec."""
    catalogue = Catalogue(str(place))
    digests = catalogue.head().datasets["a"]
    return {catalogue.spec(digest).bins: digest for digest in digests}


# build


@pytest.mark.parametrize("source", ["/data/photos", "~/photos", "../photos", "s3://bucket/photos"])
def test_build_with_name_and_source_exchanged_says_their_order(source: str, tmp_path: Path) -> None:
    done = vdna("build", source, "photos", "-c", tmp_path / "c", exits=2)
    assert f"dataset name {source!r} is a path or url; the name comes first" in done.stderr
    assert "'photos'" in done.stderr
    assert not (tmp_path / "c").exists()


def test_build_says_what_it_counted_and_left_out(tmp_path: Path, photos: Path) -> None:
    done = build("a", photos, tmp_path / "c")
    line, work, moved = done.stdout.splitlines()
    digest = Catalogue(str(tmp_path / "c")).find("a").dna
    assert line == (f"a: 6 images, 1 file of other kinds ignored; committed (dna {digest[:12]})")
    size = sum(path.stat().st_size for path in photos.iterdir() if path.suffix != ".txt")
    assert work.startswith(f"  6 read ({in_units(size)}), in ")
    assert (
        moved
        == "  how far it moved is not known: there was no version of this spec to compare it with"
    )
    assert f"listing {photos}" in done.stderr
    assert "a: up to 6 images of 6 to read, about " in done.stderr
    assert "6/6 images" in done.stderr


@pytest.mark.parametrize("command", [("verify",), ("gc", "--dry-run")])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), []),
        (("--ray-address", "head:1"), [(None, "head:1")]),
        (("--ray-address", "head:1", "--workers", 3), [(3, "head:1")]),
        (("--workers", 3), [(3, None)]),
    ],
)
def test_verify_and_gc_use_ray_if_workers_or_a_cluster_are_named(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    words: tuple[object, ...],
    expected: list[tuple[int | None, str | None]],
) -> None:
    opened: list[tuple[int | None, str | None]] = []

    class Recorded(InProcess):
        """Takes the place of Ray."""

        def __init__(self, resources: Resources, address: str | None, progress: object) -> None:
            super().__init__()
            opened.append((resources.workers, address))

    monkeypatch.setattr(engine, "RayEngine", Recorded)
    vdna(*command, "-c", place, *words)
    assert opened == expected


@pytest.mark.parametrize(
    "command",
    [
        ("build", "a", "photos"),
        ("calibrate", "photos"),
        ("compare",),
        ("rank", "photos", "--to", "a"),
        ("verify",),
        ("gc", "--dry-run"),
    ],
)
def test_a_cluster_is_refused_for_work_of_this_process(
    place: Path, command: tuple[str, ...]
) -> None:
    words = (*command, *(() if command[0] == "calibrate" else ("-c", place)), "--workers", 0)
    told = vdna(*words, "--ray-address", "head:1", exits=2).stderr
    assert told.splitlines()[-1] == (
        "error: workers is 0, which works in this process, and --ray-address names head:1; leave "
        "one of them out"
    )


def test_a_submitted_command_may_work_in_its_own_process(place: Path) -> None:
    """`submit` gives each command the address of the cluster that it runs in, which is `auto`."""
    vdna("compare", "-c", place, "--workers", 0, "--ray-address", "auto")


def test_a_cluster_of_the_environment_is_not_used_by_this_process(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there for all commands, and does not say that this one is to use it."""
    monkeypatch.setenv("RAY_ADDRESS", "head:1")
    vdna("compare", "-c", place, "--workers", 0)


def test_the_same_command_again_does_nothing(place: Path, photos: Path) -> None:
    before = Catalogue(str(place)).head().number
    done = build("a", photos, place, *SMALL)
    assert "nothing to do, the source has not changed" in done.stdout
    assert "6/6 images" not in done.stderr
    again = build_json("a", photos, place, *SMALL)
    assert (again["changed"], again["counted_shards"]) == (False, 0)
    assert Catalogue(str(place)).head().number == before


def test_build_as_json(tmp_path: Path, spoilt: Path) -> None:
    result = build_json("x", spoilt, tmp_path / "c", *SMALL, "--max-failures", 1)
    assert (result["name"], result["images"], result["failed"]) == ("x", 3, 1)
    assert (result["changed"], result["counted_shards"]) == (True, 4)
    (failure,) = result["failures"]
    assert failure["reason"] == "truncated"
    assert failure["uri"].endswith("photo-0703.jpg")
    version = Catalogue(str(tmp_path / "c")).find("x")
    assert (result["dna"], result["sha256"]) == (version.dna, version.sha256)


def test_a_command_looks_for_garbage_rarely(place: Path) -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        vdna("ls", "-c", place)
        assert gc.get_threshold() == (NEW_OBJECTS, 10, 10)
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize("module", ["numpy", "triton"])
def test_python_ends_without_a_look_for_garbage_and_without_words(module: str) -> None:
    pytest.importorskip(module)
    code = "import atexit, gc\natexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"
    code += f"from pipeline.counting import collect_rarely\nimport {module}\ncollect_rarely()"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    # What is registered first is called last.
    assert done.stdout.strip() == str(module == "numpy")


def test_build_takes_its_options(tmp_path: Path, photos: Path) -> None:
    options = ("--bins", 50, "--resize", "fast", "--limit", 3, "--exclude", "*-0005.jpg")
    options += ("--exif", "ignore", "--crop", "center", "--jpeg", "scaled")
    result = build_json("a", photos, tmp_path / "c", *SMALL, *options)
    assert (result["images"], result["counted_shards"]) == (3, 3)
    spec = Catalogue(str(tmp_path / "c")).spec(result["spec"])
    assert (spec.bins, spec.preprocess.resize) == (50, "fast")
    assert (spec.preprocess.exif, spec.preprocess.crop) == ("ignore", "center")
    assert spec.preprocess.jpeg == "scaled"
    assert "EXIF ignore, fp32, JPEGs scaled" in vdna("show", "a", "-c", tmp_path / "c").stdout


def test_show_tells_which_images_of_its_source_a_dataset_has(tmp_path: Path, photos: Path) -> None:
    """A version states the folder of a glob only."""
    place, some = tmp_path / "c", f"{photos}/photo-000[1-4].jpg"
    build("a", some, place, *SMALL, "--exclude", "*3.jpg", "--limit", 2)
    assert (
        f"  chosen by  {some} --exclude *3.jpg --limit 2\n" in vdna("show", "a", "-c", place).stdout
    )
    shown = vdna_json("show", "a", "-c", place)
    assert shown["selection"] == {"source": some, "exclude": "*3.jpg", "limit": 2}
    build("a", photos, place, *SMALL)
    assert "chosen by" not in vdna("show", "a", "-c", place).stdout
    assert vdna_json("show", "a", "-c", place, "--at", 1)["selection"] == {}
    build("a", some, place, *SMALL, "--limit", 3)
    assert "--limit 3\n" in vdna("show", "a", "-c", place).stdout


def test_allowed_failures_are_listed(tmp_path: Path, spoilt: Path) -> None:
    done = build("x", spoilt, tmp_path / "c", *SMALL, "--max-failures", 1)
    first, work, _, second = done.stdout.splitlines()
    assert work.startswith("  4 read (")
    assert first.startswith("x: 3 images, 1 could not be read; committed")
    assert second.startswith("  not counted: ")
    assert "photo-0703.jpg: truncated" in second
    shown = vdna("show", "x", "-c", tmp_path / "c").stdout
    assert "3 images, 1 failed" in shown
    assert "1 x truncated" in shown
    (failure,) = vdna_json("show", "x", "-c", tmp_path / "c")["failures"]
    assert failure["reason"] == "truncated"


def test_transparent_images_and_those_of_one_colour_are_noted(tmp_path: Path) -> None:
    folder, place = tmp_path / "images", tmp_path / "c"
    first, second, *_ = write_photos(folder, 3, first_seed=900)
    with Image.open(first) as image:
        image.putalpha(100)
        image.save(folder / "clear.png")
    Image.new("RGB", (8, 8), "red").save(folder / "plain.png")
    second.unlink()
    lines = build("x", folder, place, *SMALL).stdout.splitlines()
    assert "4 images, 1 transparent, 1 of a single colour; committed" in lines[0]
    notes = [line for line in lines if line.startswith("note: ")]
    assert [note.partition(":")[2].partition(":")[0] for note in notes] == [
        " 1 of 4 images is transparent",
        " 1 of 4 images is of a single colour",
    ]
    assert "Build with --alpha white, black or checker" in notes[0]
    assert "--exclude" in notes[1]
    again = build_json("x", folder, place, *SMALL)
    assert (again["changed"], again["transparent"], again["single_colour"]) == (False, 1, 1)
    shown = vdna("show", "x", "-c", place).stdout
    assert "noted      1 transparent, 1 of a single colour" in shown
    assert notes[0].strip() in shown
    laid = build("laid", folder, place, *SMALL, "--alpha", "white").stdout
    assert "note: 1 of 4 images is transparent: laid upon white" in laid


def test_too_many_failures_exit_3_and_a_higher_limit_commits_at_once(
    tmp_path: Path, spoilt: Path
) -> None:
    refused(
        build("x", spoilt, tmp_path, *SMALL, exits=3),
        "1 of 4 images could not be read; the limit is 1% of the images",
        "photo-0703.jpg: truncated",
        "--max-failures",
    )
    refused(vdna("ls", "-c", tmp_path, exits=1), "there is no catalogue at")
    result = build_json("x", spoilt, tmp_path, *SMALL, "--max-failures", 0.25)
    assert (result["changed"], result["counted_shards"]) == (True, 0)
    assert (result["images"], result["failed"]) == (3, 1)


def test_a_shell_can_complete_the_commands() -> None:
    """A shell sets these variables when the tab key is pressed."""
    listed = vdna("--help").stdout
    assert "--install-completion" in listed
    asked = {"_VDNA_COMPLETE": "complete_bash", "COMP_WORDS": "vdna ex", "COMP_CWORD": "1"}
    found = run(sys.executable, "-c", "from jobs.app import app; app(prog_name='vdna')", env=asked)
    assert found.stdout.split() == ["explain", "export", "export-tables"]


# How it ends


def test_a_missing_source_exits_1(tmp_path: Path) -> None:
    refused(build("a", tmp_path / "nowhere", tmp_path / "c", exits=1), "nowhere does not exist")


def test_an_empty_source_exits_1(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(build("a", tmp_path / "empty", tmp_path / "c", exits=1), "empty holds no image")
    (tmp_path / "empty" / "list.json").write_text("[]")
    done = build("a", tmp_path / "empty", tmp_path / "c", exits=1)
    refused(done, "1 file of other kinds ignored")


def test_a_source_of_broken_images_only_exits_1_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"nothing")
    done = build("a", tmp_path / "images", tmp_path / "c", *SMALL, "--max-failures", 9, exits=1)
    refused(done, "none of 1 candidate is an image", "a.jpg")


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("a", ("--extractor", "resnet9000"), ("'resnet9000'", "efficientnet_lite0")),
        ("a", ("--bins", "1"), ("bins is 1",)),
        ("a", ("--max-failures", "-1"), ("max_failures is -1",)),
        ("a", ("--max-failures", "nan"), ("max_failures is nan",)),
        ("a", ("--max-failures", "1.5"), ("max_failures is 1.5", "a fraction below 1, or a whole")),
        ("a", ("--limit", "0"), ("limit is 0",)),
        ("a", ("--shard-images", "0"), ("shard_images is 0",)),
        ("a", ("--group-by", "folder"), ("'folder'",)),
        ("a", ("--gpus-per-worker", "-1"), ("gpus_per_worker is -1",)),
        ("a", ("--threads", "0"), ("threads is 0",)),
        ("a", ("--workers", "-1"), ("workers is -1",)),
        ("a b", (), ("'a b'",)),
        ("../a", (), ("'../a'",)),
        ("a//b", (), ("'a//b'",)),
        ("a/..", (), ("'a/..'",)),
        ("", (), ("''",)),
    ],
)
def test_bad_usage_exits_2_and_names_the_value(
    tmp_path: Path, photos: Path, name: str, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refused(build(name, photos, tmp_path / "c", *options, exits=2), *parts)
    assert not list(tmp_path.glob("c/_log/*"))
    listed = "--group-by" in options  # which is wrong for what is found there
    assert (tmp_path / "c").exists() == listed


@pytest.mark.parametrize(
    ("options", "exits"),
    [
        (("--weights", "nope.pt"), 1),
        (("--weights", "bad.pt"), 1),
        (("--ranges", "nope.parquet"), 1),
        (("--taps", "nope"), 2),
        (("--decoder", "nope"), 2),
    ],
    ids=lambda each: " ".join(map(str, each)) if isinstance(each, tuple) else "",
)
def test_a_build_that_cannot_count_leaves_nothing_where_nothing_was(
    tmp_path: Path,
    photos: Path,
    options: tuple[str, ...],
    exits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pt").write_bytes(b"no weights")
    refused(build("a", photos, tmp_path / "c", *SMALL, *options, exits=exits), options[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


@pytest.mark.parametrize(
    "words",
    [
        ("build", "a"),
        ("build", "a", "x", "-c", "c", "--resize", "dirty"),
        ("build", "a", "x", "-c", "c", "--crop", "left"),
        ("build", "a", "x", "-c", "c", "--exif", "maybe"),
        ("build", "a", "x", "-c", "c", "--bins", "many"),
        ("build", "a", "x", "-c", "c", "--no-such-option"),
        ("gc", "-c", "c", "--grace-days", "-1"),
        ("log", "-c", "c", "--limit", "-1"),
        ("no-such-command",),
        ("ls",),
    ],
)
def test_what_the_parser_refuses_exits_2(words: tuple[str, ...]) -> None:
    done = vdna(*words, exits=2, env={"VDNA_CATALOGUE": ""})
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gc", "-c", "c", "--grace-days", "-1"), "Invalid value for '--grace-days': "),
        (("log", "-c", "c", "--limit", "0"), "Invalid value for '--limit': "),
        (("build", "a", "-c", "c"), "Missing argument 'source'"),
        (("ls",), "Missing option '--catalogue'"),
        (("ls", "-c", "c", "--no-such-option"), "No such option: --no-such-option"),
        (("no-such-command",), "No such command 'no-such-command'"),
        (("lens", "show", "-c", "c"), "Missing argument 'name'"),
    ],
)
def test_what_the_parser_refuses_is_json_on_stdout_and_text_on_stderr(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VDNA_CATALOGUE", raising=False)
    texts = []
    for more in (["--json"], []):
        with pytest.raises(SystemExit) as ended:
            app([*words, *more])
        assert ended.value.code == 2
        texts.append(capsys.readouterr())
    asked, plain = texts
    told = json.loads(asked.out)
    assert told.keys() == {"error", "message"}
    assert told["error"] == "UsageError"
    assert told["message"].startswith(said)
    assert (plain.out, plain.err) == ("", asked.err)
    assert said in asked.err


def test_a_command_that_is_run_as_a_module_says_as_json_what_the_parser_refuses() -> None:
    words = ("-m", "jobs.log", "-c", "c", "--limit", "0")
    done = run(sys.executable, *words, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (2, "UsageError")
    done = run(sys.executable, *words, "--", "--json")  # which is a name, and no option
    assert (done.returncode, done.stdout) == (2, "")


def test_a_signed_url_is_refused_and_its_secret_not_repeated(tmp_path: Path) -> None:
    url = "https://host/a.jpg?X-Amz-Signature=planted"
    done = vdna("build", "a", url, "-c", tmp_path, "--workers", 0, exits=2)
    refused(done, "https://host/a.jpg")
    assert "planted" not in done.output


@pytest.mark.parametrize("command", ["show", "verify", "compare"])
def test_an_unknown_dataset_exits_1_and_names_it(place: Path, command: str) -> None:
    refused(vdna(command, "nobody", "-c", place, exits=1), "nobody", "a", "b/other")


def test_an_unknown_spec_or_moment_is_named(place: Path) -> None:
    refused(vdna("show", "a", "-c", place, "--spec", "zz", exits=1), "'zz'")
    refused(vdna("ls", "-c", place, "--at", "99", exits=1), "no commit 99")
    refused(vdna("ls", "-c", place, "--at", "2000-01-01", exits=1), "as old as 2000-01-01")
    refused(vdna("ls", "-c", place, "--at", "yesterday", exits=2), "'yesterday'")
    refused(vdna("compare", "-c", place, "--layer", "blocks.9", exits=2), "'blocks.9'")
    refused(
        vdna("compare", "a", "-c", place, exits=2), "two different datasets or more, and only a is"
    )
    refused(vdna("gc", "-c", place, "--keep", "0", exits=2), "keep is 0")


def test_an_error_is_json_on_stdout_and_text_on_stderr(tmp_path: Path, place: Path) -> None:
    done = vdna("show", "nobody", "-c", place, "--json", exits=1)
    error = json.loads(done.stdout)
    assert error["error"] == "NotFound"
    assert done.stderr == f"error: {error['message']}\n"
    for exits, kind, options in (
        (1, "SourceError", (tmp_path / "nowhere",)),
        (2, "UsageError", (tmp_path, "--extractor", "resnet9000")),
    ):
        words = ("build", "a", *options, "-c", tmp_path / "c", "--workers", 0)
        assert vdna_json(*words, exits=exits)["error"] == kind


def test_any_number_of_failures_may_be_allowed(tmp_path: Path, spoilt: Path) -> None:
    result = build_json("x", spoilt, tmp_path, *SMALL, "--max-failures", "inf")
    assert result["failed"] == 1


def test_an_infinite_grace_period_removes_nothing(place: Path) -> None:
    words = ("gc", "-c", place, "--grace-days", "inf", "--dry-run")
    none = {"objects": 0, "bytes": 0, "versions": []}
    assert vdna_json(*words) == {**none, "removed": False, "later": none}


def test_a_catalogue_that_cannot_be_written_is_an_error_without_traceback(
    tmp_path: Path, photos: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(build("a", photos, tmp_path / "file" / "c", exits=1), "cannot be written")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_interrupted_exits_130(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.building.build_datasets", interrupted)
    done = build("a", photos, tmp_path, *options, exits=130)
    assert done.stderr.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in done.output


# rank


def near(source: Path, place: Path, *options: object, exits: int = 0) -> Outcome:
    words = ("rank", source, "--to", "b/other", "-c", place, "--workers", 0, "--threads", 2)
    weights = SMALL[SMALL.index("--weights") + 1]
    return vdna(*words, "--weights", weights, *options, exits=exits)


def test_rank_prints_both_ends_and_writes_all(place: Path, photos: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "near.parquet", tmp_path / "near.html"
    options = ("--layer", "a", "--top", 2, "--out", out, "--html", page)
    done = near(photos, place, *options)
    rows = pq.read_table(out).to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert list(rows[0]) == ["uri", "member", "rank", "score", "emd", "emd:a", "error"]
    lines = done.stdout.splitlines()
    assert lines[0] == "nearest to b/other, in bins (score, distance, a):"
    shown = [rows[0], rows[1], rows[5], rows[4]]
    for line, row in zip([*lines[1:3], *lines[4:6]], shown, strict=True):
        name = row["uri"].removeprefix("file://")
        shares = (f"{row[column]:.2f}" for column in ("score", "emd", "emd:a"))
        assert line.split() == [str(row["rank"]), *shares, name]
    assert lines[3] == "farthest from b/other, in bins (score, distance, a):"
    assert lines[6].startswith("6 images ranked by their distance to b/other (dna ")
    assert lines[7] == (
        "in the order of the score: the distance to b/other, less three quarters of the distance "
        "to a and b/other, taken together; --order emd orders by the distance alone"
    )
    assert lines[8:] == [f"written to {out}", f"written to {page}"]
    assert page.read_text().count("<figure") == 4
    assert "6/6 images" in done.stderr
    again = json.loads(near(photos, place, *options, "--json").stdout)
    assert again["counted_shards"] == 0
    assert (again["ranked"], again["failed"], again["layers"]) == (6, 0, ["a"])
    told = {key: rows[0][key] for key in ("uri", "member", "rank", "score", "emd", "emd:a")}
    assert again["nearest"][0] == told
    assert len(again["nearest"]) == len(again["farthest"]) == 2
    plain = near(photos, place, "--order", "emd", "--top", 1).stdout.splitlines()
    assert plain[0] == "nearest to b/other, in bins:"
    assert "in the order of the score" not in plain[3]


def test_rank_uses_the_exit_codes_of_the_other_commands(
    place: Path, spoilt: Path, tmp_path: Path
) -> None:
    out = tmp_path / "near.parquet"
    lens = ("--neurons", "b:0-2")
    refused(near(spoilt, place, *lens, "--out", out, exits=3), "1 of 4 images could not be read")
    assert not out.exists()
    done = near(spoilt, place, *lens, "--out", out, "--max-failures", 1)
    assert "3 images ranked" in done.stdout
    assert "through lens b:0-2, 1 could not be read" in done.stdout
    assert "photo-0703.jpg: truncated: " in done.stdout
    refused(near(spoilt, place, "--out", "x.csv", exits=2), "Parquet")
    refused(near(spoilt, place, "--html", "x.txt", exits=2), "'x.txt' must end in .html")
    refused(near(spoilt, place, "--layer", "nope", exits=2), "no layer 'nope'")
    refused(near(spoilt, place, *lens, "--layer", "a", exits=2), "no weight")
    refused(vdna("rank", spoilt, "--to", "x", "-c", place, exits=1), "has no dataset 'x'")


# Reading the catalogue


def test_ls_lists_every_dataset_under_every_spec(
    place: Path, photos: Path, specs: dict[int, str]
) -> None:
    listed = vdna_json("ls", "-c", place)
    assert [(row["name"], row["images"]) for row in listed] == [
        ("a", IMAGES), ("a", IMAGES), ("b/other", 4),
    ]  # fmt: skip
    assert {row["spec"] for row in listed if row["name"] == "a"} == set(specs.values())
    header, *lines = vdna("ls", "-c", place).stdout.splitlines()
    assert header.split() == ["dataset", "images", "failed", "spec", "built", "source"]
    assert [line.split()[:3] for line in lines] == [
        ["a", "6", "0"], ["a", "6", "0"], ["b/other", "4", "0"],
    ]  # fmt: skip
    assert lines[0].endswith(f"  {photos}")
    first = vdna_json("ls", "-c", place, "--at", "1")
    assert [row["name"] for row in first] == ["a"]


@pytest.mark.parametrize(
    "words",
    [
        *(["ls"], ["log"], ["show", "a"], ["verify"], ["compare"], ["compare", "--near", "a"]),
        *(
            ["explain", "a", "b"],
            ["rank", ".", "--to", "a"],
            ["suggest", "a"],
            ["report"],
            *(["gc"], ["rm", "a"], ["rollback", "a", "--to", "1"], ["rename", "a", "b"]),
            *(["tag", "a", "v"], ["tag", "a", "v", "--remove"], ["compare", "a@1", "a@-1"]),
            *(["log", "a"], ["diff", "a@-1", "a"], ["drift", "a"]),
            ["ls", "--at", "1"],
        ),
        *(["lens", "ls"], ["lens", "choose", "x", "--layer", "y"], ["lens", "show", "x"]),
        *(["lens", "fit", "x", "--focus", "a:b"], ["export", "a", "x.npz"], ["export-tables", "x"]),
    ],
    ids=" ".join,
)
def test_every_command_says_in_the_same_words_that_there_is_no_catalogue(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = vdna(*words, "-c", tmp_path / "none", exits=1)
    refused(done, f"there is no catalogue at {storage.canonical(tmp_path / 'none')} yet", "build")
    (tmp_path / "file").write_text("")
    done = vdna(*words, "-c", tmp_path / "file", exits=2)
    refused(done, f"{storage.canonical(tmp_path / 'file')} is a file; a catalogue is a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "words",
    [
        *(["show", "x"], ["show", "x@-1"], ["show", "x@3"], ["show", "x@v"], ["log", "x"]),
        *(["verify", "x"], ["verify", "x@-1"], ["export", "x", "x.npz"]),
        *(["compare", "x"], ["compare", "a", "x"], ["compare", "a", "x@-1"]),
        *(["compare", "--near", "x"], ["compare", "--near", "x", "--top", "1"]),
        *(["compare", "a", "b/other", "--near", "x"], ["compare", "a", "x", "--near", "x"]),
        *(["explain", "x", "a"], ["explain", "a", "x"], ["drift", "x"], ["diff", "x@-1", "x"]),
        *(["diff", "a", "x"], ["suggest", "x"], ["suggest", "a", "x"]),
        *(["rank", "images", "--to", "x"], ["rank", "--to", "x"]),
        ["rank", "images", "--to", "a", "--against", "x"],
        *(["rename", "x", "y"], ["rm", "x"], ["rm", "a", "x"], ["tag", "x", "v"]),
        *(["tag", "x", "v", "--remove"], ["rollback", "x", "--to", "1"]),
        *(["rollback", "x", "--to", "-1"], ["lens", "fit", "l", "--focus", "x:a"]),
        ["lens", "fit", "l", "--ignore", "a:x", "--keep", "a:b/other"],
        ["lens", "fit", "l", "--ignore", "brightness", "--sample-of", "x"],
    ],
    ids=" ".join,
)
def test_every_command_says_alike_that_there_is_no_such_dataset(
    place: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 1, as of all that is not there, and nothing is changed."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "images", 1)
    before = Catalogue(str(place)).head().number
    refused(vdna(*words, "-c", place, exits=1), "dataset 'x'")
    assert Catalogue(str(place)).head().number == before


def test_a_build_into_a_file_is_refused(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(build("a", photos, tmp_path / "file", exits=2), "is a file; a catalogue is a folder")


def test_the_catalogue_may_come_from_the_environment(place: Path) -> None:
    done = vdna("ls", "--json", env={"VDNA_CATALOGUE": str(place)})
    assert json.loads(done.stdout) == vdna_json("ls", "-c", place)
    other = vdna("ls", "-c", place, "--json", env={"VDNA_CATALOGUE": "elsewhere"})
    assert other.stdout == done.stdout


def test_show_tells_how_a_dataset_was_counted(
    place: Path, photos: Path, specs: dict[int, str], network: tiny.Place
) -> None:
    shown = vdna_json("show", "a", "-c", place)
    assert (shown["spec"], shown["spec_fields"]["bins"]) == (specs[tiny.BINS], tiny.BINS)
    assert shown["failures"] == []
    text = vdna("show", "a", "-c", place).stdout
    assert text.startswith(f"a: 6 images, 0 failed, from {photos}\n")
    assert "7 neurons of 2 layers x 8 bins" in text
    assert network.network.weights_sha256 in text
    coarse = vdna_json("show", "a", "-c", place, "--spec", specs[4][:10])
    assert (coarse["spec"], coarse["spec_fields"]["bins"]) == (specs[4], 4)
    assert "x 4 bins" in vdna("show", "a", "-c", place, "--spec", specs[4]).stdout


def test_log_lists_the_newest_commit_first(place: Path) -> None:
    commits = vdna_json("log", "-c", place)
    assert [(c["number"], c["action"]) for c in commits] == [
        (3, "build a"), (2, "build b/other"), (1, "build a"),
    ]  # fmt: skip
    lines = vdna("log", "-c", place).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert "build b/other" in lines[1]
    assert len(vdna_json("log", "-c", place, "--limit", 2)) == 2


def test_verify_passes_an_intact_catalogue(place: Path) -> None:
    told = vdna_json("verify", "-c", place)
    assert all(finding["ok"] for finding in told["findings"])
    assert {finding["dataset"] for finding in told["findings"]} == {"a", "b/other"}
    assert {finding["at"] for finding in told["findings"]} == {None}
    *lines, note, verdict = vdna("verify", "b/other", "-c", place).stdout.splitlines()
    assert verdict == f"1 dataset, {len(lines)} checks: nothing is wrong."
    checks = len(told["findings"])
    assert told["verdict"] == f"3 versions of 2 datasets, {checks} checks: nothing is wrong."
    assert lines
    assert all(line.startswith("ok     b/other  ") for line in lines)
    assert note.startswith("note   only the newest version of each dataset was checked")
    assert "--all" in note
    assert note.removeprefix("note   ") == told["note"]
    assert told["all_versions"] is False


def test_verify_all_checks_older_versions_and_the_log(tmp_path: Path, others: Path) -> None:
    source, place = tmp_path / "photos", tmp_path / "c"
    write_photos(source, 2)
    build("a", source, place, *SMALL)
    photo(90).save(source / "photo-0000.jpg")
    build("a", source, place, *SMALL)
    told = vdna_json("verify", "-c", place, "--all")
    assert all(finding["ok"] for finding in told["findings"])
    assert {finding["at"] for finding in told["findings"]} == {None, 1}
    assert (told["all_versions"], told["note"]) == (True, "")
    done = vdna("verify", "-c", place, "--all")
    log, *lines, verdict = done.stdout.splitlines()
    assert verdict == f"2 versions of 1 dataset, {len(lines) + 1} checks: nothing is wrong."
    assert log.startswith("ok     log: 2 commits")
    assert any(line.startswith("ok     a at commit 1  counts: ") for line in lines)
    assert not any(line.startswith("note") for line in lines)
    assert "2/2 versions" in done.stderr
    first = Catalogue(str(place)).at(1).datasets["a"].popitem()[1]
    (file,) = place.glob(f"dna/*/a/{first.dna}.parquet")
    file.write_bytes(file.read_bytes()[:-40])
    vdna("verify", "-c", place)
    assert "WRONG  a at commit 1  counts: " in vdna("verify", "-c", place, "--all", exits=1).stdout
    removing = ("gc", "-c", place, "--grace-days", 0)
    (place / "_work" / "probe-0123").write_bytes(b"orphan")
    refused(vdna(*removing, exits=1), "nothing was removed", str(file))
    assert (place / "_work" / "probe-0123").exists()
    vdna(*removing, "--keep", 1)
    vdna("verify", "-c", place, "--all")


def test_verify_exits_1_where_a_file_was_changed(tmp_path: Path, others: Path) -> None:
    build("b", others, tmp_path, *SMALL)
    (file,) = tmp_path.glob("dna/*/b/*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    said = vdna("verify", "-c", tmp_path, exits=1).stdout
    assert "WRONG  b" in said
    assert re.search(r"1 dataset, \d+ checks: \d+ fail, in b\. Restore the files", said)
    told = vdna_json("verify", "-c", tmp_path, exits=1)
    assert not all(finding["ok"] for finding in told["findings"])
    build("c", others, tmp_path, *SMALL)
    refused(vdna("compare", "-c", tmp_path, exits=1), str(file), "sha256")


def test_a_dataset_that_is_named_twice_is_taken_out_once(tmp_path: Path, photos: Path) -> None:
    build("a", photos, tmp_path, *SMALL)
    assert vdna_json("rm", "a", "a", "-c", tmp_path)["removed"] == ["a"]


@pytest.mark.parametrize("by_default", [False, True])
def test_the_command_that_rm_prints_brings_the_dataset_back(
    tmp_path: Path, photos: Path, by_default: bool
) -> None:
    place = tmp_path / "a folder"
    build("a", photos, place, *SMALL)
    version = vdna_json("ls", "-c", place)
    env = {"VDNA_CATALOGUE": str(place)} if by_default else {}
    words = ("rm", "a") if by_default else ("rm", "a", "-c", place)
    *_, command = vdna(*words, env=env).stdout.splitlines()
    assert (" -c " in command) != by_default
    vdna(*shlex.split(command)[1:], env=env)
    assert vdna_json("ls", "-c", place) == version


def test_a_dataset_is_taken_out_and_brought_back(tmp_path: Path, photos: Path) -> None:
    build("a", photos, tmp_path, *SMALL)
    version = vdna_json("ls", "-c", tmp_path)
    refused(vdna("rm", "b", "-c", tmp_path, exits=1), "has no dataset 'b'; it has: a")
    *_, command = vdna("rm", "a", "-c", tmp_path).stdout.splitlines()
    back = f"rollback a --to 1 --spec {version[0]['spec'][:12]}"
    assert command == f"    vdna {back} -c {tmp_path}"
    assert vdna_json("ls", "-c", tmp_path) == []
    assert len(vdna("ls", "-c", tmp_path).stdout.splitlines()) == 1  # the head of the table
    gone = "has no dataset 'a'; it has: none. Commit 2 took it out; `vdna rollback a --to 1` brings"
    refused(vdna("show", "a", "-c", tmp_path, exits=1), gone)
    for words in (("compare",), ("report", "--out", tmp_path / "x.html")):
        refused(
            vdna(*words, "-c", tmp_path, exits=2),
            "two different datasets or more, and the catalogue has none",
        )
    vdna("verify", "-c", tmp_path)
    digest = version[0]["dna"][:12]
    assert vdna(*shlex.split(command)[1:]).stdout == (
        f"a: back to 6 images of {photos} (dna {digest}) by commit 3\n"
    )
    assert vdna("rollback", "a", "--to", 1, "-c", tmp_path).stdout == (
        f"a: nothing to do, 6 images of {photos} (dna {digest}) are its current version\n"
    )
    told = vdna_json("rollback", "a", "--to", "@1", "-c", tmp_path)
    assert told == {"commit": 3, "changed": False} | {
        k: v for k, v in version[0].items() if k != "name"
    }
    assert vdna_json("ls", "-c", tmp_path) == version
    assert vdna_json("rm", "a", "-c", tmp_path) == {"commit": 4, "removed": ["a"]}


def test_a_version_of_another_spec_is_told_with_the_command_for_it(
    tmp_path: Path, photos: Path
) -> None:
    build("a", photos, tmp_path, *SMALL)
    build("a", photos, tmp_path, *SMALL, *FEWER_BINS)
    one, other = (row["spec"][:12] for row in vdna_json("ls", "-c", tmp_path))
    own = vdna_json("show", "a", "-c", tmp_path)["spec"][:12]
    beside = other if own == one else one
    for command in ("show", "log"):
        said = vdna(command, "a", "-c", tmp_path).stdout
        assert f"vdna {command} a --spec {beside}" in said
        assert f"--spec {own}" not in said
        assert f"--spec {own}" in vdna(command, "a", "--spec", beside, "-c", tmp_path).stdout
    vdna("rm", "a", "-c", tmp_path)
    said = vdna("rollback", "a", "--to", 2, "--spec", own, "-c", tmp_path).stdout
    (command,) = re.findall("vdna (rollback a --to 2 --spec .*) brings", said)
    said = vdna(*command.split(), "-c", tmp_path).stdout
    assert f"--spec {own}" not in said
    assert [row["spec"][:12] for row in vdna_json("ls", "-c", tmp_path)] == [one, other]


def test_a_dataset_gets_another_name(tmp_path: Path, photos: Path) -> None:
    build("a", photos, tmp_path, *SMALL)
    refused(vdna("rename", "a", "a", "-c", tmp_path, exits=1), "there is a dataset a already")
    assert vdna("rename", "a", "x/b", "-c", tmp_path).stdout == (
        "a: called x/b since commit 2. Its former versions and its tags are\n"
        "  found under the old name, such as a@1\n"
    )
    told = vdna_json("rename", "x/b", "c", "-c", tmp_path)
    assert told == {"commit": 3, "old": "x/b", "new": "c"}
    assert [row["name"] for row in vdna_json("ls", "-c", tmp_path)] == ["c"]
    assert vdna_json("show", "a@1", "-c", tmp_path)["images"] == 6


def test_versions_are_named_wherever_a_dataset_is(tmp_path: Path, network: tiny.Place) -> None:
    source, place = tmp_path / "photos", tmp_path / "c"
    write_photos(source, 12)
    build("x", source, place, *SMALL)
    photo(90).save(source / "photo-0000.jpg")
    photo(91).save(source / "photo-0019.jpg")
    build("x", source, place, *SMALL)
    told = vdna_json("tag", "x@-1", "first", "-c", place)
    assert told == {"commit": 3, "changed": True, "tagged": 1}
    assert vdna("tag", "x@1", "first", "-c", place).stdout == (
        "x@first: nothing to do, it is the version of commit 1\n"
    )
    rows = [vdna_json("show", f"x@{each}", "-c", place)["dna"] for each in ("first", "-1", 1)]
    assert len({*rows}) == 1
    assert rows[0] != vdna_json("show", "x", "-c", place)["dna"]
    pairs = vdna_json("compare", "x@first", "x", "-c", place, "--html", tmp_path / "m.html")
    (pair,) = [row for row in pairs if (row["a"], row["b"]) == ("x@first", "x")]
    assert pair["emd"] > 0
    assert "x@first" in (tmp_path / "m.html").read_text(encoding="utf-8")
    near = vdna("compare", "x@first", "x", "-c", place, "--near", "x@first").stdout
    assert "x@first" in near
    explained = vdna_json("explain", "x@-1", "x", "-c", place, "--html", tmp_path / "w.html")
    assert (explained["a"], explained["b"]) == ("x@-1", "x")
    now, former = vdna_json("log", "x", "-c", place)
    assert now["changes"] == {"added": 1, "removed": 0, "changed": 1, "equal": 11}
    assert now["movement"] == now["drift"] == pair["emd"]
    assert (former["changes"], former["tags"]) == (None, ["first"])
    said = vdna("log", "x", "-c", place).stdout.splitlines()
    assert said[1].split()[4:8] == ["+1", "-0", "~1", "=11"]
    assert said[2].endswith(" first")
    told = vdna_json("diff", "x@-1", "x", "-c", place, "--out", tmp_path / "d.parquet")
    assert told["changes"] == now["changes"]
    assert told["neurons"][0]["exemplars"]["a"]
    assert pq.read_table(tmp_path / "d.parquet").num_rows == 2
    shown = vdna("diff", "x@-1", "x", "-c", place).stdout
    assert shown.startswith("From x@-1 to x: +1 -0 ~1 =11 images\n  + ")
    assert "photo-0019.jpg" in shown.splitlines()[1]
    assert "From x@-1 to x: layers" in shown
    assert "if only their names are equal (share of the images): x@-1 and" in shown
    assert "error bars do not hold" not in shown
    path = vdna_json("drift", "x", "-c", place, "--html", tmp_path / "p.html")
    assert [row["name"] for row in path["versions"]] == ["x@1", "x@2"]
    assert path["versions"][1]["changes"] == now["changes"]
    assert path["versions"][1]["step"]["emd"] == pair["emd"]
    assert '<img src="data:image/webp' in (tmp_path / "p.html").read_text(encoding="utf-8")
    weights = ("--weights", network.options["weights"], "--workers", 0)
    ranked = vdna_json("rank", source, "--to", "x@first", "-c", place, *weights)
    assert (ranked["to"], ranked["commit"], ranked["dna"]) == ("x@first", 1, rows[0])
    vdna("export", "x@first", tmp_path / "x.npz", "-c", place)
    fitting = vdna("lens", "fit", "old", "--focus", "x@first:x", "-c", place, exits=2)
    assert "x@first:x: no neuron differs" in fitting.stderr  # in so few images
    for words in (("build", "x@2", source), ("rm", "x@1")):
        refused(vdna(*words, "-c", place, exits=2), "name the dataset, and no version of it")
    refused(vdna("compare", "x@5", "x", "-c", place, exits=1), "there is no x@5", "x@2 and x@1")
    refused(vdna("compare", "x@2026-99", "x", "-c", place, exits=2), "after the @ stands")
    words = ("tag", "x", "first", "--remove", "--spec", "zzz")
    refused(vdna(*words, "-c", place, exits=2), "leave --spec out")
    bare = vdna("tag", "x@first", "--remove", "-c", place, exits=2)
    refused(bare, "write the tag first after the dataset: vdna tag x first --remove")
    refused(vdna("tag", "x", "-c", place, exits=2), "there is no tag; ", "vdna tag x TAG")
    assert vdna("tag", "x", "first", "--remove", "-c", place).stdout == (
        "x: the tag first is taken away by commit 4\n"
    )
    vdna("rollback", "x", "--to", -1, "-c", place)
    assert vdna_json("show", "x", "-c", place)["dna"] == rows[0]


def test_gc_removes_what_no_version_needs(tmp_path: Path) -> None:
    source, place = tmp_path / "photos", tmp_path / "c"
    write_photos(source, 2)
    build("a", source, place, *SMALL)
    for words in ([], ["--remove"]):  # the version is that of commit 1, and commit 3 holds it too
        vdna("tag", "a", "t", *words, "-c", place)
    photo(90).save(source / "photo-0000.jpg")
    build("a", source, place, *SMALL)
    assert vdna_json("gc", "-c", place, "--keep", 1) == {"objects": 0, "bytes": 0, "removed": True}
    words = ("gc", "-c", place, "--keep", 1, "--grace-days", 0)
    planned = vdna_json(*words, "--dry-run")
    assert planned["objects"] > 0
    assert planned["removed"] is False
    (leaving,) = planned["versions"]
    assert (leaving["name"], leaving["commit"], leaving["images"]) == ("a", 1, 2)
    told, *listed, last = vdna(*words, "--dry-run").stdout.splitlines()
    assert told == (
        f"a@1: 2 images, current until {leaving['until'][:10]}; it is not among the newest 1"
    )
    assert len(listed) == planned["objects"]
    young = vdna(*words[:-2], "--dry-run").stdout.splitlines()
    assert young[0] == "0 objects, 0 bytes to remove"
    assert young[1].startswith(
        f"{planned['objects']:,} more objects, {planned['bytes']:,} bytes, that no kept version "
        "needs either: younger than 7 days (--grace-days)"
    )
    assert young[2:] == [f"  {told}"]
    assert vdna_json(*words, "--dry-run", "--days", 1)["objects"] == 0
    file = tmp_path / "datasets.yaml"
    entry = f"datasets: [{{name: a, source: '{source}'}}]\n"
    configured = ("gc", "--config", file, "--grace-days", 0, "--dry-run")
    file.write_text(f"catalogue: {place}\nretention: {{keep: 1}}\n{entry}")
    assert vdna_json(*configured) == planned
    assert vdna_json(*configured, "--keep", 2)["objects"] == 0
    file.write_text(f"retention: {{keep: 1, days: 9}}\n{entry}")
    assert vdna_json(*configured, "-c", place)["objects"] == 0
    assert vdna_json(*configured, "-c", place, "--days", 0) == planned | {
        "versions": [leaving | {"why": f"{leaving['why']}, and that is more than 0 days ago"}]
    }
    refused(vdna(*configured, exits=2), f"{file} names no catalogue")
    file.write_text(f"retention: {{keep: 0}}\n{entry}")
    refused(vdna(*configured, "-c", place, exits=2), str(file), "retention.keep is 0", "at least 1")
    refused(vdna("gc", exits=2), "no catalogue is named; give the --catalogue")
    assert last == f"{planned['objects']:,} objects, {planned['bytes']:,} bytes to remove"
    assert vdna(*words).stdout == last.replace("to remove", "removed") + "\n"
    assert vdna_json(*words)["objects"] == 0
    assert all(finding["ok"] for finding in vdna_json("verify", "-c", place, "--all")["findings"])
    assert build_json("a", source, place, *SMALL)["changed"] is False


# compare


def test_compare_prints_pairs_with_their_estimates(place: Path) -> None:
    text = vdna("compare", "-c", place).stdout
    rows = vdna_json("compare", "-c", place)
    row = next(r for r in rows if (r["a"], r["b"], r["layer"]) == ("a", "b/other", "all"))
    assert row["emd"] > 0
    assert row["q"] is None  # of four images there are four folds
    assert "of all neurons, in bins (8 to a neuron's range)" in text
    digits = 1 if row["emd_corrected"] >= 1 else 2
    assert f"{row['emd_corrected']:.{digits}f} [{row['low']:.{digits}f}, " in text
    assert f", {row['high']:.{digits}f}]" in text
    assert "The pair is not tested: a test needs 6 folds of each dataset" in text
    assert "range), corrected for the sizes of the samples\n" in text
    assert "Distance, in bins, corrected for the sizes of the samples" in text
    few = "error bars were checked on 16 images or more; fewer are of a (6) and b/other (4)"
    assert f"note: {few}\n" in text
    plain = vdna("compare", "--no-error-bars", "-c", place).stdout
    assert "error bars were checked on" not in plain


@pytest.mark.parametrize("command", ["compare", "report"])
def test_the_memory_option_reaches_the_comparison(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def spy(*arguments: Any) -> Any:
        taken.append(arguments[-1].memory)
        return compared(*arguments)

    compared = all_pairs._compare
    monkeypatch.setattr(all_pairs, "_compare", spy)
    out = ("--out", tmp_path / "report.html") if command == "report" else ()
    vdna(command, "-c", place, "--memory", "0.25", *out)
    assert taken == [2**28]


def test_compare_as_json_has_each_pair_once_of_the_layers_asked_for(
    place: Path, others: Path, tmp_path: Path
) -> None:
    rows = vdna_json("compare", "-c", place)
    assert [(row["a"], row["b"], row["layer"]) for row in rows] == [("a", "b/other", "all")]
    out = tmp_path / "matrix.parquet"
    vdna("compare", "-c", place, "--out", out)
    whole = pq.read_table(out).to_pylist()
    keys = {(row["a"], row["b"], row["layer"]) for row in whole}
    assert len(keys) == len(whole) == 2 * 2 * 3
    there = {(row["a"], row["b"], row["layer"]): row["emd"] for row in whole}
    assert all(there[a, b, layer] == there[b, a, layer] for a, b, layer in keys)
    assert all(row in whole for row in rows)
    assert vdna_json("compare", "-c", place, "--layer", "all") == rows
    assert (
        vdna("compare", "-c", place, "--layer", "all").stdout == vdna("compare", "-c", place).stdout
    )
    two = ("--layer", "a", "--layer", "b")
    found = vdna_json("compare", "-c", place, *two)
    assert [(row["a"], row["layer"]) for row in found] == [("a", "a"), ("a", "b")]
    (some,) = vdna_json("compare", "b/other", "a", "-c", place, "--layer", "b")
    assert (some["a"], some["b"], some["layer"]) == ("b/other", "a", "b")
    assert some["emd"] == there["b/other", "a", "b"]
    (near,) = vdna_json("compare", "--near", "b/other", "-c", place)
    assert (near["a"], near["b"], near["emd"]) == ("b/other", "a", rows[0]["emd"])


def test_compare_writes_parquet_that_opens(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "matrix.parquet"
    assert f"written to {out}" in vdna("compare", "-c", place, "--out", out).stdout
    table = pq.read_table(out)
    for column in (
        "a",
        "b",
        "layer",
        "emd",
        "emd_range",
        "nfd",
        "fd",
        "emd_corrected",
        "se",
        "floor",
    ):
        assert column in table.column_names
    assert table.num_rows == 2 * 2 * 3


def test_compare_writes_a_page_and_a_figure(place: Path, tmp_path: Path) -> None:
    page, figure = tmp_path / "page.html", tmp_path / "figure.svg"
    text = vdna("compare", "-c", place, "--html", page, "--figure", figure).stdout
    assert f"written to {page}\nwritten to {figure}" in text
    assert "The pair is not tested: a test needs 6 folds of each dataset" in " ".join(text.split())
    assert page.read_text().startswith("<!doctype html>")
    assert "b/other" in page.read_text()
    assert "b/other" in figure.read_text()
    some = vdna_json("compare", "-c", place, "--layer", "b", "--html", page, "--figure", figure)
    assert {row["layer"] for row in some} == {"b"}
    two = ("--layer", "b", "--layer", "a")
    text = vdna("compare", "-c", place, *two, "--html", page).stdout
    assert 0 < text.index("of b,") < text.index("of a,")
    refused(vdna("compare", "-c", place, *two, "--figure", figure, exits=2), "b and a")
    refused(vdna("compare", "-c", place, "--html", tmp_path / "x.txt", exits=2), "x.txt", ".html")
    refused(vdna("compare", "-c", place, "--figure", tmp_path / "x.gif", exits=2), "x.gif", ".svg")


def test_compare_names_its_lens_everywhere(place: Path, tmp_path: Path) -> None:
    page, figure = tmp_path / "page.html", tmp_path / "figure.svg"
    words = ("compare", "-c", place, "--neurons", "a:0-3")
    text = vdna(*words, "--html", page, "--figure", figure).stdout
    assert "Earth Mover's Distance through lens a:0-3, in bins" in text
    assert "2 datasets, through lens a:0-3" in figure.read_text()
    assert "Visual DNA of 2 datasets through lens a:0-3" in page.read_text()
    for shown in (text, figure.read_text(), page.read_text().partition("<script>")[0]):
        assert "all neurons" not in shown
        assert "no distance that is defined" not in shown
    other = vdna(*words, "--layer", "b", "--html", page, "--figure", figure).stdout
    assert "The lens gives this layer no weight" in other
    assert "The lens gives this layer no weight" in figure.read_text()
    assert '"weightless":["b"]' in page.read_text()
    assert "nan" not in other
    assert "nearest" not in other.lower()


def test_a_matrix_as_json_is_printed_row_by_row(
    tmp_path: Path,
    place: Path,
    photos: Path,
    network: tiny.Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    matrix = with_estimates(matrix_of(*[f"d{i}" for i in range(40)]), (0, 1))
    matrix.emd[1, 2, 3] = float("nan")
    rows = matrix.table.to_pylist()
    tracemalloc.start()
    assert all(row == expected for row, expected in zip(matrix_rows(matrix), rows, strict=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 * 4  # and not some 8 MiB for every 4,000 rows

    def telling() -> Iterator[object]:
        for at, row in enumerate(rows):
            assert capsys.readouterr().out.count('"emd_range"') == min(at, 1)
            yield row

    for some in ([], rows[:1], rows[:100]):
        print_json({"rows": some, "z": 1})
        whole = capsys.readouterr().out
        print_json({"z": 1, "rows": Rows(iter(some))})
        assert capsys.readouterr().out == whole
    print_json(Rows(telling()))
    monkeypatch.setattr("pipeline.reporting.outcomes.JSON_ROWS", 3)
    assert list(matrix_rows(matrix)) == rows
    given: list[Any] = []
    for command in ("compare", "refresh"):
        monkeypatch.setattr(f"jobs.{command}.print_json", given.append)
    vdna("compare", "-c", place, "--json")
    config = tmp_path / "datasets.yaml"
    dataset = {"name": "a", "source": str(photos), **network.options}
    config.write_text(json.dumps({"datasets": [dataset]}))
    vdna("refresh", "--config", config, "-c", place, "--workers", 0, "--json")
    (printed, refreshed) = given[0], given[1]["matrix"]
    assert isinstance(printed, Rows)
    assert isinstance(refreshed, Rows)
    (once,) = printed
    assert [row for row in refreshed if row["layer"] == "all"].count(once) == 1


def test_report_writes_the_page_of_a_snapshot(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "2 datasets is in vdna-report.html" in vdna("report", "-c", place).stdout
    page = tmp_path / "vdna-report.html"
    assert page.read_text().count("data:image/webp") == 10
    out = tmp_path / "deep/other.html"
    told = vdna_json("report", "-c", place, "--out", out, "--samples", 0)
    assert told == {"out": str(out), "bytes": out.stat().st_size, "datasets": 2}
    assert "data:image/webp" not in out.read_text()
    refused(vdna("report", "-c", place, "--out", "report.pdf", exits=2), "report.pdf", ".html")
    weights = {"layer": ["b"], "neuron": [2], "weight": [1.0]}
    pq.write_table(pa.table(weights), tmp_path / "third.parquet")
    vdna("report", "-c", place, "--out", out, "--samples", 0, "--lens", "third.parquet")
    assert '"lens":"third"' in out.read_text().replace(" ", "")


def test_a_build_of_another_source_than_before_must_be_meant(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "catalogue"
    for number, name in enumerate(("day", "night"), 1):
        (tmp_path / f"{name}.txt").write_text(f"{photos}/photo-000{number}.jpg\n")
    build("x", tmp_path / "day.txt", place, *SMALL)
    assert vdna_json("show", "x", "-c", place)["source"] == str(tmp_path / "day.txt")
    changed = f"x: its source was {tmp_path}/day.txt, and is {tmp_path}/night.txt now"
    refused(build("x", tmp_path / "night.txt", place, *SMALL, exits=2), changed, "give --replace")
    assert Catalogue(str(place)).head().number == 1
    done = build("x", tmp_path / "night.txt", place, *SMALL, "--replace")
    assert done.stdout.splitlines()[3] == (
        f"  replaces 1 image of {tmp_path}/day.txt by 1 of {tmp_path}/night.txt; the former "
        "version is kept until `vdna gc --keep N` finds N newer ones (--at 1 reads it)"
    )
    assert vdna_json("show", "x", "-c", place, "--at", 1)["source"] == str(tmp_path / "day.txt")
    (tmp_path / "night.txt").write_text("".join(f"{photos}/photo-000{n}.jpg\n" for n in (1, 2)))
    again = build_json("x", tmp_path / "night.txt", place, *SMALL)
    assert (again["replaced"]["images"], again["images"]) == (1, 2)
    assert build_json("x", tmp_path / "night.txt", place, *SMALL)["replaced"] is None


def test_compare_says_which_datasets_may_share_images(photos: Path, tmp_path: Path) -> None:
    place, page = tmp_path / "catalogue", tmp_path / "page.html"
    build("all", photos, place, *SMALL)
    build("one", photos / "photo-0000.jpg", place, *SMALL)
    note = f"all and one are of the source {photos}, or of places within it"
    text = vdna("compare", "-c", place, "--html", page).stdout
    assert f"note: these may share images, and then error bars do not hold: {note}" in text
    assert note in page.read_text()


def test_compare_says_whose_images_are_in_pairs(photos: Path, tmp_path: Path) -> None:
    place, page, dark = tmp_path / "catalogue", tmp_path / "page.html", tmp_path / "dark"
    dark.mkdir()
    for path in photos.glob("*.jpg"):
        Image.open(path).point(lambda value: value // 2).save(dark / f"{path.stem}.png")
    build("plain", photos, place, *SMALL)
    build("dark", dark, place, *SMALL)
    note = "images of the same path and in the same fold count as pairs, as those of two versions "
    note += "do, and the error bars allow for it; that does no harm if only their names are equal "
    note += "(share of the images): dark and plain (100%)"
    text = vdna("compare", "-c", place, "--html", page).stdout
    assert f"note: {note}" in text
    assert note in page.read_text()
    (pair,) = vdna_json("compare", "-c", place)
    assert pair["paired"] == 1


def test_a_report_says_what_it_leaves_out(tmp_path: Path) -> None:
    place, page = tmp_path / "c", tmp_path / "page.html"
    for at, name in enumerate("abxy"):
        folder = write_photos(tmp_path / name, 2, 10 * at)[0].parent
        build(name, folder, place, *SMALL, *(["--crop", "center"] if name in "xy" else []))
    note = "not compared, as built under other specs (--spec): x and y"
    for command in (("report", "--out"), ("compare", "--html")):
        said = vdna(*command, page, "-c", place).stdout
        assert f"note: {note}\n" in said
        assert (
            "note: error bars were checked on 16 images or more; fewer are of a (2) and b (2)"
            in said
        )
        assert note in page.read_text()
    done = vdna("report", "--out", page, "-c", place, "--json")
    assert set(json.loads(done.stdout)) == {"out", "bytes", "datasets"}
    assert f"note: {note}\n" in done.stderr
    (other,) = {spec for spec in Catalogue(str(place)).head().datasets["x"]}
    vdna("lens", "choose", "eyes", "--layer", "b", "--spec", other, "-c", place)
    assert vdna_json("lens", "show", "eyes", "-c", place)["neurons"] == 3


def test_compare_lists_the_neighbours_of_one(place: Path) -> None:
    said = vdna("compare", "--near", "a", "-c", place).stdout.splitlines()
    assert said[0].startswith("From a, the nearest first, in bins, ")
    assert said[1].startswith("  b/other  ")
    rows = vdna_json("compare", "--near", "a", "-c", place)
    assert {row["a"] for row in rows} == {"a"}
    earlier = vdna_json("compare", "--near", "a@1", "-c", place)
    assert [(row["a"], row["b"], row["emd"]) for row in earlier] == [
        *(("a@1", "a", 0), ("a@1", "b/other", rows[0]["emd"]))
    ]
    words = ("compare", "a", "b/other", "--near", "a@1", "-c", place)
    refused(vdna(*words, exits=2), "--near is 'a@1'", "not among those compared: a and b/other")
    refused(vdna("compare", "--near", "a", "--fd", "-c", place, exits=2), "--near", "--fd")
    refused(vdna("compare", "--near", "a", "-c", place / "none", exits=1), "no catalogue")


def test_compare_finds_the_nearest_without_comparing_all_pairs(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "near.parquet"
    said = vdna("compare", "--near", "a", "--top", 1, "--out", out, "-c", place).stdout.splitlines()
    assert said[0].startswith("From a, the nearest, by the emd of all neurons, in bins")
    assert said[1].startswith("    1. b/other  emd ")
    assert said[2].startswith("1 of 1 pair computed exactly. The nearest are those of the smallest")
    assert said[-1] == f"written to {out}"
    table = pq.read_table(out).to_pylist()
    (row,) = [row for row in table if row["layer"] == "all"]
    assert (row["a"], row["b"], row["rank"]) == ("a", "b/other", 1)
    (whole,) = vdna_json("compare", "--near", "a", "-c", place)
    found = vdna_json("compare", "--near", "a", "--top", 1, "-c", place)
    assert found["neighbours"] == [{**whole, "rank": 1}] == [row]
    assert (found["pairs"], found["computed"], found["undefined"]) == (1, 1, 0)
    (of_layer,) = vdna_json("compare", "--top", 5, "--near", "a", "--layer", "b", "-c", place)[
        "neighbours"
    ]
    assert of_layer["layer"] == "b"
    graph = vdna("compare", "--top", 1, "--no-error-bars", "-c", place).stdout.splitlines()
    assert graph[0].startswith("The nearest of each, by the emd of all neurons, in bins, not corr")
    lines = [line.split()[:3] for line in graph[1:3]]
    assert lines == [["a", "1.", "b/other"], ["b/other", "1.", "a"]]
    for more in (["--fd"], ["--html", "x.html"], ["--figure", "x.svg"], ["--layer", "b"]):
        words = ("compare", "--top", 1, "--layer", "a", *more, "-c", place)
        refused(vdna(*words, exits=2), "--top looks for the nearest", "leave --top out")
    table = vdna("compare", "--top", 1, "--out", "x.csv", "-c", place, exits=2)
    refused(table, "the table of neighbours is written as Parquet")
    unseen = ("--neurons", "a:1", "--layer", "b", "--top", 1, "-c", place)
    reason = "The lens gives this layer no weight in sum"
    assert reason in vdna("compare", *unseen).stdout
    done = vdna("compare", *unseen, "--json")
    assert reason in done.stderr
    assert json.loads(done.stdout)["no_distances"].startswith(reason)
    assert found["no_distances"] is None


def test_plan_forecasts_by_a_sample_or_by_what_it_printed(photos: Path, tmp_path: Path) -> None:
    printed = vdna("plan", photos, *SMALL, "--threads", 1, "--json").stdout
    (tmp_path / "here.json").write_text(printed)
    forecast = json.loads(printed)
    assert (forecast["images"], forecast["workers"], forecast["cost"]) == (IMAGES, 1, None)
    again = vdna("plan", photos, *SMALL, "--measured", tmp_path / "here.json", "--workers", 2)
    assert again.stdout.startswith(f"{photos}: {IMAGES} images, about ")
    assert "on 2 workers" in again.stdout
    assert "rounds" not in again.stderr  # nothing was counted
    refused(vdna("plan", photos, *SMALL, "--gpus", 1, exits=2), "gpus is 1", "--gpus-per-worker 1")


def test_suggest_orders_candidates_and_says_how_far_that_holds(place: Path) -> None:
    said = vdna("suggest", "a", "-c", place).stdout.splitlines()
    assert said[0] == "To train for a, by the distance of b in bins, the nearest first:"
    assert said[1].startswith("    1. b/other  ")
    assert any("rank correlation of 0.66" in line for line in said)
    found = vdna_json("suggest", "a", "b/other", "--layer", "all", "-c", place)
    (row,) = vdna_json("compare", "--near", "a", "-c", place)
    assert [(one["name"], one["emd"]) for one in found["candidates"]] == [("b/other", row["emd"])]
    assert found["layer"] == "all"
    refused(vdna("suggest", "a", "a", "-c", place, exits=2), "a is the target, and a candidate")
    refused(vdna("suggest", "x", "-c", place, exits=1), "has no dataset 'x'")


def test_compare_uses_one_spec(
    place: Path, others: Path, specs: dict[int, str], tmp_path: Path
) -> None:
    """`a` under 4 bins is not in the matrix of the default spec, and does not break it."""
    rows = vdna_json("compare", "-c", place)
    assert [(row["a"], row["b"]) for row in rows] == [("a", "b/other")]
    refused(vdna("compare", "-c", place, "--spec", specs[4], exits=2), "only a is under spec")
    mismatch = vdna("compare", "a", "b/other", "-c", place, "--spec", specs[4], exits=1)
    refused(mismatch, "bins", "4", "8", "b/other")
    build("b/other", others, tmp_path, *SMALL, *FEWER_BINS)
    build("c", others, tmp_path, *SMALL, *FEWER_BINS)
    coarse = vdna_json("compare", "-c", tmp_path, "--spec", specs[4][:8])
    assert {row["emd"] for row in coarse} == {0.0}


# calibrate


def test_ranges_that_were_calibrated_are_used_by_file_and_by_digest(
    tmp_path: Path, others: Path, spoilt: Path, network: tiny.Place
) -> None:
    out, place = tmp_path / "ranges.parquet", tmp_path / "c"
    words = ("calibrate", others, spoilt, "--out", out, "--workers", 0, "--json")
    words = (*words, "--extractor", tiny.NAME, "--weights", network.weights)
    done = vdna(*words, "--max-failures", 1)
    measured = json.loads(done.stdout)
    assert (measured["images"], measured["failed"]) == (7, 1)
    assert "photo-0703.jpg: truncated" in done.stderr
    by_file = build_json("a", others, place, *SMALL, "--ranges", out)
    assert Catalogue(str(place)).spec(by_file["spec"]).ranges_digest == measured["digest"]
    assert Catalogue(str(place)).load("a").overflow.sum() == 0
    out.unlink()
    by_digest = build_json("b", others, place, *SMALL, "--ranges", measured["digest"])
    assert by_digest["spec"] == by_file["spec"]
    plain = build_json("a", others, place, *SMALL, "--spec", "new")
    assert plain["spec"] != by_file["spec"]
    refused(build("c", others, place, *SMALL, "--ranges", "ab" * 16, exits=1), "ab" * 16)


# refresh


@pytest.fixture
def sources(tmp_path: Path) -> Callable[[str, int], Path]:
    def write(name: str, first_seed: int) -> Path:
        write_photos(tmp_path / name, 2, first_seed)
        return tmp_path / name

    return write


def config(folder: Path, network: tiny.Place, *sources: Path) -> Path:
    defaults = network.options | {"bins": 100}
    lines = [f"catalogue: {folder / 'c'}", f"defaults: {json.dumps(defaults)}", "datasets:"]
    lines += [f"  - {{name: {source.name}, source: '{source}'}}" for source in sources]
    (folder / "datasets.yaml").write_text("\n".join(lines))
    return folder / "datasets.yaml"


def refresh(file: Path, *options: object, exits: int = 0) -> Outcome:
    return vdna("refresh", "--config", file, "--workers", 0, *options, exits=exits)


def test_refresh_builds_only_what_changed(
    tmp_path: Path, sources: Callable[[str, int], Path], network: tiny.Place
) -> None:
    a, b = sources("a", 0), sources("b", 50)
    file = config(tmp_path, network, a, b)
    first = json.loads(refresh(file, "--json").stdout)
    assert [(d["name"], d["changed"]) for d in first["datasets"]] == [("a", True), ("b", True)]
    assert {row["layer"] for row in first["matrix"]} >= {"all", "b"}
    again = json.loads(refresh(file, "--json").stdout)
    assert [d["changed"] for d in again["datasets"]] == [False, False]
    assert again["matrix"] == first["matrix"]
    assert Catalogue(str(tmp_path / "c")).head().number == 2
    photo(99).save(b / "new.jpg")
    grown = json.loads(refresh(file, "--json").stdout)
    assert [(d["changed"], d["images"]) for d in grown["datasets"]] == [(False, 2), (True, 3)]
    assert grown["datasets"][1]["counted_shards"] == 1
    made = f"b@{first['datasets'][1]['commit']}"  # 1 or 2, as both were built at once
    assert [d["moved"] and d["moved"]["from"] for d in grown["datasets"]] == [None, made]
    assert [d["commit"] for d in grown["datasets"]] == [2, 3]
    assert grown["matrix"] != first["matrix"]
    text = refresh(file).stdout
    assert text.count("nothing to do") == 2
    assert " moved " not in text
    photo(98).save(b / "newer.jpg")
    assert "\n  moved from b@3 by " in refresh(file).stdout
    assert "(100 to a neuron's range)" in text


def test_refresh_names_the_images_that_failed_and_the_option_as_its_file_writes_it(
    tmp_path: Path, sources: Callable[[str, int], Path], network: tiny.Place
) -> None:
    a = sources("a", 0)
    file = config(tmp_path, network, a)
    file.write_text(file.read_text().replace('"bins": 100', '"bins": 100, "max_failures": 1'))
    refresh(file)
    (a / "broken.jpg").write_bytes(b"nothing")
    said = refresh(file).stdout
    assert re.search(r"  not counted: .*/a/broken.jpg: not_an_image", said)
    assert "  replaces 2 images by 2; the former version is kept" in said
    (a / "worse.jpg").write_bytes(b"nothing")
    done = refresh(file, exits=3)
    assert "2 of 4 images could not be read; the limit is 1 image." in done.stderr
    assert f"with a higher `max_failures` in {file}, which goes on from here" in done.stderr
    assert "worse.jpg" in done.stderr


def test_a_broken_dataset_does_not_stop_the_others(
    tmp_path: Path, sources: Callable[[str, int], Path], network: tiny.Place
) -> None:
    a, b = sources("a", 0), sources("b", 50)
    file = config(tmp_path, network, a, tmp_path / "nowhere", b)
    done = refresh(file, exits=1)
    assert "nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("a: 2 images; committed")
    assert "b: 2 images; committed" in done.stdout
    assert Catalogue(str(tmp_path / "c")).names() == ["a", "b"]
    assert list(tmp_path.glob("c/matrix/*/*/*.parquet"))
    again = json.loads(refresh(file, "--json", exits=1).stdout)
    assert "nowhere does not exist" in again["error"]
    assert [(d["name"], d["changed"]) for d in again["datasets"]] == [("a", False), ("b", False)]
    assert again["matrix"]


def test_a_matrix_that_fails_hides_neither_builds_nor_their_errors(
    tmp_path: Path,
    sources: Callable[[str, int], Path],
    network: tiny.Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> object:
        raise StorageError("no space left")

    monkeypatch.setattr("pipeline.refreshing.steps.compare", full)
    a, b, bad = sources("a", 0), sources("b", 50), sources("bad", 70)
    next(bad.iterdir()).write_bytes(b"")
    told = json.loads(refresh(config(tmp_path, network, a, b), "--json", exits=1).stdout)
    assert ([d["name"] for d in told["datasets"]], told["matrix"]) == (["a", "b"], None)
    assert told["failed"] == []
    assert told["error"] == "no space left"
    told = json.loads(refresh(config(tmp_path, network, a, bad, b), "--json", exits=1).stdout)
    (failed,) = told["failed"]
    assert (failed["name"], failed["error"]) == ("bad", "GateError")
    assert told["error"].startswith("bad: 1 of 2")
    assert told["error"].endswith("\nno space left")
    done = refresh(config(tmp_path, network, a, bad, b), exits=1)
    assert done.stdout.startswith("a: 2 images; nothing to do")
    assert "error: bad: 1 of 2" in done.stderr
    assert "no space left" in done.stderr
    assert "b: 2 images; nothing to do" in done.stdout


def test_refresh_compares_under_the_spec_of_its_file(
    tmp_path: Path, sources: Callable[[str, int], Path], network: tiny.Place
) -> None:
    a, b = sources("a", 0), sources("b", 50)
    file = config(tmp_path, network, a, b)
    first = json.loads(refresh(file, "--json").stdout)["matrix"]
    file.write_text(file.read_text().replace('"bins": 100', '"bins": 50, "spec": "new"'))
    second = json.loads(refresh(file, "--json").stdout)["matrix"]
    assert len(first) == len(second)
    of_pair = [
        next(r["emd"] for r in rows if (r["a"], r["b"], r["layer"]) == ("a", "b", "all"))
        for rows in (first, second)
    ]
    assert 0.4 < of_pair[1] / of_pair[0] < 0.6


def test_refresh_needs_a_catalogue_and_a_sound_file(
    tmp_path: Path, sources: Callable[[str, int], Path], network: tiny.Place
) -> None:
    file = tmp_path / "datasets.yaml"
    dataset = {"name": "a", "source": str(sources("a", 0)), **network.options}
    file.write_text(json.dumps({"datasets": [dataset]}))
    done = vdna("refresh", "--config", file, exits=2, env={"VDNA_CATALOGUE": ""})
    refused(done, str(file), "--catalogue")
    done = refresh(file, "-c", tmp_path / "given", "--json")
    assert json.loads(done.stdout)["matrix"] is None
    assert Catalogue(str(tmp_path / "given")).names() == ["a"]
    own = {"catalogue": str(tmp_path / "own"), "prune": True}
    file.write_text(json.dumps({**own, "datasets": [dataset]}))
    given = {"VDNA_CATALOGUE": str(tmp_path / "given")}
    number = Catalogue(str(tmp_path / "given")).head().number
    for command in (("refresh", "--workers", "0"), ("gc", "--dry-run")):
        done = vdna(*command, "--config", file, exits=2, env=given)
        refused(done, "VDNA_CATALOGUE is", str(tmp_path / "given"), str(tmp_path / "own"))
    assert Catalogue(str(tmp_path / "given")).head().number == number
    same = {"VDNA_CATALOGUE": f"{tmp_path / 'own'}/"}
    vdna("refresh", "--workers", "0", "--config", file, env=same)
    assert Catalogue(str(tmp_path / "own")).names() == ["a"]
    vdna("gc", "--dry-run", "--config", file, "-c", tmp_path / "own", env=given)
    file.write_text("datasets: [{name: a, source: x, binz: 3}]")
    refused(refresh(file, exits=2), str(file), "datasets.0.binz", "3")
    refused(refresh(tmp_path / "nowhere.yaml", exits=1), "nowhere.yaml does not exist")


# In processes of their own


@pytest.mark.soak
def test_each_command_runs_as_a_module_too(
    tmp_path: Path, others: Path, place: Path, network: tiny.Place, small: Small
) -> None:
    module, env = (sys.executable, "-m"), small.environment()
    words = ("b", others, "-c", tmp_path, "--workers", 0, "--json", *SMALL)
    built = run(*module, "jobs.build", *words, env=env)
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["dna"] == Catalogue(str(place)).find("b/other").dna
    compared = run(*module, "jobs.compare", "--json", env={"VDNA_CATALOGUE": str(place)})
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout) == vdna_json("compare", "-c", place)
    file = tmp_path / "datasets.yaml"
    dataset = {"name": "b/other", "source": str(others), **network.options}
    file.write_text(json.dumps({"datasets": [dataset]}))
    words = ("--config", file, "-c", place, "--workers", 0)
    refreshed = run(*module, "jobs.refresh", *words, env=env)
    assert refreshed.returncode == 0, refreshed.stderr
    assert "b/other: 4 images; nothing to do" in refreshed.stdout


def test_an_error_appears_once_on_a_terminal(place: Path) -> None:
    """The error is JSON if that was asked for; in a pipe it is in the log, too."""
    words = [sys.executable, "-m", "jobs.show", "nowhere", "-c", str(place)]
    for options, stands in (([], "error: "), (["--json"], '"error": "NotFound"')):
        terminal, end_of_command = os.openpty()
        with subprocess.Popen(
            [*words, *options], stdout=end_of_command, stderr=end_of_command, cwd=REPOSITORY
        ) as it:
            assert it.wait(timeout=120) == 1
        os.close(end_of_command)
        said = b""
        with contextlib.suppress(OSError):  # the error at the end
            while piece := os.read(terminal, 10**5):
                said += piece
        text = said.decode()
        os.close(terminal)
        assert text.count("has no dataset 'nowhere'") == 1
        assert stands in text


@pytest.mark.parametrize("words", [("ls", "--json"), ("show", "nobody"), ("--help",)])
def test_the_script_the_application_and_the_module_are_the_same_thing(
    place: Path, words: tuple[str, ...]
) -> None:
    env = {"VDNA_CATALOGUE": str(place)}
    script = run(Path(sys.executable).parent / "vdna", *words, env=env)
    ours = (script.returncode, script.stdout, script.stderr)
    if words[0] != "ls":  # which ends well, as --help does
        for name in ("jobs", "jobs.app"):
            application = run(sys.executable, "-m", name, *words, env=env)
            said = application.stdout.replace(f"python -m {name}", "vdna")  # the usage names it
            assert (application.returncode, application.stderr) == (ours[0], ours[2])
            assert said.split() == script.stdout.split()
    if words[0] == "ls":
        assert (ours[0], ours[2]) == (0, "")
        assert json.loads(script.stdout) == vdna_json("ls", "-c", place)
    if words[0] == "show":
        assert ours[:2] == (1, "")
        assert script.stderr.startswith("error: ")
        assert "Traceback" not in script.stderr
    if words[0] != "--help":
        module = run(sys.executable, "-m", f"jobs.{words[0]}", *words[1:], env=env)
        assert (module.returncode, module.stdout, module.stderr) == ours


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_ends_the_command_and_the_rerun_goes_on(
    tmp_path: Path, small: Small, number: int, code: int
) -> None:
    source, place = tmp_path / "photos", tmp_path / "c"
    (tmp_path / "temporary").mkdir()
    write_photos(source, 12)
    command = [sys.executable, "-m", "jobs.build", "a", source, "-c", place, "--workers", "0"]
    command += ["--threads", "1", "--shard-images", "1", *small.options]  # a shard an image
    job = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | small.environment(SLOW) | {"TMPDIR": str(tmp_path / "temporary")},
        # A shell that starts the tests in the background has SIGINT ignored, and so its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(place.glob("_work/a/*/partials/*")) and job.poll() is None:
        sleep(0.02)
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (code, ""), err
    assert err.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in err
    assert [*(tmp_path / "temporary").glob("vdna-*")] == []
    kept = len(list(place.glob("_work/a/*/partials/*")))
    assert 0 < kept < 12
    result = build_json("a", source, place, "--shard-images", "1", *small.options)
    assert (result["images"], result["counted_shards"]) == (12, 12 - kept)


def test_an_interrupt_while_the_commands_are_imported_is_no_traceback() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    code = (
        "import os, pkgutil, signal, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.exit(pkgutil.resolve_name(sys.argv.pop())())"
    )
    done = run(sys.executable, "-c", code, "ls", project["scripts"]["vdna"])
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; the same command goes on from here\n"


def test_commands_that_only_read_import_no_heavy_package(place: Path, tmp_path: Path) -> None:
    """Outliers that are kept are only read, too."""
    place = shutil.copytree(place, tmp_path / "place")
    catalogue = Catalogue(str(place))
    version = catalogue.find("a")
    image = FarImage("file:///a.jpg", "", 9, 1.0, 2.0)
    keep_outliers(
        catalogue, Outliers(version.spec, version.dna, 9, 0, 0, 1.5, {}, (image,)), erasure=0
    )
    code = (
        "import sys; from jobs.app import app\n"
        "for words in (['ls'], ['show', 'a'], ['log']):\n"
        "    app([*words, '-c', sys.argv[1]], standalone_mode=False)\n"
        "    heavy = {'torch', 'ray', 'timm', 'torchvision', 'numba'}\n"
        "    print('imported', sorted(heavy & set(sys.modules)))"
    )
    done = run(sys.executable, "-c", code, place)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("imported ")]
    assert said == ["imported []"] * 3
    assert "    2.00 bins: /a.jpg\n" in done.stdout


def test_every_command_has_a_help() -> None:
    text = vdna("--help").stdout
    for command in (
        "demo",
        "build",
        "refresh",
        "compare",
        "explain",
        "drift",
        "rank",
        "report",
        "calibrate",
        "ls",
        "show",
        "log",
    ):
        assert command in text
        assert "Usage" in vdna(command, "--help").stdout
    told = vdna("log", "--help").stdout.partition("For each")[2].partition("╭")[0]
    lines = [line for line in told.splitlines() if line.strip()]
    assert all(len(line.rstrip()) > 50 for line in lines[:-1]), "no line breaks off before its end"


@pytest.mark.soak
def test_layer_gaussians_and_their_distance(photos: Path, tmp_path: Path) -> None:
    place, other = tmp_path / "c", tmp_path / "other"
    write_photos(other, 5, first_seed=50)
    first = build_json("a", photos, place, "--layer-gaussian", "--bins", 20)
    assert "layer_gaussian" in first["products"]
    build("b", other, place, "--layer-gaussian", "--bins", 20)
    (row,) = vdna_json("compare", "-c", place, "--fd", "--layer", "bn2")
    (back,) = vdna_json("compare", "b", "a", "-c", place, "--fd", "--layer", "bn2")
    assert row["fd"] == back["fd"] > 0
    assert all(r["fd"] is None for r in vdna_json("compare", "-c", place))
    printed = vdna("compare", "-c", place, "--fd", "--layer", "bn2").stdout
    assert "Fréchet distance of bn2" in printed
    assert f"{row['fd']:.3g}" in printed
    build("c", other, place, "--bins", 20)
    build("d", photos, place, "--bins", 20)
    done = vdna("compare", "c", "d", "-c", place, "--fd", exits=2)
    refused(done, "no layer Gaussians are kept of c, d", "--layer-gaussian")


def test_every_command_and_option_in_the_docs_exists() -> None:
    def options_of(group: object, above: str = "") -> dict[str, set[str]]:
        assert isinstance(group, typer.core.TyperGroup)
        known: dict[str, set[str]] = {}
        for name, command in group.commands.items():
            if isinstance(command, typer.core.TyperGroup):
                known |= options_of(command, f"{above}{name} ")
            else:
                known[above + name] = {o for parameter in command.params for o in parameter.opts}
        return known

    known = options_of(get_command(app))
    named = "|".join(sorted(known, key=len, reverse=True))
    pages = [
        REPOSITORY / "README.md",
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("infra/*.md"),
    ]
    told = 0
    for page in pages:
        # Other words after the name are prose about the package of that name, and after -n it is
        # a namespace.
        for name, rest in re.findall(rf"(?<!-n )\bvdna ({named})\b([^`|\n]*)", page.read_text()):
            taken, submitted = {name: rest}, re.split(rf" ({named}) ", rest, maxsplit=1)
            if name == "submit" and len(submitted) == 3:
                taken = {name: submitted[0], submitted[1]: submitted[2]}
            for command, words in taken.items():
                for option in re.findall(r"(?<!\S)\[?(--[a-z-]+|-[a-z]\b)", words):
                    assert option in known[command], f"{page.name}: vdna {name}{rest}"
                    told += 1
    assert told > 50


def test_weights_are_pulled_to_a_place_that_a_build_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(tiny.install(tmp_path).weights).as_uri()
    monkeypatch.setattr("pipeline.networks.weights_pull.fetch", lambda *_: own)
    folder = tmp_path / "kept"
    for _ in range(2):
        [pulled] = vdna_json("weights", "pull", "vgg16", "--to", folder)
    [copy] = folder.iterdir()
    assert pulled["uri"] == copy.as_uri()
    assert copy.name == f"vgg16-{pulled['sha256'][:16]}{Path(own).suffix}"
    assert describe(tiny.NAME, pulled["uri"]).weights_sha256 == pulled["sha256"]
    assert describe(tiny.NAME, own).weights_sha256 == pulled["sha256"]
    assert copy.stat().st_size == pulled["bytes"]
    copy.write_bytes(b"torn")
    done = vdna("weights", "pull", "vgg16", "--to", folder, exits=1)
    refused(done, f"{copy} has other bytes than the weights of vgg16", "remove it")
    monkeypatch.undo()
    refused(vdna("weights", "pull", "vgg61", exits=2), "vgg61")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "--html", ""), "the name '' must end in .html"),
        (("compare", "--out", ""), "out is ''"),
        (("compare", "--figure", ""), "figure is ''"),
        (("explain", "a", "b", "--html", ""), "the name '' must end in .html"),
        (("explain", "a", "b", "--out", ""), "out is ''"),
        (("drift", "a", "--html", ""), "the name '' must end in .html"),
        (("rank", "--to", "a", "--html", ""), "the name '' must end in .html"),
    ],
)
def test_an_empty_name_of_an_output_is_refused(
    place: Path, words: tuple[str, ...], message: str
) -> None:
    """As a script gives it whose variable is not set: it must not look as if all was written."""
    refused(vdna(*words, "-c", place, exits=2), message)


def test_an_empty_path_is_neither_this_folder_nor_left_out(
    photos: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    empty = "a path or url is empty"
    done = build("a", photos, tmp_path / "c", "--weights", "", exits=2)
    assert f"error: a: {empty}" in done.stderr  # and not the network's own weights
    refused(vdna("weights", "pull", "efficientnet_lite0", "--to", "", exits=2), empty)
    refused(vdna("export-tables", "", "-c", place, exits=2), empty)
    refused(vdna("erase", "-c", place, "--from", "", "--reason", "why", exits=2), empty)
    assert {path.name for path in tmp_path.iterdir()} <= {"c"}


def test_the_demo_refuses_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(vdna("demo", "--out", "s3://b/demo", exits=2), "out is 's3://b/demo'", "name a folder")
    assert list(tmp_path.iterdir()) == []


def test_a_spec_without_a_dataset_is_refused_by_log(place: Path) -> None:
    done = vdna("log", "-c", place, "--spec", "0", exits=2)
    refused(done, "--spec 0 chooses versions of a dataset, and none is named")


def test_fewer_failures_than_none_cannot_be_listed(place: Path) -> None:
    done = vdna("show", "a", "-c", place, "--failures", "-1", exits=2)
    assert "equal to 0" in done.stderr


def test_an_empty_name_of_a_catalogue_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    refused(vdna("build", "a", tmp_path, "-c", "", exits=2), "the --catalogue is empty")
    refused(vdna("ls", "-c", "", exits=2), "the --catalogue is empty")
