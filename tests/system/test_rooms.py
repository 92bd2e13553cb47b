"""Tests what the package exports, and that importing it stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pipeline


def test_exported_names() -> None:
    assert sorted(pipeline.__all__) == [
        "Calibration",
        "CalibrationRequest",
        "Catalogue",
        "CompareOptions",
        "DNA",
        "Distance",
        "Drift",
        "DriftOptions",
        "Effort",
        "EraseOptions",
        "Erased",
        "ErasurePreview",
        "ExplainOptions",
        "Explanation",
        "Failure",
        "FitOptions",
        "FittedLens",
        "Forecast",
        "ForecastRequest",
        "HtmlPage",
        "ImageGroup",
        "ImageGroups",
        "InProcess",
        "Lens",
        "Matrix",
        "NearestOptions",
        "Neighbours",
        "Overlaps",
        "Partial",
        "Preprocess",
        "Ranges",
        "RankRequest",
        "Ranking",
        "RayEngine",
        "Refreshed",
        "Repeats",
        "Report",
        "ReportOptions",
        "Request",
        "Resources",
        "Result",
        "SnapshotOptions",
        "Spec",
        "SuggestOptions",
        "Suggestion",
        "Tap",
        "VdnaError",
        "Verification",
        "VerifyOptions",
        "VisualDNA",
        "build",
        "build_datasets",
        "calibrate",
        "compare",
        "drift",
        "emd",
        "erase",
        "explain",
        "fd",
        "find_overlaps",
        "find_repeats",
        "fit_lens",
        "forecast",
        "html_page",
        "log_mlflow",
        "log_wandb",
        "make_dna",
        "nearest",
        "nfd",
        "pairwise_emd",
        "preview_erasure",
        "rank",
        "refresh",
        "register_decoder",
        "register_network",
        "report",
        "show_progress",
        "suggest",
        "verify",
    ]
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name
    assert set(pipeline.__all__) <= set(dir(pipeline))


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import pipeline, sys; "
        "print(sorted({'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
