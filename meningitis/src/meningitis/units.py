"""Units of persons and days: quantities written by people, and the dimensional analysis of rates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

import sympy

Dimension = tuple[Fraction, Fraction]
"""Exponents of persons and of days: persons/day is (1, -1)."""

DIMENSIONLESS: Dimension = (Fraction(0), Fraction(0))
PERSONS_PER_DAY: Dimension = (Fraction(1), Fraction(-1))
PERSONS: Dimension = (Fraction(1), Fraction(0))
DAYS: Dimension = (Fraction(0), Fraction(1))
PER_DAY: Dimension = (Fraction(0), Fraction(-1))

DAYS_IN: Mapping[str, float] = {"hour": 1 / 24, "day": 1.0, "week": 7.0, "month": 365 / 12, "year": 365.0}
"""Length of a time unit in days; a year is 365 days, as in the models' sources."""

ALIASES: Mapping[str, str] = {"yr": "year"}
"""Other names of time units."""

_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|.*?)\s*")


class UnitError(ValueError):
    """A unit or quantity that cannot be read, or an expression whose parts have different units."""


def parse_quantity(text: str | float) -> float:
    """Read a number with an optional unit and return it per day (rates), in days (times) or as it stands.

    `70/year`, `0.19`, `20 %`, `1/3`, `3 days`, `52 per year`, `111540 persons`, `500 persons/day` are understood.
    Raises UnitError.
    """
    return quantity(text)[0]


def quantity(text: str | float) -> tuple[float, Dimension | None]:
    """Read as `parse_quantity` does, with the dimension that the text gives: None for a plain number.

    Raises UnitError.
    """
    given: Dimension | None = None
    if isinstance(text, bool):
        raise UnitError(f"{str(text).lower()} is not a quantity, but a number with an optional unit is wanted")
    if isinstance(text, int | float):
        value = float(text)
    else:
        match = _QUANTITY.fullmatch(str(text))  # whatever else it is: a number of numpy's reads as one
        if match is None:
            raise UnitError(
                f"'{text}' is not a quantity: write a number with an optional unit, such as 70/year or 20 %"
            )
        factor, given = _factor(match.group(2), text)
        value = float(match.group(1)) * factor
    if not math.isfinite(value):
        raise UnitError(f"'{text}' is not a finite number")
    return value, given


def quantity_in(unit: str, text: str | float) -> float:
    """Read a quantity for a parameter in `unit` (such as 1/day); a plain number is in that unit.

    Raises UnitError, with what to write instead, where the quantity has another unit.
    """
    value, given = quantity(text)
    if given is None:
        return value
    wanted = parse_unit(unit)
    if given == wanted:
        return value
    fix = {
        PER_DAY: "a rate such as 0.1/day or 36.5/year",
        PERSONS: "a plain number of persons",
        PERSONS_PER_DAY: "a plain number in persons/day, or such as 70 persons/year",
        DIMENSIONLESS: "a plain number or a share in %",
    }.get(wanted, f"a plain number in {unit}")
    if wanted == PER_DAY and given == DAYS and value:  # a duration was meant: the rate is its inverse
        fix = f"1/{value:g} (a plain number is per day) or {1 / value:.4g}/day"
    raise UnitError(f"'{text}' is in {spell(given)}, but must be in {unit}: write {fix}")


def _factor(unit: str, text: str) -> tuple[float, Dimension | None]:
    unit = re.sub(r"(^|\s+)per\s+", "/", unit.strip().lower())
    if unit == "":
        return 1.0, None
    if unit in ("persons", "person"):
        return 1.0, PERSONS
    if match := re.fullmatch(r"persons?\s*(/.*)", unit):
        factor, below = _factor(match[1], text)
        if below == PER_DAY:
            return factor, PERSONS_PER_DAY
    if unit == "%":
        return 0.01, DIMENSIONLESS
    if not unit.startswith("/"):
        name = _time(unit)
        if name in DAYS_IN:
            return DAYS_IN[name], DAYS
    else:
        name = unit[1:].strip()
        try:
            return 1 / float(name), None
        except (ValueError, ZeroDivisionError):
            name = _time(name)
        if name in DAYS_IN:
            return 1 / DAYS_IN[name], PER_DAY
    raise UnitError(f"'{text}' has an unknown unit: allowed are /{', /'.join(DAYS_IN)}, persons, persons/day and %")


def _time(name: str) -> str:
    name = name.removesuffix("s")
    return ALIASES.get(name, name)


def parse_unit(text: str) -> Dimension:
    """Read a parameter's unit: a product of powers of `persons` and `day`, such as 1/day or 1/(persons day)."""
    body = re.sub(r"[()]", " ", text.strip())
    numerator, _, denominator = body.partition("/")
    exponents = {"persons": 0, "day": 0}
    for part, sign in ((numerator, 1), (denominator, -1)):
        for word in re.split(r"[\s*/]+", part.strip()):
            base, _, power = word.partition("^")
            base = {"person": "persons", "days": "day"}.get(base, base)
            if base in ("", "1"):
                continue
            if base not in exponents or not re.fullmatch(r"-?\d*", power):
                raise UnitError(f"unit '{text}' is not made of persons and day (such as 1/day, persons, 1)")
            exponents[base] += sign * int(power or 1)
    return Fraction(exponents["persons"]), Fraction(exponents["day"])


def spell(dimension: Dimension) -> str:
    """Write a dimension as text: (1, -1) is `persons/day`."""
    words = [f"{n}^{e}" if e != 1 else n for n, e in zip(("persons", "day"), dimension, strict=True) if e > 0]
    below = [f"{n}^{-e}" if e != -1 else n for n, e in zip(("persons", "day"), dimension, strict=True) if e < 0]
    return " ".join(words or ["1"]) + ("/" + (below[0] if len(below) == 1 else f"({' '.join(below)})") if below else "")


def dimension(expression: sympy.Expr, units: Mapping[sympy.Symbol, Dimension]) -> Dimension | None:
    """Return the dimension of `expression`; None when it is zero, which has every dimension.

    Raises UnitError where terms of a sum differ or a function's argument has a unit.
    """
    if expression.is_Symbol:
        return units[expression]
    if expression.is_zero:
        return None
    if expression.is_number:
        return DIMENSIONLESS
    if expression.is_Mul:
        parts = [dimension(argument, units) for argument in expression.args]
        known = [part for part in parts if part is not None]
        return (sum((p[0] for p in known), Fraction(0)), sum((p[1] for p in known), Fraction(0)))
    if expression.is_Pow:
        return _power(expression, units)
    if expression.is_Add or isinstance(expression, sympy.Min | sympy.Max | sympy.Abs):
        found = [(dimension(argument, units), argument) for argument in expression.args]
        known_terms = [(part, argument) for part, argument in found if part is not None]
        for part, argument in known_terms[1:]:
            if part != known_terms[0][0]:
                raise UnitError(
                    f"'{known_terms[0][1]}' ({spell(known_terms[0][0])}) and '{argument}' ({spell(part)}) "
                    "have different units and cannot be added"
                )
        return known_terms[0][0] if known_terms else None
    for argument in expression.args:
        _bare(argument, units, expression)
    return DIMENSIONLESS


def _power(expression: sympy.Expr, units: Mapping[sympy.Symbol, Dimension]) -> Dimension | None:
    base, exponent = expression.args
    _bare(exponent, units, expression)
    of_base = dimension(base, units)
    if of_base is None or of_base == DIMENSIONLESS:
        return of_base
    if not exponent.is_number:
        raise UnitError(f"'{expression}' raises a quantity with a unit to a power that is not a number")
    power = Fraction(float(exponent)).limit_denominator(1000)
    return of_base[0] * power, of_base[1] * power


def _bare(argument: sympy.Expr, units: Mapping[sympy.Symbol, Dimension], whole: sympy.Expr) -> None:
    found = dimension(argument, units)
    if found not in (None, DIMENSIONLESS):
        raise UnitError(f"'{argument}' in '{whole}' has the unit {spell(found)}, but must be a plain number")
