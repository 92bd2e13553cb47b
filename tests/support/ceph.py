"""Starts a real S3 server: Ceph's RADOS Gateway, from Debian's packages, in memory.

    $ python -m tests.support.ceph  # prints its settings, and runs until Ctrl-C
    AWS_ENDPOINT_URL=http://127.0.0.1:41675
    ...

It consists of a monitor, a storage daemon and a gateway, on free local ports. They end with the
process that started them, however it ends, and leave nothing behind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

INSTALL = "apt-get install radosgw ceph-mon ceph-osd"
PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "setpriv")
START_SECONDS = 60
READY = "# ready"
CONFIGURATION = """\
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{monitor}]
public network = 127.0.0.0/8
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}
run dir = {folder}
keyring = {folder}/keyring
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
osd class dir = {classes}
osd objectstore = memstore
memstore device bytes = 8589934592
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail warn = 2
mon osd initial require min compat client = luminous
# There is no other monitor to wait for.
paxos propose interval = 0.02
paxos min wait = 0.01
# An hour, not 16 s: an OSD that got no CPU for so long answers no more reads until a replica
# renews its lease, and here is none.
osd pool default read lease ratio = 180
rgw run sync thread = false
rgw enable gc threads = false
rgw enable lc threads = false

[mon.a]
public addr = v2:127.0.0.1:{monitor}
"""


def missing() -> list[str]:
    """Gives the programs that a server needs and that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def version() -> str:
    """Gives the version, such as `18.2.7`."""
    return _output("radosgw", "--version").split()[2].partition("+")[0]


@contextmanager
def started() -> Iterator[dict[str, str]]:
    """Starts a server in a process of its own, which outlives this one only to clean up.

    Yields what S3 clients, and Ceph's own for `CEPH_CONF`, take from their environment.
    """
    command = [*_until_we_end("TERM"), sys.executable, "-m", "tests.support.ceph"]
    where = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=where, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            settings = {}
            for line in process.stdout:
                if line.startswith(READY):
                    break
                name, _, value = line.rstrip("\n").partition("=")
                settings[name] = value
            else:
                raise RuntimeError(f"{' '.join(command)} ended before it was ready")
            yield settings
        finally:
            process.terminate()


def new_user(name: str) -> tuple[str, str]:
    """Adds a user to the server that `CEPH_CONF` names, and gives its access and secret key."""
    made = _output("radosgw-admin", "user", "create", "--uid", name, "--display-name", name)
    keys = json.loads(made)["keys"][0]
    return keys["access_key"], keys["secret_key"]


@contextmanager
def _serving() -> Iterator[dict[str, str]]:
    """Starts the daemons as children of this process."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceph-")))
        keyring = str(folder / "keyring")

        def daemon(*command: str) -> None:
            with open(folder / f"{command[0]}.out", "wb") as out:
                process = subprocess.Popen(
                    [*_until_we_end("KILL"), *command, "-f"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)  # nothing of it is to be kept

        os.environ["CEPH_CONF"] = str(folder / "ceph.conf")
        (folder / "ceph.conf").write_text(
            CONFIGURATION.format(
                folder=folder, fsid=uuid.uuid4(), monitor=free_port(), classes=_classes()
            )
        )
        all_caps = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
        _output("ceph-authtool", "--create-keyring", keyring)
        for name in ("mon.", "client.admin", "osd.0"):
            _output("ceph-authtool", keyring, "--gen-key", "--name", name, *all_caps)
        _output("ceph-mon", "--id", "a", "--mkfs", "--keyring", keyring)
        daemon("ceph-mon", "--id", "a")
        osd = str(uuid.uuid4())
        _output("ceph", "osd", "new", osd)
        (folder / "osd").mkdir()
        _output("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", osd)
        daemon("ceph-osd", "--id", "0")
        access, secret = new_user("tests")
        port = free_port()
        frontend = f"beast endpoint=127.0.0.1:{port} tcp_nodelay=1"  # else a GET takes 40 ms
        daemon("radosgw", "--name", "client.admin", "--rgw-frontends", frontend)
        _wait_for(port)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "CEPH_CONF": os.environ["CEPH_CONF"],
        }


def _until_we_end(signal_name: str) -> list[str]:
    """Gives the words before a command that send it a signal once its starter has ended."""
    return ["setpriv", "--pdeathsig", signal_name]


def _output(*command: str) -> str:
    """Runs a command; if it fails, raises `RuntimeError` with what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exits {done.returncode}: {done.stderr[:2000]}")
    return done.stdout


def _classes() -> str:
    """Finds the folder of plug-ins: Debian's is not the one that is compiled in."""
    found = [*Path("/usr").glob("lib*/rados-classes"), *Path("/usr").glob("lib*/*/rados-classes")]
    if not found:
        raise RuntimeError(f"no folder rados-classes below /usr/lib; {INSTALL}")
    return str(found[0])


def free_port() -> int:
    """Gives a free port from outside the range that the system hands out by itself."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _wait_for(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with suppress(KeyboardInterrupt), _serving() as settings:
        for name, value in settings.items():
            print(f"{name}={value}")
        print(READY, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
