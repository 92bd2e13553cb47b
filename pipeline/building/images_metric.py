"""A metric for training loops: the DNA of images that come batch by batch.

    >>> seen = VisualDNA()                                           # doctest: +SKIP
    >>> for images in loader: seen.update(images)
    >>> print(emd(seen.compute(), Catalogue("dnas").load("train")))

It has the methods of a metric of TorchMetrics, and is none. TorchMetrics gathers the whole state of
each rank on every rank, and casts it along with the model; tables of counts are large and must stay
whole numbers.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Unpack

import numpy as np

from pipeline import images
from pipeline.building.counted_way import make_spec
from pipeline.building.memory_images import MemoryImages, MemorySource
from pipeline.building.request import MetricOptions, Request
from pipeline.dna import DNA, Floats, HeldFolds, Moments
from pipeline.errors import UsageError
from pipeline.networks import describe, find_ranges
from pipeline.options import takes_options
from pipeline.spec import FOLDS, BackendChoice, available_cpus
from pipeline.wording import count_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.distributed import ProcessGroup

    from pipeline.images import Decoded


class VisualDNA:
    """Counts batches of images into one DNA.

    Laws:

    - However images are cut into batches, merged or spread over ranks, the counts, folds, minima
      and maxima are the same to the last bit. Means and sums of squares are equal up to rounding.
    - `merge_state` is associative.

    Training goes on undisturbed: torch's switches, threads and random numbers are afterwards as
    they were. Only glibc's allocator stays set as quick counting needs it.

    Attributes:
        spec: What is counted.
    """

    @takes_options(Request, MetricOptions.__annotations__)
    def __init__(
        self,
        *,
        device: str = "cpu",
        threads: int | None = None,
        backend: BackendChoice = "auto",
        micro_batch: int | None = None,
        cuda_graphs: bool = True,
        error_bars: bool = True,
        process_group: ProcessGroup | None = None,
        **options: Unpack[MetricOptions],
    ) -> None:
        """Loads the network.

        Args:
            device: The kind of device that the network runs on and the tables are on, `cpu` or
                `cuda`; the current device of torch.
            threads: How many images are processed at a time. None takes all cores.
            backend: What runs the network on a CPU: `torch`, `openvino` if it is installed, or
                `auto`: OpenVINO for networks of depthwise convolutions, if it is installed, else
                torch.
            micro_batch: How many images the network sees at a time; None for 8 on a CPU, 64
                on a GPU.
            cuda_graphs: Whether a GPU records the forward pass once and replays it, with
                equal bits.
            error_bars: Whether to keep folds, so that `emd` has error bars. It takes sixteen tables
                of eight bytes a bin and neuron: 0.4 GB for the default network.
            process_group: The ranks of `torch.distributed` to add up; None for all.
            **options: Options of `Request`: those that `MetricOptions` names.

        Raises:
            UsageError: An option is not allowed, or there is no such device.
            TypeError: An option is not known.
        """
        import torch

        from pipeline.counting import Extractor, FoldCounts, choose_backend, exact_switches

        unknown = options.keys() - MetricOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"VisualDNA() takes no option {', '.join(sorted(unknown))}")
        if device not in ("cpu", "cuda"):
            raise UsageError(f"device is {device!r}; it must be cpu or cuda")
        request = Request(
            "in-process", "images in memory", exemplars=0, image_hashes=False, **options
        )
        network = describe(request.extractor, request.weights, request.taps)
        self._ranges, _ = find_ranges(network, request.ranges, {})
        self.spec = make_spec(request, network, self._ranges.digest, device, micro_batch)
        self._request = request
        self._group = process_group
        self._folds = FOLDS if error_bars else 1
        self._threads = threads or available_cpus()
        # A network is made with random weights before its own are loaded.
        with exact_switches(), torch.random.fork_rng(devices=()):
            chosen = choose_backend(
                backend, network, request.precision, device, micro_batch=micro_batch
            )
            if chosen.note:
                warnings.warn(chosen.note, stacklevel=2)
            self._extractor = Extractor(
                network,
                request.precision,
                device,
                chosen.backend,
                self._threads,
                micro_batch=micro_batch,
                graphs=cuda_graphs,
            )
        self._counts = FoldCounts(self._extractor, self.spec, self._ranges, self._folds)
        self._batch = self._extractor.batches(self.spec.preprocess)
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        from pipeline.counting import Noted

        self._counts.reset()
        widths = [tap.neurons for tap in self.spec.taps]
        self._moments = [Moments(widths, layerwise=False) for _ in range(self._folds)]
        self._noted = [Noted() for _ in range(self._folds)]
        self._merged: list[DNA] = []

    @property
    def images(self) -> int:
        """How many images were counted here, and merged, since the last reset."""
        counted = sum(moments.images for moments in self._moments)
        return counted + sum(dna.images for dna in self._merged)

    def update(self, batch: MemorySource, groups: Sequence[object] | None = None) -> None:
        """Counts images. None of them is counted if one is refused.

        Args:
            batch: A tensor (images, 3, height, width) of uint8 or of floats from 0 to 1, on any
                device; an array (images, height, width, 3) of uint8; or a sequence of images as
                `make_dna` takes them, which may differ in size. Give them before they are
                normalised.
            groups: For each image, what names the images that it belongs together with, such as
                its video. A group is never split over folds. Without it an image is its own group.

        Raises:
            UsageError: An image is of the wrong kind, or there is not one group for each.
        """
        from pipeline.counting import exact_switches

        given = self._images(batch)
        if groups is not None and len(groups) != len(given):
            raise UsageError(
                f"{count_of(len(groups), 'group')} for {count_of(len(given), 'image')}; give one "
                "for each"
            )
        size = self._extractor.micro_batch
        starts = range(0, len(given), size)
        with exact_switches(), ThreadPoolExecutor(self._threads, "metric") as pool:
            rule = self.spec.preprocess
            on_device = self._extractor.on_device
            loaded = list(pool.map(lambda image: images.loaded(image, rule, on_device), given))
            pixels = [image.pixels for image in given]
            names = pixels if groups is None else [str(group) for group in groups]
            folds = np.array(list(pool.map(self._fold, names)), np.int64)
            # A micro-batch of few folds touches few tables. Within a fold the order stays.
            order = np.argsort(folds, kind="stable")
            folds, loaded = folds[order], [loaded[at] for at in order]

            def count(start: int) -> Floats:
                here = slice(start, start + size)
                pixels = self._batch([one.values for one in loaded[here]])
                return self._counts.add(pixels, folds[here])

            # Other threads have another current GPU.
            counted = map(count, starts) if on_device else pool.map(count, starts)
            means = chain.from_iterable(counted)
            for image, fold, its_means in zip(loaded, folds, means, strict=True):
                self._moments[fold].add(its_means[None])
                self._noted[fold].add(image)

    def compute(self) -> DNA:
        """Adds up what was counted, on all ranks if `torch.distributed` is initialised.

        Every rank must call it then. The metric stays as it is, so more images can be added.

        Returns:
            The DNA of all images, with its folds if error bars are kept.

        Raises:
            SpecMismatch: The ranks count in different ways.
            UsageError: No image was counted, on any rank.
        """
        from pipeline.counting import ranks_together, require_same_on_ranks, sum_over_ranks

        together = ranks_together()
        if together:
            require_same_on_ranks(self.spec, self._folds, self._group)
        total, held = DNA.empty(self.spec, self._ranges), HeldFolds()
        for fold in range(self._folds):
            dna = self._dna(fold)
            if together:
                dna = sum_over_ranks(dna, self._group)
            total += dna
            held += HeldFolds.of([(fold, dna)] if self._folds > 1 else [])
        if not total.images:
            ranks = " on any rank" if together else ""
            raise UsageError(f"the metric has counted no image{ranks}; call update(images) first")
        total.check("the metric")
        return replace(total, folds=held if self._folds > 1 else None)

    def merge_state(self, other: VisualDNA) -> None:
        """Adds the images of another metric, which stays as it is.

        Args:
            other: A metric of other images that counts in the same way.

        Raises:
            SpecMismatch: It counts in another way.
            UsageError: It is this metric, or only one of them keeps error bars.
        """
        if other is self:
            raise UsageError("a metric cannot be merged with itself: its images would count twice")
        self.spec.require_same(other.spec, "this metric", "the other metric")
        if self._folds != other._folds:
            raise UsageError("only one of the metrics keeps error bars; give both the same")
        theirs = [other._dna(fold) for fold in range(self._folds)]
        mine = self._merged or [DNA.empty(self.spec, self._ranges)] * self._folds
        self._merged = [a + b for a, b in zip(mine, theirs, strict=True)]

    def __repr__(self) -> str:
        return f"<VisualDNA of {count_of(self.images, 'image')} by {self.spec.extractor}>"

    def _dna(self, fold: int) -> DNA:
        """Returns what was counted and merged of one fold."""
        from pipeline.counting import dna_of_counts

        dna = dna_of_counts(
            self.spec,
            self._ranges,
            self._extractor.numerics,
            self._counts.read(fold),
            self._moments[fold],
            self._noted[fold],
            failed=0,  # an image of a batch is counted, or the batch is refused
        )
        return dna + self._merged[fold] if self._merged else dna

    def _images(self, batch: MemorySource) -> list[Decoded]:
        """Turns a batch into images.

        Returns:
            The images.

        Raises:
            UsageError: It holds paths, or is a single image.
        """
        if type(batch).__module__.split(".")[0] == "torch":
            batch = batch.detach().cpu()  # type: ignore[union-attr]  # at once, not image by image
        shape = getattr(batch, "shape", None)
        if shape is not None and len(shape) != 4:
            raise UsageError(
                f"the batch has shape {tuple(shape)}; give (images, 3, height, width) as a tensor, "
                "or (images, height, width, 3) as an array"
            )
        request = self._request
        held = MemoryImages.of(batch, request.exif, request.alpha, request.image_column)
        if held.names:
            raise UsageError("the batch holds paths; `make_dna` reads files, a metric takes images")
        return [held.fetch(entry) for entry in held.entries]

    def _fold(self, name: NDArray[np.uint8] | str) -> int:
        """Chooses the fold by a hash of the group's name, or else of the pixels.

        Returns:
            A fold that depends on nothing else: not on the batch, the rank or the order.
        """
        if self._folds == 1:
            return 0
        content = name.encode() if isinstance(name, str) else repr(name.shape).encode()
        found = hashlib.blake2b(content, digest_size=8)
        if not isinstance(name, str):
            found.update(np.ascontiguousarray(name).data)
        return int.from_bytes(found.digest(), "big") % self._folds
