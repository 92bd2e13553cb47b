"""Imports files of the reference package (`vdna` 0.1.1).

    >>> import_file(Catalogue("dnas"), "old/cityscapes.npz", "cityscapes")     # doctest: +SKIP

There, a DNA is two files: NAME.npz holds the arrays of one kind of distribution, NAME.json says
what they are of. They name neither weights nor ranges. So a spec is assumed for them, which
compares with others of the same origin only, unless the user states the spec. What a kind of file
does not tell is listed in `DNA.unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.building import store_version
from pipeline.catalogue import Catalogue, Version, canonical_json, check_name, footers_of, software
from pipeline.counting import digest_of_dna
from pipeline.dna import DNA, Ranges, dna_metadata, encode_dna, encode_layers, to_gaussian_table
from pipeline.errors import Conflict
from pipeline.interop.converting import to_dna
from pipeline.interop.file_spec import (
    assume_spec,
    find_spec,
    own_spec,
    require_stated_spec,
    stored_ranges,
)
from pipeline.interop.reading import read_file
from pipeline.interop.reference_metadata import PRODUCTS_OF
from pipeline.networks import ASSUMED, WIDENING, Network, encode_ranges, widen_about_zero
from pipeline.spec import Spec


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        name: The dataset.
        version: Its version.
        changed: Whether something was committed; False if the same file had been imported before.
        ranges: For a file of extremes, the digest of the ranges made of them, which
            `vdna build --ranges` takes.
    """

    name: str
    version: Version
    changed: bool
    ranges: str | None = None


def read_dna(url: str, spec: Spec | None = None, ranges: Ranges | None = None) -> DNA:
    """Reads the DNA of NAME.npz without a catalogue.

    Args:
        url: The path or url of NAME.npz; NAME.json must lie beside it.
        spec: The spec that the file was made by. None assumes one, unless the file was exported
            from here and states its own.
        ranges: The ranges of the spec, be it given, stated or assumed; None if they are not known.

    Returns:
        The DNA.

    Raises:
        CorruptFile: If one of the files is torn or wrong.
        UsageError: If the spec does not fit the file, or none can be assumed.
    """
    file = read_file(url)
    stated = spec or own_spec(file)
    found = (
        assume_spec(file, ranges) if stated is None else require_stated_spec(file, stated, ranges)
    )
    return to_dna(file, found)[0]


def import_file(catalogue: Catalogue, url: str, name: str, spec: str | None = None) -> Imported:
    """Imports NAME.npz as a version of a dataset.

    Args:
        catalogue: The catalogue.
        url: The path or url of NAME.npz; NAME.json must lie beside it.
        name: The dataset's name.
        spec: How the file was made: the beginning of the digest of a spec in the catalogue, or a
            JSON file. None assumes it.

    Returns:
        What was imported.

    Raises:
        Conflict: If the dataset was built here under the same spec. An import never replaces what
            was counted here.
        CorruptFile: If one of the files is torn or wrong.
        NotFound: If there is no such spec.
        UsageError: If the spec does not fit the file, or the name is not allowed.
    """
    check_name(name)
    file = read_file(url)
    chosen = own_spec(file) if spec is None else find_spec(catalogue, spec)
    if chosen is None:
        file_spec = assume_spec(file)
    else:
        file_spec = require_stated_spec(file, chosen, stored_ranges(catalogue, chosen))
    dna, notes = to_dna(file, file_spec)
    digest = file_spec.spec.digest
    base = catalogue.head().datasets.get(name, {}).get(digest)
    if base is not None and not base.imported:
        raise Conflict(
            f"{name} was built here under spec {digest[:12]}, which {file.name} has too; import it "
            "under another name. Nothing was changed"
        )
    products = PRODUCTS_OF[file.kind]
    content = digest_of_dna(dna, "", products)
    storage.require_exclusive(catalogue.root)
    storage.create(catalogue.spec_uri(digest), canonical_json(file_spec.spec.to_json()))
    ranges = _store_ranges(catalogue, dna) if file.kind == "activation-ranges" else None
    files = store_version(catalogue, name, digest, content, _files(dna, name, content, products))
    version = Version(
        dna=content,
        manifest="",
        spec=digest,
        images=dna.images,
        failed=0,
        products=products,
        sha256={kind: sha256(data) for kind, data in files.items()},
        source=file.name,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software(),
        numerics=(),
        origin={
            "software": file.software,
            "assumed": file_spec.assumed,
            "stated": spec is not None,
            "notes": [*file_spec.notes, *notes],
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
        files["layer_gaussians"] = encode_layers(
            "layer_gaussians",
            dna_metadata(dna, **shared),
            (to_gaussian_table(dna.select([layer])) for layer in dna.layers),
        )
    return files


def _store_ranges(catalogue: Catalogue, dna: DNA) -> str:
    """Stores extremes as ranges, widened about zero as the reference does; returns the digest."""
    measured = Ranges(dna.spec.shape, dna.min.astype(np.float64), dna.max.astype(np.float64))
    ranges = widen_about_zero(measured)
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
        "widened": WIDENING,
        "widened_about": "zero",
        "assumed_weights": spec.weights_sha256.startswith(ASSUMED),
    }
    data = encode_ranges(ranges, network, **provenance)
    storage.create(catalogue.ranges_uri(ranges.digest), data)
    return ranges.digest
