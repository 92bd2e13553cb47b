"""Datasets that datasets.yaml does not name are reported, and taken out only where it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalogue import Catalogue, collect, roll_back
from pipeline.errors import SourceError, StorageError, UsageError
from pipeline.refreshing import load_config, refresh
from pipeline.refreshing.config import Config
from pipeline.refreshing.pruning import unlisted_datasets
from pipeline.spec import Resources
from tests.catalogue.test_kept_versions import log, version
from tests.jobs.test_cli import vdna
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

RESOURCES = Resources(workers=0, threads=1)


def file_of(folder: Path, names: str, *more: str) -> str:
    """Writes a file that names datasets of one letter each, and makes their images."""
    for seed, name in enumerate("abc"):
        if not (folder / name).exists():
            write_photos(folder / name, 2, 20 * seed)
    lines = [
        f"catalogue: {folder / 'dnas'}",
        f"defaults: {json.dumps(tiny.install(folder).options)}",
    ]
    lines += ["datasets:", *(f"  - {{name: {n}, source: '{folder / n}'}}" for n in names), *more]
    path = folder / "datasets.yaml"
    path.write_text("\n".join(lines))
    return str(path)


def test_what_is_not_named_is_reported_and_stays(tmp_path: Path) -> None:
    done = refresh(file_of(tmp_path, "abc"), resources=RESOURCES)
    assert (done.unlisted, done.pruned, done.unlisted_note) == ((), None, "")
    file = file_of(tmp_path, "a")
    done = refresh(file, resources=RESOURCES)
    done.require_ok()
    assert (done.unlisted, done.pruned) == (("b", "c"), None)
    assert done.unlisted_note == (
        f"in the catalogue, and not in {file}: b and c; `vdna rm` takes them out, or `prune: true` "
        "in that file"
    )
    assert done.unlisted_note in done._repr_html_().replace("&#x27;", "'")
    assert sorted(done.catalogue.names()) == ["a", "b", "c"]
    assert [*done.matrices[0].names] == ["a", "b", "c"]


def test_what_is_not_named_is_taken_out_if_the_file_says_so_and_comes_back(tmp_path: Path) -> None:
    refresh(file_of(tmp_path, "abc"), resources=RESOURCES).require_ok()
    file = file_of(tmp_path, "ab", "prune: true")
    done = refresh(file, resources=RESOURCES)
    done.require_ok()
    assert (done.unlisted, done.pruned) == (("c",), 4)
    assert done.unlisted_note == (
        f"taken out of the catalogue by commit 4, as {file} does not name them: c; "
        "`vdna rollback NAME --to 3` brings one back"
    )
    assert [*done.matrices[0].names] == done.catalogue.names() == ["a", "b"]
    assert collect(done.catalogue) == (0, 0)
    assert sorted(roll_back(done.catalogue, "c", 3).datasets) == ["a", "b", "c"]
    again = refresh(file_of(tmp_path, "abc", "prune: true"), resources=RESOURCES)
    assert (again.unlisted, again.pruned) == ((), None)


def test_nothing_is_taken_out_if_a_dataset_could_not_be_built(tmp_path: Path) -> None:
    refresh(file_of(tmp_path, "abc"), resources=RESOURCES).require_ok()
    file = file_of(tmp_path, "ab", "prune: true")
    (tmp_path / "b").rename(tmp_path / "away")
    done = refresh(file, resources=RESOURCES)
    assert isinstance(done.error, SourceError)
    assert (done.unlisted, done.pruned) == (("c",), None)
    assert done.unlisted_note.endswith("c; they stay, because not all datasets could be built")
    assert sorted(done.catalogue.names()) == ["a", "b", "c"]


def test_datasets_that_cannot_be_taken_out_stay_because_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(file_of(tmp_path, "abc"), resources=RESOURCES).require_ok()

    def refused(*_: object) -> NoReturn:
        raise StorageError("the store refuses")

    monkeypatch.setattr("pipeline.refreshing.steps.remove", refused)
    done = refresh(file_of(tmp_path, "ab", "prune: true"), resources=RESOURCES)
    assert str(done.error) == "the store refuses"
    assert done.unlisted_note.endswith("c; they stay, because of the error that is told")


def test_nothing_is_taken_out_if_the_file_names_no_datasets(tmp_path: Path) -> None:
    refresh(file_of(tmp_path, "ab"), resources=RESOURCES).require_ok()
    file = file_of(tmp_path, "", "prune: true")
    for text in (Path(file).read_text(), Path(file).read_text() + " []\n", "prune: true\n"):
        Path(file).write_text(text.replace("prune: true []", "prune: true"))
        with pytest.raises(UsageError, match="datasets"):
            refresh(file, Catalogue(str(tmp_path / "dnas")), resources=RESOURCES)
    Path(file).write_text("datasets: []\nprune: true\n")
    with pytest.raises(UsageError, match="datasets"):
        refresh(file, Catalogue(str(tmp_path / "dnas")), resources=RESOURCES)
    assert Catalogue(str(tmp_path / "dnas")).names() == ["a", "b"]


def test_the_command_says_and_prints_what_is_not_named(tmp_path: Path) -> None:
    refresh(file_of(tmp_path, "ab"), resources=RESOURCES).require_ok()
    words = ("refresh", "--config", file_of(tmp_path, "a"), "--workers", 0)
    assert f"in the catalogue, and not in {tmp_path}/datasets.yaml: b; " in vdna(*words).stdout
    told = json.loads(vdna(*words, "--json").stdout)
    assert (told["unlisted"], told["pruned"]) == (["b"], None)
    file_of(tmp_path, "a", "prune: true")
    told = json.loads(vdna(*words, "--json").stdout)
    assert (told["unlisted"], told["pruned"]) == (["b"], 3)


PARTS = {
    "w": [version("1", by="l"), version("2", "t")],
    "w/x": [version("3", part_of="w")],
    "w/own": [version("4")],
    "v": [version("5")],
    "u": [version("6")],
}


def config(listed: list[str], *gate: dict[str, object]) -> Config:
    datasets = [{"name": name, "source": "x"} for name in listed]
    return Config.model_validate({"datasets": datasets, "gate": list(gate)})


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*PARTS]), min_size=1, unique=True))
def test_all_is_named_or_reported_but_parts_and_what_has_a_named_part(listed: list[str]) -> None:
    (head,) = log(PARTS)
    kept = {*listed, "w/x", *(["w"] if "w/x" in listed else [])}
    assert unlisted_datasets(head, config(listed)) == sorted(PARTS.keys() - kept)


@pytest.mark.parametrize(
    ("bound", "kept"),
    [
        ({"a": "u", "b": "v@-1", "max": 1}, {"u", "v"}),
        ({"a": "w/x", "b": "v", "max": 1}, {"w", "v"}),
        ({"dataset": "u", "against": "@-1", "max_move": 1}, {"u"}),
    ],
)
def test_what_the_gate_names_counts_as_named(bound: dict[str, object], kept: set[str]) -> None:
    (head,) = log(PARTS)
    every = {"u", "v", "w"}
    assert unlisted_datasets(head, config(["w/own"], bound)) == sorted(every - kept)


def test_a_file_that_is_wrong_about_prune_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prune"):
        load_config(file_of(tmp_path, "a", "prune: 1"))
