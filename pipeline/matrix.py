"""All pairs: the distances of a snapshot, by layer.

    >>> compare(Catalogue("dnas"), ["a", "b"]).table.to_pandas()      # doctest: +SKIP

The Earth Mover's Distance of two histograms is the L1 distance of their cumulative distributions,
so each DNA is accumulated once and the pairs are sums of absolute differences, in register blocks
of 2 x 4 DNAs: the loop is bound by additions, not by memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit, prange
from numpy.typing import NDArray

from pipeline import storage
from pipeline.allocator import keep_memory
from pipeline.catalogue import Catalogue, Commit, Version
from pipeline.distance import frechet, frechet_1d, root_covariance, variance
from pipeline.dna import DNA, DnaFile, Floats
from pipeline.errors import CorruptFile, NotFound, UsageError
from pipeline.spec import LAYER_GAUSSIAN, Spec, available_cpus, digest_of

FORMAT = 1
ALL = "all"
UNIFORM = "uniform"
Distance = Literal["emd", "nfd", "fd"]
_BLOCK = 4

SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("layer", pa.string()),
        ("emd", pa.float64()),
        ("emd_range", pa.float64()),
        ("nfd", pa.float64()),
        ("fd", pa.float64()),
        ("emd_corrected", pa.float64()),
        ("se", pa.float64()),
        ("floor", pa.float64()),
        ("p", pa.float64()),
        ("q", pa.float64()),
        ("lens", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Distances of every ordered pair and the diagonal, per layer and over `all` neurons.

    `emd`, `nfd`, `fd`: (planes, D, D) float64 in the order of `layers` and `names`; the last plane
    is `all`, unless the layers are a choice of the network's. NaN where a DNA lacks what a distance
    needs, or it was not asked for. `members`: dataset -> dna digest.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    emd: Floats
    nfd: Floats
    fd: Floats
    bins: int
    members: dict[str, str]
    spec_digest: str
    lens: str = UNIFORM

    @property
    def planes(self) -> tuple[str, ...]:
        """What the distances hold, in order: the layers, and `all` where they are all there."""
        return self.layers if len(self.emd) == len(self.layers) else (*self.layers, ALL)

    def of(self, layer: str = ALL, distance: Distance = "emd") -> Floats:
        """(D, D) distances of a layer. Raises `UsageError` for an unknown one."""
        if layer not in self.planes:
            raise UsageError(f"no layer {layer!r} in this matrix; it has {', '.join(self.layers)}")
        return cast(Floats, getattr(self, distance)[self.planes.index(layer)])

    @property
    def table(self) -> pa.Table:
        """The named columns; those whose estimate is not made yet are null."""
        planes = self.planes
        count, size = len(planes), len(self.names)
        names = np.array(self.names, dtype=object)
        emd = self.emd.reshape(-1)
        rows = len(emd)
        columns: dict[str, Any] = {
            "a": np.tile(np.repeat(names, size), count),
            "b": np.tile(names, count * size),
            "layer": np.repeat(np.array(planes, dtype=object), size * size),
            "emd": pa.array(emd, from_pandas=True),
            "emd_range": pa.array(emd / self.bins, from_pandas=True),
            "nfd": pa.array(self.nfd.reshape(-1), from_pandas=True),
            "fd": pa.array(self.fd.reshape(-1), from_pandas=True),
            "lens": np.full(rows, self.lens, dtype=object),
        }
        return pa.table(
            {
                field.name: columns[field.name]
                if field.name in columns
                else pa.nulls(rows, field.type)
                for field in SCHEMA
            },
            schema=SCHEMA,
        )

    def _checksum(self, metadata: Mapping[str, Any]) -> str:
        """Of all that the file states, and of the numbers."""
        numbers = hashlib.sha256()
        for values in (self.emd, self.nfd, self.fd):
            same = np.where(np.isnan(values), np.nan, values)  # a NaN has a sign
            numbers.update(np.ascontiguousarray(same, "<f8").data)
        return digest_of("matrix", dict(metadata), numbers.hexdigest())

    def encode(self) -> bytes:
        metadata: dict[str, Any] = {
            "format": FORMAT,
            "kind": "matrix",
            "names": self.names,
            "layers": self.layers,
            "bins": self.bins,
            "members": self.members,
            "spec_digest": self.spec_digest,
            "lens": self.lens,
        }
        metadata["checksum"] = self._checksum(metadata)
        sink = pa.BufferOutputStream()
        table = self.table
        with pq.ParquetWriter(
            sink, table.schema, compression="zstd", store_schema=False, write_page_checksum=True
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"vdna": json.dumps(metadata, sort_keys=True)})
        return cast(bytes, sink.getvalue().to_pybytes())

    @classmethod
    def decode(cls, data: bytes, name: str) -> Matrix:
        """Raises `CorruptFile` where it is no whole matrix."""
        try:
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            metadata = json.loads(file.metadata.metadata[b"vdna"])
            if (metadata["kind"], metadata["format"]) != ("matrix", FORMAT):
                raise CorruptFile(f"{name}: not a matrix of format {FORMAT}")
            table = file.read()
            seal = metadata.pop("checksum", None)  # the first release wrote none
            names, layers = tuple(metadata["names"]), tuple(metadata["layers"])
            shape = (-1, len(names), len(names))
            emd, nfd = (table[column].to_numpy().reshape(shape) for column in ("emd", "nfd"))
            matrix = cls(
                names,
                layers,
                emd,
                nfd,
                table["fd"].to_numpy().reshape(shape)
                if "fd" in table.column_names
                else np.full_like(emd, np.nan),
                metadata["bins"],
                metadata["members"],
                metadata["spec_digest"],
                metadata["lens"],
            )
            rows = ["a", "b", "layer", "lens"]
            if not table.select(rows).equals(matrix.table.select(rows)):
                raise CorruptFile(f"{name}: its rows are not those of the datasets it states")
            if seal not in (None, matrix._checksum(metadata)):
                raise CorruptFile(f"{name}: its numbers are not what was written")
            return matrix
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: torn, or not a matrix: {error}") from error


def compare(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    layers: Sequence[str] | None = None,
    at: int | str | None = None,
    spec: str | None = None,
    fd: bool = False,
) -> Matrix:
    """All pairs of the datasets named, or of a whole snapshot; whole matrices are kept.

    `fd`: the Fréchet distance of layers too, for datasets built with layer Gaussians: seconds a
    pair for wide layers. Raises `NotFound` for unknown names, `SpecMismatch` naming the fields
    where one is known under other specs only, `UsageError` for fewer than two or unknown layers.
    """
    commit = catalogue.at(at)
    for name in names:
        if name not in commit.datasets:
            catalogue.find(name, at)  # which says what there is
    digest = _shared_spec(commit, names) if spec is None and names else None
    digest = digest or catalogue.spec_digest(commit, spec)
    wanted = list(dict.fromkeys(names)) or [
        name for name, specs in sorted(commit.datasets.items()) if digest in specs
    ]
    missing = [name for name in wanted if digest not in commit.datasets.get(name, {})]
    present = next((name for name in wanted if name not in missing), "the catalogue's default")
    for name in missing:
        for other in sorted(commit.datasets.get(name, {})):
            catalogue.spec(digest).require_same(
                catalogue.spec(other),
                f"{present} (spec {digest[:12]})",
                f"{name} (spec {other[:12]})",
            )
    if missing:
        have = sorted(name for name, specs in commit.datasets.items() if digest in specs)
        raise NotFound(
            f"no version of {', '.join(missing)} under spec {digest}; there are: {', '.join(have)}"
        )
    if len(wanted) < 2:
        others = len(commit.datasets.keys() - set(wanted))
        hint = f" under spec {digest}; {others} are under others (--spec)" if others else ""
        raise UsageError(f"comparing takes two datasets or more; there is {len(wanted)}{hint}")
    versions = {name: commit.datasets[name][digest] for name in wanted}
    members = {name: version.dna for name, version in versions.items()}
    uri = catalogue.matrix_uri(digest, members, f"{UNIFORM}-fd" if fd else UNIFORM)
    if layers is None and storage.exists(uri):
        try:
            kept = Matrix.decode(storage.read(uri), uri)
            if kept.members == members and kept.names == tuple(wanted):
                return kept
        except CorruptFile:
            storage.delete(uri)  # it can be computed again
    if fd and not any(LAYER_GAUSSIAN in version.products for version in versions.values()):
        raise UsageError(
            f"no layer Gaussians are kept of {', '.join(wanted)}; build with --layer-gaussian"
        )
    matrix = _compute(catalogue, versions, catalogue.spec(digest), layers, fd=fd)
    if layers is None:
        storage.create(uri, matrix.encode())
    return matrix


def _shared_spec(commit: Commit, names: Sequence[str]) -> str | None:
    """The only spec that all of them have a version under; None for none, or for a choice."""
    shared = set.intersection(*(set(commit.datasets[name]) for name in names))
    return shared.pop() if len(shared) == 1 else None


def numerics_notes(versions: Mapping[str, Version]) -> list[str]:
    """A sentence for each way in which the hardware or libraries of these versions differ.

    It moves counts by rounding at the edges of bins, no more; but it should be known.
    """
    seen: dict[str, dict[str, set[str]]] = {}
    for name, version in versions.items():
        for entry in version.numerics:
            flat = dict(entry["numerics"]) | dict(entry["numerics"]["versions"])
            for field in sorted(flat.keys() - {"versions"}):
                seen.setdefault(field, {}).setdefault(str(flat[field]), set()).add(name)
    return [
        f"{field} was "
        + "; ".join(f"{value} for {', '.join(sorted(of))}" for value, of in sorted(values.items()))
        for field, values in seen.items()
        if len(values) > 1
    ]


def _compute(
    catalogue: Catalogue,
    versions: dict[str, Version],
    spec: Spec,
    layers: Sequence[str] | None,
    *,
    fd: bool,
) -> Matrix:
    keep_memory()
    names = tuple(versions)
    chosen = tuple(spec.layers if layers is None else layers)
    widths = [spec.tap(layer).neurons for layer in chosen]
    size, digest = len(names), spec.digest
    emd = np.zeros((len(chosen), size, size))
    nfd = np.zeros_like(emd)
    fds = np.full_like(emd, np.nan)
    with ThreadPoolExecutor(max(4, available_cpus())) as pool:

        def open_file(name: str, kind: str = "dna") -> DnaFile:
            return catalogue.open_file(kind, name, versions[name])

        files = list(pool.map(open_file, names))
        gaussians = {
            i: open_file(name, "layer_gaussians")
            for i, name in enumerate(names)
            if fd and LAYER_GAUSSIAN in versions[name].products
        }
        for plane, layer in enumerate(chosen):
            dnas = [file.read([layer]) for file in files]
            emd[plane] = pairwise_emd(dnas)
            nfd[plane] = _pairwise_nfd(dnas)
            fds[plane] = _pairwise_fd(
                size, {i: file.read_gaussians(dnas[i]) for i, file in gaussians.items()}, layer
            )
    whole = layers is None
    emd, nfd = (_means(sums, widths, whole=whole) for sums in (emd, nfd))
    if whole:  # a layer has one Fréchet distance, whatever its width
        fds = np.concatenate([fds, fds.mean(axis=0, keepdims=True)])
    members = {name: version.dna for name, version in versions.items()}
    return Matrix(names, chosen, emd, nfd, fds, spec.bins, members, digest)


def _means(sums: Floats, widths: Sequence[int], *, whole: bool) -> Floats:
    """Sums over the neurons of each layer -> means, and that of all neurons as the last plane."""
    planes = sums / np.array(widths)[:, None, None]
    if not whole:
        return cast(Floats, planes)
    return np.concatenate([planes, sums.sum(axis=0, keepdims=True) / sum(widths)])


def _pairwise_nfd(dnas: Sequence[DNA]) -> Floats:
    """(D, D) sums over neurons of the Fréchet distance; NaN for a DNA without Gaussians."""
    size = len(dnas)
    sums = np.full((size, size), np.nan)
    usable = [i for i, dna in enumerate(dnas) if dna.images >= 2 and "mean" not in dna.unknown]
    moments = {i: (dnas[i].mean, variance(dnas[i])) for i in usable}
    for i in usable:
        for j in usable:
            sums[i, j] = frechet_1d(*moments[i], *moments[j]).sum()
    return sums


def _pairwise_fd(size: int, dnas: Mapping[int, DNA], layer: str) -> Floats:
    """(D, D) Fréchet distances of one layer; NaN for a DNA without layer Gaussians."""
    distances = np.full((size, size), np.nan)
    usable = {i: dna for i, dna in dnas.items() if dna.images >= 2}
    roots = {i: root_covariance(dna, layer) for i, dna in usable.items()}
    for i, a in usable.items():
        distances[i, i] = 0.0 if np.isfinite(roots[i]).all() else np.nan
        for j, b in usable.items():
            if i < j:
                distance = frechet(a.mean, roots[i], b.mean, roots[j])
                distances[i, j] = distances[j, i] = distance
    return distances


def pairwise_emd(dnas: Sequence[DNA]) -> Floats:
    """(D, D) float64: each pair's Earth Mover's Distance in bins, summed over their neurons.

    In float32: each neuron's distance is within bins x 2^-23 of float64's, in bins. NaN where a
    neuron has no finite activation.
    """
    size = len(dnas)
    neurons, bins = dnas[0].counts.shape
    padded = -(-size // _BLOCK) * _BLOCK
    stacked = np.zeros((neurons, padded, bins), np.float32)
    undefined = np.zeros(size, bool)
    for i, dna in enumerate(dnas):
        totals = dna.counts.sum(axis=1) + dna.underflow + dna.overflow
        undefined[i] = bool((totals == 0).any())
        _accumulate(dna.counts, dna.underflow, np.maximum(totals, 1), stacked, i)
    upper = _pairwise_kernel(stacked)[:size, :size]
    sums = np.triu(upper) + np.triu(upper, 1).T
    sums[undefined, :] = np.nan
    sums[:, undefined] = np.nan
    return sums


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _accumulate(
    counts: NDArray[np.int64],
    underflow: NDArray[np.int64],
    totals: NDArray[np.int64],
    out: NDArray[np.float32],
    column: int,
) -> None:
    """Cumulative distributions of counts (neurons, bins) into out[:, column], exact until the end.

    Underflow belongs to the first bin; overflow, to the last, whose cumulative value is 1.
    """
    neurons, bins = counts.shape
    for neuron in prange(neurons):
        scale = 1.0 / totals[neuron]
        below = underflow[neuron]
        for k in range(bins - 1):
            below += counts[neuron, k]
            out[neuron, column, k] = below * scale
        out[neuron, column, bins - 1] = 1.0


@njit(parallel=True, fastmath=True, nogil=True, error_model="numpy", cache=True)
def _pairwise_kernel(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x (neurons, D, bins), D a multiple of 4 -> (D, D); only the upper triangle is right."""
    neurons, size, bins = x.shape
    blocks = min(neurons, 64)
    sums = np.zeros((blocks, size, size))
    for block in prange(blocks):
        mine = sums[block]
        for neuron in range(block * neurons // blocks, (block + 1) * neurons // blocks):
            rows = x[neuron]
            for i in range(0, size, 2):
                a0, a1 = rows[i], rows[i + 1]
                for j in range(i // 4 * 4, size, 4):
                    b0, b1, b2, b3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
                    s0 = s1 = s2 = s3 = np.float32(0)
                    t0 = t1 = t2 = t3 = np.float32(0)
                    for k in range(bins):
                        u, v = a0[k], a1[k]
                        s0 += abs(u - b0[k])
                        s1 += abs(u - b1[k])
                        s2 += abs(u - b2[k])
                        s3 += abs(u - b3[k])
                        t0 += abs(v - b0[k])
                        t1 += abs(v - b1[k])
                        t2 += abs(v - b2[k])
                        t3 += abs(v - b3[k])
                    mine[i, j] += s0
                    mine[i, j + 1] += s1
                    mine[i, j + 2] += s2
                    mine[i, j + 3] += s3
                    mine[i + 1, j] += t0
                    mine[i + 1, j + 1] += t1
                    mine[i + 1, j + 2] += t2
                    mine[i + 1, j + 3] += t3
    return sums.sum(axis=0)  # type: ignore[no-any-return]  # an array, which numpy types as Any
