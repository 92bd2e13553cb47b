"""Placeholder until the branch with archives is merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.storage import Stored

FORMAT = 1
TABLES = ("parquet", "arrow")


def kind_of(uri: str) -> str | None:
    return None


@dataclass(frozen=True)
class Index:
    members: Any
    ignored: dict[str, int]
    duplicates: int

    def encode(self) -> bytes:
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes, name: str) -> Index:
        raise NotImplementedError


def index(item: Stored, image_column: str | None = None) -> Index | None:
    return None
