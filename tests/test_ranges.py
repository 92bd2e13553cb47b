"""Ranges: measured as numpy would, widened about their centre, and files that cannot lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from pipeline import images, storage
from pipeline.dna import Ranges
from pipeline.errors import CorruptFile, SourceError, SpecMismatch, UsageError
from pipeline.extractor import Extractor, Network, describe
from pipeline.progress import Silent
from pipeline.ranges import calibrate, decode, embedded, encode, measure, resolve, widen
from pipeline.spec import Preprocess
from tests.helpers import write_photos

TAPS = (("stem", 2), ("head", 3))


def ranges_of(low: list[float], high: list[float]) -> Ranges:
    return Ranges(TAPS, np.array(low, np.float64), np.array(high, np.float64))


SMALL = ranges_of([0, -1, 2, 0.1, -3], [1, 1, 5, 0.1, -1.5])


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


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
    return np.stack([images.load(p.read_bytes(), rule) for p in sorted(folder.iterdir())])


@pytest.fixture(scope="module")
def truth(extractor: Extractor, prepared: NDArray[np.float32]) -> Ranges:
    """By numpy, over every activation of each image alone."""
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


def test_measured_ranges_are_the_extremes_of_what_was_observed(
    extractor: Extractor, prepared: NDArray[np.float32], truth: Ranges
) -> None:
    found, total = measure(extractor, iter(prepared))
    assert total == 10
    assert found.taps == truth.taps
    np.testing.assert_array_equal(found.low, truth.low)
    np.testing.assert_array_equal(found.high, truth.high)
    assert found.low.dtype == np.float64


def test_order_and_repeats_change_nothing(
    extractor: Extractor, prepared: NDArray[np.float32], truth: Ranges
) -> None:
    found, total = measure(extractor, [*prepared[::-1], prepared[3]])
    assert total == 11
    assert found.digest == truth.digest


def test_no_image_has_no_range(extractor: Extractor) -> None:
    with pytest.raises(UsageError, match="at least one image"):
        measure(extractor, [])


def test_widening_is_about_the_centre() -> None:
    wide = widen(ranges_of([2, 0, -1, 4, -6], [5, 10, 1, 4, -2]))
    np.testing.assert_allclose(wide.low, [1.7, -1, -1.2, 4, -6.4])
    np.testing.assert_allclose(wide.high, [5.3, 11, 1.2, 4, -1.6])
    assert wide.taps == TAPS
    half = widen(ranges_of([0] * 5, [2] * 5), 0.5)
    np.testing.assert_allclose((half.low, half.high), ([0.5] * 5, [1.5] * 5))


def test_widened_ranges_hold_what_they_came_from() -> None:
    wide = widen(SMALL)
    assert (wide.low <= SMALL.low).all()
    assert (wide.high >= SMALL.high).all()
    np.testing.assert_allclose(wide.high - wide.low, 1.2 * (SMALL.high - SMALL.low))


# Files


def test_a_file_reads_back_to_the_last_bit(network: Network) -> None:
    odd = ranges_of([np.pi, -1e300, 5e-324, -0.0, 0.1], [4, 1e300, 1e-300, 0.0, 0.3])
    found, metadata = decode(encode(odd, network, images=7, widened=1.2), "x")
    assert found.taps == TAPS
    assert found.digest == odd.digest
    assert found.low.tobytes() == odd.low.tobytes()
    assert found.high.tobytes() == odd.high.tobytes()
    assert metadata["images"] == 7
    assert metadata["widened"] == 1.2
    assert metadata["extractor"] == network.name
    assert metadata["weights_sha256"] == network.weights_sha256


def test_a_file_is_a_table_that_others_read(network: Network) -> None:
    table = pq.read_table(pa.BufferReader(encode(SMALL, network)))
    assert table.column_names == ["layer", "neuron", "low", "high"]
    assert table["layer"].to_pylist() == ["stem"] * 2 + ["head"] * 3
    assert table["neuron"].to_pylist() == [0, 1, 0, 1, 2]
    assert table["low"].to_pylist() == SMALL.low.tolist()


def test_the_same_ranges_make_the_same_file_and_digest(network: Network) -> None:
    again = ranges_of(SMALL.low.tolist(), SMALL.high.tolist())
    assert encode(SMALL, network) == encode(again, network)
    nudged = replace(SMALL, low=np.nextafter(SMALL.low, -np.inf))
    assert len({SMALL.digest, nudged.digest, replace(SMALL, taps=(("a", 5),)).digest}) == 3


def forged(network: Network, **changes: object) -> bytes:
    """A well-formed file whose columns are changed and whose metadata is the old one."""
    file = pq.ParquetFile(pa.BufferReader(encode(SMALL, network)))
    table = file.read()
    for name, values in changes.items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"vdna": file.metadata.metadata[b"vdna"]})
    return sink.getvalue().to_pybytes()


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
        decode(forged(network, **changes), "forged.parquet")


def test_a_torn_file_is_refused_by_name(network: Network) -> None:
    whole = encode(SMALL, network)
    for wrong in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole[10:], b"x" * 500):
        with pytest.raises(CorruptFile, match=r"torn\.parquet: torn, or not a file of ranges"):
            decode(wrong, "torn.parquet")


def test_a_flipped_byte_is_refused_or_harmless(network: Network) -> None:
    whole = encode(SMALL, network)
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        try:
            found, _ = decode(bytes(damaged), "x")
        except CorruptFile:
            continue
        assert found.digest == SMALL.digest


def test_another_kind_or_format_is_refused(network: Network) -> None:
    for change, message in (({"kind": "dna"}, "'dna' of format 1"), ({"format": 2}, "format 2")):
        with pytest.raises(CorruptFile, match=message):
            decode(encode(SMALL, network, **change), "x")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(CorruptFile, match="x: torn, or not a file of ranges"):
        decode(sink.getvalue().to_pybytes(), "x")


# Which ranges a build uses


def test_the_embedded_ranges_are_those_of_the_network(network: Network, truth: Ranges) -> None:
    found, _ = embedded("efficientnet_lite0")
    assert found.taps == tuple((tap.name, tap.neurons) for tap in network.taps)
    assert (found.high - found.low >= 0).all()
    assert (found.high - found.low > 0).mean() > 0.99
    inside = (found.low <= truth.low) & (truth.high <= found.high)
    assert inside.mean() > 0.9
    data = Path("pipeline/assets/efficientnet_lite0.ranges.parquet").read_bytes()
    _, metadata = decode(data, "x")
    assert metadata["weights_sha256"] == network.weights_sha256
    assert resolve(network, None, {}).digest == found.digest


def test_a_network_without_embedded_ranges() -> None:
    with pytest.raises(UsageError, match=r"no ranges come with resnet; .* `vdna calibrate`"):
        embedded("resnet")


def test_ranges_by_file_and_by_digest(tmp_path: Path, network: Network, truth: Ranges) -> None:
    file = tmp_path / "ranges.parquet"
    file.write_bytes(encode(truth, network))
    assert resolve(network, str(file), {}).digest == truth.digest
    assert resolve(network, truth.digest, {truth.digest: file.as_uri()}).digest == truth.digest
    with pytest.raises(SourceError, match=r"nowhere\.parquet does not exist"):
        resolve(network, str(tmp_path / "nowhere.parquet"), {})


def test_ranges_of_other_weights_are_refused_with_both(
    tmp_path: Path, network: Network, truth: Ranges
) -> None:
    file = tmp_path / "ranges.parquet"
    file.write_bytes(encode(truth, replace(network, name="other", weights_sha256="cd" * 32)))
    with pytest.raises(SpecMismatch) as caught:
        resolve(network, str(file), {})
    for part in ("ranges.parquet", "other", "cd" * 32, network.name, network.weights_sha256):
        assert part in str(caught.value)


def test_ranges_of_other_taps_are_refused(tmp_path: Path, network: Network) -> None:
    file = tmp_path / "ranges.parquet"
    file.write_bytes(encode(SMALL, network))
    with pytest.raises(SpecMismatch, match=r"ranges are of layers .*stem.*; efficientnet_lite0"):
        resolve(network, str(file), {})


def test_calibrating_measures_widens_and_counts_what_it_cannot_read(
    tmp_path: Path, folder: Path, network: Network, truth: Ranges
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "cut.jpg").write_bytes((folder / "photo-0000.jpg").read_bytes()[:-300])
    (bad / "notes.txt").write_text("no image")
    said = Said()
    data, digest, measured, failed = calibrate(
        [str(folder), str(bad), str(folder)], network.name, None, said
    )
    assert (measured, failed) == (10, 1)
    found, metadata = decode(data, "x")
    assert found.digest == digest == widen(truth).digest
    assert metadata["images"] == 10
    assert metadata["widened"] == 1.2
    assert len(said.lines) == 1
    assert "cut.jpg not measured: truncated" in said.lines[0]


def test_calibrating_on_nothing_readable_or_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UsageError, match="at least one image"):
        calibrate([str(tmp_path)], "efficientnet_lite0", None, Silent())
    with pytest.raises(SourceError, match="nowhere does not exist"):
        calibrate([str(tmp_path), str(tmp_path / "nowhere")], "efficientnet_lite0", None, Silent())
    with pytest.raises(UsageError, match="no extractor 'x'"):
        calibrate([str(tmp_path)], "x", None, Silent())


def test_an_image_that_changes_under_calibration_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storage.read

    def changed(uri: str, identity: str | None = None) -> bytes:
        return read(uri, "another" if uri.endswith("photo-0003.jpg") else identity)

    monkeypatch.setattr(storage, "read", changed)
    with pytest.raises(SourceError, match=r"photo-0003\.jpg changed between listing and reading"):
        calibrate([str(folder)], "efficientnet_lite0", None, Silent())


def test_activations_that_are_not_finite_give_no_range(
    extractor: Extractor, prepared: NDArray[np.float32]
) -> None:
    with pytest.raises((CorruptFile, UsageError), match=r"range of neuron .* must be finite"):
        measure(extractor, [prepared[0], np.full_like(prepared[0], np.nan)])
    assert torch.isfinite(torch.from_numpy(prepared)).all()
