"""Tests ranges: widening, files whose errors are found, and ranges of the reference."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from numpy.typing import NDArray
from vdna.networks.feature_extraction_model import get_pre_hist_norm_params_from_min_max
from vdna.utils.stats import histogram_per_channel

from pipeline import images, storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.counting import OVERFLOW, UNDERFLOW, Extractor, LayerCounts
from pipeline.dna import FileKind, Ranges, SealedFile, encode_sealed
from pipeline.engine import InProcess
from pipeline.errors import (
    CorruptFile,
    SourceError,
    SpecMismatch,
    StorageError,
    TooManyBytes,
    UsageError,
)
from pipeline.networks import (
    Network,
    decode_ranges,
    describe,
    encode_ranges,
    find_ranges,
    widen_about_zero,
    widen_ranges,
)
from pipeline.networks.ranges_file import embedded_ranges
from pipeline.networks.reference_ranges import REFERENCE_FILES
from pipeline.spec import Preprocess, Tap
from tests.support.builders import write_photos


def ranges_for(network: Network, source: str | None, known: dict[str, str]) -> Ranges:
    return find_ranges(network, source, known)[0]


TAPS = (("stem", 2), ("head", 3))
HALF = (0.5, 0.5, 0.5)


def ranges_of(low: list[float], high: list[float]) -> Ranges:
    return Ranges(TAPS, np.array(low, np.float64), np.array(high, np.float64))


SMALL = ranges_of([0, -1, 2, 0.1, -3], [1, 1, 5, 0.1, -1.5])


@pytest.fixture(scope="module")
def network() -> Network:
    return describe("efficientnet_lite0")


@pytest.fixture(scope="module")
def extractor(network: Network) -> Extractor:
    return Extractor(network)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 10)
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path, network: Network) -> NDArray[np.float32]:
    rule = Preprocess(network.height, network.width, network.mean, network.std)
    return np.stack([images.load(p.read_bytes(), rule).values for p in sorted(folder.iterdir())])


@pytest.fixture(scope="module")
def truth(extractor: Extractor, prepared: NDArray[np.float32]) -> Ranges:
    """Finds the extremes with NumPy, over every activation of each image alone."""
    low, high = [], []
    for image in prepared:
        found: list[NDArray[np.float32]] = []
        extractor.observe(image[None], lambda i, x, found=found: found.append(x[0].numpy().copy()))
        low.append(np.concatenate([x.min(axis=0) for x in found]))
        high.append(np.concatenate([x.max(axis=0) for x in found]))
    taps = tuple((tap.name, tap.neurons) for tap in extractor.network.taps)
    return Ranges(
        taps, np.min(low, axis=0).astype(np.float64), np.max(high, axis=0).astype(np.float64)
    )


def test_widening_is_about_the_centre() -> None:
    wide = widen_ranges(ranges_of([2, 0, -1, 4, -6], [5, 10, 1, 4, -2]))
    np.testing.assert_allclose(wide.low, [1.7, -1, -1.2, 4, -6.4])
    np.testing.assert_allclose(wide.high, [5.3, 11, 1.2, 4, -1.6])
    assert wide.taps == TAPS
    half = widen_ranges(ranges_of([0] * 5, [2] * 5), 0.5)
    np.testing.assert_allclose((half.low, half.high), ([0.5] * 5, [1.5] * 5))


def test_widened_ranges_contain_the_original_ones() -> None:
    wide = widen_ranges(SMALL)
    assert (wide.low <= SMALL.low).all()
    assert (wide.high >= SMALL.high).all()
    np.testing.assert_allclose(wide.high - wide.low, 1.2 * (SMALL.high - SMALL.low))


# Files


def test_a_file_reads_back_to_the_last_bit(network: Network) -> None:
    odd = ranges_of([np.pi, -1e300, 5e-324, -0.0, 0.1], [4, 1e300, 1e-300, 0.0, 0.3])
    found, metadata = decode_ranges(encode_ranges(odd, network, images=7, widened=1.2), "x")
    assert found.taps == TAPS
    assert found.digest == odd.digest
    assert found.low.tobytes() == odd.low.tobytes()
    assert found.high.tobytes() == odd.high.tobytes()
    assert metadata["images"] == 7
    assert metadata["widened"] == 1.2
    assert metadata["extractor"] == network.name
    assert metadata["weights_sha256"] == network.weights_sha256


def test_other_programs_read_a_ranges_file(network: Network) -> None:
    table = pq.read_table(pa.BufferReader(encode_ranges(SMALL, network)))
    assert table.column_names == ["layer", "neuron", "low", "high"]
    assert table["layer"].to_pylist() == ["stem"] * 2 + ["head"] * 3
    assert table["neuron"].to_pylist() == [0, 1, 0, 1, 2]
    assert table["low"].to_pylist() == SMALL.low.tolist()


def test_the_same_ranges_make_the_same_file_and_digest(network: Network) -> None:
    again = ranges_of(SMALL.low.tolist(), SMALL.high.tolist())
    assert encode_ranges(SMALL, network) == encode_ranges(again, network)
    nudged = replace(SMALL, low=np.nextafter(SMALL.low, -np.inf))
    assert len({SMALL.digest, nudged.digest, replace(SMALL, taps=(("a", 5),)).digest}) == 3


def forged(network: Network, **changes: object) -> bytes:
    """Makes a sealed file whose columns are changed, and which states the digest of others."""
    data = encode_ranges(SMALL, network)
    table = pq.read_table(pa.BufferReader(data))
    for name, values in changes.items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    metadata = SealedFile(data, FileKind("ranges"), "ranges").metadata
    return encode_sealed(FileKind("ranges"), metadata, [table])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": [0, -1, 2, 0.05, -3]}, "states digest"),
        ({"high": [1, 1, 5, 0.2, -1.5]}, "states digest"),
        ({"layer": ["stem"] * 2 + ["tail"] * 3}, "states digest"),
        ({"neuron": [1, 0, 0, 1, 2]}, "neuron 1 of layer stem is out of place"),
        ({"neuron": [0, 1, 0, 1, 1]}, "neuron 1 of layer head is out of place"),
        ({"low": [0, -1, 9, 0.1, -3]}, r"head\[0\] is \[9.0, 5.0\]"),
        ({"low": [0, -1, np.nan, 0.1, -3]}, r"head\[0\] is \[nan"),
        ({"high": [np.inf, 1, 5, 0.1, -1.5]}, r"stem\[0\] is \[0.0, inf\]"),
        ({"low": [0, -1, None, 0.1, -3]}, r"forged\.parquet|head\[0\] is \[nan"),
    ],
)
def test_rows_that_were_changed_are_refused(
    network: Network, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CorruptFile, match=message):
        decode_ranges(forged(network, **changes), "forged.parquet")


def test_a_torn_file_is_refused_by_name(network: Network) -> None:
    whole = encode_ranges(SMALL, network)
    for wrong in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole[10:], b"x" * 500):
        with pytest.raises(CorruptFile, match=r"torn\.parquet: (torn, or not|its rows end)"):
            decode_ranges(wrong, "torn.parquet")


def test_a_flipped_byte_is_refused_or_harmless(network: Network) -> None:
    whole = encode_ranges(SMALL, network)
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        try:
            found, _ = decode_ranges(bytes(damaged), "x")
        except CorruptFile:
            continue
        assert found.digest == SMALL.digest


def test_a_flipped_bit_in_a_page_is_found_by_its_checksum(network: Network) -> None:
    whole = encode_ranges(SMALL, network)
    group = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0)
    for column in map(group.column, range(4)):
        damaged = bytearray(whole)
        first = column.dictionary_page_offset or column.data_page_offset
        damaged[first + column.total_compressed_size - 1] ^= 1
        with pytest.raises(CorruptFile, match="row group 0 has sha256"):
            decode_ranges(bytes(damaged), "x")


def test_another_kind_or_format_is_refused(network: Network) -> None:
    data = encode_ranges(SMALL, network)
    metadata = SealedFile(data, FileKind("ranges"), "x").metadata
    for kind, message in (
        (FileKind("dna"), "x: a 'dna' file"),
        (FileKind("ranges", 2), "x: format 2"),
    ):
        with pytest.raises(CorruptFile, match=message):
            decode_ranges(
                encode_sealed(kind, metadata, [pq.read_table(pa.BufferReader(data))]), "x"
            )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(CorruptFile, match="x: not a file of vdna"):
        decode_ranges(sink.getvalue().to_pybytes(), "x")


# Which ranges a build uses


def test_the_embedded_ranges_fit_the_network(network: Network, truth: Ranges) -> None:
    found, _ = embedded_ranges("efficientnet_lite0")
    assert found.taps == tuple((tap.name, tap.neurons) for tap in network.taps)
    assert (found.high - found.low >= 0).all()
    assert (found.high - found.low > 0).mean() > 0.99
    inside = (found.low <= truth.low) & (truth.high <= found.high)
    assert inside.mean() > 0.9
    data = Path("pipeline/networks/assets/efficientnet_lite0.ranges.parquet").read_bytes()
    _, metadata = decode_ranges(data, "x")
    assert metadata["weights_sha256"] == network.weights_sha256
    assert ranges_for(network, None, {}).digest == found.digest


def test_a_network_without_embedded_ranges_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no ranges come with resnet; .* `vdna calibrate`"):
        embedded_ranges("resnet")


def test_ranges_by_file_and_by_digest(tmp_path: Path, network: Network, truth: Ranges) -> None:
    file = tmp_path / "ranges.parquet"
    file.write_bytes(encode_ranges(truth, network))
    assert ranges_for(network, str(file), {}).digest == truth.digest
    assert ranges_for(network, truth.digest, {truth.digest: file.as_uri()}).digest == truth.digest
    with pytest.raises(SourceError, match=r"nowhere\.parquet does not exist"):
        ranges_for(network, str(tmp_path / "nowhere.parquet"), {})


@pytest.mark.timeout(20)
def test_a_named_pipe_is_not_waited_for(tmp_path: Path, network: Network) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is a named pipe"):
        find_ranges(network, str(tmp_path / "pipe"), {})
    with pytest.raises(SourceError, match="pipe is a named pipe"):
        describe("efficientnet_lite0", str(tmp_path / "pipe"))


def test_a_file_that_is_too_large_for_ranges_is_not_read(tmp_path: Path, network: Network) -> None:
    with (tmp_path / "ranges.json").open("wb") as file:
        file.truncate(3 * 10**9)
    with pytest.raises(TooManyBytes, match=r"ranges.json has 3000000000 bytes; the limit is 6710"):
        find_ranges(network, str(tmp_path / "ranges.json"), {})


def test_ranges_of_other_weights_are_refused_with_both(
    tmp_path: Path, network: Network, truth: Ranges
) -> None:
    file = tmp_path / "ranges.parquet"
    file.write_bytes(encode_ranges(truth, replace(network, name="other", weights_sha256="cd" * 32)))
    with pytest.raises(SpecMismatch) as caught:
        ranges_for(network, str(file), {})
    for part in ("ranges.parquet", "other", "cd" * 32, network.name, network.weights_sha256):
        assert part in str(caught.value)


def test_ranges_of_other_taps_are_refused(tmp_path: Path, network: Network) -> None:
    file = tmp_path / "ranges.parquet"
    file.write_bytes(encode_ranges(SMALL, network))
    with pytest.raises(
        SpecMismatch,
        match=r"lack 18 of the 18 .*: bn1, blocks\.0\.0, .*, …, bn2; they hold stem, head\. "
        r"Measure some with `calibrate`, with the same `extractor` and `taps` as here, and give "
        r"them by `ranges`$",
    ) as caught:
        ranges_for(network, str(file), {})
    assert len(str(caught.value)) < 400
    other = replace(network, taps=(Tap("stem", 7, 4), Tap("head", SMALL.taps[1][1], 1)))
    with pytest.raises(SpecMismatch, match=r"1 of the 2 .*: stem \(\d neurons there, 7 tapped"):
        ranges_for(other, str(file), {})
    with pytest.raises(
        SpecMismatch, match=r"that come with efficientnet_lite0 lack 1 of .*: bn1\[0"
    ):
        ranges_for(replace(network, taps=(Tap("bn1[0]", 32, 1),)), None, {})


# The reference's files

REFERENCE = Network(
    "dino_vit_base", "ef" * 32, (Tap("block_0", 12, 4), Tap("last_norm", 3, 1)), 8, 8, HALF, HALF
)


def reference_content(
    network: Network = REFERENCE, low: Any = None, high: Any = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Orders neurons by their names as text, as a JSON writer with sorted keys does."""
    total = sum(tap.neurons for tap in network.taps)
    low = -1.0 - np.arange(total) if low is None else low
    high = 2.0 * np.arange(total) if high is None else high
    content: dict[str, dict[str, dict[str, Any]]] = {}
    for key, values in (("mins_per_neuron", low), ("maxs_per_neuron", high)):
        start = 0
        content[key] = {}
        for tap in network.taps:
            column = {str(i): float(values[start + i]) for i in range(tap.neurons)}
            content[key][tap.name] = dict(sorted(column.items()))
            start += tap.neurons
    return content


@pytest.fixture
def reference_file(tmp_path: Path) -> Callable[..., str]:
    def write(content: object, name: str = "activation_ranges.json") -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_the_references_file_is_widened_about_zero(reference_file: Callable[..., str]) -> None:
    found, provenance = find_ranges(REFERENCE, reference_file(reference_content()), {})
    assert found.taps == (("block_0", 12), ("last_norm", 3))
    np.testing.assert_allclose(found.low, 1.2 * (-1 - np.arange(15)) - 1e-8, rtol=1e-15)
    np.testing.assert_allclose(found.high, 2.4 * np.arange(15) + 1e-8, rtol=1e-15, atol=1e-15)
    assert (provenance["assumed_weights"], provenance["widened_about"]) == (True, "zero")
    assert {"digest", "weights_sha256"}.isdisjoint(provenance)


def test_the_references_file_is_known_by_its_content(reference_file: Callable[..., str]) -> None:
    truth = ranges_for(REFERENCE, reference_file(reference_content()), {}).digest
    text = json.dumps(reference_content(), indent=2)
    for name in ("ranges.parquet", "noname"):
        assert ranges_for(REFERENCE, reference_file(text, name), {}).digest == truth
    assert ranges_for(REFERENCE, reference_file("\ufeff \n" + text), {}).digest == truth


def changed(*path: str, to: Any = None) -> dict[str, Any]:
    """Returns the good content with one value changed or removed."""
    content: dict[str, Any] = reference_content()
    place = content
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


def with_layers(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = reference_content()
    for side in content.values():
        change(side)
    return content


LOW, HIGH = "mins_per_neuron", "maxs_per_neuron"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", CorruptFile, "torn, or not the reference's JSON"),
        ("[1]", CorruptFile, "torn, or not the reference's JSON"),
        ("{}", CorruptFile, "KeyError"),
        ('{"a": 1, "a": 2}', CorruptFile, "'a' is given twice"),
        ("[" * 100_000, CorruptFile, "torn, or not"),
        ({LOW: 1, HIGH: 2}, CorruptFile, "torn, or not"),
        (changed(HIGH), CorruptFile, HIGH),
        (
            changed(LOW, "block_0", to=[1.0] * 12),
            CorruptFile,
            ("layer block_0 does not state the minimum"),
        ),
        (changed(LOW, "block_0", "3"), CorruptFile, "neuron '11', but no minimum of neuron 3"),
        (changed(HIGH, "block_0", "11"), SpecMismatch, "12 minima and 11 maxima; .* 12 neurons"),
        (changed(HIGH, "block_0", "12", to=1.0), SpecMismatch, "12 minima and 13 maxima"),
        (
            changed(LOW, "block_0", "07", to=1.0),
            CorruptFile,
            ("neuron '07', but no minimum of neuron 12"),
        ),
        (changed(LOW, "block_0", "7", to="x"), CorruptFile, r"block_0\[7\] is 'x'"),
        (changed(LOW, "block_0", "7", to=True), CorruptFile, r"block_0\[7\] is True"),
        (changed(LOW, "block_0", "7", to=float("nan")), CorruptFile, r"block_0\[7\] is nan"),
        (changed(HIGH, "block_0", "7", to=float("inf")), CorruptFile, r"block_0\[7\] is inf"),
        (changed(HIGH, "block_0", "7", to=10**400), CorruptFile, r"block_0\[7\] is 1000"),
        (changed(HIGH, "block_0", "7", to=-99), CorruptFile, r"block_0\[7\] ranges from -8.* to"),
        (changed(HIGH, "last_norm"), CorruptFile, "have only minima, or only maxima: last_norm"),
        (
            with_layers(lambda s: s.pop("last_norm")),
            SpecMismatch,
            "lack 1 .*: last_norm; they hold",
        ),
        (with_layers(lambda s: s["last_norm"].pop("2")), SpecMismatch, "has 2 minima and 2 max"),
    ],
)
def test_a_file_of_the_reference_that_does_not_fit_is_refused_by_name(
    reference_file: Callable[..., str], content: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"activation_ranges\.json.*{message}"):
        ranges_for(REFERENCE, reference_file(content), {})


def scaled_by_the_reference(
    network: Network, content: dict[str, Any], layer: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns centre and half-width, shape (1, C, 1, 1), of neurons in their order."""
    in_order = {
        side: {la: {str(i): of[str(i)] for i in range(len(of))} for la, of in layers.items()}
        for side, layers in content.items()
    }
    mean, std = get_pre_hist_norm_params_from_min_max(in_order, 1.2)
    return mean[layer], std[layer]


EXTREMES = {  # kinds of neurons, with the share whose scaling two floats can express exactly
    "relu": (lambda r, n: np.zeros(n), lambda r, n: r.exponential(3, n), 0.5),
    "signed": (lambda r, n: -r.exponential(3, n), lambda r, n: r.exponential(3, n), 0.7),
    "even": (lambda r, n: -r.normal(1, 0.1, n), lambda r, n: r.normal(1, 0.1, n), 0.98),
    "positive": (lambda r, n: r.normal(5, 0.5, n), lambda r, n: r.normal(9, 0.5, n), 0.1),
    "point": (lambda r, n: np.arange(n) - 9.0, lambda r, n: np.arange(n) - 9.0, 1.0),
    "tiny": (lambda r, n: r.normal(-1, 0.1, n) * 1e-9, lambda r, n: r.random(n) * 1e-9, 0.1),
}


@pytest.mark.parametrize("kind", EXTREMES)
def test_our_ranges_reproduce_the_scaling_of_the_reference(kind: str) -> None:
    least, greatest, share = EXTREMES[kind]
    rng = np.random.default_rng(0)
    low = least(rng, 2000).astype(np.float32).astype(np.float64)
    high = greatest(rng, 2000).astype(np.float32).astype(np.float64)
    network = replace(REFERENCE, taps=(Tap("x", 2000, 1),))
    mean, std = scaled_by_the_reference(network, reference_content(network, low, high), "x")
    found = widen_about_zero(Ranges((("x", 2000),), low, high))
    rule = LayerCounts(found.low, found.high, 10)._scale
    centre, half = mean.numpy().ravel(), std.numpy().ravel()
    unit = np.spacing(np.maximum(abs(centre), half))
    assert (abs(rule[2] - centre) <= unit).all()
    assert (abs(rule[3] - half) <= unit).all()
    assert ((rule[2] == centre) & (rule[3] == half)).mean() >= share


def test_counts_are_those_of_the_reference(
    network: Network, extractor: Extractor, prepared: NDArray[np.float32], truth: Ranges
) -> None:
    """Some real activations are outside, since the ranges are those of the first image."""
    seen: list[list[NDArray[np.float32]]] = [[] for _ in network.taps]
    for image in prepared[:3]:
        extractor.observe(image[None], lambda i, x: seen[i].append(x.numpy().copy()))
    layers = [np.concatenate(x) for x in seen]
    low = np.concatenate([x[0].min(axis=0) for x in layers])
    high = np.concatenate([x[0].max(axis=0) for x in layers])
    content = reference_content(network, low, high)
    taps = tuple((tap.name, tap.neurons) for tap in network.taps)
    found = widen_about_zero(Ranges(taps, low.astype(np.float64), high.astype(np.float64)))
    start, outside = 0, 0
    for tap, x in zip(network.taps, layers, strict=True):
        mean, std = scaled_by_the_reference(network, content, tap.name)
        side = round(tap.positions**0.5)
        features = torch.from_numpy(x).permute(0, 2, 1).reshape(3, tap.neurons, side, side)
        normalised = (features - mean) / std
        assert normalised.dtype == torch.float64
        assert normalised.numel() * 1000 >= 2e6
        reference_counts = histogram_per_channel(normalised, 1000, [-1, 1]).numpy()
        stop = start + tap.neurons
        ours = LayerCounts(found.low[start:stop], found.high[start:stop], 1000)
        ours.add(x)
        table = ours.table
        outside += int(table[:, 1000:].sum())
        table[:, 0] += table[:, 1000 + UNDERFLOW]
        table[:, 999] += table[:, 1000 + OVERFLOW]
        np.testing.assert_array_equal(table[:, :1000], reference_counts, err_msg=tap.name)
        start = stop
    assert outside > 100


def test_a_catalogue_records_where_its_ranges_come_from(
    tmp_path: Path, folder: Path, network: Network, truth: Ranges, reference_file: Any
) -> None:
    file = reference_file(reference_content(network, truth.low, truth.high))
    place = Catalogue(str(tmp_path / "c"))
    request = Request("a", str(folder), ranges=file, limit=1, bins=8)
    (result,) = build_datasets(place, [request], InProcess())
    digest = place.spec(result.version.spec).ranges_digest
    assert digest == ranges_for(network, file, {}).digest
    uri = place.ranges_uri(digest)
    kept, metadata = decode_ranges(storage.read(uri), uri)
    assert kept.digest == digest
    assert metadata["assumed_weights"] is True
    assert metadata["widened_about"] == "zero"
    # A build with ranges by digest then passes the same on.
    assert find_ranges(network, digest, {digest: uri})[1] == find_ranges(network, file, {})[1]


# ... from the hub, where no others are given


@pytest.mark.parametrize("name", REFERENCE_FILES)
def test_networks_of_the_reference_get_its_ranges(
    reference_file: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = []

    def download(repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return reference_file(reference_content())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    network = replace(REFERENCE, name=name)
    found, provenance = find_ranges(network, None, {})
    assert found.digest == ranges_for(network, reference_file(reference_content()), {}).digest
    assert asked == [("bramtoula/visual-dna-models", REFERENCE_FILES[name])]
    assert provenance["origin"] == "huggingface.co/bramtoula/visual-dna-models/" + asked[0][1]


def test_the_names_of_those_files_are_the_references() -> None:
    import vdna.networks

    folder = Path(vdna.networks.__file__).parent
    stated = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    for file in REFERENCE_FILES.values():
        general = file.replace("clip_im_vit_b16", "clip_im_{model_version}")
        for size in ("base", "large"):
            general = general.replace(f"mugs_vit_{size}", "mugs_vit_{model_version}")
        assert f'"{general}"' in stated, file


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no\nconnection"), ConnectionError("offline"), OSError("x")]
)
def test_an_error_of_the_hub_names_two_alternatives(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(repo_id: str, filename: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(StorageError) as caught:
        ranges_for(REFERENCE, None, {})
    for part in ("dino_vit_base", type(error).__name__, "by `ranges`", "with `calibrate`"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_weights_of_a_network_of_the_reference_need_their_own_ranges(
    monkeypatch: pytest.MonkeyPatch, reference_file: Callable[..., str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    network = replace(REFERENCE, weights_uri="file:///w/other.pt")
    with pytest.raises(
        UsageError, match=r"not of /w/other\.pt; .*`calibrate` and these `weights`.*json"
    ):
        ranges_for(network, None, {})
    ranges_for(network, reference_file(reference_content()), {})  # if a user states it


def test_only_ranges_of_tapped_layers_are_taken(
    reference_file: Callable[..., str], network: Network, tmp_path: Path
) -> None:
    whole = ranges_for(REFERENCE, reference_file(reference_content()), {})
    last = ranges_for(
        replace(REFERENCE, taps=REFERENCE.taps[1:]), reference_file(reference_content()), {}
    )
    assert last.taps == (("last_norm", 3),)
    assert (last.low == whole.low[12:]).all()
    assert (last.high == whole.high[12:]).all()
    own, _ = embedded_ranges(network.name)
    turned = (network.taps[5], network.taps[2])
    some = ranges_for(replace(network, taps=turned), None, {})
    assert some.taps == tuple((tap.name, tap.neurons) for tap in turned)
    start = sum(tap.neurons for tap in network.taps[:5])
    assert (some.low[: turned[0].neurons] == own.low[start : start + turned[0].neurons]).all()
    assert some.digest != own.digest
