"""Runs builds that kill themselves, each in its own process, at a stated write to a catalogue.

    python -m tests.support.killed_builds TINY SOURCE CATALOGUES STEP FIRST

A write is what Python's audit hooks tell of: opening to write, linking, renaming, removing; and
syncing a file, half of which is then cut off. For every STEP-th of them from FIRST on, a build into
CATALOGUES/<number> dies there by SIGKILL, and the same build is run again; until there are no more
(threads that race make a few more or less). Prints as JSON what each died at.

The processes are forked from one that has built the same undisturbed, and so have all that a build
imports and compiles.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.spec import Resources
from tests.support import tiny_network as tiny

WRITES = {"os.link", "os.rename", "os.remove", "shutil.rmtree"}


def build(place: tiny.Place, source: str, root: str) -> None:
    options = {"max_failures": 100, "shard_images": 1, "layer_gaussian": True, "group_by": "1"}
    request = Request("photos", source, **(place.options | options))
    engine = InProcess()
    build_datasets(Catalogue(root), [request], engine, Resources(workers=0, threads=1))
    engine._worker.close()


def die_at_write(root: str, at: int, tell: Callable[[str], None]) -> None:
    """Makes this process die at the write of that number below `root`."""
    numbers = itertools.count(1)  # each is taken by one thread

    def write(event: str) -> bool:
        mine = next(numbers) == at
        if mine:
            tell(event)
        return mine

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            writes = event in WRITES
        if writes and str(args[0]).startswith(root) and write(f"{event} {args[0]}"):
            os.kill(os.getpid(), signal.SIGKILL)

    real = os.fsync

    def sync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if path.startswith(root) and os.path.isfile(path) and write(f"sync {path}"):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    sys.addaudithook(hook)
    os.fsync = sync


def forked(work: Callable[[Callable[[str], None]], None]) -> tuple[int, str]:
    """Does the work in a child process; returns its exit code and what it told."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            work(lambda text: os.write(writer, text.encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def main(folder: str, source: str, catalogues: str, step: int, first: int) -> None:
    place = tiny.Place(str(Path(folder) / "tiny.pt"), str(Path(folder) / "tiny.ranges.parquet"))
    tiny.register()

    build(place, source, f"{catalogues}/clean")
    deaths = {}
    for at in itertools.count(first, step):
        root = f"{catalogues}/{at}"

        def build_until_killed(tell: Callable[[str], None], root: str = root, at: int = at) -> None:
            die_at_write(root, at, tell)
            build(place, source, root)

        code, told = forked(build_until_killed)
        if code == 0:
            break
        assert code == -signal.SIGKILL, f"write {at}: ended with {code}"
        code, _ = forked(lambda tell, root=root: build(place, source, root))
        assert code == 0, f"the build after the death at write {at}, {told}"
        deaths[at] = told.replace(f"{root}/", "")
    print(json.dumps(deaths))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:6]))
