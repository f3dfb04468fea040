"""A system as SBML with rate rules: how roadrunner is given the very same equations."""

from __future__ import annotations

import sympy

from meningitis.engine.system import System

_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<sbml xmlns="http://www.sbml.org/sbml/level3/version1/core" level="3" version="1"><model id="system">'
)
_MATH = '<math xmlns="http://www.w3.org/1998/Math/MathML">'
_OPERATORS = {sympy.Add: "plus", sympy.Mul: "times", sympy.Pow: "power"}


def sbml(system: System) -> str:
    """SBML level 3 version 1: components y0, y1, ... (zero at the start) and parameters p0, p1, ... (zero)."""
    expressions = (*system.rhs, *system.integrands)
    names = {symbol: f"y{m}" for m, symbol in enumerate(system.states)}
    names |= {symbol: f"p{k}" for k, symbol in enumerate(system.parameters)}
    declared = [f'<parameter id="y{m}" value="0" constant="false"/>' for m in range(len(expressions))]
    declared += [f'<parameter id="p{k}" value="0" constant="true"/>' for k in range(len(system.parameters))]
    rules = [
        f'<rateRule variable="y{m}">{_MATH}{_mathml(e, names)}</math></rateRule>' for m, e in enumerate(expressions)
    ]
    return (
        f"{_HEAD}<listOfParameters>{''.join(declared)}</listOfParameters>"
        f"<listOfRules>{''.join(rules)}</listOfRules></model></sbml>\n"
    )


def _mathml(expression: sympy.Expr, names: dict[sympy.Symbol, str]) -> str:
    if expression.is_Symbol:
        return f"<ci>{names[expression]}</ci>"
    if expression.is_number:
        return f"<cn>{float(expression)!r}</cn>"
    operator = _OPERATORS.get(expression.func)
    if operator is None:
        raise ValueError(f"{expression.func.__name__} has no place in this SBML: sums, products and powers only")
    return f"<apply><{operator}/>{''.join(_mathml(a, names) for a in expression.args)}</apply>"
