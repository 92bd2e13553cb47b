"""Tasks of Ray fetch and decode images for the actors that count them.

    >>> pool = RayDecodePool({})                                            # doctest: +SKIP
    >>> pool.ask(work).result().outcomes

A task takes one CPU of any node. Its images travel through Ray's object stores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline import images
from pipeline.counting import RUN_BYTES, DecodedRun, DecodeWork, LostRun, Recipe, decode_run
from pipeline.engine.ray_nodes import sharing_gpus
from pipeline.errors import UsageError
from pipeline.spec import Resources
from pipeline.wording import count_of, option

ROOM_BYTES = 3 * 2**30
"""How many bytes of images an actor may have decoded ahead at most. It is that of 32 runs: a GPU
that takes 5,000 images a second has them from as many cores."""

TASK_RETRIES = 1
"""How often Ray runs a task again whose process or node was lost. After that, the actor decodes the
images itself, each in a process apart, as one of them may be what ends the processes."""


_COLOURS = re.compile(r"\x1b\[[\d;]*m")


class RayDecodePool:
    """Gives runs to tasks of Ray."""

    def __init__(self, runtime_env: Mapping[str, Any]) -> None:
        """Describes the tasks.

        Args:
            runtime_env: What Ray must start their processes with.
        """
        self._decode = ray.remote(
            num_cpus=1, max_retries=TASK_RETRIES, runtime_env=dict(runtime_env)
        )(decode_run)

    def ask(self, work: DecodeWork) -> RayRun:
        """Starts a task for a run."""
        return RayRun(self._decode.remote(work))

    def free_cpus(self) -> int:
        """Returns how many CPUs of the cluster nobody has."""
        free = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray's
        return int(free.get("CPU", 0))


class RayRun:
    """A run that a task has."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> DecodedRun:
        """Waits for the task.

        Returns:
            What became of the run. Its arrays lie in Ray's object store, and keep their place there
            as long as any of them is used.

        Raises:
            LostRun: If the task's process or node was lost, or its result.
            BaseException: If the task raised it.
        """
        try:
            return cast(DecodedRun, ray.get(self._reference))
        except RayTaskError as error:
            cause = cause_of(error)
            raise cause from error
        except RayError as error:
            raise LostRun(str(error)) from error

    def cancel(self) -> None:
        """Ends the task if it still runs or waits."""
        ray.cancel(self._reference)


def may_decode_ahead(resources: Resources) -> bool:
    """Returns whether tasks may decode for workers."""
    decode, gpus = resources.decode, resources.gpus_per_worker
    return decode == "ahead" or (decode == "auto" and gpus > 0)


def room_ahead(nodes: Sequence[Mapping[str, Any]], actors: int, recipes: Sequence[Recipe]) -> int:
    """Returns how many bytes of images each actor may have decoded ahead.

    Args:
        nodes: The nodes, as `ray.nodes` tells them.
        actors: How many actors there are.
        recipes: What they load; all have the same resources.

    Returns:
        The bytes, or 0 if workers decode all images themselves.

    Raises:
        UsageError: If they may not, and there is no room, or a decoder of the workers' GPUs.
    """
    resources = recipes[0].resources
    if not may_decode_ahead(resources):
        return 0
    room = room_for_each(nodes, actors, resources)
    if resources.decode != "ahead":
        return room
    for decoder in (recipe.spec.preprocess.decoder for recipe in recipes):
        if images.is_nvjpeg(decoder):
            raise UsageError(
                f"decode is 'ahead', by tasks without a GPU, and the decoder {decoder} needs one; "
                f"use {option('decode', 'here')}, or no decoder"
            )
    if not room:
        raise UsageError(
            "decode is 'ahead', for which Ray's object stores need "
            f"{2 * RUN_BYTES / 2**20:,.0f} MiB for each of {count_of(actors, 'worker')}, and "
            "they have less; start Ray with more object_store_memory, use fewer workers, or "
            f"{option('decode', 'here')}"
        )
    return room


def room_for_each(nodes: Sequence[Mapping[str, Any]], actors: int, resources: Resources) -> int:
    """Returns how many bytes of images each actor may have decoded ahead.

    Images may lie in the store of the node that decoded them and in that of the actor. So they may
    take half of all stores, and on no node more than half of its own for the actors that fit there.

    Args:
        nodes: The nodes, as `ray.nodes` tells them.
        actors: How many actors there are.
        resources: What an actor takes.

    Returns:
        The bytes, or 0 if a single run would not fit.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    stores = [float(node.get("object_store_memory", 0)) for node in alive]
    rooms = [ROOM_BYTES, sum(stores) / 2 / actors]
    for node, store in zip(alive, stores, strict=True):
        fit = node.get("CPU", 0) // (resources.threads or 1)
        if resources.gpus_per_worker:
            fit = min(fit, sharing_gpus(node, resources.gpus_per_worker))
        if fit := min(int(fit), actors):
            rooms.append(store / 2 / fit)
    room = int(min(rooms))
    return room if room >= RUN_BYTES else 0


def cannot_start(error: RayError) -> TypeGuard[RayActorError]:
    """Tells whether an actor raised an error before it had any work."""
    return isinstance(error, RayActorError) and error.actor_init_failed


def start_words(error: RayError) -> str:
    """Says why a worker could not start, and what that asks for.

    Args:
        error: What Ray raised.

    Returns:
        The last line of the worker's trace, and what every machine needs.
    """
    return (
        f"{_lines(error)[-1]}. Every machine of the cluster needs the same vdna-pipeline, and the "
        "packages of your own networks and decoders"
    )


def loss_words(error: RayError) -> str:
    """Says that Ray lost its workers, or could not start one, and names the reason.

    Args:
        error: What Ray raised.

    Returns:
        The message, which asks for the same command again.
    """
    if cannot_start(error):
        return (
            f"a worker could not start: {start_words(error)}; mend that, and rerun the same "
            "command to go on"
        )
    return (
        "a worker was lost, and others after it; rerun the same command to go on: "
        f"{' '.join(_lines(error))}"
    )


def _lines(error: RayError) -> list[str]:
    """Returns the lines of an error without Ray's colours."""
    return [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]


def cause_of(error: RayTaskError) -> BaseException:
    """Returns the error that a worker raised, instead of Ray's wrapper."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
