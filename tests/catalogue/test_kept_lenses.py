"""Tests the lenses of a catalogue: which lens a name means, and with which specs it may be used."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.catalogue import Catalogue, check_lens_name, find_lens, keep_lens
from pipeline.dna import Lens
from pipeline.errors import SpecMismatch, UsageError
from tests.golden.handmade import SPEC


def test_a_lens_name_means_the_lens_that_was_kept_last(tmp_path: Path) -> None:
    """This also holds for a copy of a catalogue, and for lenses that were kept in one second."""
    catalogue = Catalogue(str(tmp_path / "c"))
    choices = ("stem:0", "stem:1", "stem:2", "head:0", "head:1")
    lenses = [replace(Lens.chosen(SPEC, [choice]), name="eyes") for choice in choices]
    for lens in lenses:
        keep_lens(catalogue, lens)
    for at, lens in enumerate(lenses):
        path = Path(storage.local_path(catalogue.lenses_uri("eyes"))) / f"{lens.digest}.parquet"
        os.utime(path, (10**9 - at, 10**9 - at))
    assert find_lens(catalogue, "eyes", SPEC).digest == lenses[-1].digest
    keep_lens(catalogue, lenses[2])
    assert find_lens(catalogue, "eyes", SPEC).digest == lenses[2].digest
    done = CliRunner().invoke(app, ["lens", "ls", "--json", "-c", catalogue.root])
    (row,) = json.loads(done.stdout)
    assert row["written"] > "2026"  # and not its file's time
    ahead = datetime.now(UTC) + timedelta(hours=1)  # by another machine's clock
    folder = catalogue.lenses_uri("eyes")
    storage.replace(f"{folder}/{lenses[0].digest}.parquet", lenses[0].encode(written=ahead))
    assert find_lens(catalogue, "eyes", SPEC).digest == lenses[0].digest
    keep_lens(catalogue, lenses[1])
    assert find_lens(catalogue, "eyes", SPEC).digest == lenses[1].digest
    storage.replace(f"{folder}/{lenses[3].digest}.parquet", lenses[3].encode())  # says no time
    assert find_lens(catalogue, "eyes", SPEC).digest == lenses[1].digest


def test_reserved_names_and_file_names_are_refused_as_lens_names() -> None:
    for name, why in (("uniform", "is reserved"), ("x.parquet", "looks like a file")):
        with pytest.raises(UsageError, match=why):
            check_lens_name(name)


def test_a_lens_on_neurons_of_other_weights_is_refused(tmp_path: Path) -> None:
    """Layers and numbers of neurons are the same, but the neurons react to other things."""
    catalogue, other_spec = Catalogue(str(tmp_path)), replace(SPEC, weights_sha256="f" * 64)
    chosen = replace(Lens.chosen(SPEC, ["stem:0"]), name="eyes")
    for of in (SPEC, replace(SPEC, bins=SPEC.bins + 1)):
        how = {"spec": of.digest, "weights_sha256": of.weights_sha256}
        keep_lens(catalogue, replace(chosen, provenance={"kind": "focus", **how}))
        assert find_lens(catalogue, "eyes", SPEC).digest == chosen.digest
        with pytest.raises(SpecMismatch, match=f"lens eyes was fitted .*{SPEC.weights_sha256}.*ff"):
            find_lens(catalogue, "eyes", other_spec)
