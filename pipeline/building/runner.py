"""Runs the shards that are not counted yet, and tells what could not be counted."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic, sleep

from pipeline import storage
from pipeline.building.common_error import CommonError, alike
from pipeline.building.waiting import FIRST_PAUSE, LONGEST_PAUSE, PAUSE_FACTOR, SharedShards
from pipeline.counting import (
    OVERLAP,
    ShardJob,
    ShardReceipt,
    load_partial,
    order_of_claims,
    partial_uri,
    plan_folds,
    spent_together,
)
from pipeline.engine import Engine, shards_run
from pipeline.errors import (
    ConservationError,
    SourceError,
    TransientError,
    UnexpectedError,
    VdnaError,
)
from pipeline.events import (
    Held,
    Listener,
    Retried,
    Said,
    Started,
    StepDone,
    StepFailed,
    TakenOver,
    stage,
)
from pipeline.mapper import map_in_order
from pipeline.sources import Manifest, walk_widely
from pipeline.wording import count_of, some_of

TRIES = 3
"""How many times a shard is tried in one build. Each time it may come to another worker."""


def require_counted(
    name: str, shards: int, failed: Sequence[ShardReceipt], untried: int = 0
) -> None:
    """Refuses to go on if some shards could not be counted.

    Args:
        name: The dataset or source that the message names.
        shards: How many shards there are.
        failed: The receipts of those that could not be counted.
        untried: How many were not tried, as those that were have all failed alike.

    Raises:
        ConservationError: The counts of one do not add up.
        TransientError: Some could not be counted, but a rerun may succeed.
        UnexpectedError: The same, and the reason was not foreseen.
        VdnaError: Some could not be counted, and a rerun would not help.
    """
    if not failed and not untried:
        return
    which = some_of([str(receipt.index) for receipt in failed])
    some = f"{name}: {len(failed)} of {count_of(shards, 'shard')} could not be counted ({which})"
    left = f"the other {untried:,} were not tried; " if untried else ""
    left += "nothing was committed"
    for receipt in failed:
        if receipt.unsound:
            raise ConservationError(f"{some}; {left}. {_last_error(receipt)}")
    end, again = f"; {left}", "; nothing was skipped: rerun the same command to go on"
    if untried:
        failed = alike(failed)
        end = f". {len(failed)} failed with the same error, so {left}. Mend what the error names"
        again = f"{end}, and rerun the same command to go on"
    for receipt in failed:
        if not receipt.transient:
            raise VdnaError(f"{some}{end}. {_last_error(receipt)}")
    for receipt in failed:
        if receipt.unexpected:
            raise UnexpectedError(f"{some}{again}. {_last_error(receipt)}", receipt.details)
    raise TransientError(f"{some}{again}. {_last_error(failed[0])}")


def _last_error(receipt: ShardReceipt) -> str:
    fault = f" ({receipt.fault})" if receipt.fault else ""
    return f"The last error of shard {receipt.index}{fault}: {receipt.error}"


@dataclass(frozen=True)
class FailedShard:
    """A shard that failed.

    Attributes:
        times: How many times it was tried.
        receipt: What the last try returned.
    """

    times: int
    receipt: ShardReceipt

    @property
    def is_given_up(self) -> bool:
        """Whether it is not tried again in this build."""
        return self.receipt.unsound or self.times >= TRIES


@dataclass(frozen=True)
class Ran:
    """What became of a job's shards.

    Attributes:
        shards: How many shards were counted now.
        errors: The receipts of those that could not be counted.
        images: How many images were counted now, in shards that had no sums kept.
        seconds: How long workers had these shards, added up.
        image_bytes: Bytes of the images that were counted in these shards, as they were read.
        spent: Seconds that the workers' threads spent in each stage of these shards.
        read: How many images were read now, those that failed among them.
        read_bytes: Bytes of these images, where the source states their sizes.
        worker_seconds: How long workers had any of its shards, those that failed among them.
        untried: How many shards were not tried, as the first ones have all failed alike.
        failed: How many images of stored shards were read now and could not be read.
    """

    shards: int = 0
    errors: tuple[ShardReceipt, ...] = ()
    images: int = 0
    seconds: float = 0.0
    read: int = 0
    read_bytes: int = 0
    worker_seconds: float = 0.0
    image_bytes: int = 0
    spent: Mapping[str, float] = field(default_factory=dict)
    untried: int = 0
    failed: int = 0

    def with_more(self, later: Ran) -> Ran:
        """Returns this and what a later run has counted.

        The errors are those of the later run, and so are the shards that were not tried.
        """
        return Ran(
            self.shards + later.shards,
            later.errors,
            self.images + later.images,
            self.seconds + later.seconds,
            self.read + later.read,
            self.read_bytes + later.read_bytes,
            self.worker_seconds + later.worker_seconds,
            self.image_bytes + later.image_bytes,
            spent_together(self.spent, later.spent),
            later.untried,
            self.failed + later.failed,
        )


def run_missing(
    work: Sequence[tuple[ShardJob, Manifest]],
    engine: Engine,
    progress: Listener,
    landed: Callable[[int, Ran], None] = lambda at, ran: None,
    begins: Callable[[int, Sequence[int]], None] = lambda at, missing: None,
    failed: Sequence[dict[str, FailedShard]] | None = None,
    unlisted: Callable[[int, Exception], None] | None = None,
    final: Callable[[ShardReceipt], str] = lambda receipt: "",
    waits: bool = True,
) -> list[Ran]:
    """Runs the shards of all jobs that are not stored yet; those that fail are tried again.

    A shard is tried `TRIES` times, those of earlier runs of the build among them. A shard whose
    counts do not add up is not tried again in the same build, so that nobody overlooks what may be
    a broken machine. Shards that another process counts are waited for. If the store does not tell
    what becomes of those of one dataset, they fail, and the other datasets go on.

    Where no shard of a job is stored and the first ones fail alike, these are tried again before
    the others. If all of them fail for good, the others are not tried (see `common_error.py`). The
    other jobs go on.

    Args:
        work: The jobs, each with its manifest.
        engine: Where the shards run.
        progress: Is told of each shard.
        landed: Is called with the number of a job, and what became of its shards here, as soon as
            all are stored and other jobs still have shards to run.
        begins: Is called with the number of each job that has shards to run, and theirs; for
            several jobs at a time.
        failed: For each job the shards that have failed in this build, by their contents. Those of
            this run are added as they fail: the run may end with an error after that.
        unlisted: Is called with the number of each job whose stored shards cannot be listed, and
            why. No shard of it is run. None raises the error.
        final: Says of a shard that failed why no other try can do better, in place of its error; or
            nothing, so that it is tried again.
        waits: Whether shards that another process counts are waited for. If not, nothing is said of
            what becomes of them.

    Returns:
        What became of each job's shards, in the order of the jobs.

    Raises:
        ValueError: Two jobs have their manifests at the same url.
    """
    failed = [{} for _ in work] if failed is None else failed
    return _ShardRun(work, engine, progress, landed, begins, failed, unlisted, final, waits).run()


class _ShardRun:
    """One run: what is left of it, and what became of the rest."""

    def __init__(
        self,
        work: Sequence[tuple[ShardJob, Manifest]],
        engine: Engine,
        progress: Listener,
        landed: Callable[[int, Ran], None],
        begins: Callable[[int, Sequence[int]], None],
        failed: Sequence[dict[str, FailedShard]],
        unlisted: Callable[[int, Exception], None] | None,
        final: Callable[[ShardReceipt], str],
        waits: bool,
    ) -> None:
        claimant = secrets.token_hex(8)
        self._jobs = [replace(job, claimant=claimant) for job, _ in work]
        self._engine = engine
        self._progress = progress
        self._landed = landed
        self._begins = begins
        self._final = final
        self._waits = waits
        self._sizes = [{h.index: h.candidates for h in plan.heads} for _, plan in work]
        self._plans = [plan for _, plan in work]
        self._numbers = {job.manifest_uri: at for at, job in enumerate(self._jobs)}
        if len(self._numbers) < len(work):  # a receipt states its job by that alone
            raise ValueError("two jobs have the same manifest, so that their shards are mixed up")
        self._left, self._unlisted, begun = _all_missing(work, unlisted)
        self._counted: Counter[int] = Counter()
        self._images: Counter[int] = Counter()
        self._read: Counter[int] = Counter()
        self._read_bytes: Counter[int] = Counter()
        self._unreadable: Counter[int] = Counter()
        self._seconds = [0.0] * len(work)
        self._image_bytes: Counter[int] = Counter()
        self._spent: list[Mapping[str, float]] = [{} for _ in work]
        self._worker_seconds = [0.0] * len(work)
        self._failed = failed
        self._errors = {
            (at, head.index): replace(known.receipt, index=head.index)
            for at, plan in enumerate(self._plans)
            for head in (plan.heads if failed[at] else ())
            if (known := failed[at].get(head.content)) is not None
            and (known.receipt.unsound or head.index in self._left[at])
        }
        self._common = [
            CommonError(has_landed=at in begun, workers=lambda: engine.shard_workers)
            for at in range(len(work))
        ]
        for (at, index), receipt in self._errors.items():  # of an earlier run of this build
            self._is_suspected_after(at, receipt, self._is_given_up(at, index))
        self._ended = {at for at, common in enumerate(self._common) if common.is_certain}
        self._kept_back: dict[int, list[tuple[ShardJob, int]]] = {}
        self._empty: list[set[str]] = [set() for _ in work]
        self._cut_off: set[tuple[int, int]] = set()
        self._others = SharedShards(claimant)
        self._by_others = self._ahead = self._reused = 0
        self._told = False

    def run(self) -> list[Ran]:
        """Runs all that is left, until it is stored or given up."""
        claimant = self._others.claimant
        todo = [
            (self._jobs[at], index)
            for at, left in enumerate(self._left)
            for index in order_of_claims(claimant, sorted(left))
            if at not in self._ended and not self._is_given_up(at, index)
        ]
        with_shards = [at for at, left in enumerate(self._left) if left and at not in self._ended]
        for _ in map_in_order(lambda at: self._begins(at, sorted(self._left[at])), with_shards):
            pass
        total = sum(self._sizes[self._numbers[job.manifest_uri]][index] for job, index in todo)
        listed = [at for at in range(len(self._jobs)) if at not in self._unlisted]
        present = sum(len(self._sizes[at]) - len(self._left[at]) for at in listed)
        with stage(self._progress, Started(total, len(todo), present)):
            for at, left in enumerate(self._left):
                if not left and todo and at not in self._unlisted:
                    self._landed(at, self._ran(at))
            while todo or (self._waits and self._others.held):
                todo = self._once(todo) if todo else self._wait()
            if self._by_others:
                shards = count_of(self._by_others, "shard")
                self._progress(Said(f"stored by another process meanwhile: {shards}"))
            if self._reused:
                images = count_of(self._reused, "image")
                self._progress(Said(f"not read again, as their sums are kept: {images}"))
            if self._ahead:  # more than the total, perhaps: those of a failed try count again
                images = count_of(self._ahead, "image")
                self._progress(
                    Said(f"tasks decoded {images} for the workers, which had {total:,} to count")
                )
        return [self._ran(at) for at in range(len(self._jobs))]

    def _ran(self, at: int) -> Ran:
        """Returns what has become of a job's shards so far."""
        errors = {index: receipt for (of, index), receipt in self._errors.items() if of == at}
        return Ran(
            self._counted[at],
            tuple(errors.values()),
            self._images[at],
            self._seconds[at],
            self._read[at],
            self._read_bytes[at],
            self._worker_seconds[at],
            self._image_bytes[at],
            self._spent[at],
            len(self._left[at] - errors.keys()) if at in self._ended else 0,
            self._unreadable[at],
        )

    def _once(self, todo: Sequence[tuple[ShardJob, int]]) -> list[tuple[ShardJob, int]]:
        """Runs shards, until one job's have failed alike and its others are to be kept back.

        Args:
            todo: The shards.

        Returns:
            Those that are to be run next: those that failed and are tried again, and those that
            were not begun.

        Raises:
            RuntimeError: The engine has ended without a receipt for each shard.
        """
        again: list[tuple[int, int]] = []
        rest = {(self._numbers[job.manifest_uri], index): (job, index) for job, index in todo}
        with shards_run(self._engine, todo) as receipts:  # an engine has one run at a time
            for receipt in receipts:
                at, index = self._numbers[receipt.manifest_uri], receipt.index
                rest.pop((at, index), None)
                self._worker_seconds[at] += receipt.seconds
                if receipt.held_by:
                    self._others.hold(self._jobs[at].work_uri, self._key(at, index), (at, index))
                elif receipt.error:
                    self._errors[at, index] = receipt
                    why = self._final(receipt)
                    # One that ends processes has ended some in each try.
                    last = why or receipt.fault == "crash"
                    times = TRIES if last else self._times(at, index) + 1
                    self._failed[at][self._content(at, index)] = FailedShard(times, receipt)
                    self._tell_failed(at, receipt, why)
                    given_up = self._is_given_up(at, index)
                    if not given_up:
                        again.append((at, index))
                    if not why and self._is_suspected_after(at, receipt, given_up):
                        kept_back = [of for of in rest if of[0] == at and not self._times(*of)]
                        if kept_back:
                            self._cut_off |= rest.keys()
                            self._keep_back(at, [rest.pop(each) for each in kept_back])
                            break
                else:
                    self._is_stored(at, index, receipt)
            else:
                if rest:
                    forgotten = count_of(len(rest), "shard")
                    raise RuntimeError(f"the engine returned no receipt for {forgotten}")
        if again:
            attempt = 1 + max(self._times(*each) for each in again)
            self._progress(Retried(len(again), attempt))
        # Workers may still finish shards that they had begun. These go last, when most are stored.
        waiting = [*rest.values()]
        begun = (OVERLAP + 1) * self._engine.shard_workers if waiting else 0
        failed_once = [(self._jobs[at], index) for at, index in again]
        following = [*failed_once, *waiting[begun:], *waiting[:begun]]
        return following + self._released({at for at, _ in (*again, *rest)})

    def _tell_failed(self, at: int, receipt: ShardReceipt, why: str = "") -> None:
        """Tells of a shard that failed; and why no other try can do better, if that is known."""
        failed = StepFailed(
            f"shard {receipt.index}",
            why or receipt.error,
            receipt.transient and not why,
            self._jobs[at].dataset,
            receipt.index,
            receipt.seconds,
            receipt.fault,
        )
        self._progress(failed)

    def _is_suspected_after(self, at: int, receipt: ShardReceipt, given_up: bool) -> bool:
        content = self._content(at, receipt.index)
        return self._common[at].is_suspected_after(content, receipt, given_up=given_up)

    def _keep_back(self, at: int, shards: list[tuple[ShardJob, int]]) -> None:
        """Keeps back a job's shards until those that failed alike are tried again."""
        if not self._common[at].is_certain:
            name = self._jobs[at].dataset or "one job"
            self._progress(
                Said(
                    f"{name}: no shard is counted, and the first ones failed with the same error; "
                    f"they are tried again before the other {count_of(len(shards), 'shard')}"
                )
            )
        self._kept_back[at] = self._kept_back.get(at, []) + shards

    def _released(self, following: set[int]) -> list[tuple[ShardJob, int]]:
        """Decides about the shards that are kept back.

        Args:
            following: The jobs of which other shards are run next.

        Returns:
            Those of jobs whose shards do not all fail alike.
        """
        released = []
        for at in [*self._kept_back]:
            common = self._common[at]
            if at not in self._ended and common.is_certain and not self._has_stored(at):
                self._ended.add(at)
            if common.has_landed or (at not in following and at not in self._ended):
                self._ended.discard(at)  # a shard was stored after all, by whomever
                released += self._kept_back.pop(at)
        return released

    def _has_stored(self, at: int) -> bool:
        """Checks whether a shard with images is stored that no receipt reported, by whomever."""
        folder = self._jobs[at].work_uri
        try:
            unreported = _stored_keys(folder) - self._empty[at]
        except VdnaError:  # the store may be what fails
            unreported = set()
        found = False
        for key in unreported:
            if found := _has_images(partial_uri(folder, key)):
                break
            self._empty[at].add(key)
        if found:
            self._common[at].landed()
        return found

    def _content(self, at: int, index: int) -> str:
        return self._plans[at].heads[index].content

    def _key(self, at: int, index: int) -> str:
        recipe = self._jobs[at].recipe
        return self._plans[at].heads[index].key(recipe.spec.digest, recipe.products)

    def _times(self, at: int, index: int) -> int:
        """Returns how many times a shard has failed in this build."""
        known = self._failed[at].get(self._content(at, index))
        return 0 if known is None else known.times

    def _is_given_up(self, at: int, index: int) -> bool:
        known = self._failed[at].get(self._content(at, index))
        return known is not None and known.is_given_up

    def _wait(self) -> list[tuple[ShardJob, int]]:
        """Waits for shards that another job counts; returns those that are to be taken over."""
        self._progress(Held(sum(map(len, self._others.held.values()))))
        pause = FIRST_PAUSE
        todo: list[tuple[ShardJob, int]] = []
        unanswered: Counter[str] = Counter()
        while self._others.held and not todo:
            sleep(pause)
            pause = min(pause * PAUSE_FACTOR, LONGEST_PAUSE)
            for work_uri in [*self._others.held]:  # of which several jobs may have shards
                present = partial(_stored_keys, work_uri)
                try:
                    found = self._others.look(work_uri, present, monotonic())
                except VdnaError as error:
                    unanswered[work_uri] += 1
                    if not isinstance(error, TransientError) or unanswered[work_uri] == TRIES:
                        self._lose_sight_of(work_uri, error)
                    continue
                del unanswered[work_uri]
                for at, index in found.stored:
                    receipt = ShardReceipt(self._jobs[at].manifest_uri, index)
                    self._is_stored(at, index, receipt)
                todo += [(self._jobs[at], index) for at, index in found.free]
                todo += [
                    (replace(self._jobs[at], claimant=""), index) for at, index in found.unclaimed
                ]
                if found.stored:
                    pause = FIRST_PAUSE
        if todo:
            self._progress(TakenOver(len(todo)))
        self._progress(Held(0))
        return todo + self._released({self._numbers[job.manifest_uri] for job, _ in todo})

    def _lose_sight_of(self, work_uri: str, error: VdnaError) -> None:
        """Gives up a dataset's shards that other jobs hold, as the store does not tell of them."""
        kind = type(error).__name__
        transient = isinstance(error, TransientError | SourceError)
        for at, index in self._others.forget(work_uri):
            receipt = ShardReceipt(
                self._jobs[at].manifest_uri,
                index,
                error=f"{kind}: {error}",
                kind=kind,
                transient=transient,
            )
            self._errors[at, index] = receipt
            self._tell_failed(at, receipt)

    def _is_stored(self, at: int, index: int, receipt: ShardReceipt) -> None:
        """Takes note of a shard that is stored, and tells of it."""
        self._left[at].discard(index)
        if receipt.images or receipt.reused or not receipt.counted:
            self._common[at].landed()
        else:  # none of its images could be read, so that it met no network
            self._empty[at].add(self._key(at, index))
        self._errors.pop((at, index), None)
        self._counted[at] += receipt.counted
        self._read[at] += receipt.images + receipt.failures
        self._read_bytes[at] += receipt.read_bytes
        self._unreadable[at] += receipt.failures
        if receipt.images and not receipt.reused:  # else it took time for more than its images
            self._images[at] += receipt.images
            self._seconds[at] += receipt.seconds
            self._image_bytes[at] += receipt.counted_bytes
            self._spent[at] = spent_together(self._spent[at], receipt.spent)
        ours = receipt.had_before or (at, index) in self._cut_off  # a worker had it at a cut
        if ours and not receipt.counted:
            self._read[at] += self._sizes[at][index]
        else:
            self._by_others += not receipt.counted
        self._ahead += receipt.ahead
        self._reused += receipt.reused
        name, size = f"shard {index}", self._sizes[at][index]
        done = StepDone(
            size,
            receipt.failures,
            receipt.seconds,
            name,
            receipt.ahead,
            self._jobs[at].dataset,
            index,
            receipt.work,
        )
        self._progress(done)
        if receipt.missed and not self._told:
            self._progress(Said(f"{name}: its worker decoded for a task: {receipt.missed}"))
            self._told = True
        if not self._left[at] and any(self._left):
            self._landed(at, self._ran(at))


def _all_missing(
    work: Sequence[tuple[ShardJob, Manifest]], told: Callable[[int, Exception], None] | None
) -> tuple[list[set[int]], set[int], set[int]]:
    """Looks at what is stored.

    Returns:
        The indices of each job's shards to run, the jobs of which they are not known, and those in
        whose folders a shard is stored, be it of an earlier plan.
    """

    def look(one: tuple[ShardJob, Manifest]) -> tuple[set[int], bool] | Exception:
        try:
            return _missing(one)
        except Exception as error:
            if told is None:
                raise
            return error

    left: list[set[int]] = []
    unlisted, begun = set(), set()
    for at, found in enumerate(map_in_order(look, work)):
        if isinstance(found, Exception):
            unlisted.add(at)
            if told is not None:
                told(at, found)
            left.append(set())
            continue
        left.append(found[0])
        if found[1]:
            begun.add(at)
    return left, unlisted, begun


def _missing(one: tuple[ShardJob, Manifest]) -> tuple[set[int], bool]:
    """Returns the indices of the shards that are not stored yet, and whether any shard is.

    Sums that may be of former partials of these shards are removed before one is counted.
    """
    job, manifest = one
    stored = _stored_keys(job.work_uri)
    keys = manifest.keys(job.recipe.spec.digest, job.recipe.products)
    left = {index for index, key in enumerate(keys) if key not in stored}
    if left:
        _remove_sums_over(job, manifest, {keys[index] for index in left})
    return left, bool(stored)


def _remove_sums_over(job: ShardJob, manifest: Manifest, missing: set[str]) -> None:
    """Removes the sums of a dataset if one of its whole tree is over a shard that is not stored.

    Somebody removed its partial after the sum was made, as its count was wrong, and so is the sum.
    Those of parts and of windows of days may be over the same shard, and go with it. They are not
    looked for where no sum of the whole is over it, so whoever removes partials removes the sums,
    too (see `pipeline.catalogue.findings`).

    Args:
        job: The job that counts the shards.
        manifest: The manifest of its shards.
        missing: The keys of the shards that are not stored.
    """
    levels, _ = plan_folds(manifest, job.work_uri, job.recipe.spec.digest, job.recipe.products)
    over = {node.uri for level in levels for node in level if not missing.isdisjoint(node.shards)}
    if not over:
        return
    try:
        found = {item.uri for item in walk_widely(storage.join(job.work_uri, "nodes"))}
    except SourceError:
        return
    if not found & over:
        return
    # Another job may have stored some of the shards meanwhile, and added them up.
    missing = missing - _stored_keys(job.work_uri)
    over = {node.uri for level in levels for node in level if not missing.isdisjoint(node.shards)}
    if wrong := found & over:
        storage.delete_all(sorted(found - wrong))
        storage.delete_all(sorted(wrong))  # last, so that a later run sees what is left to do


def _has_images(uri: str) -> bool:
    """Tells whether a stored partial has images. One that cannot be read is taken to have some."""
    try:
        return load_partial(uri).dna.images > 0
    except VdnaError:
        return True


def _stored_keys(work_uri: str) -> set[str]:
    """Returns the keys of the shards that are stored, found by one listing."""
    try:
        items = list(walk_widely(storage.join(work_uri, "partials")))
    except SourceError:
        return set()
    return {item.uri.rpartition("/")[2].removesuffix(".parquet") for item in items}
