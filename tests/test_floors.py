"""The house: imports go down only, and the public names are those that are listed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pipeline

ROOT = Path(__file__).parent.parent
FLOORS = [
    {
        *("errors", "allocator", "spec", "dna", "partial", "distance", "significance", "arrange"),
        *("blocks", "manifest", "lens", "exemplars"),
    },
    {
        *("extractor", "networks", "weights", "folding", "gaussian", "histogram", "ranges"),
        *("reactions", "nearness", "stream"),
        *("storage", "retry", "archive", "listing", "plan", "source", "images"),
        "progress",
    },
    {
        *("shard", "ranker", "reduce", "pairwise", "folds", "tiles", "matrix", "catalogue"),
        *("lenses", "notes"),
    },
    {
        *("build", "calibrate", "cluster", "config", "gate", "gc", "reference", "report"),
        *("recount", "verify", "rank", "explain", "explained", "figure", "page", "panels"),
        *("gallery", "fit", "samples"),
    },
]
LEVEL = {module: level for level, floor in enumerate(FLOORS) for module in floor}
GROUND_MAY_NOT = {"torch", "torchvision", "timm", "ray", "fsspec", "numba", "PIL", "os", "socket"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_of(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")} & set(
        LEVEL
    )


def test_every_module_has_its_floor() -> None:
    present = {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"}
    assert present <= set(LEVEL), present - set(LEVEL)


def test_imports_go_down_only() -> None:
    for path in (ROOT / "pipeline").glob("*.py"):
        if path.stem != "__init__":
            above = {m for m in modules_of(path) if LEVEL[m] > LEVEL[path.stem]}
            assert not above, f"{path.stem} imports {above} from a floor above"
            assert not any(name.split(".")[0] == "jobs" for name in imports(path)), path


def test_there_are_no_cycles() -> None:
    graph = {
        p.stem: modules_of(p) for p in (ROOT / "pipeline").glob("*.py") if p.stem != "__init__"
    }
    done: set[str] = set()
    while left := {m for m in graph if m not in done}:
        free = {m for m in left if graph[m] - {m} <= done}
        assert free, f"a cycle among {left}"
        done |= free


def test_the_ground_floor_does_no_io_and_knows_no_torch() -> None:
    for module in FLOORS[0] - {"spec"}:
        found = {name.split(".")[0] for name in imports(ROOT / "pipeline" / f"{module}.py")}
        assert not found & GROUND_MAY_NOT, (module, found & GROUND_MAY_NOT)


def test_only_their_module_imports_ray_and_fsspec() -> None:
    for path in [*(ROOT / "pipeline").glob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        roots = {name.split(".")[0] for name in imports(path)}
        assert "ray" not in roots or path.stem == "cluster", path
        assert not roots & {"fsspec", "s3fs"} or path.stem == "storage", path


def test_a_name_has_one_address() -> None:
    """Callers import it from where it is defined: mypy refuses what is not re-exported."""
    for path in (ROOT / "pipeline").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and path.stem != "__init__":
                again = [alias.name for alias in node.names if alias.asname == alias.name]
                assert not again, f"{path.stem} re-exports {again}"


def test_exported_names() -> None:
    assert sorted(pipeline.__all__) == [
        "Catalogue",
        "DNA",
        "Failure",
        "InProcess",
        "Lens",
        "Matrix",
        "Partial",
        "Preprocess",
        "Ranges",
        "Request",
        "Resources",
        "Result",
        "Spec",
        "Tap",
        "VdnaError",
        "build_datasets",
        "compare",
        "emd",
        "fd",
        "make_dna",
        "nfd",
        "pairwise_emd",
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
