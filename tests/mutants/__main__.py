"""Runs mutants: each is a process that is forked with the fault in place of the module's code.

The parent has imported the libraries, and nothing of ours. So a mutant costs the tests alone. First
those tests run that reach the changed line; then, if none fails, all others of the module's list,
because an import or a fixture may have reached the line for several tests. A test that is quick, or
has killed many mutants, runs before others.

Numba's compiled kernels are cached by their file, so modules with kernels are not among those that
are mutated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

import coverage
import pytest
from hypothesis import Phase, settings

from tests.mutants.making import Mutant, mutants_of, mutated
from tests.mutants.plan import IN_FULL, MODULES, ONLY

ROOT = Path(__file__).parents[2]
EXPLAINED = ROOT / "docs" / "mutants.md"
OURS = ("pipeline", "jobs", "tests", "conftest")
OPTIONS = (
    *("-x", "-q", "-m", "not soak", "-p", "no:cacheprovider", "--hypothesis-seed=0"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # the parent has imported the plugins
    "--hypothesis-profile=mutants",
)
settings.register_profile(  # nobody reads the smallest example that fails, which takes long to find
    "mutants", deadline=None, phases=[Phase.explicit, Phase.generate]
)
SECONDS_MORE = 40.0
TIMES_SLOWER = 5
NO_TESTS = 5
"""The status of pytest if it found none."""

BROKEN = 70
"""The status of a process in which this driver has failed."""

CHARACTERS_SHOWN = 8000
"""How much of what tests print is shown, from the end, if they fail without a fault."""


class Quick:
    """Leaves out what would start a server or a cluster for each mutant."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not _slow(item)]


def _slow(item: pytest.Item) -> bool:
    name, _, values = item.name.partition("[")
    asks_s3 = "s3_server" in item.fixturenames or re.match(r"s3[]-]", values)  # type: ignore[attr-defined]
    return bool(asks_s3) or "_ray_" in name


@dataclass
class Baseline:
    """What the tests of a module do without a fault.

    `seconds` that each test took, the tests that reach each `lines`, the `modules` that they
    import, and how many mutants each test has killed so far.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[int, list[str]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def first(self, test: str) -> float:
        """Returns the order in which to run tests: the smallest first."""
        return self.seconds[test] / (1 + self.kills[test])


def main() -> int:
    arguments = argparse.ArgumentParser(prog="tests.mutants", description=__doc__)
    arguments.add_argument("--modules", nargs="+", choices=sorted(MODULES), metavar="MODULE")
    arguments.add_argument("--seconds", type=float, help="Run a sample for so long.")
    arguments.add_argument("--only", nargs="+", metavar="TEXT", help="Those of such names.")
    arguments.add_argument("--list", action="store_true", help="Only name the mutants.")
    given = arguments.parse_args()
    os.chdir(ROOT)
    os.environ["VDNA_TEST_S3"] = "moto"  # Ceph is not needed, and takes long to start
    modules = given.modules or (IN_FULL if given.seconds else list(MODULES))

    def wanted(name: str) -> bool:
        return not given.only or any(text in name for text in given.only)

    mutants = [
        (path, mutant) for path in modules for mutant in _mutants(path) if wanted(mutant.name)
    ]
    if given.list:
        for _, mutant in mutants:
            print(mutant.name)
        return 0
    end = None
    if given.seconds:
        end = time.monotonic() + given.seconds
        seed = _seed()
        # One module after the other, as the tests of each are measured first.
        mutants.sort(key=lambda each: [_draw(seed, text) for text in (each[0], each[1].name)])
        print(f"a sample of {len(mutants)} mutants of {len(modules)} modules, by commit {seed}")
    survivors = run_all(mutants, end)
    known = explanations(EXPLAINED.read_text(encoding="utf-8"))
    unexplained = [name for name in survivors if name not in known]
    stale = outdated(known)
    for name in unexplained:
        print(f"survived, and {EXPLAINED.relative_to(ROOT)} does not say why: {name}")
    for name in stale:
        print(f"{EXPLAINED.relative_to(ROOT)} explains a mutant that is no more: {name}")
    return 1 if unexplained or stale else 0


def explanations(text: str) -> set[str]:
    """Finds the mutants that a page explains: list items that begin with a name in backquotes."""
    return set(re.findall(r"^- `([^`]+)`:(?: |\n  )\S", text, re.MULTILINE))


def outdated(known: set[str]) -> list[str]:
    """Finds the mutants that are explained and exist no more, since the code has changed."""
    return sorted(known - {mutant.name for path in MODULES for mutant in _mutants(path)})


def run_all(mutants: Sequence[tuple[str, Mutant]], end: float | None) -> list[str]:
    """Runs mutants until the time is over, and returns the names of those that survive."""
    survivors, fates = [], Counter[str]()
    baselines: dict[str, Baseline] = {}
    started = time.monotonic()
    for done, (path, mutant) in enumerate(mutants):
        if end is not None and time.monotonic() > end:
            print(f"the time is over after {done} of {len(mutants)}")
            break
        if path not in baselines:
            baselines[path] = _ready(path)
        fate = run(path, mutant, baselines[path])
        fates[fate] += 1
        if fate == "survived":
            survivors.append(mutant.name)
        rate = (done + 1) / (time.monotonic() - started)
        print(f"{done + 1}/{len(mutants)} {60 * rate:.1f}/min {fate}: {mutant.name}", flush=True)
    print(", ".join(f"{count} {fate}" for fate, count in sorted(fates.items())))
    return survivors


def _ready(path: str) -> Baseline:
    """Measures the tests of a module, imports their libraries, and runs them once more."""
    known = baseline(path)
    for module in known.modules:
        with contextlib.suppress(Exception):  # a test made it, and no file holds it
            importlib.import_module(module)
    status, printed = forked(lambda: _test_mutant(path, None, list(known.seconds)))
    _require_no_failure(f"the tests of {path} fail in a fork without a fault", status, printed)
    return known


def _require_no_failure(problem: str, status: int | None, printed: str) -> None:
    """Raises an error that shows what tests have printed, unless they passed."""
    if status != 0:
        raise RuntimeError(f"{problem} (status {status}). They printed:\n{printed}")


def run(path: str, mutant: Mutant, known: Baseline) -> str:
    """Returns the fate of a mutant: killed, timeout or survived."""
    reaching = set(known.lines.get(mutant.line, ()))
    in_order = sorted(known.seconds, key=known.first)
    near = [test for test in in_order if test in reaching]
    others = [test for test in in_order if test not in reaching]
    for tests in (near, others):
        if not tests:
            continue
        limit = TIMES_SLOWER * sum(known.seconds[test] for test in tests) + SECONDS_MORE
        with tempfile.NamedTemporaryFile() as failed:
            failing = Path(failed.name)
            status, _ = forked(partial(_test_mutant, path, mutant, tests, failing), limit)
            known.kills.update(failing.read_text(encoding="utf-8").splitlines())
        if status is None:
            return "timeout"
        if status != 0:
            return "killed"
    return "survived"


def _test_mutant(
    path: str, mutant: Mutant | None, tests: Sequence[str], failing: Path | None = None
) -> int:
    """Runs tests until one fails, whose name goes into a file."""
    file = str(ROOT / "pipeline" / path)
    code = compile(
        mutated(_source(path), path, mutant and mutant.number), file, "exec", dont_inherit=True
    )
    real = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> Any:
        return code if self.get_filename(name) == file else real(self, name)

    class Plugin:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and failing is not None:
                failing.write_text(report.nodeid, encoding="utf-8")

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    return int(pytest.main([*OPTIONS, *tests], [Quick(), Plugin()]))


def baseline(path: str) -> Baseline:
    """Runs the tests of a module without a fault, and notes which test reaches which line."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "baseline.json")
        problem = f"the tests of {path} fail without a fault"
        status, printed = forked(lambda: _measure(path, out))
        if status != 0:  # a busy machine; all of them pass in `make test`, which judges them
            print(f"{problem}, and run once more. They printed:\n{printed}", flush=True)
            status, printed = forked(lambda: _measure(path, out))
        _require_no_failure(problem, status, printed)
        noted = json.loads(out.read_text())
    return Baseline(
        noted["seconds"], {int(at): tests for at, tests in noted["lines"].items()}, noted["modules"]
    )


def _measure(path: str, out: Path) -> int:
    file = str(ROOT / "pipeline" / path)
    measured = coverage.Coverage(data_file=None, include=[file], config_file=False)
    seconds: defaultdict[str, float] = defaultdict(float)

    class Plugin:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            measured.switch_context(item.nodeid)
            return (yield)

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if not report.skipped:
                seconds[report.nodeid] += report.duration

    measured.start()
    status = int(
        pytest.main([*OPTIONS, *(f"tests/{each}" for each in MODULES[path])], [Quick(), Plugin()])
    )
    measured.stop()
    contexts = measured.get_data().contexts_by_lineno(file)
    lines = {at: [name for name in names if name in seconds] for at, names in contexts.items()}
    modules = [name for name in sys.modules if name.partition(".")[0] not in OURS]
    out.write_text(json.dumps({"seconds": seconds, "lines": lines, "modules": modules}))
    return status


def forked(work: Callable[[], int], limit: float | None = None) -> tuple[int | None, str]:
    """Runs work in a process of its own.

    Args:
        work: What to run. It returns its status.
        limit: Seconds after which the process is killed.

    Returns:
        The status, or None if it took too long; and the end of what it has printed.

    Raises:
        RuntimeError: This driver has failed, or no tests were found.
    """
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _work_in_child(work, said.fileno())
        end = None if limit is None else time.monotonic() + limit
        while not (ended := os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            if end is not None and time.monotonic() > end:
                break
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what it has started
        _, status = os.waitpid(child, 0)
        said.seek(0)
        printed = said.read().decode(errors="replace")[-CHARACTERS_SHOWN:]
        if not ended:
            return None, printed
        if (code := os.waitstatus_to_exitcode(status)) in (BROKEN, NO_TESTS):
            raise RuntimeError(f"no tests were run: {printed}")
        return code, printed


def _work_in_child(work: Callable[[], int], said: int) -> NoReturn:
    status = BROKEN
    try:
        os.setsid()
        os.dup2(said, 1)
        os.dup2(said, 2)
        status = work()
    except BaseException:
        os.write(said, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _mutants(path: str) -> list[Mutant]:
    found = mutants_of(_source(path), path)
    return [mutant for mutant in found if mutant.scope in ONLY.get(path, (mutant.scope,))]


def _source(path: str) -> str:
    return (ROOT / "pipeline" / path).read_text(encoding="utf-8")


def _draw(seed: str, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def _seed() -> str:
    """The commit at hand, so that a sample can be run again, and another commit has another."""
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or str(datetime.now(UTC).date())  # a copy without its history


if __name__ == "__main__":
    sys.exit(main())
