"""The files of the reference package (`vdna` 0.1.1), both ways.

    >>> import_file(Catalogue("dnas"), "old/cityscapes.npz", "cityscapes")     # doctest: +SKIP
    >>> export_file(Catalogue("dnas"), "cityscapes", "new/cityscapes.npz")     # doctest: +SKIP

A DNA is two files there: NAME.npz holds the arrays of one kind of distribution, NAME.json says what
they are of. They name neither the weights nor the ranges, so a spec is assumed for them, which
compares with others of the same origin only, unless the user states it. What a kind does not tell
is `DNA.unknown`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.catalogue import Catalogue, Version, canonical_json, check_name, footers_of, software
from pipeline.counting import digest_of_dna
from pipeline.dna import DNA, Ranges, encode, encode_dna, header, to_gaussian_table
from pipeline.errors import Conflict
from pipeline.interop.converting import (
    StatedSpec,
    assume,
    find_ranges,
    find_spec,
    own_spec,
    stated,
    to_dna,
)
from pipeline.interop.reading import PRODUCTS_OF, ReferenceFile, read_file
from pipeline.networks import ASSUMED, Network
from pipeline.networks import ranges_file as ranges_module
from pipeline.spec import Spec

# Import.


@dataclass(frozen=True)
class Imported:
    """What was imported. `changed`: whether it was committed, or had been before.

    `ranges`: digest of the file of ranges that extremes make, for `vdna build --ranges`.
    """

    name: str
    version: Version
    changed: bool
    ranges: str | None = None


def read(url: str, spec: Spec | None = None, ranges: Ranges | None = None) -> DNA:
    """The DNA of NAME.npz, without a catalogue; of an assumed spec where none is stated."""
    file = read_file(url)
    return to_dna(file, stated(file, spec, ranges) if spec is not None else _by_itself(file))[0]


def _by_itself(file: ReferenceFile, catalogue: Catalogue | None = None) -> StatedSpec:
    """The spec that one of our exports states, else what the reference's names stand for."""
    spec = own_spec(file)
    if spec is None:
        return assume(file)
    return stated(file, spec, find_ranges(catalogue, spec) if catalogue else None)


def import_file(catalogue: Catalogue, url: str, name: str, spec: str | None = None) -> Imported:
    """NAME.npz -> a version of the dataset in the catalogue.

    `spec`: a digest of this catalogue, or a file of JSON, that says how the file was made. Raises
    `Conflict` where the dataset was built here under the same spec: what was counted is not given
    away for what is only said.
    """
    check_name(name)
    file = read_file(url)
    if spec is None:
        by = _by_itself(file, catalogue)
    else:
        chosen = find_spec(catalogue, spec)
        by = stated(file, chosen, find_ranges(catalogue, chosen))
    dna, notes = to_dna(file, by)
    digest = by.spec.digest
    base = catalogue.head().datasets.get(name, {}).get(digest)
    if base is not None and not base.imported:
        raise Conflict(
            f"{name} was built here under spec {digest[:12]}, which {file.name} is of, too; import "
            "it under another name. Nothing was changed"
        )
    products = PRODUCTS_OF[file.kind]
    content = digest_of_dna(dna, "", products)
    storage.require_exclusive(catalogue.root)
    storage.create(catalogue.spec_uri(digest), canonical_json(by.spec.to_json()))
    ranges = _store_ranges(catalogue, dna) if file.kind == "activation-ranges" else None
    hashes, files = {}, _files(dna, name, content, products)
    for kind, data in files.items():
        uri = catalogue.uri(kind, digest, name, content)
        if not storage.create(uri, data):
            storage.replace(uri, data)
        hashes[kind] = hashlib.sha256(data).hexdigest()
    version = Version(
        dna=content,
        manifest="",
        spec=digest,
        images=dna.images,
        failed=0,
        products=products,
        sha256=hashes,
        source=file.name,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software(),
        numerics=(),
        origin={
            "software": file.software,
            "assumed": by.assumed,
            "stated": spec is not None,
            "notes": [*by.notes, *notes],
            "kind": file.kind,
            "file": file.name,
            "images_from": file.source,
        },
        footers=footers_of(files),
    )
    commit = catalogue.put_version(name, version, base, action="import")
    kept = commit.datasets[name][digest]
    return Imported(name, kept, base is None or base.dna != kept.dna, ranges)


def _files(dna: DNA, name: str, digest: str, products: Sequence[str]) -> dict[str, bytes]:
    shared: dict[str, Any] = {
        "dataset": name,
        "digest": digest,
        "manifest": "",
        "products": list(products),
    }
    files = {"dna": encode_dna(replace(dna, scatter=None), **shared)}
    if dna.scatter is not None:
        files["layer_gaussians"] = encode(
            header(dna, "layer_gaussians", **shared),
            (to_gaussian_table(dna.select([layer])) for layer in dna.layers),
        )
    return files


def _store_ranges(catalogue: Catalogue, dna: DNA) -> str:
    """The extremes as a file of ranges, scaled as the reference scales them: about zero."""
    taps = tuple((tap.name, tap.neurons) for tap in dna.spec.taps)
    measured = Ranges(taps, dna.min.astype(np.float64), dna.max.astype(np.float64))
    ranges = ranges_module.widen_about_zero(measured)
    spec, rule = dna.spec, dna.spec.preprocess
    network = Network(
        spec.extractor,
        spec.weights_sha256,
        spec.taps,
        rule.height,
        rule.width,
        rule.mean,
        rule.std,
    )
    provenance = {
        "images": dna.images,
        "widened": ranges_module.WIDEN,
        "widened_about": "zero",
        "assumed_weights": spec.weights_sha256.startswith(ASSUMED),
    }
    data = ranges_module.encode(ranges, network, **provenance)
    storage.create(catalogue.ranges_uri(ranges.digest), data)
    return ranges.digest
