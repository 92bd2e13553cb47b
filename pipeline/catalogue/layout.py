"""Defines the place of every object under the root of a catalogue.

>>> Layout("s3://bucket/dnas").log_uri(42)
's3://bucket/dnas/_log/00000000000000000042.json'
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import storage
from pipeline.catalogue.commit import Version
from pipeline.catalogue.version_names import VersionName, dataset_of
from pipeline.errors import UsageError
from pipeline.spec import digest_of
from pipeline.wording import option

WINDOWS = "_windows"
"""The folder below a dataset's that has the files of its windows of days."""

RECOUNT_FOLDER = "recount-"
"""How the name of the folder below `_work` begins where workers keep the sums of a recount."""


class Layout:
    """The urls of a catalogue's objects. Making one does no I/O.

    Attributes:
        root: The canonical url of the catalogue.

    Raises:
        UsageError: The url is empty, or may carry a secret.
    """

    def __init__(self, root: str) -> None:
        if not root:
            raise UsageError(f"the {option('catalogue')} is empty; give its folder or url")
        self.root = storage.canonical(root)

    def _uri(self, *parts: str) -> str:
        return storage.join(self.root, *parts)

    def log_uri(self, number: int) -> str:
        """Returns the url of the commit of that number."""
        return self._uri("_log", f"{number:020d}.json")

    @property
    def hint_uri(self) -> str:
        """The object that names a recent commit, so that the newest one is found soon."""
        return self._uri("_log", "_latest")

    def uri(self, kind: str, spec: str, dataset: str, digest: str) -> str:
        """Returns the url of a version's file of one of the `VERSION_FILES`.

        Args:
            kind: The kind of file.
            spec: Digest of the spec.
            dataset: The dataset, or the name of a version of it. The files of a window of days are
                in a folder of their own.
            digest: What the file is named for.

        Returns:
            The url.
        """
        named = VersionName.parse(dataset)
        folder = (named.dataset, WINDOWS) if named.is_window else (named.dataset,)
        return self._uri(kind, spec, *folder, f"{digest}.parquet")

    @property
    def entries_uri(self) -> str:
        """The folder of the entries files, which the manifests of all datasets share."""
        return self._uri("entries")

    def ranges_uri(self, digest: str) -> str:
        """Returns the url of the ranges of that digest."""
        return self._uri("ranges", f"{digest}.parquet")

    def spec_uri(self, digest: str) -> str:
        """Returns the url of the spec of that digest."""
        return self._uri("specs", f"{digest}.json")

    def work_uri(self, dataset: str, spec: str) -> str:
        """Returns the folder that builds of a dataset keep their partials in."""
        return self._uri("_work", dataset, spec)

    def partials_uri(self, name: str, version: Version) -> str:
        """Returns the folder of a version's partials; a part has those of the whole dataset."""
        return self.work_uri(version.part_of or dataset_of(name), version.spec)

    def plan_uri(self, dataset: str, spec: str) -> str:
        """Returns the object where a build notes its plan when it begins."""
        return f"{self.work_uri(dataset, spec)}/_plan"

    def window_uri(self, dataset: str, spec: str, digest: str) -> str:
        """Returns the object that notes what a window of days is, until `gc`."""
        return f"{self.work_uri(dataset, spec)}/windows/{digest}.json"

    def listing_uri(self, digest: str) -> str:
        """Returns the folder that keeps pieces of a listing until the listing is a plan."""
        return self._uri("_work", "_listings", digest)

    @property
    def archives_uri(self) -> str:
        """The folder that keeps the contents of archives, so that each is read through once."""
        return self._uri("_work", "_archives")

    def speed_uri(self, spec: str, device: str) -> str:
        """Returns the object where a build notes how fast it counted."""
        return self._uri("_work", "_speeds", f"{spec}-{device}.json")

    def ranks_uri(self, digest: str) -> str:
        """Returns the folder that keeps the ranked shards of one ranking, until `gc`."""
        return self._uri("_work", "_ranks", digest)

    def pair_neurons_uri(self, digest: str) -> str:
        """Returns the object that keeps the neurons of a matrix's pairs, until `gc`."""
        return self._uri("_work", "_pair_neurons", f"{digest}.json")

    def fold_points_uri(self, spec: str, dna: str) -> str:
        """Returns the object that keeps what error bars need of a DNA's folds."""
        return self._uri("_work", "_fold_points", spec, f"{dna}.parquet")

    def coarse_curves_uri(self, spec: str, dna: str) -> str:
        """Returns the object that keeps what says how far a DNA is from others at least."""
        return self._uri("_work", "_coarse_curves", spec, f"{dna}.parquet")

    def outliers_uri(self, spec: str, dna: str) -> str:
        """Returns the object that keeps which images of a DNA's own are the farthest from it."""
        return self._uri("_work", "_outliers", spec, f"{dna}.parquet")

    def matrix_uri(self, spec: str, members: Mapping[str, str], lens: str) -> str:
        """Returns the url of a matrix.

        Args:
            spec: Digest of the spec.
            members: The datasets compared, each with the digest of its DNA.
            lens: Digest of the lens.

        Returns:
            The url.
        """
        return f"{self.matrices_uri(spec)}/{digest_of('members', dict(members))}/{lens}.parquet"

    def matrices_uri(self, spec: str) -> str:
        """Returns the folder of the matrices under a spec."""
        return self._uri("matrix", spec)

    def lenses_uri(self, name: str = "") -> str:
        """Returns the folder of the versions of a lens, or of all lenses if none is named."""
        return self._uri("lenses", *([name] if name else []))
