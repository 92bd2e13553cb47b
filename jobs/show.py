"""Show one dataset: what was counted, how, what repeats or is odd, and what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    engine_for,
    guarded,
    pinned,
    run_alone,
)
from pipeline.catalogue import MOST_OUTLIERS, SnapshotOptions
from pipeline.errors import CorruptFile, SourceError, UsageError, VdnaError
from pipeline.events import Listener
from pipeline.explaining import RankRequest
from pipeline.spec import Resources
from pipeline.wording import count_of, option

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue, Outliers, Version
    from pipeline.explaining import Repeats


CHOOSING = ("include", "exclude", "limit")
"""Options of a build by which a dataset has only some of the images of its source."""


@guarded
def show(
    snapshot: SnapshotOptions,
    resources: Resources,
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
    catalogue: CatalogueOption,
    progress: Listener,
    failures: Annotated[int, typer.Option(help="Number of failures to list.", min=0)] = 10,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Number of groups of repeated images to list; 0 does not look for them. Without "
            "it 5 are listed, and what takes long is not looked for.",
            min=0,
        ),
    ] = None,
    outliers: Annotated[
        int | None,
        typer.Option(
            help="Number of outliers to list: the images whose own DNA is the farthest from the "
            "dataset's. If they were never ranked, all images are read again for it, as by vdna "
            "rank --to NAME. 0 lists none. Without it 5 are listed, if they are known.",
            min=0,
            max=MOST_OUTLIERS,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="File or url of the weights that it was built with, to rank its images."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dataset: what was counted, how, what repeats or is odd, and what could not be read.

    Only --outliers may read images and run the network. --workers and such options are for that,
    and RAY_ADDRESS names a cluster for it.
    """
    from pipeline import storage
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import image_notes, outlier_lines, repeat_lines, window_days
    from pipeline.sources import label_of

    if weights is not None:
        _require_ranking(outliers)
    place = Catalogue(catalogue)
    given = {key: value for key, value in vars(snapshot).items() if value is not None}
    if outliers:
        snapshot = pinned(place, snapshot)
    version = place.find(name, snapshot.at, snapshot.spec)
    spec = place.spec(version.spec)
    listed = place.failures(name, version) if version.failed else []
    found, unknown = _repeats(place, name, version, repeats, progress)

    def rank(failures_allowed: int) -> None:
        from pipeline import api

        with engine_for(resources, None, progress) as engine:
            api.rank(
                place,
                RankRequest(None, name, weights=weights, max_failures=failures_allowed),
                engine=engine,
                resources=resources,
                progress=progress,
                **vars(snapshot),
            )

    odd, unread = _outliers(place, name, version, outliers, rank)
    if as_json:
        print_json(
            {
                "name": name,
                **asdict(version),
                "selection": place.selection(name, version),
                "spec_fields": spec.to_json(),
                "repeats": None if found is None else found.to_json(),
                "outliers": None if odd is None else odd.to_json(),
                "failures": [asdict(failure) for failure in listed],
            }
        )
        return
    rule = spec.preprocess
    images = count_of(version.images, "image")
    say(f"{name}: {images}, {version.failed:,} failed, from {version.source}")
    say(f"  built      {version.built} by {version.software}")
    say(f"  dna        {version.dna}")
    if selection := place.selection(name, version):
        words = [option(key, value) for key, value in selection.items() if key in CHOOSING]
        if chosen_by := " ".join([str(selection.get("source", "")), *words]).strip():
            say(f"  chosen by  {chosen_by}")
    if days := window_days(version):
        say(f"  window of  {version.part_of}, {days}")
    elif version.part_of:
        say(f"  part of    {version.part_of}, where {label_of(version.by)} is {version.value!r}")
    elif version.by:
        say(f"  parts by   {label_of(version.by)}")
    if version.imported:
        say(f"  imported   {version.origin['kind']} of {version.origin['software']}")
        say(f"  images     {version.origin['images_from']}")
    else:
        say(f"  manifest   {version.manifest}")
    say(f"  spec       {version.spec}")
    say(f"  extractor  {spec.extractor}, weights sha256 {spec.weights_sha256}")
    layers = count_of(len(spec.taps), "layer")
    say(f"  counted    {count_of(spec.neurons, 'neuron')} of {layers} x {spec.bins} bins")
    how = f"{rule.resize} resize, crop {rule.crop}, EXIF {rule.exif}, {spec.precision}"
    how += f", alpha {rule.alpha}" if rule.alpha != "drop" else ""
    how += f", JPEGs {rule.jpeg}" if rule.jpeg != "full" else ""
    how += f", decoder {rule.decoder}" if rule.decoder else ""
    size = f"{rule.height} x {rule.width}" if rule.height else "of unknown size"
    say(f"  input      {size}, {how}")
    say(f"  keeps      {', '.join(version.products)}")
    if version.transparent is not None:
        single = f"{version.single_colour:,} of a single colour"
        say(f"  noted      {version.transparent:,} transparent, {single}")
    for line in repeat_lines(found) if found is not None else ():
        say(f"  {line}")
    for note in filter(None, (unknown, unread)):
        say(f"  note: {note}")
    chosen = "".join(f" {option(key, value)}" for key, value in given.items())
    if odd is not None:
        for line in outlier_lines(odd, name, chosen, place.at(snapshot.at)):
            say(f"  {line}")
    if version.imported:
        say(f"  note: {version.provenance}")
    elif not all(
        storage.exists(place.uri(kind, version.spec, name, version.digest_in(kind)))
        for kind in ("dna", "manifests")
    ):
        say("  note: its files are gone: `vdna gc` has removed them, or they were lost")
    elif odd is None and not unread and outliers is None:
        for line in outlier_lines(None, name, chosen):
            say(f"  {line}")
    for other in place.specs_beside(name, version.spec, snapshot.at):
        say(f"  also       vdna show {name} --spec {other[:12]} shows its version of another spec")
    for note in (*version.notes, *image_notes(version, rule.alpha)):
        say(f"  note: {note}")
    for reason, count in Counter(failure.reason for failure in listed).most_common():
        say(f"  {count:,} x {reason}")
    for failure in listed[:failures]:
        say(f"    {failure}")


def _require_ranking(outliers: int | None) -> None:
    """Refuses weights where no images may be ranked."""
    if not outliers:
        raise UsageError(
            f"{option('weights')} needs {option('outliers')} with a number from 1 up, which ranks "
            "the images"
        )


def _repeats(
    place: Catalogue, name: str, version: Version, listed: int | None, progress: Listener
) -> tuple[Repeats | None, str]:
    """Returns what repeats, or why that is not known. Nothing is said of it if 0 are listed."""
    from pipeline.explaining import QUICK_SEARCH, find_repeats
    from pipeline.reporting import unknown_repeats

    if listed == 0:
        return None, ""
    if unknown := unknown_repeats(version, asked=listed is not None):
        return None, unknown
    try:
        if listed is None:
            return find_repeats(place, name, version, limit=QUICK_SEARCH), ""
        return find_repeats(place, name, version, listed, progress=progress), ""
    except (SourceError, CorruptFile) as error:
        return None, f"it is not known which images it has more than once: {error}"


def _outliers(
    place: Catalogue,
    name: str,
    version: Version,
    listed: int | None,
    rank: Callable[[int], None],
) -> tuple[Outliers | None, str]:
    """Returns the outliers to list, or why they cannot be read.

    If somebody has asked for them, and none are kept, the images are ranked first.

    Args:
        place: The catalogue.
        name: The dataset.
        version: Its version.
        listed: How many are to be listed; None if nobody has asked for them.
        rank: Ranks the images of the version, of which so many may be unreadable.

    Raises:
        VdnaError: Images were erased while these were ranked.
    """
    from pipeline.building import allowed_failures
    from pipeline.catalogue import find_outliers
    from pipeline.reporting import OUTLIERS_LISTED

    if listed == 0:
        return None, ""
    try:
        found = find_outliers(place, version)
    except CorruptFile as error:
        if listed is None:
            return None, f"its outliers cannot be read: {error}"
        found = None
    if found is None and listed is not None:
        usual = allowed_failures(RankRequest.max_failures, version.images + version.failed)
        rank(max(usual, version.failed))
        found = find_outliers(place, version)
        if found is None:
            raise VdnaError(
                f"images were erased while those of {name} were ranked, so the ranking is not "
                "kept; run the same command again"
            )
    return None if found is None else found.first(listed or OUTLIERS_LISTED), ""


if __name__ == "__main__":
    run_alone(show)
