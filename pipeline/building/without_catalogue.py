"""Makes a DNA in this process, without a catalogue.

>>> make_dna("photos/", bins=100).images                          # doctest: +SKIP
1200
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import accumulate, groupby, islice, takewhile
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

from pipeline.building.counted_way import make_spec, products_of
from pipeline.building.failure_gate import require_few_failures
from pipeline.building.memory_images import MemoryImages, MemorySource
from pipeline.building.request import MemoryOptions, Request
from pipeline.counting import Counter, choose_backend
from pipeline.dna import DNA, HeldFolds, Partial
from pipeline.errors import UsageError
from pipeline.events import Listener, Said, Started, StepDone, ignore, stage
from pipeline.networks import describe, find_ranges
from pipeline.options import takes_options
from pipeline.sources import Entry, Listing, Rules, ShardHead, list_source, plan
from pipeline.spec import BackendChoice, Resources
from pipeline.wording import count_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.images import Decoded


T = TypeVar("T")

JOINED_IMAGES = 4096
"""How many images are counted as if they were of one shard. A network idles between shards, and the
last micro-batch of one is seldom full; but all members of joined shards are held in memory."""


@takes_options(Request, MemoryOptions.__annotations__)
def make_dna(
    source: str | os.PathLike[str] | MemorySource,
    *,
    device: str = "cpu",
    threads: int | None = None,
    backend: BackendChoice = "auto",
    micro_batch: int | None = None,
    cuda_graphs: bool = True,
    progress: Listener | None = None,
    **options: Unpack[MemoryOptions],
) -> DNA:
    """Makes the DNA of a source, or of images in memory, in this process.

    Args:
        source: What `pipeline.make_dna` takes, which says more of each argument.
        device: The kind of device that the network runs on, `cpu` or `cuda`.
        threads: How many images are processed at a time. None takes all cores.
        backend: What runs the network; see `Resources`.
        micro_batch: How many images the network sees at a time; None for the device's own number.
        cuda_graphs: Whether a GPU records the forward pass; see `Resources`.
        progress: Is told of each shard as it is counted.
        **options: Options of `Request`: those that `MemoryOptions` names.

    Returns:
        The DNA, with its folds.

    Raises:
        GateError: More images than `max_failures` allows could not be read.
        UsageError: An option is not allowed, or an image in memory is of the wrong kind.
        TypeError: An option is not known.
    """
    unknown = options.keys() - MemoryOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"make_dna() takes no option {', '.join(sorted(unknown))}")
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device is {device!r}; it must be cpu or cuda")
    import torch

    from pipeline.counting import exact_switches, lent_extractor, make_current, require_backend
    from pipeline.spec import available_cpus

    require_backend(backend, options.get("precision", "fp32"), device)
    resources = Resources(threads=threads or available_cpus(), micro_batch=micro_batch)

    fetch: Callable[[Entry], Decoded] | None = None
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        request = Request("in-process", name, exemplars=0, image_hashes=False, **options)
        listing = list_source(name, request.rules)
    else:
        name = "images in memory"
        request = Request("in-process", name, exemplars=0, image_hashes=False, **options)
        held = MemoryImages.of(source, request.exif, request.alpha, request.image_column)
        if held.names:
            name = "the files"
            with _list_file(held.names, request.rules) as path:
                listing = list_source(path, request.rules)
            listing = replace(listing, pairing=replace(listing.pairing, root=_folder_of(listing)))
        else:
            for field, default in (("decoder", None), ("jpeg", "full")):
                if (value := getattr(request, field)) != default:
                    raise UsageError(
                        f"{field} is {value!r}; images in memory are decoded already, so leave it "
                        "out"
                    )
            fetch = held.fetch
            listing = Listing.of(islice(held.entries, request.limit), "memory")
    progress = progress or ignore
    with exact_switches():  # a notebook may train, too
        # A network is made with random weights at first.
        with torch.random.fork_rng(devices=()):
            network = describe(request.extractor, request.weights, request.taps)
            chosen = choose_backend(
                backend,
                network,
                request.precision,
                device,
                say=lambda text: progress(Said(text)),
                micro_batch=micro_batch,
            )
        found, _ = find_ranges(network, request.ranges, {})
        spec = make_spec(request, network, found.digest, device, micro_batch)
        manifest = plan(listing, limit=None if fetch else request.limit)
        products = products_of(request, network, None)
        if chosen.note:
            warnings.warn(chosen.note, stacklevel=3)
        total = Partial.empty(spec, found, layer_gaussian=request.layer_gaussian)
        folds = HeldFolds()

        def counted(counter: Counter) -> Generator[tuple[int, Partial], None, None]:
            """Yields the partial of each shard, with its fold."""
            for together in _joined(manifest.heads):
                # They are read now, as the members of all would fill memory.
                shards = [manifest.shards[head.index] for head in together]
                keyed = [(shard, shard.key(spec.digest, products)) for shard in shards]
                with closing(counter.count_each(keyed, fetch)) as partials:
                    yield from zip((head.fold for head in together), partials, strict=True)

        with (
            lent_extractor(
                network,
                request.precision,
                device,
                chosen.backend,
                resources.threads or 1,
                micro_batch,
                cuda_graphs,
            ) as extractor,
            stage(progress, Started(manifest.candidates, len(manifest.heads))),
            ThreadPoolExecutor(1, "count", make_current, (extractor.device,)) as pool,
            # It is closed before the thread is waited for, as that may be counting.
            closing(Counter(extractor, spec, found, resources, products)) as counter,
        ):
            for fold, parts in groupby(_one_ahead(counted(counter), pool), itemgetter(0)):
                of_fold: DNA | None = None  # adding to an empty one would copy all counts
                for _, partial in parts:
                    total += partial
                    dna = replace(partial.dna, scatter=None)
                    of_fold = dna if of_fold is None else of_fold + dna
                    progress(StepDone(partial.candidates, len(partial.failures)))
                folds += HeldFolds.of([(fold, of_fold)] if of_fold is not None else [])
    failures, candidates = total.failures, total.candidates
    require_few_failures(
        name, len(failures), candidates, request.max_failures, failures, resumes=False
    )
    if failures:
        listed = "; ".join(str(failure) for failure in failures[:5])
        warnings.warn(
            f"{len(failures)} of {count_of(candidates, 'image')} could not be read: {listed}",
            stacklevel=3,
        )
    return replace(total.dna, folds=folds)


def _joined(heads: Sequence[ShardHead]) -> Iterator[list[ShardHead]]:
    """Yields shards, as many at a time as have `JOINED_IMAGES` together."""
    images_before = accumulate((head.candidates for head in heads), initial=0)
    for _, together in groupby(
        zip(images_before, heads, strict=False), lambda each: each[0] // JOINED_IMAGES
    ):
        yield [head for _, head in together]


def _one_ahead(items: Iterator[T], pool: ThreadPoolExecutor) -> Iterator[T]:
    """Yields items; the pool makes the next one while the caller has one."""
    made = pool.submit(next, items, None)
    while (item := made.result()) is not None:
        made = pool.submit(next, items, None)
        yield item


def _folder_of(listing: Listing) -> str:
    """Returns the folder that all files of a listing lie below, so that their paths pair them."""
    uris = [entry.uri for entry in listing.entries]
    pairs = zip(min(uris), max(uris), strict=False)
    same = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same.rpartition("/")[0]


@contextmanager
def _list_file(names: list[str], rules: Rules) -> Iterator[str]:
    """Writes names to a temporary list, which sources read like any other list."""
    with tempfile.TemporaryDirectory(prefix="vdna-list-") as folder:
        path = Path(folder, "names.txt")
        path.write_text("".join(f"{rules.canonical(name)}\n" for name in names), encoding="utf-8")
        yield str(path)
