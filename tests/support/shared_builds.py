"""Runs several jobs at once on one catalogue, each in a process of its own.

    python -m tests.support.shared_builds TINY SOURCES CLEAN CATALOGUES JOBS WHAT

WHAT is `build` for builds of one dataset, `kill` for the same where the first job kills itself by
SIGKILL in the middle, or `refresh` for refreshes of all folders of SOURCES. Each shard takes
`SECONDS` more than it would. The jobs build into CATALOGUES/shared; one alone builds the same into
CLEAN before, unless that is there. Prints as JSON the keys that each job counted, in the order in
which it began them, and its exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.counting import Counter
from pipeline.engine import InProcess
from pipeline.refreshing import refresh
from pipeline.spec import Resources
from tests.support import tiny_network as tiny

SECONDS = 0.05
DIES_AT = 7
RESOURCES = Resources(workers=0, threads=1)


def build(place: tiny.Place, source: str, root: str) -> None:
    options = {"max_failures": 100, "shard_images": 1}
    folders = [Path(source)]
    requests = [Request(f.name, str(f), **(place.options | options)) for f in folders]
    with InProcess() as engine:
        build_datasets(Catalogue(root), requests, engine, RESOURCES)


def refresh_all(place: tiny.Place, sources: str, root: str) -> None:
    config = Path(f"{root}.{os.getpid()}.yaml")
    options: dict[str, Any] = place.options | {"shard_images": 1, "max_failures": 100}
    names = sorted(folder.name for folder in Path(sources).iterdir())
    datasets = [{"name": name, "source": f"{sources}/{name}"} | options for name in names]
    config.write_text(json.dumps({"catalogue": root, "datasets": datasets}))
    refresh(str(config), resources=RESOURCES).require_ok()


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def main(folder: str, sources: str, clean: str, catalogues: str, jobs: int, what: str) -> None:
    place = tiny.Place(str(Path(folder) / "tiny.pt"), str(Path(folder) / "tiny.ranges.parquet"))
    tiny.register()
    source = sources if what == "refresh" else str(min(Path(sources).iterdir()))
    run = refresh_all if what == "refresh" else build
    if not Path(clean).exists():
        run(place, source, clean)
    make = Counter.make
    begin, told = os.pipe(), Path(catalogues)
    met = get_context("fork").Barrier(jobs)

    def job(number: int) -> None:
        counted: list[str] = []
        lock, all_count = threading.Lock(), threading.Event()
        (told / f"{number}.json").write_text("[]")

        def slow(counter: Counter, shard: Any, key: str, **how: Any) -> Any:
            with lock:
                counted.append(key)
                mine = len(counted)
                (told / f"{number}.json").write_text(json.dumps(counted))
            if mine == 1:  # a job that is late finds shards left, too
                with suppress(threading.BrokenBarrierError):
                    met.wait(30)
                all_count.set()
            all_count.wait()
            time.sleep(SECONDS)
            if what == "kill" and number == 0 and mine == DIES_AT:
                with lock:  # while another thread writes, the file may be empty
                    os.kill(os.getpid(), signal.SIGKILL)
            return make(counter, shard, key, **how)

        Counter.make = slow  # type: ignore[method-assign]
        os.close(begin[1])
        os.read(begin[0], 1)  # ends when the parent closes it: all begin at once
        run(place, source, f"{catalogues}/shared")

    pids = [forked(lambda number=number: job(number)) for number in range(jobs)]  # type: ignore[misc]
    os.close(begin[1])
    started = time.monotonic()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in reversed(pids)][::-1]
    counted = [json.loads((told / f"{number}.json").read_text()) for number in range(jobs)]
    seconds = time.monotonic() - started
    print(json.dumps({"codes": codes, "counted": counted, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), sys.argv[6])
