"""Counts what an erasure changes again: the shards that lose images, and then their versions.

>>> recount = ErasureRecount(catalogue, affected, [], resources, ignore)       # doctest: +SKIP
>>> recount.run(engine), recount.version(affected[0], after, engine).images    # doctest: +SKIP
({}, 99)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.building.committer import store_sum, sum_shards
from pipeline.building.erasure_plan import AffectedVersion, by_shard, manifest_of_shards
from pipeline.building.erasure_reading import changed_images, images_to_read, look_at
from pipeline.building.runner import require_counted, run_missing
from pipeline.catalogue import Catalogue, Version, recipe_of
from pipeline.counting import Recipe, ShardJob, ShardReceipt, counted_by
from pipeline.engine import Engine
from pipeline.errors import SpecMismatch, UsageError
from pipeline.events import Listener
from pipeline.networks import sha256_of
from pipeline.sources import ImageNames, Manifest, Pairing, ShardHead, pairs_of
from pipeline.spec import Resources, digest_of
from pipeline.wording import option, some_of


class ErasureRecount:
    """Counts the shards that lose images again, those of all versions of a dataset together.

    Args:
        catalogue: The catalogue.
        names: The erased images.
        affected: The versions that have them.
        weights: Files of weights. Each version takes the one that its spec states.
        resources: How fast.
        progress: Told what is counted.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        names: ImageNames,
        affected: Sequence[AffectedVersion],
        weights: Sequence[str],
        resources: Resources,
        progress: Listener,
    ) -> None:
        self._catalogue = catalogue
        self._names = names
        self._affected = affected
        self._weights = {sha256_of(uri): uri for uri in map(storage.canonical, weights)}
        self._resources = resources
        self._progress = progress
        self._recipes: dict[tuple[object, ...], Recipe] = {}

    def run(self, engine: Engine) -> dict[tuple[str, ...], str]:
        """Counts what is missing.

        Returns:
            Why versions cannot be counted again, by their identities.

        Raises:
            TransientError: Some images could not be read for now.
            VdnaError: Shards could not be counted for another reason than their images.
        """
        groups: dict[tuple[object, ...], dict[str, tuple[AffectedVersion, ShardHead]]] = {}
        likes: dict[tuple[object, ...], AffectedVersion] = {}
        for each in self._affected:
            version, group = each.kept.version, self._group(each)
            likes.setdefault(group, each)
            shards = by_shard(each.after, version.spec, version.products)
            for key, head in shards.items():
                groups.setdefault(group, {}).setdefault(key, (each, head))
        for like in likes.values():
            self._recipe(like)  # before anything is stored
        work: list[tuple[ShardJob, Manifest]] = []
        keys: list[list[str]] = []
        placed: dict[tuple[str, int], tuple[AffectedVersion, ShardHead]] = {}
        for group, found in groups.items():
            job, manifest = self._job(likes[group], [head for _, head in found.values()])
            work.append((job, manifest))
            keys.append(list(found))
            placed |= {(job.manifest_uri, at): its for at, its in enumerate(found.values())}
        failed: dict[tuple[str, str], str] = {}
        changed: dict[tuple[str, int], str] = {}

        def final(receipt: ShardReceipt) -> str:
            at = receipt.manifest_uri, receipt.index
            if receipt.changed and at not in changed:
                changed[at] = self._changed_in(*placed[at])
            return changed.get(at, "")

        ran = run_missing(work, engine, self._progress, final=final) if work else []
        for (job, manifest), of_job, became in zip(work, keys, ran, strict=True):
            other = [receipt for receipt in became.errors if not receipt.changed]
            require_counted("the erasure", len(manifest.heads), other, became.untried)
            for receipt in became.errors:
                why = final(receipt) or receipt.error.removeprefix(f"{receipt.kind}: ")
                failed[job.work_uri, of_job[receipt.index]] = why
        for job, _ in work:
            storage.delete(job.manifest_uri)
        return dict(self._uncounted(failed)) if failed else {}

    def _changed_in(self, each: AffectedVersion, head: ShardHead) -> str:
        """Says which images of a shard are not as they were listed, of those that it reads.

        Args:
            each: A version that has the shard.
            head: What is left of the shard.

        Returns:
            A text without a full stop; nothing if all are as they were, as seen from here.
        """
        lost = tuple(of for of in each.lost if of.content in head.origins)
        read = images_to_read(self._catalogue, self._names, [replace(each, lost=lost)])
        tables = [*read.values()] or [each.after.entries.read_shard(head)]
        files = look_at(tables)
        return some_of([why for images in tables for why in changed_images(images, files)])

    def _group(self, each: AffectedVersion) -> tuple[object, ...]:
        version = each.kept.version
        work = self._catalogue.partials_uri(each.kept.name, version)
        return work, version.products, counted_by(version.numerics)

    def _recipe(self, each: AffectedVersion) -> Recipe:
        group = self._group(each)
        if group not in self._recipes:
            self._recipes[group] = self._found_recipe(each)
        return self._recipes[group]

    def _found_recipe(self, each: AffectedVersion) -> Recipe:
        """Finds out how a version was counted.

        Returns:
            What a worker has to load.

        Raises:
            SpecMismatch: Its weights are neither those of its network nor among those given.
        """
        name, version = each.kept.name, each.kept.version
        spec = self._catalogue.spec(version.spec)
        weights = self._weights.get(spec.weights_sha256)
        try:
            return recipe_of(
                self._catalogue, name, version, weights, self._resources, self._progress
            )
        except (SpecMismatch, UsageError) as error:
            raise SpecMismatch(
                f"{each.kept.numbered_name} was counted by {spec.extractor} with weights of sha256 "
                f"{spec.weights_sha256}, and cannot be counted again: {error}. Nothing was erased. "
                f"{option('weights')} can be repeated, for the weights of all versions"
            ) from error

    def _job(self, like: AffectedVersion, heads: Iterable[ShardHead]) -> tuple[ShardJob, Manifest]:
        """Stores a manifest of shards for the workers, and returns it with its job."""
        work = self._catalogue.partials_uri(like.kept.name, like.kept.version)
        manifest = manifest_of_shards(heads, like.after)
        _, products, backend = self._group(like)  # as several groups may have the same shards
        name = digest_of("erasing", sha256(manifest.data), products, backend)
        uri = storage.join(work, f"_erasing-{name}.parquet")
        storage.replace(uri, manifest.data)
        whole = like.kept.version.part_of or like.kept.name
        job = ShardJob(self._recipe(like), uri, work, self._catalogue.entries_uri, dataset=whole)
        return job, manifest

    def _uncounted(
        self, failed: Mapping[tuple[str, str], str]
    ) -> Sequence[tuple[tuple[str, ...], str]]:
        found = []
        for each in self._affected:
            version = each.kept.version
            work = self._catalogue.partials_uri(each.kept.name, version)
            keys = by_shard(each.after, version.spec, version.products)
            reasons = [failed[work, key] for key in keys if (work, key) in failed]
            if reasons:
                found.append((each.kept.identity, some_of(reasons)))
        return found

    def version(self, each: AffectedVersion, after: Manifest, engine: Engine) -> Version | None:
        """Sums and stores a version without the images.

        Args:
            each: The version.
            after: Its manifest without the images.
            engine: Where it is summed.

        Returns:
            The version to commit; None if none of its images can be read.
        """
        catalogue, name, old = self._catalogue, each.kept.name, each.kept.version
        if not after.heads:
            return None
        work, recipe = catalogue.partials_uri(name, old), self._recipe(each)
        named = replace(after, pairing=_pairing(catalogue, each))
        composed = sum_shards(named, work, recipe, name, engine)
        if not composed.images:
            return None
        file, digest = _store_list(catalogue, each, after)
        new = store_sum(catalogue, name, after, digest, composed, recipe)
        return replace(
            new,
            source=old.source,
            built=old.built,
            software=old.software,
            by=old.by,
            part_of=old.part_of,
            value=old.value,
            manifest_file=file,
        )


def restated(catalogue: Catalogue, each: AffectedVersion, after: Manifest) -> Version:
    """Stores the list of a version that keeps all its images.

    Args:
        catalogue: The catalogue.
        each: The version.
        after: Its manifest, in lists that name no erased image.

    Returns:
        The version to commit.
    """
    file, digest = _store_list(catalogue, each, after)
    old = each.kept.version
    return replace(old, sha256={**old.sha256, "manifests": digest}, manifest_file=file)


def _store_list(catalogue: Catalogue, each: AffectedVersion, after: Manifest) -> tuple[str, str]:
    """Stores a manifest, named by its bytes: its own digest is that of other bytes before.

    Returns:
        What the file is named for, and the sha256 of its bytes.
    """
    digest = sha256(after.data)
    file = digest[:32]
    storage.replace(
        catalogue.uri("manifests", each.kept.version.spec, each.kept.name, file), after.data
    )
    return file, digest


def _pairing(catalogue: Catalogue, each: AffectedVersion) -> Pairing | None:
    """Finds out how the images of a version were named for pairing.

    Returns:
        What the manifest states. Older ones state nothing: then that which gives the sample of
        names that the version has. None if it has none, or none does.
    """
    version, before = each.kept.version, each.before
    if before.pairing is not None:
        return before.pairing
    layer = catalogue.spec(version.spec).layers[0]
    wanted = catalogue.open_file("folds", each.kept.name, version, [layer]).pairs
    if wanted is None:
        return None
    source = before.source
    for root in (source, source.rpartition("/")[0]):
        for by in (None, "stem", *before.labels):
            pairing = Pairing(root, by)
            found = pairs_of(replace(before, pairing=pairing))
            if found is not None and found.to_json() == wanted.to_json():
                return pairing
    return None
