"""Symbolic sizes in an archive: sums and products of a few symbols, which sympy evaluates."""

from __future__ import annotations

import ast
import re
from typing import NoReturn

__all__ = ["SYMBOL", "check_expression"]

SYMBOL = re.compile(r"[a-z]{1,8}\d{1,5}")
_LONGEST = 1000
_LARGEST = 2**40
_POWER = 4
_TERMS = 200  # that a sum would have, were it multiplied out
_SUMS = ("Add", "Max", "Min")
_OPAQUE = (  # of one or two arguments; nothing is multiplied out beyond them
    *("FloorDiv", "CeilDiv", "CleanDiv", "Mod", "PythonMod", "ModularIndexing", "IntTrueDiv"),
    *("FloatTrueDiv", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat", "ToFloat"),
    *("Equality", "Unequality", "GreaterThan", "LessThan"),
    *("StrictGreaterThan", "StrictLessThan", "Rational"),
)
_ASSUMPTIONS = ("positive", "nonnegative", "integer", "real")


def check_expression(text: str) -> str:
    """``text``, if it is an expression that torch.export writes, and cheap to evaluate.

    Raises:
        ValueError: it is not.
    """
    if len(text) > _LONGEST:
        raise ValueError("an expression that is too long")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        _refuse(text)
    _terms(tree.body, text)
    return text


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"the expression {text[:60]!r}")


def _terms(node: ast.expr, text: str) -> int:
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, int | float) or abs(node.value) > _LARGEST:
            _refuse(text)
        return 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _terms(node.operand, text)
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return 1
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        _refuse(text)
    count = _called(node.func.id, node, text)
    return count if count <= _TERMS else _refuse(text)


def _called(name: str, call: ast.Call, text: str) -> int:
    if name == "Symbol":
        return _symbol(call, text)
    if call.keywords or not call.args:
        _refuse(text)
    if name == "Pow":
        return _power(call, text)
    counts = [_terms(argument, text) for argument in call.args]
    if name in _SUMS:
        return sum(counts)
    if name == "Mul":
        product = 1
        for count in counts:
            product = min(product * count, _TERMS + 1)
        return product
    known = name in _OPAQUE or (name in ("Integer", "Float") and len(counts) == 1)
    return sum(counts) if known else _refuse(text)


def _symbol(call: ast.Call, text: str) -> int:
    named = len(call.args) == 1 and isinstance(call.args[0], ast.Constant)
    name = call.args[0].value if named and isinstance(call.args[0], ast.Constant) else None
    assumed = all(
        keyword.arg in _ASSUMPTIONS
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, bool)
        for keyword in call.keywords
    )
    if not isinstance(name, str) or not SYMBOL.fullmatch(name) or not assumed:
        _refuse(text)
    return 1


def _power(call: ast.Call, text: str) -> int:
    base, *rest = call.args
    exponent = rest[0] if len(rest) == 1 else None
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name):
        integer = exponent.func.id == "Integer" and len(exponent.args) == 1
        exponent = exponent.args[0] if integer and not exponent.keywords else None
    if isinstance(exponent, ast.UnaryOp) and isinstance(exponent.op, ast.USub):
        exponent = exponent.operand
    value = exponent.value if isinstance(exponent, ast.Constant) else None
    if type(value) is not int or not 0 <= value <= _POWER:
        _refuse(text)
    count: int = _terms(base, text) ** value
    return min(count, _TERMS + 1)
