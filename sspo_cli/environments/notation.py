"""Translation of answers as sympy prints them, such as `(1 + sqrt(5))/2` or `[1, 2]`, into LaTeX for the checker."""

import ast

LONGEST = 200  # characters
_NAMES = {"pi": r"\pi", "oo": r"\infty", "I": "i", "E": "e"}
_OPERATIONS: dict[type[ast.operator], str] = {ast.Add: "{} + {}", ast.Sub: "{} - {}", ast.Mult: r"{} \cdot {}"}


def as_latex(answer: str) -> str | None:
    """Translate an expression of numbers, names, operators, `sqrt` and lists into LaTeX; return None for any other text."""
    if len(answer) > LONGEST:
        return None
    try:
        return _latex(ast.parse(answer.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _latex(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=int() | float() as value):
            return repr(value)
        case ast.Name(id=name):
            return _NAMES.get(name, name)
        case ast.Tuple(elts=values):
            return f"({_listed(values)})"
        case ast.List(elts=values):
            return _listed(values)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"-{_group(operand)}"
        case ast.Call(func=ast.Name(id="sqrt") | ast.Attribute(attr="sqrt"), args=[argument]):
            return rf"\sqrt{{{_latex(argument)}}}"
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return rf"\frac{{{_latex(left)}}}{{{_latex(right)}}}"
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return f"{_group(left)}^{{{_latex(right)}}}"
        case ast.BinOp(left=ast.Constant() as left, op=ast.Mult(), right=ast.Name() | ast.Call() as right):
            return _latex(left) + _latex(right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            product = isinstance(op, ast.Mult)
            return _OPERATIONS[type(op)].format(*(_group(side) if product else _latex(side) for side in (left, right)))
    raise ValueError("no expression of this kind")


def _listed(values: list[ast.expr]) -> str:
    return ", ".join(map(_latex, values))


def _group(node: ast.expr) -> str:
    match node:
        case ast.Name() | ast.Constant() | ast.Call() | ast.BinOp(op=ast.Div()):
            return _latex(node)
    return f"({_latex(node)})"
