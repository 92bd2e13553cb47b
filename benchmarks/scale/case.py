"""What a model of a build takes and gives: measured `Parts`, `Prices`, a `Case`, a `Prediction`.

>>> Case(images=10**9, gpus=64, gpu_images_per_second=2000).workers
64
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil, isfinite
from typing import Annotated, Any

Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Parts:
    """What was measured. Seconds are CPU time of one core, so that other work does not count."""

    list_seconds: Annotated[float, "driver, for each key of a page: HTTP, XML, writing it down"]
    list_pages: Annotated[Points, "images, and pages asked for beside those that are full"]
    list_rows: Annotated[Points, "images, and keys that are listed twice"]
    store_seconds: Annotated[float, "a task, for each image that it lists: sorting and storing it"]
    plan_seconds: Annotated[float, "driver, for each image planned"]
    plan_bytes: Annotated[float, "what planning adds to the driver's memory, for any number"]
    disk_bytes: Annotated[float, "driver's temporary disk, for each image that it plans"]
    block_seconds: Annotated[float, "a task, for each image planned, once it has read it"]
    part_seconds: Annotated[float, "a task, for each row of the stored parts that it reads"]
    inventory_seconds: Annotated[float, "driver, for each row of a report of S3 Inventory"]
    report_seconds: Annotated[float, "a task, for each row of a report: reading and storing it"]
    checkpoint_bytes: Annotated[float, "a listed image in the listing's checkpoint"]
    entry_bytes: Annotated[float, "an image in an entries file"]
    row_bytes: Annotated[float, "an image in memory before it is written to an entries file"]
    footer_bytes: Annotated[float, "a shard in the footer of an entries file"]
    manifest_bytes: Annotated[float, "a shard in the manifest"]
    head_bytes: Annotated[float, "driver's memory for each shard: description, key, tree of sums"]
    driver_bytes: Annotated[float, "driver's memory: libraries, Ray, and the client of S3"]
    dispatch_seconds: Annotated[float, "driver and Ray on its machine, for each shard handed out"]
    dispatch_bytes: Annotated[float, "driver's memory for each shard that is handed out"]
    start_seconds: Annotated[float, "from the command to the listing"]
    load_seconds: Annotated[float, "from the plan to the first shard's end, Ray's start included"]
    end_seconds: Annotated[float, "from the last shard to the end of the command, small dataset"]
    get_seconds: Annotated[float, "client, for each image that is an object of S3"]
    network_seconds: Annotated[float, "CPU worker, for each image: forward, count, and the rest"]
    forward_seconds: Annotated[float, "CPU worker, for each empty image that fills a micro-batch"]
    decode_for_gpu: Annotated[Points, "megapixels, and seconds to decode for a GPU, with hashes"]
    decode_for_cpu: Annotated[Points, "megapixels, and seconds to decode and resize, with hashes"]
    shard_seconds: Annotated[float, "worker, for each shard: merging and encoding its partial"]
    add_seconds: Annotated[float, "decoding a partial and adding it"]
    encode_seconds: Annotated[float, "encoding a sum"]
    compose_seconds: Annotated[float, "driver, to compose a version, for any number of summands"]
    summand_seconds: Annotated[float, "driver, for each summand that a version is composed of"]
    compose_bytes: Annotated[float, "driver's memory while it composes, beside files and outputs"]
    pair_seconds: Annotated[float, "each image whose name is looked at for pairs, at the end"]
    hash_seconds: Annotated[float, "a task of verify, for each name that it reads and hashes"]
    sort_seconds: Annotated[float, "verify's own process, for each name's hash that it sorts"]
    partial_bytes: Annotated[Points, "images of a partial, and the bytes of its file, less hashes"]
    dna_bytes: Annotated[Points, "images of a DNA, and the bytes of its file"]
    exemplar_bytes: Annotated[float, "the exemplars of a version, for any number of images"]
    requests: Annotated[
        Mapping[str, Mapping[str, Mapping[str, float]]],
        "requests of `build`, `verify` and `gc`: for any number, for each shard, for each image",
    ]

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Parts:
        """Reads what `asdict` made; raises ValueError if a part is missing or unknown."""
        names = {each.name for each in fields(cls)}
        wrong = {"missing": names - stated.keys(), "unknown": stated.keys() - names}
        told = [f"{kind}: {', '.join(sorted(which))}" for kind, which in wrong.items() if which]
        if told:
            raise ValueError(f"parts {'; '.join(told)}; measure them again with --measure")
        return cls(**stated)


@dataclass(frozen=True)
class Prices:
    """Dollars. They are assumptions, such as AWS's list prices in us-east-1 in November 2026."""

    gpu_hour: float = 4.0
    driver_hour: float = 0.5
    put_or_list: float = 0.005 / 1000
    get_or_head: float = 0.0004 / 1000
    gigabyte_read: float = 0.0


@dataclass(frozen=True)
class Case:
    """What is stated of a dataset, a cluster and a store. All of it is assumed, none measured.

    Attributes:
        images: How many.
        gpus: How many; with 0, `cpu_workers` run the network on the cores of one machine.
        gpu_images_per_second: What one GPU takes, counting included (`benchmarks.gpu`).
        gpu_bytes: A GPU's memory, by which its workers choose how many images a micro-batch has.
        image_bytes, megapixels: The size of an image.
        workers_per_gpu, cores_per_gpu, gpus_per_node: The nodes.
        cpu_workers, cores_per_cpu_worker: The workers if there is no GPU.
        request_seconds: From a request to its answer, apart from the bytes.
        page_seconds: The same for a page of a listing.
        node_bytes_per_second: A node's network, and the driver's.
        store_requests_per_second: What the store answers; 5,500 for each of 64 partitions.
        deaths_per_node_hour: How often a node is lost.
        replace_seconds: Until another one works in its place.
        shard_images: Images of a shard; None for the product's choice.
        inventory: Whether a report of S3 Inventory, in Parquet, takes the place of a listing.
        driver_plans: Whether tasks cannot plan the source: it has parts or a limit.
        speed_known: Whether an earlier build has noted how fast the network is.
    """

    images: int
    gpus: int = 1
    gpu_images_per_second: float | None = None
    gpu_bytes: float = 80e9
    image_bytes: float = 110_000
    megapixels: float = 0.2
    workers_per_gpu: int = 1
    cores_per_gpu: float = 16
    gpus_per_node: int = 8
    cpu_workers: int = 1
    cores_per_cpu_worker: float = 1
    request_seconds: float = 0.02
    page_seconds: float = 0.15
    node_bytes_per_second: float = 3e9
    store_requests_per_second: float = 64 * 5500
    deaths_per_node_hour: float = 0.001
    replace_seconds: float = 300
    shard_images: int | None = None
    inventory: bool = False
    driver_plans: bool = False
    speed_known: bool = False

    def __post_init__(self) -> None:
        free = ("gpus", "request_seconds", "page_seconds", "deaths_per_node_hour")
        for name, value in asdict(self).items():
            if value is None or isinstance(value, bool):
                continue
            least = 0 if name in (*free, "replace_seconds") else 1e-9
            if not (isfinite(value) and value >= least):
                raise ValueError(
                    f"{name} is {value}; it must be {'0 or more' if not least else 'more than 0'}"
                )
        if self.gpus and self.gpu_images_per_second is None:
            raise ValueError(
                "gpu_images_per_second is not given, and no GPU was measured here; state what one "
                "GPU takes (benchmarks.gpu measures it), or 0 GPUs"
            )

    @property
    def workers(self) -> int:
        return self.gpus * self.workers_per_gpu or self.cpu_workers

    @property
    def workers_of_a_node(self) -> int:
        most = self.gpus_per_node * self.workers_per_gpu if self.gpus else self.cpu_workers
        return min(self.workers, most)

    @property
    def nodes(self) -> int:
        return ceil(self.workers / self.workers_of_a_node)

    @property
    def cores(self) -> float:
        """Cores of a worker."""
        return self.cores_per_gpu / self.workers_per_gpu if self.gpus else self.cores_per_cpu_worker


@dataclass(frozen=True)
class Prediction:
    """What the model says of a case.

    Attributes:
        sums: How many sums each level of the tree has.
        summands: How many objects the driver adds up in the end.
        seconds: Of each stage of a build.
        seconds_after: Of `verify` and `gc`, which are run after it.
        worker_seconds: What a shard takes of each resource of its worker.
        limit: What takes most of the build: `listing`, `planning` by tasks, `driver`, `cores`,
            `GPU`, `network`, `store`, `latency`, `few shards` (some workers have none) or `start`.
        driver_bytes: Peak memory of the driver in each stage.
        verify_bytes: Memory of the process that verifies.
        disk_bytes: The driver's temporary disk.
        requests: By kind, of `build`, `verify` and `gc`.
        read_bytes, written_bytes: By all machines, in a build.
        kept_bytes: What the build leaves in the catalogue.
        dollars: If nodes are paid for while workers load and count.
        dollars_held: If they are paid for from the start to the end.
    """

    case: Case
    shard_images: int
    shards: int
    sums: tuple[int, ...]
    summands: int
    seconds: Mapping[str, float]
    seconds_after: Mapping[str, float]
    worker_seconds: Mapping[str, float]
    limit: str
    driver_bytes: Mapping[str, float]
    verify_bytes: float
    disk_bytes: float
    requests: Mapping[str, Mapping[str, float]]
    read_bytes: float
    written_bytes: float
    kept_bytes: float
    dollars: float
    dollars_held: float

    @property
    def total_seconds(self) -> float:
        """How long the whole build takes."""
        return sum(self.seconds.values())
