"""Decodes images in a process apart, so that one that crashes or stalls costs no worker.

>>> decode_isolated(Path("cat.jpg").read_bytes(), rule, seconds=60).pixels.shape  # doctest: +SKIP
(300, 451, 3)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from signal import Signals
from time import monotonic
from typing import ClassVar

import numpy as np

from pipeline import errors
from pipeline.errors import BadImage, VdnaError
from pipeline.images.decoders import decoder_function, use_decoder
from pipeline.images.decoding import Decoded, check_rule, decode
from pipeline.spec import Preprocess


def decode_isolated(data: bytes, rule: Preprocess, seconds: float, attempts: int = 3) -> Decoded:
    """Does what `decode` does in another process.

    The process answers for many images. After a crash, or `seconds` without an answer, a new one
    gets the image.

    Args:
        data: The bytes of the file.
        rule: Its limits, EXIF rule and decoder are used.
        seconds: The time limit of one attempt, including the start of the process.
        attempts: How many processes may be tried.

    Returns:
        RGB pixels, and whether any of them is transparent.

    Raises:
        BadImage: If the image cannot be decoded. After the last attempt the reason is
            "decoder_crashed" or "timeout".
        VdnaError: If the process cannot start, or the user's own decoder cannot be used.
    """
    check_rule(rule)
    asked = asdict(rule) | {"bytes": len(data)}
    if rule.decoder is not None:
        path = [os.path.abspath(folder) for folder in sys.path]
        asked |= {"function": decoder_function(rule.decoder), "path": path}
    question = json.dumps(asked).encode() + b"\n" + data
    failure = BadImage("decoder_crashed", f"{attempts} attempts allowed")
    for attempt in range(attempts):
        # What another image has spoilt must not count against this one.
        decoder = _Decoder.resting() if attempt == 0 else _Decoder.new()
        try:
            answer = decoder.ask(question, seconds)
        except TimeoutError:
            decoder.end()
            failure = BadImage("timeout", f"not decoded in {seconds:g} s, {attempts} times")
            continue
        except BaseException:
            decoder.end()
            raise
        if answer is not None:
            decoder.rest()
            return _answer(answer)
        ending, last_words = decoder.end()
        if last_words.startswith(("ModuleNotFoundError", "ImportError")):
            raise VdnaError(f"the decoding process cannot start: {last_words}")
        failure = BadImage("decoder_crashed", f"{ending}, {attempts} times; {last_words}")
    raise failure


# In a process of its own


PIPE_BYTES = 2**20

MAX_AT_REST = 8
"""Decoding processes that wait for another image."""


def _isolated_command() -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline.images.isolated"]


def _isolated_environment() -> dict[str, str]:
    """Returns this process's environment, with this package first on the path."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class _Decoder:
    """A process that decodes one image after the other when it is asked to."""

    _at_rest: ClassVar[list[_Decoder]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._made_by = command, environment
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process ends
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=environment,
        )
        pipes = (self._child.stdin, self._child.stdout)
        self._to, self._from = (pipe.fileno() for pipe in pipes if pipe is not None)
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)

    @classmethod
    def new(cls) -> _Decoder:
        return cls(_isolated_command(), _isolated_environment())

    @classmethod
    def resting(cls) -> _Decoder:
        """Returns a process that has answered well before, or a new one."""
        made_by = _isolated_command(), _isolated_environment()
        while True:
            with cls._lock:
                found = next((d for d in cls._at_rest if d._made_by == made_by), None)
                if found is None:
                    return cls(*made_by)
                cls._at_rest.remove(found)
            if found._child.poll() is None:
                return found
            found.end()  # it died while it waited: when memory runs out, these are killed first

    def rest(self) -> None:
        with self._lock:
            self._at_rest.append(self)
            oldest = self._at_rest.pop(0) if len(self._at_rest) > MAX_AT_REST else None
        if oldest is not None:
            oldest._child.kill()
            oldest.end()

    def ask(self, question: bytes, seconds: float) -> bytes | None:
        """Returns the answer, or None if the process ended or answered in an unknown form.

        Raises:
            TimeoutError: If there is no whole answer after so many seconds; the process is killed.
        """
        deadline = monotonic() + seconds
        left, answer = memoryview(question), bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(self._from, selectors.EVENT_READ)
            ready.register(self._to, selectors.EVENT_WRITE)
            while (patience := deadline - monotonic()) > 0:
                for key, _ in ready.select(patience):
                    if key.fd == self._to:
                        try:
                            left = left[os.write(self._to, left[:PIPE_BYTES]) :]
                        except BrokenPipeError:
                            left = left[:0]
                        if not left:
                            ready.unregister(self._to)
                        continue
                    block = os.read(self._from, PIPE_BYTES)
                    answer += block
                    if not block or not answer.startswith(b"{"):
                        return None
                    end = answer.find(b"\n")
                    if end >= 0 and len(answer) >= end + 1 + _pixel_bytes(answer[:end]):
                        return bytes(answer)
        self._child.kill()
        raise TimeoutError

    def end(self) -> tuple[str, str]:
        """Returns how it ended, if by itself, and the last line of its standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
        ending = _ending(self._child.poll())
        self._child.kill()
        with self._child:  # waits, and closes its pipes
            pass
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip().rpartition("\n")[2]
        self._words.close()
        return ending, words

    @classmethod
    def end_all(cls) -> None:
        while cls._at_rest:
            decoder = cls._at_rest.pop()
            decoder._child.kill()
            decoder.end()


atexit.register(_Decoder.end_all)

os.register_at_fork(after_in_child=_Decoder._at_rest.clear)  # they answer to the parent


def _pixel_bytes(head: bytes | bytearray) -> int:
    """Returns how many bytes follow the first line of an answer."""
    return math.prod(json.loads(head).get("shape", (0,)))


def _answer(output: bytes) -> Decoded:
    """Reads a line of JSON and the pixels after it.

    Returns:
        The decoded image.

    Raises:
        BadImage: If the line states one; other errors of ours likewise.
    """
    end = output.index(b"\n")
    said = json.loads(output[:end])
    if "reason" in said:
        raise BadImage(**said)
    if "error" in said:
        raise vars(errors)[said["error"]](said["message"])
    pixels = np.frombuffer(output, np.uint8, offset=end + 1).reshape(said["shape"])
    return Decoded(pixels, said["transparent"])


def _ending(status: int | None) -> str:
    if status is None:
        return "answered in no known way"
    try:
        return f"killed by {Signals(-status).name}" if status < 0 else f"exit status {status}"
    except ValueError:
        return f"killed by signal {-status}"


def _serve() -> None:
    """Answers the questions of `decode_isolated`: a rule and an image, with pixels or an error."""
    with contextlib.suppress(OSError):  # if memory runs out, kill this process first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a C library prints
    while question := sys.stdin.buffer.readline():
        fields = json.loads(question)
        data = sys.stdin.buffer.read(fields.pop("bytes"))
        function = fields.pop("function", "")
        sys.path += [folder for folder in fields.pop("path", []) if folder not in sys.path]
        rule = Preprocess(**fields | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        try:
            if rule.decoder is not None:
                use_decoder(rule.decoder, function)
            image = decode(data, rule)
            pixels = np.ascontiguousarray(image.pixels)
        except VdnaError as error:
            known = next(kind for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
            said = {"error": known.__name__, "message": str(error)}
            if isinstance(error, BadImage):
                said = {"reason": error.reason, "detail": error.detail}
            output.write(json.dumps(said).encode() + b"\n")
        else:
            head = {"shape": pixels.shape, "transparent": image.transparent}
            output.write(json.dumps(head).encode() + b"\n")
            output.write(pixels.data)
        output.flush()


if __name__ == "__main__":
    _serve()
