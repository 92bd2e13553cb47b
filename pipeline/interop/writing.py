"""Exports DNAs as files of the reference package (`vdna` 0.1.1).

>>> export_file(Catalogue("dnas"), "cityscapes", "new/cityscapes.npz").kind    # doctest: +SKIP
'histogram'
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue import Catalogue, software
from pipeline.dna import DNA, neuron_name
from pipeline.errors import UsageError
from pipeline.interop.reading import json_uri, npz_uri
from pipeline.interop.reference_metadata import REFERENCE_KINDS, TELLS, ReferenceKind
from pipeline.spec import LAYER_GAUSSIAN
from pipeline.wording import count_of


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        npz: The path or url of NAME.npz.
        json: The path or url of NAME.json.
        kind: The kind of distribution.
        images: The number of images.
        notes: What the files do not say.
    """

    npz: str
    json: str
    kind: ReferenceKind
    images: int
    notes: tuple[str, ...]


def export_file(
    catalogue: Catalogue,
    name: str,
    url: str,
    kind: str | None = None,
    *,
    spec: str | None = None,
    at: int | str | None = None,
) -> Exported:
    """Exports a dataset's DNA as NAME.npz and NAME.json, which the reference reads.

    Args:
        catalogue: The catalogue.
        name: The dataset.
        url: The path or url of NAME.npz.
        kind: `histogram`, `gaussian`, `layer-gaussian` or `activation-ranges`; None for the one
            that tells most.
        spec: The beginning of the spec's digest; None for the default.
        at: The state of the catalogue: a commit's number or a time; None for the newest.

    Returns:
        What was exported.

    Raises:
        NotFound: If there is no such dataset.
        UsageError: If the DNA has nothing of that kind, or the url does not end in `.npz`.
    """
    npz_uri(url)
    version = catalogue.find(name, at, spec)
    dna = catalogue.load_version(name, version)
    if LAYER_GAUSSIAN in version.products and (kind or "histogram") not in kinds_of(dna):
        dna = catalogue.load_version(name, version, layer_gaussian=True)
    return write_dna(dna, url, kind, source=version.source, name=name)


def write_dna(
    dna: DNA, url: str, kind: str | None = None, *, source: str = "", name: str = "this DNA"
) -> Exported:
    """Writes a DNA as NAME.npz and NAME.json.

    Args:
        dna: The DNA.
        url: The path or url of NAME.npz.
        kind: As in `export_file`.
        source: Where the images are from, for NAME.json.
        name: How errors name the DNA.

    Returns:
        What was written.

    Raises:
        UsageError: If the DNA has nothing of that kind, or the url does not end in `.npz`.
    """
    uri = npz_uri(url)
    has = kinds_of(dna)
    chosen = kind or has[0]
    if chosen not in REFERENCE_KINDS:
        raise UsageError(f"as is {kind!r}; choose one of {', '.join(REFERENCE_KINDS)}")
    if chosen not in has:
        raise UsageError(f"{name} has no {chosen}; it has {', '.join(has)}")
    arrays, notes = _WRITERS[chosen](dna)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, arrays))
    storage.replace(uri, buffer.getvalue())
    # An export that ends here leaves new arrays beside an older NAME.json, which states other ones.
    about = {**_metadata(dna, chosen, source), "npz_sha256": sha256(buffer.getvalue())}
    storage.replace(json_uri(uri), json.dumps(about, indent=4).encode())
    paths = storage.readable(uri), storage.readable(json_uri(uri))
    return Exported(*paths, chosen, dna.images, tuple(notes))


def kinds_of(dna: DNA) -> list[ReferenceKind]:
    """Lists the kinds that a DNA can be exported as, first the one that tells most.

    Args:
        dna: The DNA.

    Returns:
        The kinds.
    """
    return [
        kind
        for kind, columns in TELLS.items()
        if not set(columns) & set(dna.unknown)
        and (kind != "layer-gaussian" or dna.scatter is not None)
    ]


Arrays = dict[str, NDArray[Any]]


def _write_histograms(dna: DNA) -> tuple[Arrays, list[str]]:
    """Puts what fell below a range into the first bin and above into the last, as they do."""
    counts = dna.counts.copy()
    counts[:, 0] += dna.underflow
    counts[:, -1] += dna.overflow
    fits = counts.max() < 2**31
    notes = [] if fits else ["counts are int64, as int32, which the reference saves, would wrap"]
    if lost := int(dna.nonfinite.sum()):
        notes.append(f"{lost} activations that are not finite are left out")
    stored = counts.astype(np.int32) if fits else counts
    return {layer: stored[dna.slice_of(layer)] for layer in dna.layers}, notes


def _write_gaussians(dna: DNA) -> tuple[Arrays, list[str]]:
    arrays: Arrays = {}
    degrees = max(1, dna.images - 1)
    for layer in dna.layers:
        here = dna.slice_of(layer)
        with np.errstate(over="ignore"):
            arrays[f"mu-{layer}"] = dna.mean[here].astype(np.float32)
            arrays[f"var-{layer}"] = (dna.m2[here] / degrees).astype(np.float32)
    return arrays, _one_image(dna)


def _write_layer_gaussians(dna: DNA) -> tuple[Arrays, list[str]]:
    arrays: Arrays = {}
    degrees = max(1, dna.images - 1)
    for layer in dna.layers:
        arrays[f"mu-{layer}"] = dna.mean[dna.slice_of(layer)]
        arrays[f"sigma-{layer}"] = dna.scatter_of(layer) / degrees
    return arrays, _one_image(dna)


def _one_image(dna: DNA) -> list[str]:
    return ["the variance of one image is written as 0"] if dna.images == 1 else []


def _write_extremes(dna: DNA) -> tuple[Arrays, list[str]]:
    silent = np.flatnonzero(dna.min > dna.max)
    if len(silent):
        more = len(silent) - 1
        others = f", nor {'has' if more == 1 else 'have'} {count_of(more, 'other')}" if more else ""
        raise UsageError(
            f"neuron {neuron_name(dna.spec.shape, int(silent[0]))} has no finite activation"
            f"{others}, so it has no range, and no reader takes such a file; export another kind, "
            "such as histogram"
        )
    arrays: Arrays = {}
    for layer in dna.layers:
        here = dna.slice_of(layer)
        arrays |= {f"min-{layer}": dna.min[here], f"max-{layer}": dna.max[here]}
    return arrays, []


_WRITERS: dict[ReferenceKind, Callable[[DNA], tuple[Arrays, list[str]]]] = {
    "histogram": _write_histograms,
    "gaussian": _write_gaussians,
    "layer-gaussian": _write_layer_gaussians,
    "activation-ranges": _write_extremes,
}


def _metadata(dna: DNA, kind: ReferenceKind, source: str) -> dict[str, Any]:
    """Makes most of NAME.json: what the reference reads, and the spec, which it ignores."""
    spec, bins, histogram = dna.spec, dna.spec.bins, kind == "histogram"
    return {
        "time_of_compute": datetime.now(UTC).strftime("%I:%M%p on %B %d, %Y"),
        "vdna_version": software(),
        "distribution": {"hist_nb_bins": bins} if histogram else {},
        "type": kind,
        "name": f"histogram-{bins}" if histogram else kind,
        "data_settings": {
            "source": source or "not told",
            "crop_to_square_pre_resize": spec.preprocess.crop,
            "resize_mode": spec.preprocess.resize,
            "shuffle_files": False,
            "num_images": -1,
        },
        "extraction_settings": {
            "average_feats_spatially": kind in ("gaussian", "layer-gaussian"),
            "accumulate_spatial_feats_in_hist": histogram,
            "accumulate_sample_feats_in_hist": histogram,
            "keep_only_min_max": kind == "activation-ranges",
            "normalise_feats": histogram,
            "hist_nb_bins": bins if histogram else 0,
            "device": "cpu",
        },
        "num_images": dna.images,
        "feature_extractor_name": spec.extractor,
        "neurons_list": {layer: spec.tap(layer).neurons for layer in dna.layers},
        "spec": spec.to_json(),
        "spec_digest": spec.digest,
    }
