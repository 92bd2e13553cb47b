"""Tests the decoder `nvjpeg` without a GPU: which files it takes, and what becomes of the others.

TorchCodec's own decoder for CPUs stands in for nvJPEG, or torchvision's, which has the same pixels,
where TorchCodec cannot be imported: its wheels need torch's CUDA build.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from pipeline.building import Request, make_spec
from pipeline.counting import Recipe
from pipeline.errors import BadImage, SpecMismatch, TransientError, UsageError
from pipeline.images import decoding, nvjpeg, stated_decoder, use_decoder, without_nvjpeg
from pipeline.images.decoders import register_decoder
from pipeline.images.decoding import decode
from pipeline.spec import Jpeg, Preprocess, Resources
from tests.support import tiny_network as tiny
from tests.support.builders import photo
from tests.support.own_decoders import flat

RULE = Preprocess(8, 8, (0.5,) * 3, (0.5,) * 3)
BY_GPU = replace(RULE, decoder="nvjpeg@0.17.0")
ORIENTATION = 274


def stand_in(source: bytes, *, mode: str, device: str) -> torch.Tensor:
    """Turns an image as its EXIF says, as TorchCodec does."""
    data = torch.frombuffer(bytearray(source), dtype=torch.uint8)
    return decode_jpeg(data, mode, device, apply_exif_orientation=True)


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Installs TorchCodec, and yields the files that are given to it."""
    given: list[bytes] = []
    try:
        from torchcodec.decoders import decode_jpeg as real
    except (ImportError, OSError, RuntimeError):
        real = stand_in

    def noted(source: bytes, **how: Any) -> torch.Tensor:
        given.append(source)
        found: torch.Tensor = real(source, **how)
        return found

    module = ModuleType("torchcodec.decoders")
    module.decode_jpeg = noted  # type: ignore[attr-defined]  # it is made here
    package = ModuleType("torchcodec")
    package.decoders = module  # type: ignore[attr-defined]  # as above
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    monkeypatch.setattr(nvjpeg, "version", lambda library: "0.17.0")
    nvjpeg.require_nvjpeg.cache_clear()
    on_cpu = partial(nvjpeg.pixels_by_nvjpeg, device="cpu")
    monkeypatch.setattr(decoding, "pixels_by_nvjpeg", on_cpu)
    yield given
    nvjpeg.require_nvjpeg.cache_clear()


def saved(image: Image.Image, kind: str = "JPEG", **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **how)
    return sink.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(photo(3, 40, 24), exif=exif)


def without_jfif(data: bytes) -> bytes:
    """Takes out the marker that says which colours the components are."""
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


TAKEN: dict[str, Callable[[], bytes]] = {
    "colour": lambda: saved(photo(1)),
    "grey": lambda: saved(photo(1).convert("L")),
    "progressive": lambda: saved(photo(2), progressive=True),
    "without JFIF": lambda: without_jfif(saved(photo(2))),
    "one pixel": lambda: saved(photo(2, 1, 1)),
    **{f"orientation {at}": partial(turned, at) for at in range(10)},
}


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("kind", TAKEN)
def test_jpegs_are_decoded_by_it_and_stand_as_ever(
    kind: str, exif: Any, taken: list[bytes]
) -> None:
    data = TAKEN[kind]()
    found, expected = (decode(data, replace(rule, exif=exif)) for rule in (BY_GPU, RULE))
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.transparent is False
    assert len(taken) == 1


def rgb_components() -> bytes:
    """Returns a JPEG whose components are red, green and blue, as Adobe's marker says."""
    data = saved(photo(1), keep_rgb=True)
    assert b"Adobe" in data
    return data


def rgb_components_without_adobe() -> bytes:
    """Returns the same without Adobe's marker: the names of the components say it."""
    data = rgb_components()
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def rgb_components_of_other_names() -> bytes:
    """Returns the same with the names that YCbCr has: Adobe's marker says it."""
    data = bytearray(rgb_components())
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for number in range(3):
        data[frame + 10 + 3 * number] = data[scan + 5 + 2 * number] = number + 1
    return bytes(data)


OTHERS: dict[str, Callable[[], bytes]] = {
    "CMYK": lambda: saved(photo(1).convert("CMYK")),
    "RGB": rgb_components,
    "RGB by its names": rgb_components_without_adobe,
    "RGB by Adobe": rgb_components_of_other_names,
    "PNG": lambda: saved(photo(1), "PNG"),
    "transparent": lambda: saved(photo(1).convert("RGBA").resize((9, 9)), "WEBP"),
    "TIFF": lambda: saved(photo(1), "TIFF"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_decoded_as_ever(kind: str, taken: list[bytes]) -> None:
    data = OTHERS[kind]()
    found, expected = decode(data, BY_GPU), decode(data, RULE)
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.transparent == expected.transparent
    assert not taken


def damaged() -> dict[str, bytes]:
    whole = saved(photo(5, 200, 150))
    return {
        "nothing": b"",
        "no end": whole[: len(whole) // 2],
        "zeros": whole[: len(whole) // 2] + bytes(500),
        "header": whole[:200],
        "noise": b"\xff\xd8\xff" + whole[300:900],
        "text": b"this is no image at all",
        "large": saved(photo(1, 90, 90)),
    }


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", damaged())
def test_damaged_files_fail_for_the_same_reasons(
    kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lenient decoder makes something of whatever it is given."""
    if lenient:
        some = torch.zeros((3, 150, 200), dtype=torch.uint8)
        monkeypatch.setattr(
            sys.modules["torchcodec.decoders"], "decode_jpeg", lambda *of, **how: some
        )
    data, reasons = damaged()[kind], []
    for rule in (BY_GPU, RULE):
        with pytest.raises(BadImage) as caught:
            decode(data, replace(rule, max_pixels=200 * 150 if kind != "large" else 100))
        reasons.append((caught.value.reason, caught.value.detail))
    assert reasons[0] == reasons[1]


def refusing(error: Exception) -> Any:
    def refuse(*of: Any, **how: Any) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize(
    "words", ["Unknown chroma subsampling", "nvjpegDecode failed: 4", "Failed to get image info: 3"]
)
def test_a_jpeg_that_it_refuses_is_decoded_as_ever(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = refusing(RuntimeError(words))
    monkeypatch.setattr(sys.modules["torchcodec.decoders"], "decode_jpeg", refuse)
    data = turned(6)
    assert np.array_equal(decode(data, BY_GPU).pixels, decode(data, RULE).pixels)


@pytest.mark.parametrize("jpeg", ["full", "scaled"])
def test_a_jpeg_that_it_takes_for_another_size_is_decoded_as_ever(
    jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = np.zeros((3, 4, 3), np.uint8)
    monkeypatch.setattr(decoding, "pixels_by_nvjpeg", lambda data: other)
    data = saved(photo(1))
    as_ever = decode(data, replace(RULE, jpeg=jpeg)).pixels
    assert np.array_equal(decode(data, replace(BY_GPU, jpeg=jpeg)).pixels, as_ever)
    assert (as_ever.shape == (72, 96, 3)) == (jpeg == "full")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("not compiled with nvJPEG support"),
        RuntimeError("nvjpegCreateEx failed: 6"),
    ],
    ids=str,
)
def test_what_fails_on_the_gpu_is_not_the_images_fault(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are pixels of another decoder counted under this one's name."""
    monkeypatch.setattr(sys.modules["torchcodec.decoders"], "decode_jpeg", refusing(error))
    with pytest.raises(TransientError, match=re.escape(str(error))):
        decode(saved(photo(1)), BY_GPU)


def test_a_torchcodec_that_cannot_be_loaded_is_refused_before_any_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    nvjpeg.require_nvjpeg.cache_clear()
    with pytest.raises(UsageError, match=r"TorchCodec, which cannot be loaded here: .*CUDA build"):
        use_decoder("nvjpeg@0.17.0", "")


def test_a_machine_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "pixels_by_nvjpeg", nvjpeg.pixels_by_nvjpeg)
    with pytest.raises(UsageError, match=r"nvjpeg decodes on a GPU, and torch finds none .*=1`"):
        decode(saved(photo(1)), BY_GPU)


def test_the_spec_states_its_version(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tiny.install(tmp_path)
    request = Request("x", "x", decoder="nvjpeg", **place.options)  # type: ignore[arg-type]  # fields by name
    spec = make_spec(request, place.network, "00", "cuda")
    assert spec.preprocess.decoder == stated_decoder("nvjpeg") == "nvjpeg@0.17.0"
    plain = make_spec(replace(request, decoder=None), place.network, "00", "cuda")
    assert spec.digest != plain.digest
    assert without_nvjpeg(spec.preprocess) == without_nvjpeg(plain.preprocess) == plain.preprocess
    with pytest.raises(UsageError, match="decodes on a GPU, and the device is cpu; compute on a"):
        make_spec(request, place.network, "00", "cpu")
    # A worker of another version would count other pixels.
    recipe = Recipe(spec, place.network, "ranges", Resources(gpus_per_worker=1))
    use_decoder("nvjpeg@0.17.0", recipe.decoder)
    monkeypatch.setattr(nvjpeg, "version", lambda library: "0.18.0")
    nvjpeg.require_nvjpeg.cache_clear()
    with pytest.raises(SpecMismatch, match=r"nvjpeg@0.17.0, and nvjpeg@0.18.0 is .*codec==0.17.0"):
        use_decoder("nvjpeg@0.17.0", recipe.decoder)


def test_it_needs_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(nvjpeg, "LIBRARY", "a-library-that-nobody-has")
    with pytest.raises(UsageError, match=r"needs TorchCodec, .* pip install 'vdna-pipeline\[nvj"):
        stated_decoder("nvjpeg")


def test_its_name_cannot_be_taken() -> None:
    with pytest.raises(UsageError, match="the decoder 'nvjpeg' is built in; register yours by"):
        register_decoder("nvjpeg", flat, version="1")
