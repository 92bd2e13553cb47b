"""Makes the mutants of a module: its syntax tree with one small fault.

    >>> [mutant.name for mutant in mutants_of("def f(a):\n    return a < 1\n", "f.py")]
    ['f.py f: a < 1 → a <= 1', 'f.py f: 1 → 2']

A mutant's name says what is changed in which function, and not the line, so that it stays while
other code of the module changes.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

LONGEST = 90

FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
LEAVING = (ast.Raise, ast.Return, ast.Continue, ast.Break)

N = TypeVar("N", bound=ast.AST)


@dataclass(frozen=True)
class Mutant:
    """A module with one fault.

    `name` tells it from all others, `scope` and `line` are where the fault is, `number` makes it
    again.
    """

    name: str
    scope: str
    line: int
    number: int


def mutants_of(source: str, path: str) -> list[Mutant]:
    maker = _Maker(path)
    maker.visit(ast.parse(source))
    return maker.found


def mutated(source: str, path: str, number: int | None) -> ast.Module:
    """Makes a mutant again; None makes the module without a fault."""
    tree = ast.parse(source)
    _Maker(path, number).visit(tree)
    return ast.fix_missing_locations(tree)


class _Maker(ast.NodeTransformer):
    """Walks a tree, lists every fault that it could make, and makes the one of the number."""

    def __init__(self, path: str, chosen: int | None = None) -> None:
        self.found: list[Mutant] = []
        self._path = path
        self._chosen = chosen
        self._scope: list[str] = []
        self._seen: Counter[str] = Counter()
        self._settled: set[int] = set()
        """Conditions of an `if` that are replaced as a whole."""

    def _offer(self, node: N, changed: ast.AST, said: str) -> Any:
        """Returns the changed node if this is the mutant to make, else the node."""
        where = ".".join(self._scope) or "module"
        name = f"{self._path} {where}: {said}"
        self._seen[name] += 1
        if self._seen[name] > 1:
            name += f" #{self._seen[name]}"
        number = len(self.found)
        self.found.append(Mutant(name, where, getattr(node, "lineno", 0), number))
        return ast.copy_location(changed, node) if number == self._chosen else node

    def _replaced(self, node: ast.AST, changed: ast.AST) -> Any:
        return self._offer(node, changed, f"{_short(node)} → {_short(changed)}")

    # Scopes, and what is left alone: annotations, docstrings, messages.

    def _scoped(self, node: Any) -> Any:
        self._scope.append(node.name)
        first = node.body[0]
        docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        node.body = [*node.body[:docstring], *self._all(node.body[docstring:])]
        if not isinstance(node, ast.ClassDef):
            node.args.defaults = self._all(node.args.defaults)
            node.args.kw_defaults = [d and self.visit(d) for d in node.args.kw_defaults]
        self._scope.pop()
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _scoped  # noqa: N815

    def _all(self, nodes: Sequence[Any]) -> list[Any]:
        return [self.visit(node) for node in nodes]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node if self._scope else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return node

    visit_ImportFrom = visit_Import  # noqa: N815

    # Faults.

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node
        self._settled.add(id(node.test))
        leaves = not node.orelse and isinstance(node.body[-1], LEAVING)
        changed = ast.Constant(False) if leaves else ast.UnaryOp(ast.Not(), node.test)
        said = f"if {_short(node.test)} → if {'False' if leaves else 'not …'}"
        test = self._offer(node.test, changed, said)
        node.test = self.visit(node.test) if test is node.test else test
        node.body, node.orelse = self._all(node.body), self._all(node.orelse)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self._settled.add(id(node.test))
        node = self._replaced(node, ast.IfExp(node.test, node.orelse, node.body))
        return self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        last = node.body[-1]
        if isinstance(last, ast.Raise):
            kept = self._offer(last, ast.Pass(), f"drop: {_short(last)}")
            if kept is not last:
                node.body[-1] = kept
        node.body = self._all(node.body)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):
            return node
        if isinstance(node.value, ast.Call | ast.Yield | ast.YieldFrom):
            dropped = self._offer(node, ast.Pass(), f"drop: {_short(node)}")
            if dropped is not node:
                return dropped
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        dropped = self._offer(node, ast.Pass(), f"drop: {_short(node)}")
        return self.generic_visit(node) if dropped is node else dropped

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        first = node.ops[0]
        if isinstance(first, ORDERINGS) or id(node) not in self._settled:
            other = ast.Compare(
                node.left, [FLIPPED[type(first)](), *node.ops[1:]], node.comparators
            )
            node = self._replaced(node, other)
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        for at in range(len(node.values)):
            rest = node.values[:at] + node.values[at + 1 :]
            changed = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            new = self._offer(node, changed, f"without {_short(node.values[at])}: {_short(node)}")
            if new is not node:
                return new
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            new = self._replaced(node, node.operand)
            if new is not node:
                return new
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        texts = any(
            isinstance(side, ast.JoinedStr)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        if not texts and type(node.op) in SWAPPED:
            node = self._replaced(node, ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right))
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = node.value
        if isinstance(value, bool):
            return self._replaced(node, ast.Constant(not value))
        if isinstance(value, int):
            return self._replaced(node, ast.Constant(value + 1))
        if isinstance(value, str) and not self._scope:
            return self._pattern(node)
        return node

    def _pattern(self, node: ast.Constant) -> Any:
        """Drops a mark from a class of characters, in the patterns of a module."""
        for found in re.finditer(r"\[\^?([^\]\s]+)\]", node.value):
            for at, mark in enumerate(found[1], found.start(1)):
                if mark in "?&;,{#'\"" and node.value[at - 1] != "\\":
                    changed = ast.Constant(node.value[:at] + node.value[at + 1 :])
                    new = self._offer(node, changed, f"without {mark}: {found[0]}")
                    if new is not node:
                        return new
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if isinstance(node.targets[0], ast.Tuple):  # the value has as many elements
            node.value = self.generic_visit(node.value)
            return node
        node.value = self.visit(node.value)
        return node

    def _display(self, node: Any) -> ast.AST:
        if len(node.elts) > 1 and not isinstance(getattr(node, "ctx", None), ast.Store):
            for at, element in enumerate(node.elts):
                less = type(node)(**{**vars(node), "elts": node.elts[:at] + node.elts[at + 1 :]})
                new = self._offer(node, less, f"without {_short(element)}: {_short(node)}")
                if new is not node:
                    return new
        return self.generic_visit(node)

    visit_Tuple = visit_List = visit_Set = _display  # noqa: N815

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        for at, key in enumerate(node.keys):
            keys, values = (
                node.keys[:at] + node.keys[at + 1 :],
                node.values[:at] + node.values[at + 1 :],
            )
            said = f"without {_short(key or node.values[at])}: {_short(node)}"
            new = self._offer(node, ast.Dict(keys, values), said)
            if new is not node:
                return new
        node.values = self._all(node.values)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        node.value = self.visit(node.value)
        if not isinstance(node.slice, ast.Tuple):
            node.slice = self.visit(node.slice)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        for at, keyword in enumerate(node.keywords):
            rest = node.keywords[:at] + node.keywords[at + 1 :]
            said = f"without {_short(keyword)}: {_short(node)}"
            new = self._offer(node, ast.Call(node.func, node.args, rest), said)
            if new is not node:
                return new
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            node.args[0] = self.visit(node.args[0])
            return node
        return self.generic_visit(node)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split()).replace("`", "'")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
