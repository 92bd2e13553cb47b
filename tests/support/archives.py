"""Writes archives of all kinds for tests."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

Pairs = Iterable[tuple[str, bytes]]
"""Names and contents of members."""


def tar_bytes(pairs: Pairs, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=form) as tar:
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zip_bytes(pairs: Pairs, method: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as file:
        for name, data in pairs:
            file.writestr(name, data)
    return sink.getvalue()


def image_table(pairs: Pairs, *, struct_of_bytes: bool = False) -> pa.Table:
    """Makes a table with a column of images, and a label in a dictionary.

    With `struct_of_bytes` the column is as Hugging Face's datasets write it.
    """
    names, contents = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    column: pa.Array = pa.array(contents, pa.binary())
    if struct_of_bytes:
        paths = pa.array(names, pa.string())
        column = pa.StructArray.from_arrays([column, paths], ["bytes", "path"])
    labels = pa.array(["cat"] * len(names), pa.string()).dictionary_encode()
    return pa.table({"label": labels, "an image": column})


def parquet_bytes(pairs: Pairs, *, struct_of_bytes: bool = False) -> bytes:
    sink = io.BytesIO()
    pq.write_table(image_table(pairs, struct_of_bytes=struct_of_bytes), sink, row_group_size=3)
    return sink.getvalue()


def arrow_bytes(pairs: Pairs, *, stream: bool, struct_of_bytes: bool = False) -> bytes:
    sink = io.BytesIO()
    table = image_table(pairs, struct_of_bytes=struct_of_bytes)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def feather_bytes(pairs: Pairs) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(image_table(pairs), sink, compression="zstd", chunksize=2)
    return sink.getvalue()


def write_files(folder: Path, images: Mapping[str, bytes]) -> None:
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_mixed_folder(folder: Path, images: Mapping[str, bytes]) -> Path:
    """Writes twelve images: three as files, three each in a tar, a zip and a Parquet file.

    Files of other kinds are written beside them.
    """
    pairs = list(images.items())
    assert len(pairs) == 12
    write_files(folder, dict(pairs[:3]))
    others = {
        "a.tar": tar_bytes([*pairs[3:6], ("labels.json", b"{}"), ("3.cls", b"7")]),
        "b.zip": zip_bytes([*pairs[6:9], ("README.md", b"words")], zipfile.ZIP_DEFLATED),
        "c.parquet": parquet_bytes(pairs[9:], struct_of_bytes=True),
        "list.csv": b"not looked at",
    }
    write_files(folder, others)
    pq.write_table(pa.table({"weather": ["rain"]}), folder / "notes.parquet")
    return folder
