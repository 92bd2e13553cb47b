"""Tests mutated files: an image gives pixels or a reason, our file its value or `CorruptFile`.

Mutations know the structure: they flip bits, edit lengths, swap, repeat and drop pieces, and splice
two files. Inputs that found a defect are kept in tests/system/fuzz and run again.
`VDNA_FUZZ_SEED` repeats a run.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.catalogue import Catalogue, Commit, Version, canonical_json, footers_of
from pipeline.catalogue.commit import FILES, StoredCommit
from pipeline.comparing import Matrix
from pipeline.dna import Failure, Partial, encode_dna, encode_failures
from pipeline.errors import BadImage, ConservationError, CorruptFile
from pipeline.images import NONDETERMINISTIC, load, load_isolated
from pipeline.images.decoding import REASONS, decode
from pipeline.interop import write_dna
from pipeline.interop.reading import ReferenceFile, read_file
from pipeline.networks import decode_ranges, encode_ranges
from pipeline.sources import Entries, Manifest
from pipeline.spec import Spec
from tests.images.test_images import RULE, SAMPLES
from tests.support.builders import peak_mb, random_dna, tiny_spec
from tests.support.hostile_files import FILES as HOSTILE
from tests.support.hostile_files import WHOLE

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).parent / "fuzz"
SECONDS = 60
SMALL = replace(RULE, max_pixels=10**6)


# Mutations


def mutated(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Returns a file changed in one to four places."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        if not data:
            break
        data = chance.choice(MUTATIONS)(data, chance, others)
    return data


def _flip(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def _set(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Sets a number of 1, 2, 4 or 8 bytes to an extreme one, or to its neighbour.

    It is more often near the start or the end, where headers and footers are.
    """
    width = chance.choice([1, 2, 4, 8])
    span = min(len(data), 100)
    at = chance.choice(
        [
            chance.randrange(len(data)),
            chance.randrange(span),
            len(data) - 1 - chance.randrange(span),
        ]
    )
    order = chance.choice(["little", "big"])
    value = int.from_bytes(data[at : at + width], order)
    top = 1 << (8 * width)
    new = chance.choice([0, 1, top - 1, top // 2, top // 2 - 1, value + 1, value - 1, value * 2])
    return data[:at] + (new % top).to_bytes(width, order) + data[at + width :]


def _pieces(data: bytes, chance: random.Random) -> list[bytes]:
    """Cuts where structure begins: at chunks, boxes, markers or text, or anywhere."""
    marks = [match.start() for match in re.finditer(rb"[A-Za-z]{4}|\xff[\xc0-\xfe]|,|PK", data)]
    cuts = [*chance.sample(marks, min(len(marks), 3)), chance.randrange(len(data) + 1)]
    ends = sorted({0, *cuts, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


def _swap(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    pieces = _pieces(data, chance)
    chance.shuffle(pieces)
    return b"".join(pieces)


def _repeat(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    pieces = _pieces(data, chance)
    at = chance.randrange(len(pieces))
    return b"".join([*pieces[:at], pieces[at] * chance.choice([1, 2, 9]), *pieces[at:]])


def _drop(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    pieces = _pieces(data, chance)
    pieces.pop(chance.randrange(len(pieces)))
    return b"".join(pieces)


def _cut(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return data[: chance.randrange(len(data))]


def _splice(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    other = chance.choice(others)
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other) or 1) :]


MUTATIONS = (_flip, _flip, _set, _set, _swap, _repeat, _drop, _cut, _splice)


# Images

IMAGES = [*SAMPLES, *WHOLE.values()] + [
    data
    for kind in HOSTILE
    if not kind.slow and kind.outcome in ("counted", "corrupt", "unsupported")
    for data in kind.make().values()
    if 0 < len(data) < 50_000
]


def check_image(data: bytes) -> None:
    began = time.process_time()
    outcome = _outcome(lambda: decode(data, SMALL).pixels)
    if isinstance(outcome, BadImage):
        assert outcome.reason in set(REASONS) - set(NONDETERMINISTIC)
        assert outcome.detail
    elif outcome is not None:
        assert (outcome.dtype, outcome.ndim, outcome.shape[2]) == (np.uint8, 3, 3)
        assert 0 < outcome.size <= 3 * SMALL.max_pixels
        assert load(data, SMALL).values.shape == (RULE.height, RULE.width, 3)
    assert time.process_time() - began < 10


def _outcome(read: Callable[[], np.ndarray]) -> np.ndarray | BadImage | None:
    """Returns the pixels, or why there are none, or None if memory ran out."""
    try:
        return read()
    except BadImage as bad:
        return bad
    except MemoryError:
        return None


# Files of our own

PLACE = Catalogue("memory://fuzz")


@dataclass(frozen=True)
class Reader:
    """One format of ours: `data` as written, and `same`, which compares what is read with it."""

    data: bytes
    read: Callable[[bytes], Any]
    same: Callable[[Any, Any], bool]

    @cached_property
    def written(self) -> Any:
        return self.read(self.data)


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)


def _identical(a: Any, b: Any) -> bool:
    return bool(a.identical(b))


def _equal_fields(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray) else one == other
        for one, other in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    )


def _readers() -> dict[str, Reader]:
    spec, ranges = tiny_spec()
    dna = random_dna(spec, ranges, 7, 1)
    failures = tuple(
        Failure(f"file:///a/{i}.jpg", f"m{i}", "corrupt", f"what {i}", bool(i % 2))
        for i in range(3)
    )
    dna = replace(dna, failed=3)
    partial = Partial(dna, ("aa", "bb"), failures)
    matrix = Matrix(
        ("a", "b"),
        ("stem", "head"),
        *np.random.default_rng(0).random((3, 3, 2, 2)),
        bins=5,
        members={"a": "1", "b": "2"},
        spec_digest=spec.digest,
        lens="none",
    )
    files = {
        "dna": encode_dna(dna, dataset="a", digest="d" * 32, manifest="m" * 32),
        "failures": encode_failures(failures),
    }
    hashes = {kind: hashlib.sha256(data).hexdigest() for kind, data in files.items()}
    version = Version(
        *("d" * 32, "m" * 32, spec.digest),
        *(7, 3, ("histogram",)),
        dict.fromkeys(FILES, "0" * 64) | hashes,
        *("file:///a", "2026-01-01", "vdna", ()),
        footers=footers_of(files | {"folds": files["dna"]}),
        transparent=dna.transparent,
        single_colour=dna.single_colour,
    )
    commit = Commit(
        3, "2026-01-01", "build a", spec.digest, {"a": {spec.digest: version}}, "0" * 64
    )
    write_dna(dna, "memory://fuzz/written.npz", "histogram")
    npz, about = (storage.read(f"memory://fuzz/written.{end}") for end in ("npz", "json"))
    network: Any = SimpleNamespace(name="tiny", weights_sha256="ab" * 32)
    return {
        "dna": Reader(
            files["dna"], lambda d: _stored("dna", d).load_version("a", version), _identical
        ),
        "dna in part": Reader(
            files["dna"],
            lambda d: _stored("dna", d).load_version("a", version, ["head"]),
            _identical,
        ),
        "partial": Reader(partial.encode(), lambda d: Partial.decode(d, "x"), _identical),
        "failures": Reader(
            files["failures"], lambda d: _stored("failures", d).failures("a", version), _equal
        ),
        "ranges": Reader(
            encode_ranges(ranges, network, images=5),
            lambda d: decode_ranges(d, "x"),
            lambda a, b: a[0].digest == b[0].digest,  # their origin is only for people
        ),
        "matrix": Reader(matrix.encode(), lambda d: Matrix.decode(d, "x"), _equal_fields),
        "manifest": Reader(
            (ROOT / "tests" / "golden" / "v1" / "manifest.parquet").read_bytes(),
            lambda d: Manifest.decode(d, "x", Entries()),
            lambda a, b: a.digest == b.digest,
        ),
        "commit": Reader(
            StoredCommit.of(commit).encode(), lambda d: StoredCommit.decode(d, "x"), _equal
        ),
        "spec": Reader(
            canonical_json(spec.to_json()), lambda d: _in_catalogue(d, spec.digest), _equal
        ),
        "npz": Reader(npz, lambda d: _reference(d, about), _same_arrays),
        # No checksum protects it: any metadata that fits the arrays may come out.
        "json": Reader(about, lambda d: _reference(npz, d), lambda a, b: True),
    }


def _stored(kind: str, data: bytes) -> Catalogue:
    storage.replace(PLACE.uri(kind, tiny_spec()[0].digest, "a", "d" * 32), data)
    return PLACE


def _in_catalogue(data: bytes, digest: str) -> Spec:
    storage.replace(PLACE.spec_uri(digest), data)
    return PLACE.spec(digest)


def _reference(npz: bytes, about: bytes) -> ReferenceFile:
    storage.replace("memory://fuzz/a.npz", npz)
    storage.replace("memory://fuzz/a.json", about)
    return read_file("memory://fuzz/a.npz")


def _same_arrays(a: ReferenceFile, b: ReferenceFile) -> bool:
    return a.arrays.keys() == b.arrays.keys() and all(
        np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays
    )


READERS = _readers()


def check_reader(reader: Reader, data: bytes) -> None:
    try:
        found = reader.read(data)
    except (CorruptFile, ConservationError):
        return
    assert reader.same(reader.written, found), "read otherwise than written"


# Runs


def run(
    check: Callable[[bytes], None], bases: list[bytes], seed: int, until: Callable[[int], bool]
) -> int:
    """Checks mutants, each made from the seed and its number alone, so that it can be repeated."""
    number = 0
    while not until(number):
        chance = random.Random(f"{seed}/{number}")
        data = mutated(chance.choice(bases), chance, bases)
        try:
            check(data)
        except BaseException as error:
            error.add_note(f"VDNA_FUZZ_SEED={seed}, mutant {number}: {data[:200]!r}")
            raise
        number += 1
    return number


def test_mutated_images_give_pixels_or_a_reason() -> None:
    run(check_image, IMAGES, seed=0, until=lambda number: number == 1000)


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_of_ours_are_refused(name: str) -> None:
    reader = READERS[name]
    assert reader.same(reader.written, reader.read(reader.data))
    run(lambda d: check_reader(reader, d), [reader.data], 0, lambda number: number == 300)


@pytest.mark.parametrize("step", [37, pytest.param(2, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ["dna", "dna in part", "partial", "ranges", "matrix", "failures"])
def test_a_changed_footer_of_our_files_is_refused(name: str, step: int) -> None:
    """The footer says where columns begin and what they are, and no page checksum covers it."""
    reader = READERS[name]
    data = reader.data
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for at in range(footer, len(data), step):
        check_reader(reader, data[:at] + bytes([0 if data[at] else 1]) + data[at + 1 :])


@pytest.mark.parametrize("path", sorted(KEPT.iterdir()), ids=lambda path: path.name)
def test_inputs_that_once_found_a_defect_are_handled(path: Path) -> None:
    """`image-*` are images; others begin with the name of their reader."""
    kind = path.name.partition("-")[0]
    if kind == "image":
        check_image(path.read_bytes())
    else:
        check_reader(READERS[kind], path.read_bytes())


def test_the_kept_inputs_are_small() -> None:
    assert sum(path.stat().st_size for path in KEPT.iterdir()) < 64 * 1024


def test_isolated_decoding_of_mutants_gives_the_same_outcome() -> None:
    for number in range(3):
        chance = random.Random(f"isolated/{number}")
        data = mutated(chance.choice(IMAGES), chance, IMAGES)
        here = _outcome(lambda d=data: load(d, SMALL).values)
        there = _outcome(lambda d=data: load_isolated(d, SMALL, 60).values)
        if isinstance(here, BadImage):
            assert isinstance(there, BadImage)
            assert (here.reason, here.detail) == (there.reason, there.detail)
        else:
            assert np.array_equal(here, there)


@pytest.mark.optional
@pytest.mark.soak
@pytest.mark.parametrize("what", ["images", "ours"])
def test_fuzzing_finds_no_defect(what: str) -> None:
    """It runs in a process of its own, which a decoder may crash, and whose memory is measured."""
    seed = os.environ.get("VDNA_FUZZ_SEED", str(random.SystemRandom().randrange(10**9)))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.system.test_fuzz", what, seed],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=10 * SECONDS,
    )
    assert done.returncode == 0, f"VDNA_FUZZ_SEED={seed}: {done.stderr[-4000:]}"


def main(what: str, seed: int) -> None:
    end = time.monotonic() + SECONDS / 2
    if what == "images":
        print(run(check_image, IMAGES, seed, lambda _: time.monotonic() > end))
        peak = peak_mb()
        assert peak < 1500, f"{peak} MB at the peak"
    else:
        readers = list(READERS.values())
        each = SECONDS / 2 / len(readers)
        for i, reader in enumerate(readers):
            stop = time.monotonic() + each
            run(
                lambda d, r=reader: check_reader(r, d),
                [reader.data],
                seed + i,
                lambda _, t=stop: time.monotonic() > t,
            )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
