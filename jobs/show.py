"""Show one dataset: what was counted, how, what repeats, and what could not be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.catalogue import SnapshotOptions
from pipeline.errors import CorruptFile, SourceError
from pipeline.events import Listener
from pipeline.wording import count_of

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue, Version
    from pipeline.explaining import Repeats


@guarded
def show(
    snapshot: SnapshotOptions,
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
    catalogue: CatalogueOption,
    progress: Listener,
    failures: Annotated[int, typer.Option(help="Number of failures to list.")] = 10,
    repeats: Annotated[
        int | None,
        typer.Option(
            help="Number of groups of repeated images to list; 0 does not look for them. Without "
            "it 5 are listed, and what takes long is not looked for.",
            min=0,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dataset: what was counted, how, what repeats, and what could not be read."""
    from pipeline import storage
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import image_notes, repeat_lines, window_days
    from pipeline.sources import label_of

    place = Catalogue(catalogue)
    version = place.find(name, snapshot.at, snapshot.spec)
    spec = place.spec(version.spec)
    listed = place.failures(name, version) if version.failed else []
    found, unknown = _repeats(place, name, version, repeats, progress)
    if as_json:
        print_json(
            {
                "name": name,
                **asdict(version),
                "spec_fields": spec.to_json(),
                "repeats": None if found is None else found.to_json(),
                "failures": [asdict(failure) for failure in listed],
            }
        )
        return
    rule = spec.preprocess
    images = count_of(version.images, "image")
    say(f"{name}: {images}, {version.failed:,} failed, from {version.source}")
    say(f"  built      {version.built} by {version.software}")
    say(f"  dna        {version.dna}")
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
    if unknown:
        say(f"  note: {unknown}")
    if version.imported:
        say(f"  note: {version.provenance}")
    elif not all(
        storage.exists(place.uri(kind, version.spec, name, version.digest_in(kind)))
        for kind in ("dna", "manifests")
    ):
        say("  note: its files are gone: `vdna gc` has removed them, or they were lost")
    else:
        of_spec = f" --spec {snapshot.spec}" if snapshot.spec else ""
        say(f"  outliers   vdna rank --to {name}{of_spec} orders its images, the oddest last")
    for other in place.specs_beside(name, version.spec, snapshot.at):
        say(f"  also       vdna show {name} --spec {other[:12]} shows its version of another spec")
    for note in (*version.notes, *image_notes(version, rule.alpha)):
        say(f"  note: {note}")
    for reason, count in Counter(failure.reason for failure in listed).most_common():
        say(f"  {count:,} x {reason}")
    for failure in listed[:failures]:
        say(f"    {failure}")


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


if __name__ == "__main__":
    run_alone(show)
