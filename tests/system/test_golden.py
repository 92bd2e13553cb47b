"""Files of every released version are read, to the last bit; and what names things stays as it was.

`tests/golden/write.py` made them. A digest that changes is a catalogue that cannot be resumed,
compared, or verified any more: then the format gets a new version, and these files stay.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue import Catalogue, canonical_json, verify
from pipeline.catalogue.commit import StoredCommit
from pipeline.comparing import Matrix
from pipeline.counting import compose, digest_of_dna, partial_uri, plan_folds
from pipeline.dna import (
    DNA,
    SCALAR_COLUMNS,
    DnaFile,
    Exemplars,
    Failure,
    Lens,
    Partial,
    Ranges,
    SealedFile,
    decode_image_hashes,
)
from pipeline.errors import CorruptFile
from pipeline.networks import decode_ranges
from pipeline.sources import Entries, Entry, Manifest, Shard, plan
from pipeline.sources.entries_file import ENTRIES
from pipeline.spec import PRODUCTS, Spec, digest_of
from tests.golden.handmade import SPEC
from tests.golden.write import (
    distances,
    hexes,
    of_dna,
    of_exemplars,
    of_lens,
    of_manifest,
    of_partial,
    of_ranges,
    of_spec,
    stored_files,
    write,
)
from tests.support.builders import decode_dna

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = sorted(path for path in GOLDEN.glob("v*") if path.is_dir())
NAME = "group/photos"


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def read(folder: Path, name: str) -> tuple[bytes, str]:
    return (folder / name).read_bytes(), f"{folder.name}/{name}"


def manifest_of(expected: dict[str, Any]) -> Manifest:
    """Plans anew what stands in `expected.json`."""
    stated = expected["manifest"]
    shards = tuple(
        Shard(i, shard["fold"], tuple(Entry(**entry) for entry in shard["members"]))
        for i, shard in enumerate(stated["shards"])
    )
    return Manifest.of(
        shards, stated["shard_images"], stated["source"], stated["ignored"], stated["duplicates"]
    )


def golden_manifest(folder: Path) -> Manifest:
    """Reads the manifest and its candidates."""
    entries = Entries()
    entries.store(sha256(data := read(folder, "entries.parquet")[0]), data)
    return Manifest.decode(*read(folder, "manifest.parquet"), entries)


def partial_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("partials/*"))


# The files are unchanged.


def test_there_are_golden_files() -> None:
    assert [path.name for path in VERSIONS][:1] == ["v1"]


def test_golden_files_are_unchanged(folder: Path, expected: dict[str, Any]) -> None:
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    del files["expected.json"]
    found = {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()}
    assert found == expected["sha256"]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 144 * 1024


# Every number in them is read.


def test_golden_specs_are_read(folder: Path, expected: dict[str, Any]) -> None:
    for name, stated in expected["specs"].items():
        assert of_spec(Spec.from_json(json.loads(read(folder, name)[0]))) == stated


def test_golden_ranges_are_read(folder: Path, expected: dict[str, Any]) -> None:
    ranges, metadata = decode_ranges(*read(folder, "ranges.parquet"))
    assert of_ranges(ranges) == expected["ranges"]
    assert (metadata["extractor"], metadata["weights_sha256"]) == ("tiny", "ab" * 32)


def test_a_golden_manifest_is_read(folder: Path, expected: dict[str, Any]) -> None:
    assert of_manifest(golden_manifest(folder)) == expected["manifest"]


def test_golden_partials_are_read(folder: Path, expected: dict[str, Any]) -> None:
    found = [Partial.decode(*read(folder, name)) for name in partial_names(folder)]
    assert {p.shards[0]: of_partial(p) for p in found} == expected["partials"]
    assert {f"partials/{key}.parquet" for key in expected["partials"]} == set(partial_names(folder))
    assert any(p.dna.images == 0 for p in found)
    assert any(p.failures for p in found)


def test_a_golden_dna_is_read(folder: Path, expected: dict[str, Any]) -> None:
    dna, metadata = decode_dna(*read(folder, "dna.parquet"))
    stated = expected["dna"]
    assert of_dna(dna) | {"digest": metadata["digest"]} == stated
    assert (metadata["dataset"], metadata["manifest"], metadata["products"], metadata["folds"]) == (
        NAME,
        expected["manifest"]["digest"],
        list(PRODUCTS),
        len(expected["folds"]),
    )
    assert metadata["positions"] == {"stem": 4, "head": 1}
    assert hexes(dna.low) == expected["ranges"]["low"]


def whole(parts: list[DNA]) -> DNA:
    """Joins layers that were read one by one into one DNA."""
    arrays: dict[str, Any] = {
        column: np.concatenate([getattr(part, column) for part in parts])
        for column in ("counts", *SCALAR_COLUMNS)
    }
    return replace(parts[0], layers=tuple(la for part in parts for la in part.layers), **arrays)


def folds_of(folder: Path) -> dict[str, DNA]:
    data, name = read(folder, "folds.parquet")
    file = DnaFile(data, "folds", name)
    by_layer = [file.read_folds(layer) for layer in file.spec.layers]
    return {str(fold): whole([parts[fold] for parts in by_layer]) for fold in file.folds}


def test_golden_folds_are_read(folder: Path, expected: dict[str, Any]) -> None:
    total, _ = decode_dna(*read(folder, "dna.parquet"))
    found = folds_of(folder)
    assert list(found) == list(expected["folds"])
    for fold, stated in expected["folds"].items():
        stated = dict(stated)
        before = stated.pop("distances")
        assert of_dna(found[fold]) == stated
        for kind, now in distances(total, found[fold]).items():
            assert (now is None) == (before[kind] is None)
            if now is not None:
                assert float.fromhex(now) == pytest.approx(float.fromhex(before[kind]), rel=1e-12)


def test_golden_failures_are_read(folder: Path, expected: dict[str, Any]) -> None:
    rows = pq.read_table(folder / "failures.parquet").to_pylist()
    assert [asdict(Failure(**row)) for row in rows] == expected["failures"]
    assert len(rows) == 1


def with_products(folder: Path) -> Partial:
    return Partial.decode(*read(folder, "partial-products.parquet"))


def test_golden_layer_gaussians_are_read(folder: Path, expected: dict[str, Any]) -> None:
    partial = with_products(folder)
    assert (
        of_dna(partial.dna) | {"scatter": hexes(partial.dna.scatter)} == expected["layer_gaussian"]
    )
    file = DnaFile(
        (folder / "layer-gaussians.parquet").read_bytes(), "layer_gaussians", "layer-gaussians"
    )
    assert file.read_gaussians(replace(partial.dna, scatter=None)).identical(partial.dna)


def test_golden_exemplars_are_read(folder: Path, expected: dict[str, Any]) -> None:
    data, name = read(folder, "exemplars.parquet")
    spec = Spec.from_json(json.loads(read(folder, "spec.json")[0]))
    assert of_exemplars(Exemplars.decode(data, name, spec)) == expected["exemplars"]
    partial = with_products(folder)
    assert partial.exemplars is not None
    assert of_exemplars(partial.exemplars) == expected["exemplars"]


def test_golden_image_hashes_are_read(folder: Path, expected: dict[str, Any]) -> None:
    partial = Partial.decode(*read(folder, "partial-hashes.parquet"))
    assert partial.image_hashes is not None
    rows = decode_image_hashes(*read(folder, "image-hashes.parquet"), "ab" * 16)
    for found in (partial.image_hashes.by_shard["0" * 32], rows):
        assert [list(row) for row in found.tolist()] == expected["image_hashes"]


def test_a_golden_lens_is_read(folder: Path, expected: dict[str, Any]) -> None:
    spec = Spec.from_json(json.loads(read(folder, "spec.json")[0]))
    assert of_lens(Lens.decode(*read(folder, "lens.parquet"), spec)) == expected["lens"]


def test_a_golden_imported_dna_is_read(folder: Path, expected: dict[str, Any]) -> None:
    dna, _ = decode_dna(*read(folder, "dna-imported.parquet"))
    assert of_dna(dna) | {"unknown": list(dna.unknown)} == expected["imported"]


def test_a_golden_matrix_is_read(folder: Path, expected: dict[str, Any]) -> None:
    matrix = Matrix.decode(*read(folder, "matrix.parquet"))
    stated = expected["matrix"]
    assert (list(matrix.names), list(matrix.layers)) == (stated["names"], stated["layers"])
    assert hexes(matrix.emd) == stated["emd"]
    assert hexes(matrix.nfd) == stated["nfd"]
    for field in ("bins", "members", "spec_digest", "lens"):
        assert getattr(matrix, field) == stated[field]


def test_a_golden_commit_is_read(folder: Path, expected: dict[str, Any]) -> None:
    commit = StoredCommit.decode(*read(folder, "commit.json")).whole()
    found = json.loads(json.dumps(asdict(commit)))
    for versions in found["datasets"].values():
        for version in versions.values():
            assert version["origin"] == {}
    assert found == expected["commit"]
    version = commit.datasets[NAME][commit.default_spec or ""]
    assert version.dna == expected["dna"]["digest"]
    for kind in ("dna", "folds", "failures", "manifests"):
        name = f"{kind.removesuffix('s') if kind == 'manifests' else kind}.parquet"
        assert version.sha256[kind] == expected["sha256"][name]


@pytest.mark.parametrize("number", [2, 3])
def test_a_commit_of_a_format_without_tags_or_erasures_is_read(number: int) -> None:
    path = GOLDEN / "former" / f"commit-{number}.json"
    stated = json.loads(path.read_bytes())
    former = StoredCommit.decode(path.read_bytes(), str(path)).whole()
    assert former.tags == stated.get("tags", {})
    assert former.replaced == {}
    assert (former.action, former.default_spec) == (stated["action"], stated["default_spec"])
    assert former.datasets.keys() == stated["datasets"].keys()
    for name, versions in stated["datasets"].items():
        assert former.datasets[name].keys() == versions.keys()
        for spec, version in versions.items():
            found = json.loads(json.dumps(asdict(former.datasets[name][spec])))
            assert {field: found[field] for field in version} == version


# Digests, which are names, never change; they are computed again from plain numbers.


def test_digests_of_specs_and_ranges_are_unchanged(expected: dict[str, Any]) -> None:
    for stated in expected["specs"].values():
        assert Spec.from_json(stated["fields"]).digest == stated["digest"]
    stated = expected["ranges"]
    low, high = (np.array([float.fromhex(x) for x in stated[end]]) for end in ("low", "high"))
    taps = tuple((layer, neurons) for layer, neurons in stated["taps"])
    assert Ranges(taps, low, high).digest == stated["digest"]


def test_the_digest_of_a_manifest_and_its_shard_keys_are_unchanged(
    expected: dict[str, Any],
) -> None:
    manifest, stated = manifest_of(expected), expected["manifest"]
    assert manifest.digest == stated["digest"]
    assert list(manifest.keys(expected["specs"]["spec.json"]["digest"])) == stated["keys"]


def test_the_same_entries_are_cut_into_the_same_shards(expected: dict[str, Any]) -> None:
    """Otherwise every dataset would be counted again."""
    old = manifest_of(expected)
    entries = [entry for shard in old.shards for entry in shard.members]
    for order in (entries, entries[::-1]):
        assert plan(order, shard_images=old.shard_images).digest == old.digest
        assert plan(order, shard_images=1, previous=old).digest == old.digest


def test_the_digest_of_a_dna_is_unchanged(folder: Path, expected: dict[str, Any]) -> None:
    dna, metadata = decode_dna(*read(folder, "dna.parquet"))
    assert digest_of_dna(dna, metadata["manifest"], PRODUCTS) == expected["dna"]["digest"]


def test_golden_partials_reduce_to_the_same_dna(folder: Path, expected: dict[str, Any]) -> None:
    """A job that began under an old version goes on under this one, to the last bit."""
    manifest, work = manifest_of(expected), f"memory://{uuid.uuid4().hex}"
    for key in expected["partials"]:
        storage.create(partial_uri(work, key), (folder / f"partials/{key}.parquet").read_bytes())
    levels, folds = plan_folds(manifest, work, expected["dna"]["spec"], PRODUCTS)
    assert levels == []
    composed = compose(folds, manifest, PRODUCTS, NAME)
    assert composed.digest == expected["dna"]["digest"]
    new, _ = decode_dna(composed.files["dna"], "new")
    old, _ = decode_dna(*read(folder, "dna.parquet"))
    assert new.identical(old)
    assert [asdict(failure) for failure in composed.failures] == expected["failures"]


def test_a_golden_catalogue_is_read_and_verified(folder: Path, expected: dict[str, Any]) -> None:
    place = Catalogue(f"memory://{uuid.uuid4().hex}")
    commit = StoredCommit.decode(*read(folder, "commit.json")).whole()
    version = commit.datasets[NAME][expected["dna"]["spec"]]
    for name, uri in stored_files(place, NAME, version, golden_manifest(folder)).items():
        storage.create(uri, (folder / name).read_bytes())
    storage.create(place.log_uri(commit.number), (folder / "commit.json").read_bytes())
    storage.create(storage.join(place.root, "_log", "_latest"), str(commit.number).encode())
    assert place.names() == sorted(expected["commit"]["datasets"])
    assert of_dna(place.load(NAME)) | {"digest": version.dna} == expected["dna"]
    assert place.load(NAME, layers=["head"]).identical(place.load(NAME).select(["head"]))
    assert of_manifest(place.manifest(NAME, version)) == expected["manifest"]
    assert [asdict(f) for f in place.failures(NAME, version)] == expected["failures"]
    assert place.spec(version.spec).digest == expected["specs"]["spec.json"]["digest"]
    assert [finding for finding in verify(place, [NAME]) if not finding.ok] == []
    matrix_uri = place.matrix_uri(version.spec, expected["matrix"]["members"], "uniform")
    storage.create(matrix_uri, (folder / "matrix.parquet").read_bytes())
    assert (
        hexes(Matrix.decode(storage.read(matrix_uri), matrix_uri).emd)
        == (expected["matrix"]["emd"])
    )


# A version that does not exist yet is refused.


READERS: dict[str, Callable[[bytes, str], object]] = {
    "ranges.parquet": decode_ranges,
    "manifest.parquet": lambda data, name: Manifest.decode(data, name, Entries()),
    "entries.parquet": lambda data, name: SealedFile(data, ENTRIES, name),
    "partial.parquet": Partial.decode,
    "dna.parquet": decode_dna,
    "folds.parquet": lambda data, name: DnaFile(data, "folds", name),
    "matrix.parquet": Matrix.decode,
    "exemplars.parquet": lambda data, name: Exemplars.decode(data, name, SPEC),
    "image-hashes.parquet": lambda data, name: decode_image_hashes(data, name, "ab" * 16),
    "lens.parquet": lambda data, name: Lens.decode(data, name, SPEC),
    "commit.json": StoredCommit.decode,
}


@pytest.mark.parametrize("name", READERS)
def test_a_newer_format_is_refused_by_name(name: str) -> None:
    folder = VERSIONS[-1]
    path = folder / (partial_names(folder)[0] if name == "partial.parquet" else name)
    if name.endswith(".json"):
        data = canonical_json(json.loads(path.read_bytes()) | {"format": 99})
    else:
        metadata = vdna(path) | {"format": 99}
        metadata.pop("checksum", None)
        metadata["checksum"] = digest_of(metadata)
        table = pq.read_table(path).replace_schema_metadata({"vdna": json.dumps(metadata)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
    READERS[name](path.read_bytes(), name)
    with pytest.raises(CorruptFile, match=f"some/{name}.*format"):
        READERS[name](data, f"some/{name}")


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in READERS if name not in ("partial.parquet", "commit.json")),
        "failures.parquet",
    ],
)
def test_every_parquet_file_states_its_format(name: str) -> None:
    assert "format" in vdna(VERSIONS[-1] / name)


# This version writes what the newest golden version holds.


def test_this_version_writes_the_newest_format(tmp_path: Path) -> None:
    """If it fails, a new `v*` is needed. Random numbers may change with numpy and are ignored."""
    write(tmp_path / "now")
    now = json.loads((tmp_path / "now" / "expected.json").read_text(encoding="utf-8"))
    then = json.loads((VERSIONS[-1] / "expected.json").read_text(encoding="utf-8"))
    for part in ("specs", "ranges", "manifest", "failures"):
        assert now[part] == then[part], part
    for part in ("partials", "dna", "folds", "matrix", "commit", "sha256"):
        assert now[part].keys() == then[part].keys(), part
    for name in now["sha256"]:
        old, new = VERSIONS[-1] / name, tmp_path / "now" / name
        if name.endswith(".parquet"):
            assert layout(old) == layout(new), name
        elif name != "commit.json":
            assert old.read_bytes() == new.read_bytes(), name


def layout(path: Path) -> dict[str, Any]:
    """Returns how a file is built, whatever its numbers and the Parquet library are."""
    metadata, stated = pq.read_metadata(path), vdna(path)
    chunks = [
        (chunk.path_in_schema, chunk.physical_type, chunk.compression, set(chunk.encodings))
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for chunk in map(group.column, range(group.num_columns))
    ]
    return {
        "columns": [(column.name, str(column.type)) for column in pq.read_schema(path)],
        "chunks": chunks,
        "rows": [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)],
        "states": sorted(stated),
        "kind": (stated["kind"], stated["format"]),
    }


def vdna(path: Path) -> dict[str, Any]:
    return json.loads((pq.read_schema(path).metadata or {}).get(b"vdna", b"{}"))


def test_golden_files_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    with pytest.raises(FileExistsError):
        write(tmp_path / "v1")
