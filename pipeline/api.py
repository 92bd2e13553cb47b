"""What the commands compute, as functions.

    >>> build("dnas", Request("sunny", "photos/sunny"))                      # doctest: +SKIP
    >>> compare("dnas").to_pandas()                                          # doctest: +SKIP

Each function takes a catalogue by its url, or as a `Catalogue`. Work runs in this process unless an
`engine` is given, as `with RayEngine() as engine`. `progress=True` shows a bar or lines on stderr.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from pipeline import building, comparing, explaining, refreshing, reporting
from pipeline import catalogue as catalogues
from pipeline.building import EraseOptions, MemoryOptions, Request
from pipeline.catalogue import Catalogue, SnapshotOptions, VerifyOptions
from pipeline.comparing import CompareOptions, NearestOptions
from pipeline.errors import UsageError
from pipeline.events import Listener, Said, heard_by, ignore
from pipeline.explaining import DriftOptions, ExplainOptions, FitOptions, SuggestOptions
from pipeline.options import takes_options
from pipeline.reporting import EXPLAINED_PAIRS, ReportOptions
from pipeline.wording import option

if TYPE_CHECKING:  # a command that needs few of the rooms starts at once
    from pipeline.building import (
        Calibration,
        CalibrationRequest,
        Erased,
        EraseKeywords,
        ErasurePreview,
        Forecast,
        ForecastRequest,
        MemorySource,
        Result,
    )
    from pipeline.catalogue import Finding, SnapshotKeywords, Verification, VerifyKeywords
    from pipeline.comparing import (
        CompareKeywords,
        Effort,
        Matrix,
        NearestKeywords,
        Neighbours,
        Overlaps,
    )
    from pipeline.dna import DNA, Lens
    from pipeline.engine import Engine
    from pipeline.explaining import (
        Drift,
        DriftKeywords,
        ExplainKeywords,
        Explanation,
        FitKeywords,
        FittedLens,
        Ranking,
        RankRequest,
        Repeats,
        Suggestion,
        SuggestKeywords,
    )
    from pipeline.refreshing import Config, Refreshed
    from pipeline.reporting import HtmlPage, Report, ReportKeywords
    from pipeline.spec import BackendChoice, Resources

Progress = Listener | bool
"""A listener that is told what happens; True for a bar or lines on stderr, False for silence."""


@takes_options(Request, MemoryOptions.__annotations__)
def make_dna(
    source: str | os.PathLike[str] | MemorySource,
    *,
    device: str = "cpu",
    threads: int | None = None,
    backend: BackendChoice = "auto",
    micro_batch: int | None = None,
    cuda_graphs: bool = True,
    progress: Progress = False,
    **options: Unpack[MemoryOptions],
) -> DNA:
    """Makes the DNA of a source, or of images in memory, in this process.

    Torch's switches, threads and random numbers are afterwards as they were. glibc's allocator
    stays set as quick counting needs it. On a CPU the network stays loaded for the next call,
    unless its weights have over 400 MiB, or it is a network of your own.

    Args:
        source: A source as `vdna build` takes it (folder, glob, url, list, table, archive); or
            paths and urls; or images: uint8 arrays (height, width, 3) or (height, width), PIL
            images, or torch tensors (3, height, width) of uint8 or of floats from 0 to 1. Images
            may come in any iterable, in a torch `Dataset` whose items are an image or a tuple that
            begins with one, or in a Hugging Face `Dataset`, by its column `image` or the one that
            `image_column` names. A dataset is read item by item; an iterator is held in memory.
        device: The kind of device that the network runs on, `cpu` or `cuda`.
        threads: How many images are processed at a time. None takes all cores.
        backend: What runs the network on a CPU: `torch`, `openvino` if it is installed, or `auto`:
            OpenVINO for networks of depthwise convolutions, if it is installed, else torch.
        micro_batch: How many images the network sees at a time; None for 8 on a CPU, 64 on a GPU.
        cuda_graphs: Whether a GPU records the forward pass once and replays it, with equal bits.
        progress: Whether to show progress; or a listener.
        **options: Options of `Request`: those that `MemoryOptions` names.

    Returns:
        The DNA with its folds, so that `emd` of two such DNAs has error bars. `DNA.failed` says how
        many images could not be read, `DNA.transparent` how many of the others are transparent,
        and `DNA.single_colour` how many are of one colour.

    Raises:
        GateError: More images than `max_failures` allows could not be read. If fewer could not,
            a warning lists the first of them.
        UsageError: An option is not allowed, or an image in memory is of the wrong kind.
        TypeError: An option is not known.
    """
    with _shown(progress) as listener:
        return building.make_dna(
            source,
            device=device,
            threads=threads,
            backend=backend,
            micro_batch=micro_batch,
            cuda_graphs=cuda_graphs,
            progress=listener,
            **options,
        )


def build(
    catalogue: Catalogue | str,
    request: Request,
    *,
    engine: Engine | None = None,
    resources: Resources | None = None,
    relist: bool = False,
    progress: Progress = False,
) -> Result:
    """Builds a dataset's DNA and commits it. The same call again does only what is missing.

    A version that replaces another one is compared with it: see `Result.moved`.

    Args:
        catalogue: Where the dataset is committed.
        request: What to build.
        engine: Where the work runs; None for this process.
        resources: How fast it runs; None for the engine's own.
        relist: Whether to list the source from the beginning, and again if it changes meanwhile.
        progress: Whether to show progress; or a listener.

    Returns:
        What became of the request.

    Raises:
        VdnaError: Whatever `build_datasets` raises.
    """
    place = _at(catalogue)
    with _shown(progress) as listener:
        with _opened(engine) as opened:
            (result,) = building.build_datasets(
                place,
                [request],
                opened,
                _resources(resources, engine),
                listener,
                relist=relist,
            )
        if result.replaced is None:
            return result
        listener(Said(f"{result.name}: measuring how far it has moved"))
        return comparing.with_movement(place, result)


def forecast(
    request: ForecastRequest,
    *,
    resources: Resources | None = None,
    progress: Progress = False,
) -> Forecast:
    """Forecasts the time, the machines and the cost of a first build.

    A sample of the source is counted in this process, and nothing of it is kept.

    Args:
        request: What is to be built, and by how many GPUs.
        resources: The workers: how many, and what each of them has.
        progress: Whether to show progress; or a listener.

    Returns:
        The forecast.

    Raises:
        UsageError: A file of prices or of a speed cannot be used, or workers are to have GPUs and
            nothing says how fast these are.
        SpecMismatch: The speed was measured with other options.
        VdnaError: The source cannot be listed, or its sample not be counted.
    """
    with _shown(progress) as listener:
        return building.forecast(request, resources, listener)


def calibrate(
    request: CalibrationRequest,
    *,
    engine: Engine | None = None,
    resources: Resources | None = None,
    progress: Progress = False,
) -> Calibration:
    """Measures the ranges of a network's neurons, and writes a file of them.

    Args:
        request: Which images, which network, and where the file goes.
        engine: Where the work runs; None for this process.
        resources: How fast it runs; None for the engine's own.
        progress: Whether to show progress; or a listener.

    Returns:
        What was measured.

    Raises:
        UsageError: A neuron had no finite activation, or `out` is no place for the file.
        GateError: Too many images could not be read.
    """
    with _shown(progress) as listener, _opened(engine) as opened:
        return building.calibrate(request, opened, _resources(resources, engine), listener)


def refresh(
    config: Config | str,
    catalogue: Catalogue | str | None = None,
    *,
    engine: Engine | None = None,
    resources: Resources | None = None,
    effort: Effort | None = None,
    relist: bool = False,
    progress: Progress = False,
) -> Refreshed:
    """Brings every dataset of a configuration up to date, then the matrix, then the gate.

    Args:
        config: The configuration, or the path or url of its file.
        catalogue: The catalogue; None for the one that the configuration names.
        engine: Where the builds run; None for this process.
        resources: How fast to build; None for the engine's own.
        effort: How to compare; None for this process with all its cores.
        relist: Whether to list the sources from the beginning.
        progress: Whether to show progress; or a listener.

    Returns:
        What was done. An error of one dataset, or of the gate, is in its `error` and is not raised:
        see `Refreshed.require_ok`.

    Raises:
        UsageError: The configuration is wrong; nothing was built then.
    """
    place = None if catalogue is None else _at(catalogue)
    with _shown(progress) as listener:
        return refreshing.refresh(
            config,
            place,
            None if engine is None else nullcontext(engine),
            resources=_resources(resources, engine),
            effort=effort or comparing.Effort(progress=listener),
            progress=listener,
            relist=relist,
        )


@takes_options(CompareOptions)
def compare(
    catalogue: Catalogue | str,
    names: Sequence[str] = (),
    *,
    lens: Lens | str | None = None,
    effort: Effort | None = None,
    progress: Progress = False,
    **options: Unpack[CompareKeywords],
) -> Matrix:
    """Computes the distances of all pairs of datasets, by layer.

    Args:
        catalogue: Where the datasets are.
        names: The datasets to compare; none for all of them.
        lens: Weighs the neurons: a lens, or the name or file of one.
        effort: How to compute; None for this process with all its cores.
        progress: Whether to show progress; or a listener. It is not used if `effort` is given.
        **options: The options of `CompareOptions`. Without `spec` it is the one that the names
            share, or the default.

    Returns:
        The matrix.

    Raises:
        NotFound: A name is unknown.
        SpecMismatch: A dataset is only known under other specs; the message names the fields.
        UsageError: There are fewer than two datasets, or an argument is wrong.
    """
    _require_lists(names=names)
    place = _at(catalogue)
    options["at"] = place.at(options.get("at")).number  # all is read from one commit
    with _shown(progress) as listener:
        return comparing.compare(
            place,
            names,
            lens=_lens(place, lens, names, options.get("at"), options.get("spec")),
            effort=effort or comparing.Effort(progress=listener),
            **options,
        )


@takes_options(NearestOptions)
def nearest(
    catalogue: Catalogue | str,
    names: Sequence[str] = (),
    *,
    lens: Lens | str | None = None,
    effort: Effort | None = None,
    progress: Progress = False,
    **options: Unpack[NearestKeywords],
) -> Neighbours:
    """Finds the nearest datasets of one dataset, or of each, without comparing all pairs.

    The result is exactly that of comparing all pairs, and then sorting them by their EMD.

    Args:
        catalogue: Where the datasets are.
        names: The datasets to look among; none for all of them, as they are now. `near` may then be
            an earlier version, too, or a window of days.
        lens: Weighs the neurons: a lens, or the name or file of one.
        effort: How to compute; None for this process with all its cores.
        progress: Whether to show progress; or a listener. It is not used if `effort` is given.
        **options: The options of `NearestOptions`. One of `near` and `top` is needed. Without
            `spec` it is the one that the names share, or the default.

    Returns:
        The nearest, with error bars.

    Raises:
        NotFound: A name is unknown.
        SpecMismatch: A dataset is only known under other specs; the message names the fields.
        UsageError: There are fewer than two datasets, or an argument is wrong.
    """
    _require_lists(names=names)
    place = _at(catalogue)
    options["at"] = place.at(options.get("at")).number  # all is read from one commit
    with _shown(progress) as listener:
        return comparing.nearest(
            place,
            names,
            lens=_lens(place, lens, names, options.get("at"), options.get("spec")),
            effort=effort or comparing.Effort(progress=listener),
            **options,
        )


@takes_options(SuggestOptions)
def suggest(
    catalogue: Catalogue | str,
    target: str,
    candidates: Sequence[str] = (),
    *,
    effort: Effort | None = None,
    progress: Progress = False,
    **options: Unpack[SuggestKeywords],
) -> Suggestion:
    """Orders datasets by how near they are to a target, for choosing what to train on.

    How well that predicts accuracy was measured in one experiment, which is far from all cases:
    see `docs/experiments.md`.

    Args:
        catalogue: Where the datasets are.
        target: The dataset that a model is to do well on.
        candidates: The datasets that it may be trained on; none for all others.
        effort: How to compute; None for this process with all its cores.
        progress: Whether to show progress; or a listener. It is not used if `effort` is given.
        **options: The options of `SuggestOptions`.

    Returns:
        The candidates, the nearest first.

    Raises:
        NotFound: A name is unknown.
        SpecMismatch: A dataset is only known under other specs; the message names the fields.
        UsageError: The target is one of the candidates, or an argument is wrong.
    """
    _require_lists(candidates=candidates)
    place = _at(catalogue)
    options["at"] = place.at(options.get("at")).number  # all is read from one commit
    with _shown(progress) as listener:
        return explaining.suggest(
            place,
            target,
            candidates,
            effort=effort or comparing.Effort(progress=listener),
            **options,
        )


@takes_options(ExplainOptions)
def explain(
    catalogue: Catalogue | str,
    a: str,
    b: str,
    *,
    lens: Lens | str | None = None,
    progress: Progress = False,
    **options: Unpack[ExplainKeywords],
) -> Explanation:
    """Finds the layers, neurons and images behind the distance of two datasets.

    Args:
        catalogue: Where the datasets are.
        a: Name of one dataset.
        b: Name of the other.
        lens: Weighs the neurons: a lens, or the name or file of one.
        progress: Whether to show progress; or a listener.
        **options: The options of `ExplainOptions`.

    Returns:
        The explanation.

    Raises:
        NotFound: A name is unknown.
        UsageError: Both datasets are the same, or an argument is wrong.
    """
    place = _at(catalogue)
    options["at"] = place.at(options.get("at")).number  # all is read from one commit
    with _shown(progress) as listener:
        return explaining.explain(
            place,
            a,
            b,
            lens=_lens(place, lens, (a, b), options.get("at"), options.get("spec")),
            progress=listener,
            **options,
        )


@takes_options(SnapshotOptions)
def find_overlaps(
    catalogue: Catalogue | str, names: Sequence[str] = (), **options: Unpack[SnapshotKeywords]
) -> Overlaps:
    """Counts the images that datasets have in common: those whose files have equal bytes.

    Only the hashes that the builds have kept are read, not the images.

    Args:
        catalogue: Where the datasets are.
        names: The datasets; none for all.
        **options: The options of `SnapshotOptions`, which choose the datasets' versions.

    Returns:
        For each two datasets, how many images of the first have a file that the second has, too.

    Raises:
        NotFound: A name is unknown.
        UsageError: There are fewer than two datasets, or `names` is no list.
    """
    _require_lists(names=names)
    return comparing.find_overlaps(_at(catalogue), names, **options)


@takes_options(SnapshotOptions)
def find_repeats(
    catalogue: Catalogue | str,
    name: str,
    *,
    listed: int = 5,
    progress: Progress = False,
    **options: Unpack[SnapshotKeywords],
) -> Repeats:
    """Finds the images of a dataset that it has more than once, and those of one colour or black.

    Only the hashes that the build has kept are read, not the images. It takes about 200 bytes of
    memory for each image.

    Args:
        catalogue: Where the dataset is.
        name: The dataset.
        listed: How many groups of each kind are listed, the largest first. All are counted.
        progress: Whether to show progress; or a listener.
        **options: The options of `SnapshotOptions`, which choose the dataset's version.

    Returns:
        What was found.

    Raises:
        NotFound: There is no such dataset, or its build has kept no hashes.
    """
    place, chosen = _at(catalogue), SnapshotOptions(**options)
    with _shown(progress) as listener:
        version = place.find(name, chosen.at, chosen.spec)
        return explaining.find_repeats(place, name, version, listed, progress=listener)


@takes_options(DriftOptions)
def drift(
    catalogue: Catalogue | str,
    name: str,
    *,
    effort: Effort | None = None,
    progress: Progress = False,
    **options: Unpack[DriftKeywords],
) -> Drift:
    """Follows a dataset over its versions: how far each has moved, and where alarms are raised.

    Args:
        catalogue: Where the dataset is.
        name: The dataset; or the name of a version, to end with that one.
        effort: How to compare; None for this process with all its cores.
        progress: Whether to show progress; or a listener. It is not used if `effort` is given.
        **options: The options of `DriftOptions`.

    Returns:
        The path over its versions.

    Raises:
        NotFound: There is no such dataset or version.
        SourceError: Files of a version are not there any more.
        UsageError: Fewer than two versions are kept, or the reference is none of them.
    """
    place = _at(catalogue)
    with _shown(progress) as listener:
        return explaining.drift(
            place, name, effort=effort or comparing.Effort(progress=listener), **options
        )


@takes_options(SnapshotOptions)
def rank(
    catalogue: Catalogue | str,
    request: RankRequest,
    *,
    engine: Engine | None = None,
    lens: Lens | str | None = None,
    resources: Resources | None = None,
    progress: Progress = False,
    **options: Unpack[SnapshotKeywords],
) -> Ranking:
    """Orders images of a source by the distance of their own DNA to that of a dataset.

    Args:
        catalogue: Where the dataset is.
        request: Which images, which dataset, and what is reported.
        engine: Where the work runs; None for this process.
        lens: Weighs the neurons: a lens, or the name or file of one.
        resources: How fast the work runs; None for the engine's own.
        progress: Whether to show progress; or a listener.
        **options: The options of `SnapshotOptions`, which choose the dataset's version.

    Returns:
        The numbers of images, those at either end, and notes.

    Raises:
        NotFound: The catalogue does not have the dataset.
        SpecMismatch: The dataset was counted in a way that cannot be repeated here.
        GateError: Too many images cannot be read.
        UsageError: An argument is wrong.
    """
    place = _at(catalogue)
    chosen = SnapshotOptions(**options)
    number = place.at(chosen.at).number  # all is read from one commit
    with _shown(progress) as listener, _opened(engine) as opened:
        counted = place.spec(place.find(request.to, number, chosen.spec).spec)
        if isinstance(lens, str):
            lens = catalogues.find_lens(place, lens, counted)
        return explaining.rank(
            place,
            request,
            opened,
            lens=lens,
            at=number,
            spec=counted.digest,
            resources=_resources(resources, engine),
            progress=listener,
        )


@takes_options(FitOptions)
def fit_lens(
    catalogue: Catalogue | str,
    name: str,
    *,
    save: bool = True,
    progress: Progress = False,
    **options: Unpack[FitKeywords],
) -> FittedLens:
    """Fits a lens that focuses on one attribute, or that ignores some and keeps others.

    An attribute is a pair of datasets: WITH:WITHOUT, or WITH=WITHOUT for the same images with a
    change and without. Or it is the word of a change, such as `ignore=["brightness"]`, which is
    made here to a sample of the datasets' images.

    Args:
        catalogue: Where the datasets are.
        name: Name of the lens.
        save: Whether to store the lens in the catalogue, as the newest of its name.
        progress: Whether to show progress; or a listener.
        **options: The options of `FitOptions`.

    Returns:
        The lens with its scores.

    Raises:
        UsageError: There is neither a focus nor an attribute to ignore, an argument is wrong, or a
            sample has too few images.
        SourceError: Most images of a sample cannot be read any more.
    """
    place = _at(catalogue)
    catalogues.check_lens_name(name)
    with _shown(progress) as listener:
        fitted = explaining.fit_lens(place, name, progress=listener, **options)
    if save:
        catalogues.keep_lens(place, fitted.lens)
    return fitted


@takes_options(VerifyOptions)
def verify(
    catalogue: Catalogue | str,
    names: Sequence[str] = (),
    *,
    engine: Engine | None = None,
    resources: Resources | None = None,
    tell: Callable[[Finding], object] | None = None,
    progress: Progress = False,
    **options: Unpack[VerifyKeywords],
) -> Verification:
    """Checks datasets against all that is stored of them, and on request against their images.

    Args:
        catalogue: Where the datasets are.
        names: The datasets, or names of versions; none for all datasets.
        engine: Where versions are checked, and shards counted again; None for this process.
        resources: How fast to count; None for the engine's own.
        tell: Is called with each finding as soon as it is known.
        progress: Whether to show progress; or a listener.
        **options: The options of `VerifyOptions`.

    Returns:
        A finding for each check.

    Raises:
        NotFound: There is no such dataset, version or spec, or no dataset at all.
        UsageError: A name means a window of days, or `names` is no list.
    """
    _require_lists(names=names)
    place = _at(catalogue)
    place.at()  # says so if there is no catalogue
    chosen = VerifyOptions(**options)
    if engine is not None and not engine.in_process:
        building.require_shared(place.root)
    found = []

    def note(findings: Iterable[Finding]) -> None:
        for finding in findings:
            found.append(finding)
            if tell is not None:
                tell(finding)

    with _shown(progress) as listener:
        note(
            catalogues.verify(
                place,
                names,
                chosen.spec,
                all_versions=chosen.all_versions,
                mapper=engine,
                progress=listener,
            )
        )
    if chosen.deep:
        with _shown(progress) as listener, _opened(engine) as opened:
            findings = catalogues.recount(
                place,
                names,
                chosen.spec,
                engine=opened,
                sample=chosen.shards,
                seed=chosen.seed,
                weights=chosen.weights,
                resources=_resources(resources, engine),
                progress=listener,
            )
            with closing(findings):  # an error of `tell` ends the counting, too
                note(findings)
    return catalogues.Verification(tuple(found), chosen.all_versions)


@takes_options(EraseOptions)
def erase(
    catalogue: Catalogue | str,
    names: Sequence[str],
    *,
    engine: Engine | None = None,
    resources: Resources | None = None,
    progress: Progress = False,
    **options: Unpack[EraseKeywords],
) -> Erased:
    """Erases images from every kept version of every dataset, and proves that nothing names them.

    Args:
        catalogue: The catalogue.
        names: Paths or urls of images; `ARCHIVE::MEMBER` for one in an archive.
        engine: Where what held the images is counted again; None for this process.
        resources: How fast to count; None for the engine's own.
        progress: Whether to show progress; or a listener.
        **options: The options of `EraseOptions`.

    Returns:
        What was done.

    Raises:
        NotFound: Nothing in the catalogue has any of the images.
        UsageError: There is no reason, it names an image, or a source still holds one. Or `names`
            is no list.
        SourceError: Versions cannot be counted again without the images. Nothing was changed.
        TransientError: Some images could not be read for now. The same call goes on.
        VdnaError: Something still names an image in the end.
    """
    _require_lists(names=names)
    place = _at(catalogue)
    if engine is not None and not engine.in_process:
        building.require_shared(place.root)
    with _shown(progress) as listener, _opened(engine) as opened:
        return building.erase_images(
            place,
            names,
            EraseOptions(**options),
            opened,
            _resources(resources, engine),
            listener,
        )


def preview_erasure(
    catalogue: Catalogue | str, names: Sequence[str], *, progress: Progress = False
) -> ErasurePreview:
    """Tells what `erase` would do, and what it would read. Nothing is changed.

    Args:
        catalogue: The catalogue.
        names: As `erase` takes them.
        progress: Whether to show progress; or a listener.

    Returns:
        What it would do.

    Raises:
        NotFound: There is no catalogue.
        UsageError: `names` is no list.
    """
    _require_lists(names=names)
    with _shown(progress) as listener:
        return building.preview_erasure(_at(catalogue), names, listener)


@takes_options(ReportOptions)
def report(
    catalogue: Catalogue | str,
    out: str | None = None,
    *,
    site: str | None = None,
    lenses: Sequence[Lens | str] = (),
    rankings: Sequence[Ranking | str] = (),
    effort: Effort | None = None,
    progress: Progress = False,
    **options: Unpack[ReportKeywords],
) -> Report:
    """Makes the page of a snapshot: every distance, and what is behind it, in one HTML file.

    Args:
        catalogue: Where the datasets are.
        out: The file or object to write (.html); None to write none. It has no links to the
            explanations of `site`, since it opens alone.
        site: The folder to write the page to, as index.html, with a page for each dataset, and for
            each of some pairs that explains why they differ; None to write none. Such pages of an
            earlier report there are replaced, and of rankings too.
        rankings: Rankings that get a page in `site`, and links to it: rankings, or files that
            `rank` wrote.
        lenses: Lenses to look through as well: lenses, or names or files of some.
        effort: How to compute; None for this process with all its cores.
        progress: Whether to show progress; or a listener.
        **options: The options of `ReportOptions`.

    Returns:
        The page as `out` has it; a notebook shows it.

    Raises:
        UsageError: There are fewer than two datasets, `out` is no name of a page, `site` is no
            folder, or pairs are to be `explained` or rankings shown without a `site`.
    """
    _require_lists(lenses=lenses, rankings=rankings)
    place = _at(catalogue)
    chosen = ReportOptions(**options)
    if out is not None:
        reporting.require_html(out)
    if site is not None:
        reporting.require_site(site)
    elif chosen.explained is not None:
        explained = option("explained", chosen.explained)
        raise UsageError(f"{explained} needs {option('site')}, the folder that the pages go to")
    elif rankings:
        raise UsageError(f"a ranking needs {option('site')}, the folder that its page goes to")
    number, spec = place.at(chosen.at).number, chosen.spec  # all is read from one commit
    through = [None, *(_lens(place, lens, (), number, spec) for lens in lenses)]
    ranked = [explaining.read_ranking(place, of) if isinstance(of, str) else of for of in rankings]
    pairs = 0
    with _shown(progress) as listener:
        effort = effort or comparing.Effort(progress=listener)
        matrices = [
            comparing.compare(
                place,
                at=number,
                spec=spec,
                fd=chosen.fd and lens is None,
                lens=lens,
                effort=effort,
            )
            for lens in through
        ]
        page = reporting.gather_matrix_page(
            place,
            matrices,
            lenses=through,
            apart=sorted(place.at(number).datasets.keys() - set(matrices[0].names)),
            at=number,
            samples=chosen.samples,
            progress=listener,
        )
        if site is not None:
            written = reporting.write_site(
                place,
                page,
                site,
                EXPLAINED_PAIRS if chosen.explained is None else chosen.explained,
                at=number,
                samples=chosen.samples,
                rankings=ranked,
                progress=listener,
            )
            page, pairs = replace(page, notes=written.notes), len(written.explained)
    versions = place.find_all(matrices[0].names, number, matrices[0].spec_digest)
    notes = [f"{name}: {note}" for name, version in versions.items() for note in version.notes]
    made = reporting.Report(
        reporting.render_matrix_page(page), tuple(matrices), (*page.notes, *notes), pairs
    )
    if out is not None:
        made.save(out)
    return made


def html_page(
    catalogue: Catalogue | str,
    found: Matrix | Explanation | Ranking | Drift,
    *,
    lens: Lens | str | None = None,
    apart: Sequence[str] = (),
    at: int | str | None = None,
    progress: Progress = False,
) -> HtmlPage:
    """Makes the page of a matrix, explanation, ranking or drift, as `--html` of the commands does.

        >>> html_page("dnas", explain("dnas", "sunny", "rainy")).save("why.html")  # doctest: +SKIP

    Args:
        catalogue: Where the datasets are.
        found: What to show.
        lens: The lens that a matrix or an explanation was computed through: a lens, or the name or
            file of one.
        apart: Datasets to name on a matrix's page as not compared, because they have other specs.
        at: The commit or time that a matrix is of; None for the newest.
        progress: Whether to show progress; or a listener.

    Returns:
        The page.

    Raises:
        UsageError: The lens is another one, or a version at that commit is. Or a lens is given for
            the page of a ranking or drift, which takes none.
    """
    _require_lists(apart=apart)
    place = _at(catalogue)
    if lens is not None and isinstance(found, explaining.Ranking | explaining.Drift):
        kind = type(found).__name__.lower()
        raise UsageError(f"the page of a {kind} takes no {option('lens')}; leave it out")
    if isinstance(found, explaining.Ranking):
        return reporting.HtmlPage(reporting.render_gallery(reporting.gallery_of(place, found)))
    if isinstance(found, explaining.Drift):
        return reporting.HtmlPage(reporting.render_drift(reporting.gather_drift(place, found)))
    if isinstance(found, explaining.Explanation):
        of = next(iter(found.versions.values())).spec
        why = reporting.gather_explanation(place, found, lens=_lens_under(place, lens, of))
        return reporting.HtmlPage(reporting.render_explanation(why))
    number = place.at(at).number
    through = _lens_under(place, lens, found.spec_digest)
    with _shown(progress) as listener:
        page = reporting.gather_matrix_page(
            place, [found], lenses=[through], apart=apart, at=number, progress=listener
        )
    return reporting.HtmlPage(reporting.render_matrix_page(page))


def _at(catalogue: Catalogue | str) -> Catalogue:
    return Catalogue(catalogue) if isinstance(catalogue, str) else catalogue


def _require_lists(**given: Iterable[object]) -> None:
    """Refuses a text in place of a list, as its letters would be taken for names.

    Args:
        **given: Arguments that are lists, by their names.

    Raises:
        UsageError: One of them is a text.
    """
    for name, value in given.items():
        if isinstance(value, str):
            raise UsageError(
                f"{name} is {value!r}; it must be a list, such as {option(name, [value])}"
            )


def _lens(
    place: Catalogue,
    lens: Lens | str | None,
    names: Sequence[str],
    at: int | str | None,
    spec: str | None,
) -> Lens | None:
    """Finds a lens by its name, for the spec that the datasets share."""
    if not isinstance(lens, str):
        return lens
    return catalogues.find_lens(place, lens, comparing.spec_of(place, names, at=at, spec=spec))


def _lens_under(place: Catalogue, lens: Lens | str | None, spec: str) -> Lens | None:
    """Finds a lens by its name, for a spec."""
    if not isinstance(lens, str):
        return lens
    return catalogues.find_lens(place, lens, place.spec(spec))


@contextmanager
def _shown(progress: Progress) -> Iterator[Listener]:
    if progress is True:
        with reporting.show_progress() as listener, heard_by(listener):
            yield listener
    elif progress:
        with heard_by(progress):
            yield progress
    else:
        yield ignore


def _opened(engine: Engine | None) -> AbstractContextManager[Engine]:
    """Opens an engine in this process, unless there is one, which stays open."""
    if engine is not None:
        return nullcontext(engine)
    from pipeline.engine import InProcess  # it imports what counts, which few commands need

    return InProcess()


def _resources(given: Resources | None, engine: Engine | None) -> Resources | None:
    """Returns what an engine was opened with, unless other resources are given.

    They also decide the device, which is part of what is counted in bf16.
    """
    return engine.resources if given is None and engine is not None else given
