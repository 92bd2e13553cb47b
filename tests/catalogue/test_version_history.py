"""Which versions a dataset has had, and which commit made each of them."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.catalogue import Commit, version_histories
from tests.catalogue.test_kept_versions import THREE, log, version


def found(commits: Iterable[Commit], spec: str = "s") -> dict[str, list[tuple[str, int]]]:
    return {
        name: [(past.version.dna, past.commit) for past in history]
        for name, history in version_histories(commits, spec).items()
    }


def test_each_version_is_named_with_the_commit_that_made_it() -> None:
    assert found(THREE) == {"a": [("3", 3), ("2", 2), ("1", 1)], "b": [("1", 2)]}


def test_a_version_that_came_back_is_named_again() -> None:
    states = [{"a": [version(dna)]} for dna in "1121"]
    assert found(log(*states)) == {"a": [("1", 4), ("2", 3), ("1", 1)]}


def test_other_parts_make_another_version() -> None:
    commits = log({"a": [version("1")]}, {"a": [version("1", by="weather")]})
    assert found(commits) == {"a": [("1", 2), ("1", 1)]}


def test_other_specs_are_left_out() -> None:
    commits = log({"a": [version("1", "s")]}, {"a": [version("1", "s"), version("2", "t")]})
    assert found(commits, "t") == {"a": [("2", 2)]}
    assert found(commits) == {"a": [("1", 1)]}


def test_where_older_commits_are_left_out_the_oldest_one_stands_for_them() -> None:
    assert found(THREE[:2]) == {"a": [("3", 3), ("2", 2)], "b": [("1", 2)]}
