"""Runs work in a child process, with its own allocator settings, and measures its peak of memory.

    result = run("benchmarks.reference", {"folder": ...}, tuned_malloc=True)

The module's `main` sees `--child` and calls `answer(work)`. Settings come in on standard input as
JSON, and the result goes out on standard output as JSON. Whatever the work prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

TUNED_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Keeps glibc from giving every large tensor back to the kernel, page fault by page fault."""


def part_of(size: float) -> int:
    """How much to measure of something, where BENCHMARK_SHARE=0.05 asks to try it with little."""
    return max(1, round(size * float(os.environ.get("BENCHMARK_SHARE", "1"))))


def run(
    module: str,
    settings: dict[str, Any],
    *,
    tuned_malloc: bool,
    python: str = sys.executable,
) -> dict[str, Any]:
    """The child's result, with `peak_mb`: the process and its workers, shared pages once (PSS).

    Raises `RuntimeError` with the end of its standard error where it fails.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    if tuned_malloc:
        environment |= TUNED_MALLOC
    with subprocess.Popen(
        [python, "-m", module, "--child"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        done = threading.Event()
        peak = [0]
        watch = threading.Thread(target=_watch, args=(child.pid, done, peak), daemon=True)
        watch.start()
        output, errors = child.communicate(json.dumps(settings))
        done.set()
        watch.join()
    if child.returncode:
        raise RuntimeError(f"{module} exited with {child.returncode}: {errors[-3000:]}")
    return {**json.loads(output), "peak_mb": round(peak[0] / 1e6), "tuned_malloc": tuned_malloc}


def _watch(pid: int, done: threading.Event, peak: list[int]) -> None:
    import psutil  # here, so that the child's interpreter need not have it

    while not done.wait(0.25):
        total = 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
        peak[0] = max(peak[0], total)


@contextlib.contextmanager
def phase(into: dict[str, Any]) -> Iterator[None]:
    """Notes what the block took: its seconds, and this process's own peak of resident memory.

    The kernel's high-water mark, begun anew. Its parts, anonymous pages and those of mapped files
    (libraries among them), are those of the most that was seen 50 times a second. Noted even where
    the block fails.
    """
    done = threading.Event()
    most = {"VmRSS": 0, "VmHWM": 0, "RssAnon": 0, "RssFile": 0}

    def look() -> None:
        seen = _status()
        most["VmHWM"] = seen["VmHWM"]
        if seen["VmRSS"] > most["VmRSS"]:
            most.update(seen)

    def watch() -> None:
        while not done.wait(0.02):
            look()

    own = _forget_peak()
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        done.set()
        watching.join()
        look()
        into |= {
            "seconds": round(seconds, 1),
            "peak_mb": round(most["VmHWM" if own else "VmRSS"] / 1e6),
            "anonymous_mb": round(most["RssAnon"] / 1e6),
            "file_mb": round(most["RssFile"] / 1e6),
        }


def _forget_peak() -> bool:
    """Whether the kernel let its mark begin anew; then the most that was seen has to do."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status() -> dict[str, int]:
    """Returns the fields of this process's status that are sizes, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def answer(work: Callable[..., dict[str, Any]]) -> None:
    """In the child: `work(**settings)`, with standard output kept free for the result."""
    settings = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        result = work(**settings)
    print(json.dumps(result))


def keep(path: Path, result: dict[str, Any]) -> None:
    """The result so far in a file, whole or not at all. Its folder is made anew if it went away;
    a file that cannot be written is told of, and costs no measurement.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        print(f"{path} is not written: {error}", file=sys.stderr)


def emit(result: dict[str, Any], line: str) -> None:
    """The result as JSON on standard output, and a line for people on standard error."""
    print(json.dumps(result, indent=1))
    print(line, file=sys.stderr)
