"""The commit log of a catalogue: numbered commits, each created exclusively.

    >>> log = CommitLog("s3://bucket/dnas")                              # doctest: +SKIP
    >>> log.append("remove a", lambda head: replace(head, datasets={}))
    >>> [commit.action for commit in log.log()]

Each commit `_log/<number>.json` is created only if the number is free, so that two writers cannot
both write number 42. It names the sha256 of the commit before it, so that reading the log from its
end finds every commit that was changed or removed before the last one.

Every hundredth commit holds all datasets. The others hold what differs from a commit before them
(`base_number`), whose sha256 they state too. So a state is read from three files at most, all at
once, and a process keeps the commits that many others build upon. `_log/_latest` is a hint: looking
for the newest commit starts there. What no commit names is not in the catalogue, whatever lies
under the root.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.catalogue.commit import EMPTY, Commit, StoredCommit, base_number, software
from pipeline.catalogue.layout import Layout
from pipeline.catalogue.replacing import Replacer, as_replaced
from pipeline.catalogue.version_names import is_commit_number, last_moment
from pipeline.errors import (
    CorruptFile,
    NoBucket,
    NotFound,
    SourceError,
    StorageError,
    UsageError,
    shortened,
)

_COMMIT_NAME = re.compile(r"\d{20}\.json")

READ_AT_ONCE = 64
"""The most commits that `CommitLog.log` reads at a time."""

KEPT_BASES = 64
"""How many commits that others build upon a process keeps in memory. To name the version that a
build replaces, some twenty commits of a long log are looked at (`commit_that_made`). A refresh does
that for each dataset that changed, and would read most of these commits again each time."""


@dataclass(frozen=True)
class _ReadCommit:
    """A commit as it was read.

    Attributes:
        commit: The commit, with all datasets.
        digest: The sha256 of its bytes; None for `EMPTY`, which has no file.
        base: The commit that it builds upon; None if it builds upon none.
    """

    commit: Commit
    digest: str | None = None
    base: _ReadCommit | None = None


@dataclass
class _KeptBase:
    """Where a process keeps a commit that others build upon.

    Attributes:
        link: The commit as it was read last; None if it was not read yet.
    """

    link: _ReadCommit | None = None


_Files = Mapping[int, "Future[bytes | None]"]
"""Files of commits that were read ahead, by their numbers."""


class CommitLog(Layout):
    """Reads and appends the commits of a catalogue. The first commit creates the catalogue."""

    def head(self) -> Commit:
        """Reads the newest commit.

        Returns:
            The commit; `EMPTY` if there is none yet.

        Raises:
            CorruptFile: If a commit cannot be read, or one before the last is missing.
            NoBucket: If the catalogue's bucket does not exist.
        """
        return self._head().commit

    def commit(self, number: int) -> Commit:
        """Reads one commit.

        Args:
            number: Its number.

        Returns:
            The commit, with other versions in the place of those that were erased since.

        Raises:
            NotFound: If the log has no such number.
            CorruptFile: If the file is not the commit of that number, or one that it builds upon
                is missing or another.
        """
        return as_replaced(self._read(number).commit, self._head().commit)

    def log(self, newest: Commit | None = None) -> Iterator[Commit]:
        """Reads all commits.

        Args:
            newest: The commit to begin with; None for the newest of all.

        Yields:
            Each commit, the newest first, as `commit` returns it.

        Raises:
            CorruptFile: If one is missing, cannot be read, or is not the one that the next one
                names.
        """
        head = self._head().commit
        replacer = Replacer(head.replaced)
        for commit in self.log_as_made(newest or head):
            yield replacer.apply(commit, commit.number)

    def log_as_made(self, newest: Commit) -> Iterator[Commit]:
        """Reads all commits with the versions that they were made with, also those erased since.

        Args:
            newest: The commit to begin with.

        Yields:
            Each commit, the newest first.

        Raises:
            CorruptFile: As `log` does.
        """
        commit = newest
        if commit.number:
            yield commit
        at_once = 1
        while commit.number > 1:
            first = max(1, commit.number - at_once)
            for number, data in self._read_run(range(commit.number - 1, first - 1, -1)):
                if data is None:
                    raise CorruptFile(_gap(self.log_uri(number)))
                link = self._decode(number, data, {})
                users = f"commit {commit.number} was made"
                _require_digest(self.log_uri(number), link, commit.previous, users)
                commit = link.commit
                yield commit
            at_once = min(2 * at_once, READ_AT_ONCE)

    def require_end(self) -> None:
        """Refuses a log whose last commits are missing, as far as `_latest` tells.

        `_latest` is written after the commit that it names. It is not protected itself: whoever
        removes the last commits and changes it too is not found.

        Raises:
            CorruptFile: If `_latest` names a commit that is not there.
        """
        named = self._hint()
        if named and not storage.exists(self.log_uri(named)):
            raise CorruptFile(
                f"{self.hint_uri} names commit {named}, and {self.log_uri(named)} is missing: the "
                "last commits were removed. Restore them from a version or a copy of the bucket; "
                f"if they are lost for good, delete {self.hint_uri}"
            )

    def at(self, at: int | str | None = None) -> Commit:
        """Reads one state of the catalogue.

        Args:
            at: A commit's number; or a month, a day or an ISO time (in UTC unless it says
                otherwise) for the state at its end. None for the newest.

        Returns:
            The commit.

        Raises:
            NotFound: If there is no catalogue, no such number, or no commit as old as that.
            UsageError: If `at` is neither a number nor a time, or the catalogue's url is a file's.
        """
        if at is None:
            return self._existing_head()
        if isinstance(at, int) or is_commit_number(at):
            try:
                return self.commit(int(at))
            except NotFound:
                self._existing_head()
                raise
        try:
            moment = last_moment(at)
        except ValueError as error:
            raise UsageError(
                f"at is {shortened(at)}; give a commit's number, or a month, day or time such as "
                "2026-10-05"
            ) from error
        commit = self.as_of(moment, self._existing_head())
        if commit is None:
            raise NotFound(f"{self.root} has no commit as old as {at}")
        return commit

    def as_of(self, moment: datetime, newest: Commit) -> Commit | None:
        """Finds the last commit that was made at a moment or before.

        Args:
            moment: The moment.
            newest: The commit to begin with; later ones are left out.

        Returns:
            The commit; None if there is none as old.
        """
        commits = self.log(newest)
        return next((c for c in commits if datetime.fromisoformat(c.time) <= moment), None)

    def _existing_head(self) -> Commit:
        """Returns the newest commit, or says that there is no catalogue yet."""
        head = self.head()
        if not head.number:
            raise self._absent()
        return head

    def _absent(self) -> NotFound:
        """Returns the error that says that there is no catalogue yet."""
        self.require_no_file()
        return NotFound(
            f"there is no catalogue at {self.root} yet; check its path or url. The first "
            "`vdna build NAME SOURCE`, or `build` in Python, makes it"
        )

    def require_no_file(self) -> None:
        """Refuses a url of a catalogue that is the url of a file.

        Raises:
            UsageError: There is a file.
        """
        try:
            storage.info(self.root)
        except (SourceError, StorageError):
            return
        raise UsageError(
            f"{self.root} is a file; a catalogue is a folder, or a url such as s3://bucket/dnas"
        )

    def append(self, action: str, change: Callable[[Commit], Commit]) -> Commit:
        """Commits a change, again on the newest commit whenever another writer was quicker.

        Args:
            action: What is done, for people.
            change: Makes the new state from the newest commit. It may raise to refuse, or return
                the commit that it was given if there is nothing to change.

        Returns:
            The new commit, or the newest one if nothing was changed.
        """
        while True:
            head = self._head()
            changed = change(head.commit)
            if changed is head.commit:
                return changed
            commit = replace(
                changed,
                number=changed.number + 1,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                action=action,
                previous=head.digest,
                software=software(),
                receipt=changed.receipt if changed.receipt is not head.commit.receipt else None,
            )
            commit = replace(commit, erasure=commit.number) if commit.receipt else commit
            stored = _stored_upon(head, commit)
            if storage.create(self.log_uri(commit.number), stored.encode()):
                storage.replace(self.hint_uri, str(commit.number).encode())
                return commit

    def _head(self) -> _ReadCommit:
        """Reads the newest commit."""
        number = self._hint()
        ahead = self._read_ahead(number, number + 1)
        data = self._file(number, ahead) if number else None
        if data is None:
            number = self._last_number()
            ahead = self._read_ahead(number, number + 1)
            data = self._file(number, ahead) if number else None
        while (newer := self._file(number + 1, ahead)) is not None:
            number, data = number + 1, newer
        return _ReadCommit(EMPTY) if data is None else self._decode(number, data, ahead)

    def _read(self, number: int) -> _ReadCommit:
        """Reads one commit, and those that it builds upon."""
        ahead = self._read_ahead(number)
        data = self._file(number, ahead)
        if data is None:
            raise NotFound(f"{self.root} has no commit {number}")
        return self._decode(number, data, ahead)

    def _read_ahead(self, first: int, *others: int) -> _Files:
        """Reads the files of commits at once, with those that the first may build upon.

        Nothing is read ahead where that saves no time: files of this machine are there at once.

        Args:
            first: A commit's number; 0 stands for none.
            *others: The numbers of others.

        Returns:
            The files. One that cannot be read raises its error only where it is asked for.
        """
        numbers = [number for number in (first, *others) if number]
        base = base_number(first)
        while base and _kept_base(self.root, base).link is None:
            numbers.append(base)
            base = base_number(base)
        if len(numbers) < 2 or storage.store_of(self.root).is_local:
            return {}
        with ThreadPoolExecutor(len(numbers), "log") as pool:
            return {number: pool.submit(self._bytes_of, number) for number in numbers}

    def _file(self, number: int, ahead: _Files) -> bytes | None:
        """Returns the file of a commit, which is read now unless it was before; None if none."""
        return ahead[number].result() if number in ahead else self._bytes_of(number)

    def _read_run(self, numbers: Sequence[int]) -> list[tuple[int, bytes | None]]:
        """Reads the files of these commits at once; None stands for one that is missing."""
        with ThreadPoolExecutor(len(numbers), "log") as pool:
            return list(zip(numbers, pool.map(self._bytes_of, numbers), strict=True))

    def _bytes_of(self, number: int) -> bytes | None:
        """Reads the file of a commit; None if there is none."""
        try:
            return storage.read(self.log_uri(number))
        except SourceError:
            return None

    def _decode(self, number: int, data: bytes, ahead: _Files) -> _ReadCommit:
        """Makes a commit of the bytes of its file, with what it builds upon."""
        uri = self.log_uri(number)
        stored = StoredCommit.decode(data, uri)
        if stored.stated.number != number:
            raise CorruptFile(f"{uri} holds commit {stored.stated.number}; restore the file")
        if stored.base is None:
            return _ReadCommit(stored.whole(), sha256(data))
        base = self._base(base_number(number), stored.base, ahead)
        return _ReadCommit(stored.whole(base.commit), sha256(data), base)

    def _base(self, number: int, digest: str, ahead: _Files) -> _ReadCommit:
        """Returns a commit that others build upon; its digest tells that a kept one is the same."""
        kept = _kept_base(self.root, number)
        link = kept.link
        if link is not None and link.digest == digest:
            return link
        data = self._file(number, ahead)
        if data is None:
            raise CorruptFile(_gap(self.log_uri(number)))
        link = self._decode(number, data, ahead)
        _require_digest(self.log_uri(number), link, digest, "later commits build")
        kept.link = link
        return link

    def _hint(self) -> int:
        """Returns the number that `_latest` names; 0 if it is missing or names none."""
        try:
            return max(0, int(storage.read(self.hint_uri)))
        except NoBucket:  # a mistyped url, and not a catalogue that is still empty
            raise
        except (SourceError, ValueError):
            return 0

    def _last_number(self) -> int:
        """Lists the log.

        Returns:
            Its last number; 0 if there is none.

        Raises:
            CorruptFile: If a number before the last is missing. A writer that took the missing
                number would hide all later commits.
        """
        try:
            names = [item.uri.rpartition("/")[2] for item in storage.walk(f"{self.root}/_log")]
        except SourceError:
            return 0
        numbers = sorted(int(name[:20]) for name in names if _COMMIT_NAME.fullmatch(name))
        for expected, number in enumerate(numbers, 1):
            if number != expected:
                raise CorruptFile(_gap(self.log_uri(expected)))
        return len(numbers)


def _stored_upon(head: _ReadCommit, commit: Commit) -> StoredCommit:
    """Finds what the file of the commit after `head` holds."""
    number = base_number(commit.number)
    base = head if number else None
    while base is not None and base.commit.number != number:
        base = base.base
    if base is None:
        return StoredCommit.of(commit)
    return StoredCommit.of(commit, base.commit, base.digest)


@lru_cache(KEPT_BASES)
def _kept_base(root: str, number: int) -> _KeptBase:
    """Returns where a commit that others build upon is kept. It is empty at first."""
    return _KeptBase()


def _require_digest(uri: str, link: _ReadCommit, named: str | None, users: str) -> None:
    """Refuses a commit that is not the one that later commits name."""
    if link.digest != named:
        raise CorruptFile(
            f"{uri} has sha256 {link.digest}; {users} upon one of sha256 {named}. Restore it from "
            "a version or a copy of the bucket"
        )


def _gap(uri: str) -> str:
    return (
        f"{uri} is missing, though later commits exist: the log has a gap. Restore it from a "
        "version or a copy of the bucket"
    )
