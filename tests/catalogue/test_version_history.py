"""Which versions a dataset has had, and which commit made each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalogue import (
    Commit,
    Version,
    last_versions,
    past_versions,
    version_histories,
)
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


LIVES = st.lists(st.sampled_from(["", "1", "1b", "2", "3"]), min_size=1, max_size=12)
"""What a dataset is in each commit: nothing, or a DNA, of which one has parts, too."""


@given(LIVES, LIVES, st.integers(1, 4))
def test_the_last_versions_are_those_of_the_whole_history(
    of_a: list[str], of_b: list[str], back: int
) -> None:
    def state(dna: str) -> list[Version]:
        return [version(dna[0], by=dna[1:])] if dna else []

    length = min(len(of_a), len(of_b))
    states = [
        {name: state(dna) for name, dna in (("a", a), ("b", b)) if dna}
        for a, b in zip(of_a, of_b, strict=False)
    ]
    commits = list(log(*states))
    assert len(commits) == length
    read = []

    def reading() -> Iterator[Commit]:
        for commit in commits:
            read.append(commit.number)
            yield commit

    found = last_versions(reading(), {("a", "s"): back, ("b", "s"): 1})
    for name, count in (("a", back), ("b", 1)):
        if name not in commits[0].datasets:
            assert (name, "s") not in found
            continue
        runs = [
            list(same)
            for _, same in groupby(
                past_versions(commits, name, "s"), key=lambda past: past.identity
            )
        ]
        known = found[name, "s"]
        assert known.commit == runs[0][0].commit
        assert [(of.dna, last) for of, last in known.versions] == [
            (run[0].version.dna, run[0].last) for run in runs[: count + 1]
        ]
    assert read == [commit.number for commit in commits][: len(read)]


def test_no_more_of_the_log_is_read_than_must_be() -> None:
    commits = log(*({"a": [version(dna)]} for dna in "11111223"))
    reading = iter(commits)
    found = last_versions(reading, {("a", "s"): 1})
    assert [last for _, last in found["a", "s"].versions] == [8, 7]
    assert len(list(reading)) == 6
