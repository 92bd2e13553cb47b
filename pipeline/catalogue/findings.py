"""What a verification finds: the result of each check, and of all of them.

>>> Verification((Finding("photos", "counts", True, "12 images"),)).ok
True
"""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from pipeline.notebook import Cells, data_frame, html_table, polars_frame
from pipeline.wording import count_of, some_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    import polars as pl

NEWEST_ONLY = (
    "only the newest version of each dataset was checked; `vdna verify --all` checks the log, and "
    "every version that is kept"
)
"""What a reader of the findings should know, unless all versions were checked."""

NAMED_ONLY = (
    "only the versions that were named were checked, and the newest one of a dataset; `vdna verify "
    "--all` checks the log, and every version that is kept"
)
"""The same if an older version was named."""

HISTORY = "history"
"""The check that says how many older versions have no files left, and so were not checked."""

_OF_RECOUNTS = ("recount", "shard ")
"""How the names of checks begin that count images again."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        dataset: The dataset; empty for a check of the log.
        check: What was checked.
        ok: Whether it holds.
        detail: What was seen, for people.
        at: For an older version, the commit that made it; None for the newest version.
    """

    dataset: str
    check: str
    ok: bool
    detail: str
    at: int | None = None


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        findings: A finding for each check, good or bad.
        all_versions: Whether every version that is kept was checked, and the log; and not the
            newest versions alone.
    """

    findings: tuple[Finding, ...]
    all_versions: bool = False

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(finding.ok for finding in self.findings)

    @property
    def verdict(self) -> str:
        """What was checked, what is wrong, and what to do, in a sentence or two."""
        of_versions = [each for each in self.findings if each.dataset and each.check != HISTORY]
        names = {finding.dataset for finding in of_versions}
        # A version has each check once, and some have more checks than others.
        stored = (each.check for each in of_versions if not each.check.startswith(_OF_RECOUNTS))
        versions = max(Counter(stored).values(), default=0)
        what = count_of(len(names), "dataset")
        if versions > len(names):
            what = f"{count_of(versions, 'version')} of {what}"
        checks = count_of(len(self.findings), "check")
        wrong = [finding for finding in self.findings if not finding.ok]
        if not wrong:
            return f"{what}, {checks}: nothing is wrong."
        fail = "fails" if len(wrong) == 1 else "fail"
        where = some_of(sorted({finding.dataset or "the log" for finding in wrong}))
        return f"{what}, {checks}: {len(wrong):,} {fail}, in {where}. {' '.join(_advice(wrong))}"

    @property
    def note(self) -> str:
        """What was not checked, and how to check it; empty if everything was."""
        if self.all_versions:
            return ""
        return NAMED_ONLY if self._has_older else NEWEST_ONLY

    def __repr__(self) -> str:
        wrong = [finding for finding in self.findings if not finding.ok]
        state = f"{len(wrong)} wrong: {wrong[0].detail}" if wrong else "all hold"
        chosen = "the versions that were named" if self._has_older else "the newest versions"
        what = "all kept versions" if self.all_versions else chosen
        return f"<Verification of {what} in {count_of(len(self.findings), 'check')}, {state}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                finding.dataset,
                "" if finding.at is None else finding.at,
                finding.check,
                "ok" if finding.ok else "WRONG",
                finding.detail,
            )
            for finding in self.findings
        ]
        head = ("dataset", "at", "check", "state", "detail")
        return html_table(repr(self).strip("<>"), head, rows)

    def to_pandas(self) -> pd.DataFrame:
        """Returns a row for each check: dataset, check, ok, detail, at."""
        return data_frame(*self._cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self._cells)

    @property
    def _has_older(self) -> bool:
        """Whether a version was checked that is not its dataset's newest one."""
        return any(finding.at is not None for finding in self.findings)

    @property
    def _cells(self) -> Cells:
        return [column.name for column in fields(Finding)], map(astuple, self.findings)


def _advice(wrong: Sequence[Finding]) -> Iterator[str]:
    """Yields what to do, in a sentence each for what is stored and for what was counted again."""
    stored = [finding for finding in wrong if not finding.check.startswith(_OF_RECOUNTS)]
    if stored:
        yield (
            "Restore the files that are named, from a copy or an older version of the bucket"
            f"{_otherwise(stored)}."
        )
    if len(stored) < len(wrong):
        yield (
            "Where a count differs, delete the partials that are named, the folders cells/ and "
            "nodes/ beside theirs, and the files under dna/ of this version, its parts and its "
            "windows; then build it again."
        )


def _otherwise(wrong: Sequence[Finding]) -> str:
    """Returns what else than restoring files helps. Nothing else helps the log."""
    said = ""
    if any(finding.dataset and finding.at is None for finding in wrong):
        said += "; or delete those of a dataset, and build or import it again"
    if any(finding.at is not None for finding in wrong):
        said += "; or let `vdna gc --keep` remove the older versions"
    if not all(finding.dataset for finding in wrong):
        said += "; the log can only be restored"
    return said
