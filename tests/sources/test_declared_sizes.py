"""An image must have the size that was listed, and no more of it is read than it may have."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from pipeline import storage
from pipeline.errors import BadImage, SourceError
from pipeline.sources import Entry, Members, list_source
from tests.support.archives import parquet_bytes
from tests.support.endless import endless_server
from tests.support.hostile_files import JPEG

MAX_BYTES = 2**20


def fetched(*entries: Entry) -> list[bytes | str]:
    """Returns the bytes of each entry, or the reason of its failure."""
    found: list[bytes | str] = []
    with closing(Members(entries, MAX_BYTES, 8)) as members:
        for entry in entries:
            try:
                found.append(members.fetch(entry))
            except BadImage as bad:
                found.append(bad.reason)
    return found


def listed(folder: Path, name: str, size: int) -> Entry:
    """The entry of a table that states the right identity of a file, and a size."""
    item = storage.info((folder / name).as_uri())
    table = pa.table({"uri": [name], "size": [size], "identity": [item.identity]})
    pyarrow.csv.write_csv(table, folder / "table.csv")
    (entry,) = list_source(folder / "table.csv").entries
    return entry


@pytest.mark.parametrize("wrong", [-1, 1, 300])
def test_a_wrong_size_for_a_right_identity_is_an_error(wrong: int, tmp_path: Path) -> None:
    data = JPEG
    (tmp_path / "a.jpg").write_bytes(data)
    assert fetched(listed(tmp_path, "a.jpg", len(data))) == [data]
    assert fetched(listed(tmp_path, "a.jpg", 0)) == [data]  # it stands for an unknown size
    stated = len(data) + wrong
    found = "more" if wrong < 0 else len(data)
    with pytest.raises(
        SourceError, match=rf"a\.jpg was listed with {stated} bytes and has {found}"
    ):
        fetched(listed(tmp_path, "a.jpg", stated))


def test_another_identity_is_told_before_another_size(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(SourceError, match="changed between listing and reading"):
        fetched(Entry((tmp_path / "a.jpg").as_uri(), "", 1, "another"))


def test_what_is_too_large_fails_whether_its_size_is_listed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(MAX_BYTES + 1))
    (tmp_path / "b.parquet").write_bytes(
        parquet_bytes([("0", b"x"), ("1", bytes(MAX_BYTES + 1)), ("2", b"y")])
    )
    large, unknown = listed(tmp_path, "a.jpg", MAX_BYTES + 1), listed(tmp_path, "a.jpg", 0)
    assert fetched(large, unknown) == ["too_many_bytes"] * 2
    rows = list(list_source(tmp_path / "b.parquet").entries)
    assert fetched(*rows) == [b"x", "too_many_bytes", b"y"]


READ_BOTH = """
import sys
from contextlib import closing
from pipeline.errors import BadImage, SourceError
from pipeline.sources import Entry, Members

def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024

def outcome(entry):
    with closing(Members([entry], 2**23, 8)) as members:
        try:
            members.fetch(entry)
        except BadImage as bad:
            return bad.reason
        except SourceError as error:
            return "was listed with 1 bytes" in str(error)

url, path, identity = sys.argv[1:]
small = outcome(Entry(path.replace("sparse", "small"), "", 1, "x"))  # loads what is needed
before = peak()
print(outcome(Entry(path, "", 1, identity)), outcome(Entry(path, "", 0, identity)))
print(outcome(Entry(url, "", 0, "endless")), outcome(Entry(url, "", 1, "endless")))
print(peak() - before)
"""


def test_memory_is_bounded_by_the_limit_for_files_and_answers_of_any_length(
    tmp_path: Path,
) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 * 10**9)
    (tmp_path / "small").write_bytes(b"x")
    item = storage.info((tmp_path / "sparse").as_uri())
    with endless_server() as server:
        done = subprocess.run(
            [sys.executable, "-c", READ_BOTH, server.url, item.uri, item.identity],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    *outcomes, peak = done.stdout.split()
    assert outcomes == ["True", "too_many_bytes", "too_many_bytes", "True"]
    assert int(peak) < 80  # MB: the limit of 8 MiB twice, and the client's modules
