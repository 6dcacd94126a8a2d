"""Small mistakes that can be made in a source file, each as a replacement of a few bytes of its text."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"),
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
WORD = re.compile(r"[A-Za-z_][\w./-]{0,30}")  # a text that is a key or a choice; sentences are for people
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_comment"}


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        path: of the file, relative to the package.
        line: of the statement's changed part, counted from 1.
        scope: the function or class that it is in.
        start, end: bytes of the source that `replacement` takes the place of.
    """

    path: str
    line: int
    scope: str
    operator: str
    original: str
    replacement: str
    start: int
    end: int

    def apply(self, source: bytes) -> bytes:
        """Return the source with the mistake."""
        return source[: self.start] + self.replacement.encode() + source[self.end :]

    @property
    def key(self) -> str:
        """What names the mistake as long as its text and its place are the same."""
        return f"{self.path}::{self.scope}: {self.operator}: {self.original} -> {self.replacement}"


def find_mutants(path: str, source: bytes) -> list[Mutant]:
    """Return every mistake that the operators can make in a file; see `is_other_program`."""
    return _Finder(path, source).visit_all(ast.parse(source))


def is_other_program(mutant: Mutant, source: bytes) -> bool:
    """Return whether a mistake in a source is valid Python and another program; it takes a parse of the file."""
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        return False


class _Finder:
    """Walks a tree, and knows the bytes that each node takes."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def visit_all(self, tree: ast.Module) -> list[Mutant]:
        return [mutant for node, scope in _walk(tree, "") for mutant in self.of_node(node, scope)]

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return the bytes of a node."""
        first = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return first, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, start: int, end: int) -> str:
        return self.source[start:end].decode()

    def of_node(self, node: ast.AST, scope: str) -> Iterator[Mutant]:
        """Yield the mistakes in a node itself, not in those below it."""

        def mutant(operator: str, start: int, end: int, replacement: str) -> Mutant:
            line = self.source.count(b"\n", 0, start) + 1
            return Mutant(self.path, line, scope, operator, self.text(start, end), replacement, start, end)

        def between(operator: str, left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[Mutant]:
            start, end = self.span(left)[1], self.span(right)[0]
            pattern = re.escape(old).replace(r"\ ", r"\s+")
            changed = re.sub(rf"(?<![<>=!*/\w]){pattern}(?![=*/\w])", new, self.text(start, end), count=1)
            yield mutant(operator, start, end, changed)

        def whole(operator: str, target: ast.AST, change: Callable[[str], str]) -> Iterator[Mutant]:
            start, end = self.span(target)
            yield mutant(operator, start, end, change(self.text(start, end)))

        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                yield from between("comparison", left, right, *COMPARISONS[type(op)])
            case ast.BoolOp(op=op, values=values):
                old, new = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                for left, right in itertools.pairwise(values):
                    yield from between("and, or", left, right, old, new)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                start, end = self.span(node)[0], self.span(operand)[0]
                yield mutant("removed not", start, end, re.sub(r"\bnot\b\s*", "", self.text(start, end), count=1))
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                yield from whole("negated condition", test, lambda text: f"(not ({text}))")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC and not _is_text(left, right):
                yield from between("arithmetic", left, right, *ARITHMETIC[type(op)])
            case ast.AugAssign(target=target, op=ast.Add() | ast.Sub() as op, value=value):
                old, new = ("+=", "-=") if isinstance(op, ast.Add) else ("-=", "+=")
                start, end = self.span(target)[1], self.span(value)[0]
                yield mutant("arithmetic", start, end, self.text(start, end).replace(old, new))
                yield from whole("removed statement", node, lambda text: "pass")
            case ast.Constant(value=bool() as value):
                yield from whole("constant", node, lambda text: str(not value))
            case ast.Constant(value=int() as number):
                yield from whole("constant", node, lambda text: str(number + 1))
            case ast.Constant(value=float() as number):
                yield from whole("constant", node, lambda text: repr(2 * number if number else 1.0))
            case ast.Constant(value=str() as word) if WORD.fullmatch(word):
                yield from whole("constant", node, lambda text: repr(f"x{word}"))
            case ast.Return(value=ast.expr() as value) if (
                not isinstance(value, ast.Constant) or value.value is not None
            ):
                yield from whole("returned nothing", value, lambda text: "None")
            case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
                yield from whole("removed statement", node, lambda text: "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield from whole("removed statement", node, lambda text: "pass")
            case ast.Call(func=func, args=args, keywords=keywords):
                if isinstance(func, ast.Name) and func.id in NAMES:
                    yield from whole("function", func, lambda text: NAMES[text])
                if len(args) > 1 and not any(isinstance(each, ast.Starred) for each in args[:2]):
                    (a, b), (c, d) = self.span(args[0]), self.span(args[1])
                    swapped = self.text(c, d) + self.text(b, c) + self.text(a, b)
                    yield mutant("swapped arguments", a, d, swapped)
                parts = sorted([*args, *keywords], key=lambda part: self.span(part))
                for index, part in enumerate(parts):
                    if isinstance(part, ast.keyword) and part.arg is not None and len(parts) > 1:
                        start, end = self.span(part)
                        start, end = (
                            (self.span(parts[index - 1])[1], end) if index else (start, self.span(parts[index + 1])[0])
                        )
                        yield mutant("removed argument", start, end, "")


def _is_text(*nodes: ast.AST) -> bool:
    return any(isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str) for node in nodes)


def _walk(node: ast.AST, scope: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield the nodes that are executed, with the function or class that they are in: no annotations, no docstrings,
    no texts for people (in Python 3.11 the parts of an f-string have no places)."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}".lstrip(".")
    yield node, scope
    for name, value in ast.iter_fields(node):
        if name in SKIPPED_FIELDS:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_skipped(child):
                yield from _walk(child, scope)


def _is_skipped(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            return True
    return False
