"""Reads the labels of a WebDataset: files beside an image in a tar, with its name before the dot.

    cat/007.jpg, cat/007.json, cat/007.cls       # one sample

>>> sample_of("cat/007.seg.png")
('cat/007', 'seg.png')
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from pipeline.errors import BadImage, SourceError, printable
from pipeline.sources.archives.class_labels import label_text, utf8_text

MOST_SEEN = 20
"""How many names of labels are kept for an error's message."""

MAX_LABEL_BYTES = 2**20
"""The most bytes of a file of labels. A larger one is no label, and is refused."""

_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")


def sample_of(name: str) -> tuple[str, str]:
    """Divides the name of a member into that of its sample and the rest, as WebDataset does.

    Args:
        name: The member.

    Returns:
        What is before the first dot of the file's name, and what is behind it, in lower case.
    """
    found = _SAMPLE.fullmatch(name)
    return (found[1], found[2].lower()) if found else (name, "")


class SampleLabels:
    """Collects the labels of a tar's samples.

    A label is the text of the file with that ending (`cls`), or else a field of the sample's
    `.json`.
    """

    def __init__(self, labels: Sequence[str], uri: str) -> None:
        """Begins with no sample.

        Args:
            labels: The names of the labels.
            uri: The tar, for errors.
        """
        self._labels = labels
        self._uri = uri
        self._files: dict[str, dict[str, str | None]] = {}
        self._fields: dict[str, dict[str, str | None]] = {}
        self._seen: dict[str, None] = {}
        self._has_more = False

    def offer(self, name: str, size: int, read: Callable[[], bytes]) -> None:
        """Takes a member, and reads it if it may hold a label.

        Args:
            name: The member.
            size: Its size in bytes.
            read: Reads it.

        Raises:
            SourceError: It should hold labels, and cannot be read as such.
            BadImage: The archive ends within it.
        """
        sample, ending = sample_of(name)
        if not self._labels:
            return
        if ending and not ending.endswith("json"):
            self._see([ending])
        if ending != "json" and ending not in self._labels:
            return
        if size > MAX_LABEL_BYTES:
            raise SourceError(
                f"{self._uri}::{name} has {size:,} bytes; a file of labels has {MAX_LABEL_BYTES:,} "
                "at most"
            )
        data = read()
        if len(data) < size:
            raise BadImage("truncated", f"{name} states {size} bytes, which are not there")
        try:
            text = data.decode("utf-8-sig")
            if ending != "json":
                self._files.setdefault(sample, {})[ending] = text.strip()
                return
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self._uri}::{name} cannot be read as labels: {error}") from error
        if isinstance(fields, dict):
            self._see(map(utf8_text, fields))
            self._fields[sample] = {
                label: label_text(fields[label], None) for label in self._labels if label in fields
            }

    def _see(self, names: Iterable[str]) -> None:
        """Keeps names of labels for an error's message. There may be as many as members."""
        for name in names:
            if name not in self._seen and len(self._seen) == MOST_SEEN:
                self._has_more = True
                break
            self._seen[name] = None

    def arrays(self, names: Sequence[str]) -> list[pa.Array]:
        """Returns the labels of members.

        Args:
            names: The members.

        Returns:
            The value of each label for each member; null where its sample has none.

        Raises:
            SourceError: No sample at all has a label, though there are some.
        """
        samples = [sample_of(name)[0] for name in names]
        found = []
        for label in self._labels:
            known = (*self._files.values(), *self._fields.values())
            # A damaged archive, whose name is that of no member, may end before the first label.
            if names and all(names) and not any(label in its for its in known):
                has = ", ".join([*map(printable, self._seen), *["…"] * self._has_more]) or "none"
                raise SourceError(
                    f"{self._uri} has no label {label!r}: no file has that ending and no .json has "
                    f"that field; it has: {has}"
                )
            values = []
            for sample in samples:
                file = self._files.get(sample, {})
                held = file if label in file else self._fields.get(sample, {})
                values.append(held.get(label))
            found.append(pa.array(values, pa.string()))
        return found
