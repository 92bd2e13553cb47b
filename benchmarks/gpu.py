"""How fast one GPU counts, beside its forward pass alone, and whether it counts as a CPU does.

    python -m benchmarks.gpu [--networks efficientnet_lite0,...] [--precisions fp32,bf16]
                             [--micro-batches 64,128,256]
    python -m benchmarks.gpu --dry-run

Weights are random, so nothing is downloaded. Each network's ranges reach from its least to its
greatest activation on random pixels. The result has seven parts
(`--out` keeps those that are measured):

    agreement   the kernel against the CPU's, on the same activations: how many counts, minima and
                maxima differ (none may), and by how much means differ; for layouts, bin numbers and
                activations of which nine in ten are zero
    feeding     images/s that travel to the GPU and become the network's input, without the network:
                of 224 x 224, which are only normalised, and of 500 x 400, which are resized; and by
                how many grey levels they differ from the CPU's (no more than 0.001)
    rates       for each network, precision and number of images at a time: images/s of the forward
                pass alone, started kernel by kernel (`eager`) and replayed from a CUDA graph
                (`forward`); then, replayed, with all that a build does after that (counting, and
                the moments of the means); and with the images of 500 x 400 travelling to the GPU,
                as in a build; the share of the latter; how many milliseconds an image takes for the
                forward pass, and how many more for counting and for travelling; how often the
                thread that feeds the GPU had to wait for it (it never may); and the most bytes of
                the GPU that torch held for an image, beside the estimate that the default number of
                images is chosen by. A replay that differs from the eager pass in any bit ends the
                script
    files       images/s of the embedded network from JPEG files of 500 x 400 to a DNA, all that
                `make_dna` does; and how far the DNA is from the CPU's: the share of activations in
                another bin, and the distance in bins
    build       the same files by `vdna build` in one process, with cells of 128 images: images/s
                without its start and commit; how many milliseconds an image takes of the threads
                that fetch, decode, and run the network; in which share of the time the thread that
                feeds the GPU had no images; and how many of the counts differ from those of `files`
    decoding    images/s of one CPU core, from the demo's photographs as JPEG files of three sizes:
                decoded only, decoded for a GPU, and decoded and resized; and how many cores keep
                the GPU fed with those of 500 x 400
    nvjpeg      of the same files, if TorchCodec is installed: images/s of one thread that has them
                decoded by `--decoder nvjpeg`, its share of a core, and by how many grey levels the
                pixels differ, at most and on average

A network that fails, for lack of memory or because of its graph, has its error in its row, and the
others are measured. The script then exits with 1, as where counts or pixels differ, or where the
GPU was waited for.

Standard error ends with a table for people. `--dry-run` does the same on a CPU, with the
smallest network and Triton's interpreter: it checks the script, and its times say nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import measure

if TYPE_CHECKING:
    from pipeline import DNA

NETWORKS = (
    "efficientnet_lite0",
    "timm:resnet50.a1_in1k",
    "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "timm:vit_base_patch14_dinov2.lvd142m@224",
)
BINS = 1000
LAYERS = ((8, 3136, 48, 1000), (8, 197, 96, 1000), (64, 1, 130, 1000), (4, 49, 33, 4096))
"""Images, positions, neurons and bins of activations that are counted by both kernels."""

SIZES = ((224, 224), (400, 500))
"""Heights and widths of the images that travel; photographs of datasets are like the latter."""

DECODED = ((500, 400), (1024, 1024), (2560, 1920))
"""Widths and heights of files that are decoded."""

MOST_APART = 1e-3
"""In grey levels: what sums in another order may come to, and no wrong coefficient."""

SMALL_LAYERS = ((2, 70, 5, 1000), (3, 1, 4, 30), (1, 40, 3, 2048))


def agreement(device: str, kernel: str | None, layers: tuple[Any, ...]) -> dict[str, Any]:
    """The device's counts against the CPU's, over all layers and layouts."""
    import torch

    from pipeline.counting import DeviceRanges, LayerCounts
    from pipeline.counting.device_counts import DeviceCounts

    wrong, worst, activations = 0, 0.0, 0
    for seed, (images, positions, neurons, bins) in enumerate(layers):
        rng = np.random.default_rng(seed)
        x = rng.normal(0, 2, (images, positions, neurons)).astype(np.float32)
        x[rng.random(x.shape) < 0.9] = 0.0
        x[0, 0, :3] = np.nan, np.inf, -np.inf
        low, high = np.full(neurons, -1.5), np.linspace(1, 4, neurons)
        on_cpu = LayerCounts(low, high, bins)
        expected = on_cpu.add(x)
        there = torch.from_numpy(x).to(device)
        for shown in (there, there.permute(0, 2, 1).contiguous().permute(0, 2, 1)):
            counts = DeviceCounts(DeviceRanges.on(device, low, high, bins), bins, kernel)
            means = torch.empty((images, neurons), dtype=torch.float64, device=device)
            counts.add(shown, slice(0, neurons), means)
            table, minimum, maximum = counts.read()
            wrong += int((table != on_cpu.table).sum())
            wrong += int((minimum != on_cpu.minimum).sum() + (maximum != on_cpu.maximum).sum())
            finite = np.isfinite(expected)
            apart = np.abs(means.cpu().numpy()[finite] - expected[finite])
            worst = max(worst, float(apart.max(initial=0)))
            activations += x.size
    return {"activations": activations, "wrong": wrong, "worst_mean": worst}


def random_weights(name: str, folder: Path) -> str:
    """A file of random weights for a network of timm; the embedded network has its own."""
    import torch

    from pipeline.networks.registry import architecture

    path = folder / f"{name.replace(':', '-').replace('/', '-')}.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(architecture(name).build(None).state_dict(), path)
    return str(path)


def timed(work: Callable[[], object], images: int, device: str, seconds: float) -> float:
    """Images per second of work that takes so many at a time."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        work()
    wait()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        work()
        done += 1
        if done % 8 == 0:  # the queue must not grow without end
            wait()
    wait()
    return round(done * images / (time.perf_counter() - started), 1)


def noise(height: int, width: int, images: int) -> list[Any]:
    """Images of random pixels, as they travel."""
    return list(np.random.default_rng(0).integers(0, 256, (images, height, width, 3), np.uint8))


def feeding(device: str, seconds: float, images: int) -> dict[str, Any]:
    """Micro-batches that travel to the device and become the network's input there."""
    import torch

    from pipeline.counting.feed import Feed
    from pipeline.images import prepare
    from pipeline.spec import Preprocess

    levels = Preprocess(224, 224, (0, 0, 0), (1 / 255,) * 3)
    feed = Feed(torch.device(device), levels)
    result: dict[str, Any] = {"images": images, "worst_grey_levels": 0.0}
    for height, width in (*SIZES, (37, 1200), (1000, 900)):
        batch = noise(height, width, 4)
        for found, image in zip(feed(batch).cpu().numpy(), batch, strict=True):
            apart = float(np.abs(found - prepare(image, levels)).max())
            result["worst_grey_levels"] = max(result["worst_grey_levels"], apart)
    for height, width in SIZES:
        batch = noise(height, width, images)
        result[f"{width}x{height}"] = timed(lambda b=batch: feed(b), images, device, seconds)
    return result


def rate(
    name: str, precision: str, many: int, device: str, seconds: float, folder: Path
) -> dict[str, Any]:
    """One network: the forward pass alone, with counting, and with images that travel."""
    import torch

    from pipeline.building import Request, make_spec
    from pipeline.counting import DeviceRanges, Extractor, Prepared
    from pipeline.counting.activation_counts import GpuCounts, Means, count_batch
    from pipeline.counting.micro_batch import bytes_per_image
    from pipeline.dna import Moments
    from pipeline.networks import describe

    network = describe(name, random_weights(name, folder) if name.startswith("timm:") else None)
    spec = make_spec(Request("x", "x", bins=BINS, precision=precision), network, "0" * 32, device)

    def loaded(graphs: bool) -> Extractor:
        return Extractor(
            network, precision, device, on_device=True, micro_batch=many, graphs=graphs
        )

    extractor = loaded(graphs=False)
    pixels = torch.randn((many, network.height, network.width, 3)).to(extractor.device)
    low, high = np.empty(spec.neurons), np.empty(spec.neurons)

    def find_range(index: int, x: Any) -> None:
        low[spec.slices[index]] = x.float().amin(dim=(0, 1)).cpu()
        high[spec.slices[index]] = x.float().amax(dim=(0, 1)).cpu()

    extractor.observe(pixels, find_range)
    ranges = DeviceRanges.on(extractor.device, low, high, BINS)
    counts = GpuCounts(spec, ranges)
    moments = Moments([tap.neurons for tap in spec.taps], layerwise=False)
    late: deque[Means] = deque()
    feed, decoded = extractor.batches(spec.preprocess), noise(*SIZES[-1], many)

    def count(batch: Prepared) -> None:
        late.append(count_batch(extractor, spec, batch, [(counts, slice(None))]))
        if len(late) > 2:  # as in a build, whose network thread does not wait for them either
            moments.add(late.popleft()())

    def rated(work: Callable[[], object]) -> float:
        return timed(work, many, device, seconds)

    eager = rated(lambda: extractor.observe(pixels, lambda index, x: None))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    extractor = loaded(graphs=True)
    peak = (torch.cuda.max_memory_allocated() - held) // many if device == "cuda" else 0
    forward = rated(lambda: extractor.observe(pixels, lambda index, x: None))
    both = rated(lambda: count(pixels))
    fed = rated(lambda: count(feed(decoded)))
    with waits(device) as seen:
        count_batch(extractor, spec, feed(decoded), [(counts, slice(None))])
    forward_ms, both_ms, fed_ms = (1000 / each for each in (forward, both, fed))
    return {
        "neurons": spec.neurons,
        "eager": eager,
        "forward": forward,
        "with_counting": both,
        "with_feeding": fed,
        "ratio": round(fed / forward, 3),
        "milliseconds": {
            "forward": round(forward_ms, 4),
            "counting": round(both_ms - forward_ms, 4),
            "feeding": round(fed_ms - both_ms, 4),
        },
        "waits": len(seen),
        "bytes_per_image": peak,
        "estimated_bytes": bytes_per_image(network),
    }


@contextmanager
def waits(device: str) -> Iterator[list[str]]:
    """The places where this thread waits for the GPU, as torch notices them."""
    import torch

    seen: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            seen += [str(each.message) for each in caught if "synchroniz" in str(each.message)]


def written(folder: Path, copies: int) -> Path:
    """A folder with so many copies of each JPEG file of 500 x 400."""
    place = folder / f"copies-{copies}"
    if not place.exists():
        place.mkdir()
        for number in range(copies):
            for at, data in enumerate(jpegs(folder)["500x400"]):
                (place / f"{number:04d}-{at:02d}.jpg").write_bytes(data)
    return place


def files(device: str, copies: int, folder: Path) -> tuple[dict[str, float], DNA]:
    """A whole DNA on the device, from files, beside that of the CPU; and that DNA."""
    from pipeline import emd, make_dna

    few, place = written(folder, 1), written(folder, copies)
    make_dna(few, device=device)  # records the graph, and compiles the kernels
    started = time.perf_counter()
    there = make_dna(place, device=device)
    took = time.perf_counter() - started
    here = make_dna(few, device="cpu")
    there_of_few = make_dna(few, device=device)
    moved = np.abs(np.cumsum(there_of_few.counts - here.counts, axis=1)).sum()
    result = {
        "images": there.images,
        "images_a_second": round(there.images / took, 1),
        "moved": float(moved / here.counts.sum()),
        "emd": float(emd(there_of_few, here)),
    }
    return result, there


def build(device: str, copies: int, folder: Path, expected: DNA) -> dict[str, Any]:
    """The same files by builds in this process, which keep cells; their stages and pauses.

    A build of 16 images is taken off: so the start, the commit and their images do not count.
    """
    from pipeline.building import Request, build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.counting.stage_clock import StageMeter
    from pipeline.engine import InProcess
    from pipeline.spec import Resources

    resources = Resources(workers=0, gpus_per_worker=1 if device == "cuda" else 0)

    def timed_build(name: str, many: int) -> tuple[DNA, float, dict[str, float]]:
        catalogue = Catalogue(str(folder / name))
        request = Request("files", str(written(folder, many)), cell_images=128)
        meter, began = StageMeter(), time.perf_counter()
        build_datasets(catalogue, [request], InProcess(), resources)
        took, spent = time.perf_counter() - began, meter.read()
        return catalogue.load("files"), took, spent

    timed_build("first", 1)  # imports what a build needs
    of_few, start, spent_by_few = timed_build("few", 1)
    dna, took, spent = timed_build("all", copies)
    images, few = dna.images, of_few.images
    differing = (dna.counts != expected.counts).sum()
    more, seconds = images - few, took - start
    busy = {stage: spent[stage] - spent_by_few[stage] for stage in spent}
    return {
        "images": images,
        "images_a_second": round(more / seconds, 1),
        "milliseconds": {stage: round(1000 * of / more, 3) for stage, of in busy.items()},
        "share_without_images": round(1 - busy["network"] / seconds, 3),
        "counts_that_differ": int(differing),
    }


def decoding(seconds: float, folder: Path, *, hashed: bool = False) -> dict[str, dict[str, float]]:
    """How many JPEG files a core decodes, and prepares for a GPU or resizes, in its seconds.

    The last two include the hashes of an image if `hashed`.
    """
    from pipeline import images
    from pipeline.counting.allocator import keep_memory
    from pipeline.spec import Preprocess

    rule = Preprocess(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    keep_memory()  # as workers do
    ways: dict[str, Callable[[bytes], object]] = {
        "decoded": lambda data: images.decode(data, rule),
        "for_gpu": lambda data: images.load(data, rule, on_device=True, hashed=hashed),
        "resized": lambda data: images.load(data, rule, hashed=hashed),
    }
    result: dict[str, dict[str, float]] = {}
    for size, contents in jpegs(folder).items():
        spent, rounds = dict.fromkeys(ways, 0.0), 0
        for work in ways.values():
            work(contents[0])
        while sum(spent.values()) < seconds:  # in turns, as other work may slow the core down
            for way, work in ways.items():
                started = time.thread_time()
                work(contents[rounds % len(contents)])
                spent[way] += time.thread_time() - started
            rounds += 1
        result[size] = {way: round(rounds / took, 1) for way, took in spent.items()}
    return result


def nvjpeg(device: str, seconds: float, folder: Path) -> dict[str, dict[str, float]]:
    """How many JPEG files a thread has decoded by the GPU, and how far the pixels are apart."""
    from pipeline import images
    from pipeline.images.nvjpeg import pixels_by_nvjpeg
    from pipeline.spec import Preprocess

    try:
        import torchcodec.decoders  # noqa: F401 - whether it can be imported
    except (ImportError, OSError, RuntimeError):
        return {}
    rule = Preprocess(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    result: dict[str, dict[str, float]] = {}
    for size, contents in jpegs(folder).items():
        apart = [
            np.abs(found.astype(np.int16) - images.decode(data, rule).pixels)
            for data in contents
            if (found := pixels_by_nvjpeg(data, device)) is not None
        ]
        done, began, used = 0, time.perf_counter(), time.thread_time()
        while time.perf_counter() - began < seconds:
            pixels_by_nvjpeg(contents[done % len(contents)], device)
            done += 1
        took = time.perf_counter() - began
        result[size] = {
            "images_a_second": round(done / took, 1),
            "share_of_a_core": round((time.thread_time() - used) / took, 3),
            "taken": len(apart) / len(contents),
            "grey_levels_most": float(max((each.max() for each in apart), default=0)),
            "grey_levels_mean": float(np.mean([float(each.mean()) for each in apart] or [0.0])),
        }
    return result


@functools.cache
def jpegs(folder: Path) -> dict[str, list[bytes]]:
    """The demo's photographs as files of three sizes."""
    import io

    from PIL import Image

    from pipeline.sources import write_datasets

    written = write_datasets(folder / "photos")["photos/original"]
    made: dict[str, list[bytes]] = {}
    for size in DECODED:
        contents = made["x".join(map(str, size))] = []
        for path in sorted(written.iterdir())[:16]:
            sink = io.BytesIO()
            Image.open(path).convert("RGB").resize(size).save(sink, "JPEG", quality=90)
            contents.append(sink.getvalue())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="one GPU: correctness, rates, cores to feed it")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--micro-batches", default="64,128,256")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--out", type=Path, help="kept up to date as results come")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, to check the script")
    chosen = parser.parse_args()
    device, kernel, layers = "cuda", None, LAYERS
    names, precisions = chosen.networks.split(","), chosen.precisions.split(",")
    sizes = [int(size) for size in chosen.micro_batches.split(",")]
    seconds = chosen.seconds
    if chosen.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        warnings.filterwarnings("ignore", ".* encountered in", RuntimeWarning)
        device, kernel, layers, seconds = "cpu", "triton", SMALL_LAYERS, 0.1
        names, precisions, sizes = ["efficientnet_lite0"], ["fp32"], [4]
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --dry-run checks the script without one")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu (dry run)",
        "torch": torch.__version__,
        "agreement": agreement(device, kernel, layers),
        "feeding": feeding(device, seconds, 2 if chosen.dry_run else 64),
    }
    rates = result["rates"] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def keep() -> None:
            if chosen.out is not None:
                measure.keep(chosen.out, result)

        for name, precision, many in itertools.product(names, precisions, sizes):
            row = {"network": name, "precision": precision, "micro_batch": many}
            try:
                rates.append(row | rate(name, precision, many, device, seconds, folder))
            except Exception as error:  # the other rows took minutes, and are still worth having
                rates.append(row | {"error": f"{type(error).__name__}: {error}"})
            keep()
        copies = 2 if chosen.dry_run else 256
        result["files"], dna = files(device, copies, folder)
        keep()
        result["build"] = build(device, copies, folder, dna)
        keep()
        result["decoding"] = decoding(seconds, folder)
        result["nvjpeg"] = nvjpeg(device, seconds, folder)
        keep()
    a_core = result["decoding"]["500x400"]["for_gpu"]
    lines = [
        "| network | precision | at a time | eager, images/s | by a graph | counted | fed | share "
        "| ms: forward | counting | feeding | waits | decode cores |"
    ]
    lines.append("|---" * 13 + "|")
    for row in rates:
        if "error" in row:
            lines.append(
                f"| {row['network']} | {row['precision']} | {row['micro_batch']} | {row['error']} |"
            )
            continue
        row["decode_cores"] = round(row["with_feeding"] / a_core, 1)
        lines.append(
            f"| {row['network']} | {row['precision']} | {row['micro_batch']} | "
            f"{row['eager']:,.0f} | {row['forward']:,.0f} | "
            f"{row['with_counting']:,.0f} | {row['with_feeding']:,.0f} | {row['ratio']:.2f} | "
            f"{' | '.join(f'{ms:.3f}' for ms in row['milliseconds'].values())} | "
            f"{row['waits']} | {row['decode_cores']:.0f} |"
        )
    wrong, apart = result["agreement"]["wrong"], result["feeding"]["worst_grey_levels"]
    whole, build_of_it = result["files"], result["build"]
    stages = ", ".join(f"{stage} {ms} ms" for stage, ms in build_of_it["milliseconds"].items())
    told = (
        f"{result['device']}: {wrong} counts differ, and images by {apart:.1e} grey levels; "
        f"from {whole['images']} files, {whole['images_a_second']:,.0f} images/s of the embedded "
        f"network, whose DNA is {whole['emd']:.1e} bins from the CPU's; by a build with cells "
        f"{build_of_it['images_a_second']:,.0f} images/s ({stages} an image of their threads; "
        f"{build_of_it['share_without_images']:.0%} of the time without images)"
    )
    measure.emit(result, "\n".join([told, *lines]))
    if wrong or apart > MOST_APART or any("error" in row or row["waits"] for row in rates):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
