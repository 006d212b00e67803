"""Sums of integers and names, as in ``--grid "OW/16, OH/16, N"``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _divided(a: int, b: int) -> int:
    return -(-a // b)


_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: _divided,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}
_ALLOWED = "integers, names, + - * / // %, min(), max() and parentheses"


@dataclass(frozen=True)
class Expression:
    """One size: ``a / b`` rounds up, ``a // b`` down."""

    text: str
    tree: ast.expr

    def value(self, names: Mapping[str, int]) -> int:
        """The number, with the names' values. Raises ValueError where it divides by 0."""
        try:
            return _value(self.tree, names)
        except ZeroDivisionError:
            raise ValueError(f"{self.text!r} divides by 0") from None


def parse_sizes(option: str, text: str, names: Mapping[str, Any]) -> tuple[Expression, ...]:
    """One to three expressions, separated by commas, of the ``names``.

    Raises ValueError naming the option for what is no such expression, and for other names.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{option} {text!r} is not a list of sizes: {_ALLOWED}") from None
    parts = tree.elts if isinstance(tree, ast.Tuple) else [tree]
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"{option} {text!r} must hold one to three sizes, got {len(parts)}")
    for part in parts:
        _check(option, text, part, names)
    return tuple(Expression(ast.unparse(part), part) for part in parts)


def _check(option: str, text: str, node: ast.expr, names: Mapping[str, Any]) -> None:
    match node:
        case ast.Constant(value=int()) if not isinstance(node.value, bool):
            return
        case ast.Name(id=name) if name in names:
            return
        case ast.Name(id=name):
            known = ", ".join(names)
            raise ValueError(f"{option} {text!r}: {name!r} is unknown, only {known} are known")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            operands = [left, right]
        case ast.Call(func=ast.Name(id=name), args=operands, keywords=[]) if (
            name in _FUNCTIONS and operands
        ):
            pass
        case _:
            part = ast.unparse(node)
            raise ValueError(f"{option} {text!r}: {part!r} is not allowed, only {_ALLOWED}")
    for operand in operands:
        _check(option, text, operand, names)


def _value(node: ast.expr, names: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.Call(func=ast.Name(id=name), args=operands):
            numbers = [_value(operand, names) for operand in operands]
            return _FUNCTIONS[name](*numbers) if len(numbers) > 1 else numbers[0]
    raise AssertionError(node)
