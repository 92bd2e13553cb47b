"""The hostile corpus, counted as one dataset; every outcome is the one its table states."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from pipeline import images
from pipeline.build import InProcess, Request, Result, build_datasets, make_dna
from pipeline.catalogue import Catalogue
from pipeline.dna import DNA
from pipeline.errors import BadImage, SourceError, StorageError, UsageError
from pipeline.manifest import Shard
from pipeline.shard import Decoders
from pipeline.source import list_source, other_kind
from pipeline.spec import Resources
from pipeline.storage import local_path
from tests import hostile
from tests.hostile import COUNTED, FILES, IGNORED, LISTS, PLACES, REFUSED, UNSEEN, Place
from tests.test_shard import SPEC, same_counts

ROOT = Path(__file__).parent.parent
QUICK = [kind for kind in FILES if not kind.slow]
SLOW = [kind for kind in FILES if kind.slow]


# The corpus


class Corpus:
    """All quick files and all places in one folder, built once."""

    def __init__(self, folder: Path) -> None:
        self.outcomes = hostile.write_files(folder / "files", QUICK)
        self.places = 0
        for i, place in enumerate(PLACES):
            here = folder / "files" / f"place{i}"
            here.mkdir()
            place.make(here)
            self.places += place.counted
        self.source = folder / "files"
        self.catalogue = Catalogue(str(folder / "catalogue"))
        request = Request("hostile", str(self.source), max_failures=10**6)
        resources = Resources(workers=0, threads=2)
        (self.result,) = build_datasets(self.catalogue, [request], InProcess(), resources)

    def of(self, outcome: str) -> list[Path]:
        return [path for path, stated in self.outcomes.items() if stated == outcome]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("hostile"))


def failures(result: Result) -> dict[Path, str]:
    return {Path(local_path(f.uri)): f.reason for f in result.failures}


def test_there_are_many_kinds() -> None:
    kinds = [*FILES, *PLACES, *LISTS]
    assert len(kinds) >= 45
    assert len({kind.title for kind in kinds}) == len(kinds)
    words = {COUNTED, IGNORED, UNSEEN, REFUSED, *images.REASONS}
    assert {kind.outcome for kind in kinds} <= words
    assert {"empty", "truncated", "corrupt", "not_an_image", "unsupported", "too_many_pixels"} <= {
        kind.outcome for kind in QUICK
    }


def test_each_fails_by_its_stated_reason_and_no_other_does(corpus: Corpus) -> None:
    stated = {
        path: outcome
        for path, outcome in corpus.outcomes.items()
        if outcome not in (COUNTED, IGNORED)
    }
    found = failures(corpus.result)
    assert {path: found.get(path) for path in stated} == stated
    assert found.keys() == stated.keys()
    assert all(
        failure.detail and not failure.nondeterministic for failure in corpus.result.failures
    )


def test_ignored_ones_are_told_by_kind(corpus: Corpus) -> None:
    kinds = Tally(other_kind(path.as_uri()) for path in corpus.of(IGNORED))
    assert corpus.result.ignored == kinds
    assert sum(kinds.values()) == 5


def test_counted_and_failed_are_all_candidates(corpus: Corpus) -> None:
    version = corpus.result.version
    candidates = len(list_source(corpus.source).entries)
    assert version.images == len(corpus.of(COUNTED)) + corpus.places
    assert version.images + version.failed == candidates
    assert candidates == len(corpus.outcomes) - len(corpus.of(IGNORED)) + corpus.places


def test_the_counted_ones_count_as_if_they_were_alone(corpus: Corpus, tmp_path: Path) -> None:
    for i, path in enumerate(corpus.of(COUNTED)):
        shutil.copy(path, tmp_path / f"{i}{path.suffix}")
    for i in range(corpus.places):
        (tmp_path / f"place{i}.jpg").write_bytes(hostile.JPEG)
    alone = make_dna(tmp_path, threads=2)
    assert alone.failed == 0
    assert same_counts(corpus.catalogue.load("hostile"), alone)


def test_a_listing_in_another_order_is_the_same_dataset(corpus: Corpus) -> None:
    again = list_source(corpus.source)
    assert len({entry.uri for entry in again.entries}) == len(again.entries)
    request = Request("hostile", str(corpus.source), max_failures=10**6)
    (result,) = build_datasets(
        corpus.catalogue, [request], InProcess(), Resources(workers=0, threads=1)
    )
    assert not result.changed


@pytest.mark.parametrize("place", LISTS, ids=lambda place: place.title[:30])
def test_a_list_of_names(place: Place, tmp_path: Path) -> None:
    made = place.make(tmp_path)
    assert made is not None
    if place.outcome == REFUSED:
        with pytest.raises((UsageError, SourceError)) as caught:
            list_source(made)
        assert "c0ffee" not in str(caught.value)
        assert "key:secret" not in str(caught.value)
    else:
        listing = list_source(made)
        assert len(listing.entries) == place.counted
        assert listing.duplicates == 8


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_ends_the_build(tmp_path: Path) -> None:
    hostile.UNREADABLE.make(tmp_path)
    with pytest.raises(StorageError, match="secret.jpg"):
        make_dna(tmp_path)


def test_the_document_is_up_to_date() -> None:
    document = ROOT / "docs" / "hostile.md"
    assert document.read_text() == hostile.table(), "python -m tests.hostile docs/hostile.md"
