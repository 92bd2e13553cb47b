"""The difference of two manifests is that of their images, whatever their shards are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SourceError, StorageError
from pipeline.sources import (
    Entries,
    Entry,
    Manifest,
    ManifestDifference,
    Shard,
    manifest_difference,
    plan,
)
from pipeline.sources.entries_file import Entries as EntriesFile


def entry(name: int, content: int) -> Entry:
    member = f"m{name}" if name % 3 == 0 else ""
    return Entry(
        f"s3://bucket/{'a.tar' if member else name}", member, 100 + content % 2, f"e{content // 2}"
    )


IMAGES = st.dictionaries(st.integers(0, 30), st.integers(0, 3), min_size=1)


def manifest(images: dict[int, int], shard_images: int) -> Manifest:
    """Returns a manifest of shards that are cut wherever so many images are listed."""
    listed = [entry(*of) for of in sorted(images.items())]
    cuts = range(0, len(listed), shard_images)
    return Manifest.of(
        (Shard(i, i % 3, tuple(listed[cut : cut + shard_images])) for i, cut in enumerate(cuts)),
        shard_images,
    )


@settings(max_examples=12, deadline=None)
@given(IMAGES, IMAGES, st.sampled_from([2, 5]))
def test_the_difference_is_that_of_two_sets(
    before: dict[int, int], after: dict[int, int], shard_images: int
) -> None:
    first, second = manifest(before, 2), manifest(after, shard_images)
    both = before.keys() & after.keys()
    wanted = {
        "added": after.keys() - before.keys(),
        "removed": before.keys() - after.keys(),
        "changed": {name for name in both if before[name] != after[name]},
    }
    with ManifestDifference(first, second) as found:
        counts = found.counts
        for change, names in wanted.items():
            assert getattr(counts, change) == len(names)
            images = sorted((e.uri, e.member) for e in (entry(name, 0) for name in names))
            assert found.first(change, 100) == images
            assert found.first(change, 2) == images[:2]
        assert counts.equal == len(both) - counts.changed
        assert counts.some == (before != after)
        named = [(e.uri, e.member) for e in (entry(name, 0) for name in range(31))]
        gone = {named[name] for name in wanted["removed"]}
        assert found.removed_of(named) == gone
        rows = [tuple(row.values()) for table in found.tables() for row in table.to_pylist()]
    assert rows == sorted(rows)
    assert len(rows) == counts.added + counts.removed + counts.changed
    with ManifestDifference(second, first) as other:
        assert other.counts == replace(counts, added=counts.removed, removed=counts.added)


def test_shards_with_the_same_members_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [entry(name, 1) for name in range(1, 61)]
    first = plan(images[:-1], shard_images=4)
    second = plan(images, shard_images=4, previous=first)
    read: list[int] = []
    real = EntriesFile.read_shards

    def counted(self: EntriesFile, heads: object) -> Iterator[object]:
        for head, rows in real(self, heads):  # type: ignore[arg-type]
            read.append(rows.num_rows)
            yield head, rows

    monkeypatch.setattr(EntriesFile, "read_shards", counted)
    with ManifestDifference(first, second) as found:
        assert str(found.counts) == "+1 -0 ~0 =59"
    assert sum(read) < 12
    read.clear()
    with ManifestDifference(first, first) as found:
        assert (str(found.counts), read) == ("+0 -0 ~0 =59", [])


def test_lost_entries_and_a_full_disk_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = manifest({1: 1}, 4), manifest({2: 1}, 4)
    with pytest.raises(SourceError):
        ManifestDifference(replace(first, entries=Entries("memory://none")), second).__enter__()

    def full(folder: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest_difference, "connect", full)
    with pytest.raises(StorageError, match=r"two manifests cannot be joined in .*set TMPDIR"):
        ManifestDifference(first, second).__enter__()
