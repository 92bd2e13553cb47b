"""Ray starts without waiting for its own looks, and what takes long is imported meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private import services
from ray._private.node import Node

from pipeline.engine import RayEngine, ray_start
from pipeline.engine.ray_start import (
    MAX_STARTS,
    NODE_LOOK_SECONDS,
    START_ENVIRONMENT,
    _named,
    importing,
    looking_often,
    start_with_retries,
    without_stderr,
)
from pipeline.errors import TransientError
from pipeline.spec import Resources


class Head:
    """A head that knows a node after some looks."""

    looks_before = 3
    looks = 0

    def _initialize_global_state(self, options: object) -> None:
        assert options is not None

    def node_table(self) -> list[dict[str, str]]:
        Head.looks += 1
        return [{"NodeID": "other"}, {"NodeID": "ours"}][: 1 + (Head.looks > Head.looks_before)]


@pytest.mark.parametrize(
    ("patience", "looks"), [(60.0, 4), (0.0, 0)], ids=["it comes", "it takes long"]
)
def test_a_node_is_seen_when_it_is_there(
    monkeypatch: pytest.MonkeyPatch, patience: float, looks: int
) -> None:
    """If it takes long, Ray goes on by itself, and says what is wrong."""
    slept: list[float] = []
    asked: list[tuple[str, str, int]] = []

    def ask(gcs_address: str, node_id: str) -> dict[str, Any]:
        asked.append((gcs_address, node_id, Head.looks))
        return {"node_id": node_id}

    monkeypatch.setattr(services, "get_node", ask)
    monkeypatch.setattr(services, "_get_gcs_client_options", lambda address: address)
    monkeypatch.setattr(ray_start, "GlobalState", Head)
    monkeypatch.setattr(Head, "looks", 0)
    monkeypatch.setattr(ray_start, "sleep", slept.append)
    monkeypatch.setattr(ray_start, "QUICK_SECONDS", patience)
    with looking_often():
        assert services.get_node("host:1", "ours") == {"node_id": "ours"}
    assert asked == [("host:1", "ours", looks)]
    assert slept == [NODE_LOOK_SECONDS] * max(0, looks - 1)
    assert services.get_node is ask


class NodeThatFails(Node):  # type: ignore[misc]  # Ray gives it no types
    """A node that starts an agent, and fails. Ray ends what it knows of, which is not the agent."""

    def __init__(self, folder: Path, kept: list[subprocess.Popen[bytes]]) -> None:
        self.all_processes = {"raylet": ["one"]}
        self.folder = folder
        self._node_id = f"{len(kept):056x}"
        kept.append(sleeper(f"--log-dir={folder}/logs", _named(self._node_id)))
        raise RuntimeError("the raylet ended")

    def kill_all_processes(self, *args: Any, **kwargs: Any) -> None:
        pass

    def get_session_dir_path(self) -> str:
        return str(self.folder)

    def get_logs_dir_path(self) -> str:
        return str(self.folder / "logs")


def sleeper(*arguments: str) -> subprocess.Popen[bytes]:
    """Starts a process that does nothing for a minute, and returns when it runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", *arguments],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"\n"
    return process


def test_a_node_that_failed_leaves_no_agent(tmp_path: Path) -> None:
    """An agent of another node of the same cluster, whose folder is the same, goes on."""
    agents: list[subprocess.Popen[bytes]] = []
    other = sleeper(f"--log-dir={tmp_path / 'ours'}/logs", _named("f" * 56))
    try:
        with pytest.raises(TransientError, match=f"{MAX_STARTS} times: the raylet ended"):
            start_with_retries(lambda: NodeThatFails(tmp_path / "ours", agents))
        assert len(agents) == MAX_STARTS
        for agent in agents:
            agent.wait(10)  # long before it ends by itself
        assert other.poll() is None
    finally:
        for process in [other, *agents]:
            process.kill()
            process.wait()


@pytest.mark.soak
def test_a_real_start_looks_by_itself_and_its_node_has_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both rest on names inside Ray, which may be others in its next version."""
    heads: list[Any] = []
    real = ray_start.GlobalState

    def made() -> Any:
        heads.append(real())
        return heads[-1]

    monkeypatch.setattr(ray_start, "GlobalState", made)
    with RayEngine(Resources(workers=1)) as engine:
        assert list(engine.map(_square, [3])) == [9]
        (raylet,) = (
            each
            for each in psutil.Process().children(recursive=True)
            if Path(each.exe()).name == "raylet"
        )
        assert START_ENVIRONMENT.items() <= raylet.environ().items()
        names = Path(raylet.exe()).read_bytes()
        node: Any = ray_start.worker._global_node
        commands = [word for word in raylet.cmdline() if "_agent_command=" in word]
        assert commands
        for command in commands:  # until an agent runs, and sets a title of its own
            assert _named(node.node_id) in command.split()
    assert heads
    for name in START_ENVIRONMENT:
        assert name.encode() in names


@pytest.mark.soak
def test_a_ray_that_ends_leaves_no_process_where_the_machine_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray gives each process a second to end, and another one after it is killed."""
    wait = subprocess.Popen.wait

    def slowly(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout == 1:
            raise subprocess.TimeoutExpired(process.args, timeout)
        return wait(process, timeout)

    with RayEngine(Resources(workers=1)):
        node: Any = ray_start.worker._global_node
        processes = [info.process for several in node.all_processes.values() for info in several]
        monkeypatch.setattr(subprocess.Popen, "wait", slowly)
    assert len(processes) >= 2
    assert [process.args for process in processes if process.returncode is None] == []


def _square(number: int) -> int:
    return number * number


def test_ray_starts_before_ray_data_and_pandas_are_imported() -> None:
    code = (
        "import sys, pipeline.engine.ray_engine\n"
        "print([name for name in ('ray', 'ray.data', 'pandas') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['ray']"


def test_a_module_is_imported_when_the_block_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "takes_long.py").write_text("import time\ntime.sleep(0.2)\nvalue = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ZeroDivisionError), importing("takes_long"):
        _ = 1 / 0
    assert sys.modules.pop("takes_long").value == 7


def test_stderr_is_back_after_blocks_that_overlap(capfd: pytest.CaptureFixture[str]) -> None:
    """Two threads may end what they had of Ray at the same time."""
    first, second = without_stderr(), without_stderr()
    first.__enter__()
    os.write(2, b"lost")
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, b"lost, too")
    second.__exit__(None, None, None)
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"
