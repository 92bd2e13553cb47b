"""A name stands for one thing, and a room exports only what others use."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for room in ("pipeline", "jobs") for path in (ROOT / room).rglob("*.py"))

API = ROOT / "pipeline" / "api.py"
"""Its functions wrap those of a room, which have the same names."""

TYPE_VARIABLES = {"TypeVar", "ParamSpec"}
"""A type variable belongs to the signatures of its module: each `T` is one of its own."""


def repeated(places: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Returns the names that stand in several places, with the places."""
    found = defaultdict(list)
    for name, place in places:
        found[name.lstrip("_")].append(place)
    return {name: there for name, there in found.items() if len(there) > 1}


def assigned(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """Returns the names that an assignment gives values to, also several at once: `A, B = 1, 2`."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [each for target in targets for each in ast.walk(target)]
    return {
        name.id for name in names if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }


def types_of(path: Path) -> Iterable[str]:
    """Yields the classes of a module, and the aliases of types, which are written like classes."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            called = getattr(getattr(node.value, "func", None), "id", None)
            if called not in TYPE_VARIABLES:
                names = assigned(node)
                yield from (name for name in names if any(letter.islower() for letter in name[1:]))


def public_values(path: Path) -> set[str]:
    """Returns the names of a module's functions and constants, except for its own logger."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= assigned(node)
    return {name for name in found if not name.startswith("_") and name != "logger"}


def test_every_way_to_write_a_constant_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("A = B = 1\nC, (D, *E) = 2, (3, 4)\nF: int = 5\nA.x, A[B] = 6, 7\n_G = 8\n")
    assert public_values(module) == set("ABCDEF")


def exported(stub: Path) -> list[str]:
    body = ast.parse(stub.read_text()).body
    return [alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]


def test_no_two_types_share_a_name() -> None:
    capitalised = (
        (name, str(path.relative_to(ROOT)))
        for path in MODULES
        for name in types_of(path)
        if name.lstrip("_")[0].isupper()
    )
    assert repeated(capitalised) == {}


def test_no_two_modules_have_a_function_or_a_constant_of_one_name() -> None:
    """A private name belongs to its module, and so does a type variable."""
    modules = [path for path in MODULES if path.is_relative_to(API.parent) and path != API]
    values = [
        (name, str(path.relative_to(ROOT))) for path in modules for name in public_values(path)
    ]
    shared = repeated(place for place in values if len(place[0]) > 1)
    assert shared == {}


def test_no_two_rooms_export_the_same_name() -> None:
    """The package itself exports again what its users need."""
    stubs = (ROOT / "pipeline").glob("*/__init__.pyi")
    assert repeated((name, stub.parent.name) for stub in stubs for name in exported(stub)) == {}


def test_no_two_modules_of_the_package_share_a_name_or_differ_by_an_s() -> None:
    """A module of `jobs` is named after its command, whatever the rooms call theirs."""
    modules = [path for path in MODULES if ROOT / "jobs" not in path.parents]
    names = [path.stem for path in modules if path.name != "__init__.py"]
    assert repeated((name, name) for name in names) == {}
    assert not {name + end for name in names for end in ("s", "es")} & set(names)


def used_names(path: Path) -> Iterable[tuple[str, str]]:
    """Yields what a file takes from the doors of rooms: the room, and the name."""
    rooms = {}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module == "pipeline":
            rooms |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif re.fullmatch(r"pipeline\.\w+", node.module):
            yield from ((node.module.partition(".")[2], alias.name) for alias in node.names)
    for node in ast.walk(tree):
        of = getattr(node, "value", None)
        if isinstance(node, ast.Attribute) and isinstance(of, ast.Name) and of.id in rooms:
            yield rooms[of.id], node.attr


def test_a_room_exports_only_what_others_use() -> None:
    """Tests of a room import from its modules what no one else needs."""
    folders = ("pipeline", "jobs", "benchmarks", "experiments")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    used = {
        (room, name)
        for path in paths
        for room, name in used_names(path)
        if room not in path.relative_to(ROOT).parts
    }
    text = "".join(path.read_text() for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    for stub in (ROOT / "pipeline").glob("*/__init__.pyi"):
        room = stub.parent.name
        documented = set(re.findall(rf"\b{room}\.(\w+)", text))
        unused = {name for name in exported(stub) if (room, name) not in used} - documented
        assert unused == set(), room
