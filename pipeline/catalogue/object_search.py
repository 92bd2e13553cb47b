r"""Searches the objects of a catalogue for names of images, in whatever way they are encoded.

    >>> search = ObjectSearch(ImageNames.of(["s3://bucket/photos/a.jpg"]))
    >>> search.is_in(b'{"first": "s3://bucket\\/photos\\/a.jpg"}', "a.json")
    True

The text columns of Parquet files are decoded, those that hold files in turn, too; so are JSON, zstd
and gzip. What is none of these is searched as bytes, and once more without the escapes of HTML,
JSON and Markdown, which pages and summaries have. Columns of names are compared as a whole: an
image whose name goes on with a space or an `@` is another one. In other text that cannot be told.
"""

from __future__ import annotations

import html
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.buffers import Data
from pipeline.errors import CorruptFile
from pipeline.sources import ImageNames

AT_ONCE = 200
"""How many texts are looked for at a time: an expression of many more is slow."""

PIECE = 2**26
"""So many bytes are looked at together, of what cannot be decoded."""

READ_WHOLE = 2**22
"""Larger Parquet files are read in part: the footer and the columns of text."""

NAME_BEFORE = r"A-Za-z0-9_%~.\-"
"""With one of these before it, a text is the end of a longer name."""

NAME_AFTER = r"A-Za-z0-9_%~/\-"
"""With one of these after it, a text is the beginning of a longer name."""

COLUMNS_OF_NAMES = ("uri", "member")
"""Columns of tables in which each text is the name of one object, or of an image in one."""

NAMES_ONE = "still names an erased image"
SHOWS_PICTURES = "has pictures inside, which may show an erased image"
"""What may be found in an object."""

_ESCAPED = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|\\([^A-Za-z0-9\s])")
"""Characters as JSON and Markdown write them: by their numbers, or after a backslash."""

PARQUET = b"PAR1"
ZSTD = b"\x28\xb5\x2f\xfd"
GZIP = b"\x1f\x8b"


class ObjectSearch:
    """Looks for whole names: those that are parts of longer ones are not found.

    Args:
        names: The images.
        identities: Other texts to look for, such as ETags.
        members: The names of more images in archives, which are looked for where their archives
            are not named.
    """

    def __init__(
        self,
        names: ImageNames,
        identities: Collection[str] = (),
        members: Collection[str] = (),
    ) -> None:
        self._names = names
        spelled = {storage.spelled(uri) for uri in names.objects}
        spelled |= {storage.spelled(*pair) for pair in names.members}
        spelled |= {f"{uri}::{member}" for uri, member in names.members}
        # No object holds what is not Unicode; the url of such a file has it in numbers.
        texts = set(filter(_is_unicode, (*names.objects, *spelled, *identities)))
        self._texts = pa.array(sorted(texts), pa.string())
        wanted = sorted(map(_literal, texts))
        self._patterns = [
            f"(?:^|[^{NAME_BEFORE}])(?:{'|'.join(wanted[first : first + AT_ONCE])})"
            rf"(?:$|[^{NAME_AFTER}.]|\.(?:$|[^A-Za-z0-9]))"
            for first in range(0, len(wanted), AT_ONCE)
        ]
        inside = {*members, *(member for _, member in names.members)}
        self._members = pa.array(sorted(filter(_is_unicode, inside)), pa.string())

    def found_in_object(self, item: storage.Stored) -> str:
        """Looks for the names in an object of a store, and in its own name.

        No search can tell what a picture shows, so an object with pictures inside is found, too.
        Such are the pages of `vdna report`, if they lie in the catalogue.

        Args:
            item: The object, as it was listed.

        Returns:
            `NAMES_ONE` or `SHOWS_PICTURES`; empty if neither was found.

        Raises:
            CorruptFile: It is of a kind that can be decoded, and is torn.
            SourceError: It is gone.
        """
        if self._is_among(pa.array([item.uri])):
            return NAMES_ONE
        if item.size > READ_WHOLE:
            with storage.open_random(item.uri) as file:
                if file.read(len(PARQUET)) == PARQUET:
                    return NAMES_ONE if self._is_in_parquet(file, item.uri) else ""
        data = storage.read_on_disk(item.uri)
        if self.is_in(data, item.uri):
            return NAMES_ONE
        return SHOWS_PICTURES if re.search(rb"data:image/", data) else ""

    def is_in(self, data: Data, name: str) -> bool:
        """Tells whether bytes have one of the names.

        Args:
            data: The bytes of a file.
            name: Its name, for errors.

        Returns:
            Whether they do.

        Raises:
            CorruptFile: It is of a kind that can be decoded, and is torn.
        """
        start = bytes(memoryview(data)[:4])
        if start == PARQUET:
            return self._is_in_parquet(io.BytesIO(data), name)
        if start == ZSTD or start[:2] == GZIP:
            return self.is_in(_unpacked(data, start, name), name)
        if any(map(self._is_among, _pieces(data))):
            return True
        try:
            read = json.loads(bytes(data)) if start[:1] in (b"{", b"[", b'"') else None
        except (ValueError, RecursionError):
            read = None  # such as lines that are JSON each
        if read is not None:
            return self._is_among(pa.array(list(_strings(read)), pa.string()))
        if not re.search(rb"[&\\]", data):
            return False
        return any(self._is_among(_unescaped(piece)) for piece in _pieces(data))

    def _is_in_parquet(self, source: IO[bytes], name: str) -> bool:
        try:
            source.seek(-8, io.SEEK_END)
            size = int.from_bytes(source.read(4), "little")
            source.seek(-8 - size, io.SEEK_END)
            suspicious = any(map(self._is_among, _pieces(source.read(size))))
            with pq.ParquetFile(source) as file:
                if suspicious and self._is_in_footer(file.metadata):
                    return True
                stated = file.metadata.metadata or {}
                if any(self.is_in(text, name) for text in stated.values()):
                    return True
                columns = [
                    file.schema.column(at).path
                    for at in range(len(file.schema))
                    if file.schema.column(at).physical_type == "BYTE_ARRAY"
                ]
                for at in range(file.num_row_groups if columns else 0):
                    table = file.read_row_group(at, columns=columns, use_threads=False)
                    if any(self._is_in_rows(batch, name) for batch in table.to_batches()):
                        return True
        except (pa.ArrowException, OSError, OverflowError) as error:
            raise CorruptFile(f"{name}: a Parquet file that cannot be read: {error}") from error
        return False

    def _is_in_footer(self, footer: pq.FileMetaData) -> bool:
        """Tells whether a name stands in the statistics of columns, or in what describes them."""
        texts, names = [footer.created_by, str(footer.schema)], list[str]()
        for group in map(footer.row_group, range(footer.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                found = column.statistics
                if found is None or not found.has_min_max:
                    continue
                bounds = [of for of in (found.min, found.max) if isinstance(of, str)]
                is_name = column.path_in_schema.rpartition(".")[2] in COLUMNS_OF_NAMES
                (names if is_name else texts).extend(bounds)
        return self._is_among(pa.array(texts)) or self._is_one(pa.array(names, pa.string()))

    def _is_in_rows(self, rows: pa.RecordBatch, name: str) -> bool:
        """Tells whether rows name an image: in one text, or in those of an archive and a member."""
        there = set(rows.schema.names)
        if {"uri", "member"} <= there:
            is_named = bool(self._names.among(pa.Table.from_batches([rows])).any())
        elif "member" in there and len(self._members):  # what an archive contains, which has no uri
            is_named = pc.any(pc.is_in(rows["member"], self._members)).as_py()
        else:
            is_named = False
        return is_named or any(
            self._is_one(column)
            if of in COLUMNS_OF_NAMES and pa.types.is_string(column.type)
            else self._is_in_values(column, name)
            for of, column in zip(rows.schema.names, rows.columns, strict=True)
        )

    def _is_one(self, names: pa.Array) -> bool:
        return bool(pc.any(pc.is_in(names, self._texts)).as_py())

    def _is_in_values(self, values: pa.Array, name: str) -> bool:
        kind = values.type
        if pa.types.is_struct(kind):
            columns = dict(zip([field.name for field in kind], values.flatten(), strict=True))
            return self._is_in_rows(pa.RecordBatch.from_pydict(columns), name)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return self._is_in_values(values.flatten(), name)
        if pa.types.is_map(kind):
            return any(self._is_in_values(each, name) for each in (values.keys, values.items))
        if pa.types.is_dictionary(kind):
            return self._is_in_values(values.dictionary, name)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return any(self.is_in(value.as_py(), name) for value in values if value.is_valid)
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return is_text and self._is_among(values)

    def _is_among(self, texts: pa.Array) -> bool:
        return any(
            pc.any(pc.match_substring_regex(texts, pattern)).as_py() for pattern in self._patterns
        )


def _is_unicode(text: str) -> bool:
    """Tells whether a text can be written: the path of a file may hold any bytes."""
    return text.isascii() or not re.search(r"[\ud800-\udfff]", text)


def _literal(text: str) -> str:
    """Returns an expression that matches a text alone."""
    return re.sub(r"([^A-Za-z0-9_/ \x80-\U0010ffff])", r"\\\1", text)


def _unpacked(data: Data, start: bytes, name: str) -> bytes:
    try:
        if start[:2] == GZIP:
            return zlib.decompress(bytes(data), wbits=31)
        with pa.input_stream(pa.py_buffer(data), compression="zstd") as stream:
            return bytes(stream.read())
    except (OSError, zlib.error) as error:
        raise CorruptFile(f"{name}: cannot be unpacked: {error}") from error


def _pieces(data: Data) -> Iterator[pa.Array]:
    """Yields bytes in pieces. Each has the end of the one before, so that no name is cut."""
    with memoryview(data) as view:
        for start in range(0, max(1, len(view)), PIECE):
            piece = bytes(view[max(0, start - 2**16) : start + PIECE])
            yield pa.array([piece], pa.large_binary())


def _unescaped(piece: pa.Array) -> pa.Array:
    """Writes what HTML, JSON and Markdown have escaped as it is."""
    text = html.unescape(piece[0].as_py().decode(errors="replace"))
    if "\\" in text:
        text = _ESCAPED.sub(lambda of: json.loads(f'"{of[1]}"') if of[1] else of[2], text)
    return pa.array([text.encode(errors="replace")], pa.large_binary())


def _strings(read: Any) -> Iterator[str]:
    """Yields all strings of what JSON held, the keys of its objects among them."""
    waiting = [read]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
