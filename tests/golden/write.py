"""Writes one small file of each format, and `expected.json` with every number in them.

    python -m tests.golden.write tests/golden/v1

Run once for each released version of a format; the files of a released version never change.
Floats stand in `expected.json` as `float.hex` writes them, so that they are compared to the bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import Catalogue, Version, canonical_json, tag_version
from pipeline.comparing import compare
from pipeline.comparing.distance import emd, nfd
from pipeline.counting import partial_uri, plan_folds
from pipeline.dna import (
    BLACK,
    DNA,
    EXEMPLAR_ROWS_SCHEMA,
    HASH_ROW,
    NOTED,
    READ,
    SCALAR_COLUMNS,
    SINGLE_COLOUR,
    Exemplars,
    ExemplarSettings,
    Failure,
    HashRows,
    ImageHashes,
    Lens,
    Moments,
    Partial,
    Ranges,
    dna_metadata,
    encode_dna,
    encode_layers,
    to_gaussian_table,
    write_image_hashes,
)
from pipeline.sources import Entry, Listing, Manifest, plan
from pipeline.spec import PRODUCTS, Spec
from tests.golden.handmade import RANGES, SPEC, commit_dataset, entries, hand_made, with_failures
from tests.support.builders import NUMERICS, OTHER_NUMERICS, random_dna

BF16 = replace(SPEC, precision="bf16", bf16_numerics=NUMERICS)


def photos() -> Manifest:
    """Makes three groups, each in its own fold; one has four shards, the last of a failure only."""
    named = [
        ("file:///data/caf%C3%A9/a.jpg", "", "drive-1"),
        ("file:///data/caf%C3%A9/b.jpg", "", "drive-1"),
        ("file:///data/caf%C3%A9/c.jpg", "", "drive-1"),
        ("file:///data/caf%C3%A9/d.jpg", "", "drive-1"),
        ("file:///data/caf%C3%A9/e.jpg", "", "drive-1"),
        ("file:///data/caf%C3%A9/f.jpg", "", "drive-1"),
        ("file:///data/caf%C3%A9/z/bad.jpg", "", "drive-1"),
        ("s3://bucket/photos.tar", "été/d.png", "s3://bucket/photos.tar"),
        ("s3://bucket/photos.tar", "été/e.png", "s3://bucket/photos.tar"),
        ("s3://bucket/x::y?#%.jpg", "", ""),
    ]
    found = [
        Entry(uri, member, 1000 + i, f"etag-{i}", group, 512 * i, "tar" if member else "")
        for i, (uri, member, group) in enumerate(named)
    ]
    found += found[:3]
    return plan(Listing.of(found, "s3://bucket", {".txt": 2, ".json": 1}), shard_images=2)


def counted(manifest: Manifest) -> list[Partial]:
    """Makes counts by hand, under two numerics."""
    partials = [hand_made(shard) for shard in manifest.shards]
    last = partials[-1]
    other = replace(last.dna, numerics=((OTHER_NUMERICS, last.dna.images),))
    return [*partials[:-1], replace(last, dna=other)]


def with_an_undefined_neuron(manifest: Manifest) -> list[Partial]:
    """Makes one image whose first neuron has no finite activation."""
    (shard,) = manifest.shards
    dna = random_dna(SPEC, RANGES, 1, 7)
    first = np.arange(SPEC.neurons) == 0
    arrays: dict[str, Any] = {
        "counts": np.where(first[:, None], 0, dna.counts),
        "underflow": np.where(first, 0, dna.underflow),
        "overflow": np.where(first, 0, dna.overflow),
        "nonfinite": np.where(first, dna.positions, dna.nonfinite),
        "min": np.where(first, np.float32(np.inf), dna.min),
        "max": np.where(first, np.float32(-np.inf), dna.max),
    }
    return [with_failures(replace(dna, **arrays), (shard.key(SPEC.digest),), ())]


def with_layer_gaussians() -> DNA:
    """Makes a DNA of seven images by hand."""
    moments = Moments([tap.neurons for tap in SPEC.taps], layerwise=True)
    for count, seed in ((4, 1), (3, 2)):
        moments.add(np.random.default_rng(seed).normal(size=(count, SPEC.neurons)))
    dna = random_dna(SPEC, RANGES, moments.images, 7)
    return replace(dna, mean=moments.mean, m2=moments.m2, scatter=moments.scatter)


def imported(dna: DNA) -> DNA:
    """Returns what a file of the reference's histograms states of it."""
    unknown = ("max", "mean", "min", "m2", "nonfinite", "overflow", "underflow")
    zeros = {name: np.zeros_like(getattr(dna, name)) for name in unknown}
    nothing: dict[str, Any] = {"scatter": None, "numerics": (), **dict.fromkeys(NOTED)}
    return replace(dna, **zeros, **nothing, unknown=tuple(sorted(unknown)))


def exemplars() -> Exemplars:
    """Makes two exemplars of each of the first neurons, by hand."""
    neurons = np.repeat(np.arange(3), 2)
    reactions = np.float32(4) - np.arange(len(neurons), dtype=np.float32) / 3
    uris = [f"s3://bucket/{number}.tar" for number in range(len(neurons))]
    columns = {
        "neuron": neurons.astype(np.int32),
        "reaction": reactions,
        "uri": uris,
        "member": ["été/a.png" if number % 3 else "" for number in range(len(neurons))],
    }
    return Exemplars(ExemplarSettings(2), SPEC, pa.table(columns, schema=EXEMPLAR_ROWS_SCHEMA))


def image_hashes(count: int) -> HashRows:
    """Makes the hashes of some images by hand, and of one that could not be read."""
    flags = [READ, READ | SINGLE_COLOUR, READ | SINGLE_COLOUR | BLACK, READ | BLACK]
    rows = [(2**64 - 1 - at, 2 ** (9 * at % 64), flags[at % 4]) for at in range(count)]
    return np.array([*rows, (0, 0, 0)], HASH_ROW)


def partial_with_hashes(dna: DNA) -> Partial:
    failure = Failure("s3://bucket/bad.jpg", "", "empty", "0 bytes")
    hashes = ImageHashes({"0" * 32: image_hashes(dna.images)})
    return Partial(replace(dna, scatter=None, failed=1), ("0" * 32,), (failure,), None, hashes)


def file_of_image_hashes(rows: HashRows) -> bytes:
    sink = io.BytesIO()
    write_image_hashes(sink, rows, [5, len(rows) - 5], "ab" * 16)
    return sink.getvalue()


def lens() -> Lens:
    rows = [("stem", 0, 0.25), ("stem", 2, -0.125), ("head", 1, 1 / 3)]
    return replace(
        Lens.from_rows("snow", SPEC, rows), provenance={"kind": "focus", "scores": {"few": 0.5}}
    )


def with_a_part(place: Catalogue, version: Version) -> None:
    whole = replace(version, by="weather")
    part = replace(whole, part_of="few", value="heavy rain")
    place.put_version("few", whole, version, parts={"few/heavy-rain": part})


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "partials").mkdir()
    place = Catalogue(f"memory://golden-{secrets.token_hex(8)}")
    manifest = photos()
    partials = counted(manifest)
    version = commit_dataset(place, "group/photos", manifest, partials)
    few, one = plan(entries("few", 3)), plan(entries("one", 1))
    of_few = commit_dataset(place, "few", few, [hand_made(shard) for shard in few.shards])
    commit_dataset(place, "one", one, with_an_undefined_neuron(one))
    matrix = compare(place)
    tag_version(place, "group/photos@1", "first")
    with_a_part(place, of_few)
    folds = folds_of(manifest, partials)
    total = reduce(DNA.__add__, folds.values())
    files = stored_files(place, "group/photos", version, manifest)
    files |= {
        "matrix.parquet": place.matrix_uri(SPEC.digest, matrix.members, matrix.lens),
        "commit.json": place.log_uri(place.head().number),
    }
    for name, uri in files.items():
        (folder / name).write_bytes(storage.read(uri))
    gaussians = with_layer_gaussians()
    layers = [gaussians.select([layer]) for layer in gaussians.layers]
    head = dna_metadata(gaussians)
    for name, data in {
        "partial-products.parquet": Partial(gaussians, ("0" * 32,), (), exemplars()).encode(),
        "layer-gaussians.parquet": encode_layers(
            "layer_gaussians", head, [to_gaussian_table(layer) for layer in layers]
        ),
        "dna-imported.parquet": encode_dna(imported(gaussians)),
        "exemplars.parquet": exemplars().encode("few", "ab" * 16),
        "partial-hashes.parquet": partial_with_hashes(gaussians).encode(),
        "image-hashes.parquet": file_of_image_hashes(image_hashes(gaussians.images)),
        "lens.parquet": lens().encode(),
    }.items():
        (folder / name).write_bytes(data)
    (folder / "spec-bf16.json").write_bytes(canonical_json(BF16.to_json()))
    expected = {
        "specs": {"spec.json": of_spec(SPEC), "spec-bf16.json": of_spec(BF16)},
        "ranges": of_ranges(RANGES),
        "manifest": of_manifest(manifest),
        "partials": {p.shards[0]: of_partial(p) for p in partials},
        "dna": of_dna(total) | {"digest": version.dna},
        "folds": {
            str(index): of_dna(dna) | {"distances": distances(total, dna)}
            for index, dna in folds.items()
        },
        "failures": [asdict(f) for p in partials for f in p.failures],
        "layer_gaussian": of_dna(gaussians) | {"scatter": hexes(gaussians.scatter)},
        "imported": of_dna(imported(gaussians)) | {"unknown": list(imported(gaussians).unknown)},
        "exemplars": of_exemplars(exemplars()),
        "image_hashes": image_hashes(gaussians.images).tolist(),
        "lens": of_lens(lens()),
        "matrix": {
            "names": list(matrix.names),
            "layers": list(matrix.layers),
            "emd": hexes(matrix.emd),
            "nfd": hexes(matrix.nfd),
            "bins": matrix.bins,
            "members": matrix.members,
            "spec_digest": matrix.spec_digest,
            "lens": matrix.lens,
        },
        "commit": json.loads(json.dumps(asdict(place.head()))),
        "sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    text = json.dumps(expected, indent=0, sort_keys=True, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def stored_files(
    place: Catalogue, name: str, version: Version, manifest: Manifest
) -> dict[str, str]:
    """Maps a file's name here to its uri in a catalogue, for one dataset version."""
    spec = version.spec
    work = place.work_uri(name, spec)
    keys = manifest.keys(spec, version.products)
    return {
        "spec.json": place.spec_uri(spec),
        "ranges.parquet": place.ranges_uri(RANGES.digest),
        "manifest.parquet": place.uri("manifests", spec, name, version.manifest),
        "entries.parquet": manifest_entries(place, manifest),
        "dna.parquet": place.uri("dna", spec, name, version.dna),
        "folds.parquet": place.uri("folds", spec, name, version.dna),
        "failures.parquet": place.uri("failures", spec, name, version.dna),
    } | {f"partials/{key}.parquet": partial_uri(work, key) for key in keys}


def manifest_entries(place: Catalogue, manifest: Manifest) -> str:
    """Returns the uri of the only entries file of a manifest."""
    (name,) = manifest.files
    return storage.join(place.entries_uri, f"{name}.parquet")


def folds_of(manifest: Manifest, partials: Sequence[Partial]) -> dict[int, DNA]:
    by_key = {partial.shards[0]: partial.dna for partial in partials}
    _, folds = plan_folds(manifest, "memory://x", SPEC.digest, PRODUCTS)
    return {
        fold.index: reduce(DNA.__add__, [by_key[key] for _, keys in fold.parts for key in keys])
        for fold in folds
    }


# What stands in `expected.json`; the test says the same of what it reads.


def hexes(values: Any) -> Any:
    """Turns nested floats into text that gives back every bit; integers stay as they are."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(values, list):
        return [hexes(value) for value in values]
    return float(values).hex() if isinstance(values, float) else values


def of_spec(spec: Spec) -> dict[str, Any]:
    return {"digest": spec.digest, "fields": spec.to_json()}


def of_ranges(ranges: Ranges) -> dict[str, Any]:
    return {
        "digest": ranges.digest,
        "taps": [list(tap) for tap in ranges.taps],
        "low": hexes(ranges.low),
        "high": hexes(ranges.high),
    }


def of_manifest(manifest: Manifest) -> dict[str, Any]:
    return {
        "digest": manifest.digest,
        "source": manifest.source,
        "ignored": dict(manifest.ignored),
        "duplicates": manifest.duplicates,
        "shard_images": manifest.shard_images,
        "keys": list(manifest.keys(SPEC.digest, PRODUCTS)),
        "shards": [
            {"fold": shard.fold, "members": [asdict(entry) for entry in shard.members]}
            for shard in manifest.shards
        ],
    }


def of_dna(dna: DNA) -> dict[str, Any]:
    arrays: Mapping[str, Any] = {c: hexes(getattr(dna, c)) for c in ("counts", *SCALAR_COLUMNS)}
    return {
        "spec": dna.spec.digest,
        "layers": list(dna.layers),
        "images": dna.images,
        "failed": dna.failed,
        "transparent": dna.transparent,
        "single_colour": dna.single_colour,
        "numerics": [[numerics.to_json(), images] for numerics, images in dna.numerics],
        **arrays,
    }


def of_exemplars(exemplars: Exemplars) -> dict[str, Any]:
    rows = [row | {"reaction": hexes(row["reaction"])} for row in exemplars.rows.to_pylist()]
    return {"product": exemplars.settings.product, "rows": rows}


def of_lens(lens: Lens) -> dict[str, Any]:
    return {
        "name": lens.name,
        "digest": lens.digest,
        "taps": [list(tap) for tap in lens.taps],
        "weights": hexes(lens.weights),
        "provenance": dict(lens.provenance),
    }


def of_partial(partial: Partial) -> dict[str, Any]:
    return of_dna(partial.dna) | {
        "shards": list(partial.shards),
        "failures": [asdict(failure) for failure in partial.failures],
    }


def distances(a: DNA, b: DNA) -> dict[str, str | None]:
    """Computes the stem's distance in bins, and those of Gaussians that have two images."""
    both = min(a.images, b.images) >= 2
    return {"emd": hexes(emd(a, b, layer="stem")), "nfd": hexes(nfd(a, b)) if both else None}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
