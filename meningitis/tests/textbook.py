"""Textbook models for the tests, in a line or two each."""

from __future__ import annotations

from typing import Any

from meningitis.model import Compartment, Distribution, Flow, InitialState, Model, Parameter

UNITS = {"N": "persons", "Nv": "persons", "births": "persons/day", "q": "1", "k": "1", "tau": "days"}


def build(name: str, states: str, infected: str, values: dict[str, float], flows: list[Any], initial: Any) -> Model:
    """A small model: flows are (source, target, rate, new infection?)."""
    return Model(
        name=name,
        compartments=tuple(Compartment(name=s, meaning=s, infected=s in infected.split()) for s in states.split()),
        parameters=tuple(
            Parameter(
                name=p,
                symbol=p,
                unit=UNITS.get(p, "1/day"),
                default=v,
                bounds=(0.0, 1e9),
                distribution=Distribution(kind="fixed", low=v, high=v),
                kind="rate" if p not in UNITS or p == "births" else "count" if UNITS[p] == "persons" else "multiplier",
                meaning=p,
            )
            for p, v in values.items()
        ),
        flows=tuple(
            Flow(name=f"flow{k}", source=a, target=b, rate=rate, new_infection=new)
            for k, (a, b, rate, new) in enumerate(flows)
        ),
        initial=InitialState(values=initial),
        closed=all(a and b for a, b, _, _ in flows),
    )


SIR = build(
    "sir", "S I R", "I", {"b": 0.4, "g": 0.1, "N": 1e3}, [("S", "I", "b*S*I/N", True), ("I", "R", "g*I", False)],
    {"S": "0.99*N", "I": "0.01*N"},
)  # fmt: skip
SEIR = build(
    "seir", "S E I R", "E I", {"b": 0.4, "a": 0.2, "g": 0.1, "m": 0.02, "births": 20.0, "N": 1e3},
    [
        (None, "S", "births", False), ("S", "E", "b*S*I/N", True), ("E", "I", "a*E", False), ("I", "R", "g*I", False),
        *((x, None, f"m*{x}", False) for x in ("S", "E", "I", "R")),
    ],
    {"S": "0.99*N", "I": "0.01*N"},
)  # fmt: skip
SEIAR = build(
    "seiar", "S E I A R", "E I A", {"b": 0.4, "k": 0.5, "a": 0.2, "q": 0.7, "g": 0.1, "h": 0.15, "N": 1e3},
    [
        ("S", "E", "b*S*(I + k*A)/N", True), ("E", "I", "q*a*E", False), ("E", "A", "(1 - q)*a*E", False),
        ("I", "R", "g*I", False), ("A", "R", "h*A", False),
    ],
    {"S": "0.99*N", "I": "0.01*N"},
)  # fmt: skip
VECTOR = build(
    "vector", "S I R U W", "I W", {"b": 0.3, "c": 0.2, "g": 0.1, "m": 0.05, "N": 1e3, "Nv": 4e3},
    [
        ("S", "I", "b*S*W/N", True), ("I", "R", "g*I", False), ("U", "W", "c*U*I/N", True), ("W", "U", "m*W", False),
    ],
    {"S": "0.99*N", "I": "0.01*N", "U": "Nv"},
)  # fmt: skip
TWO_SEX = build(
    "two_sex", "F M X Y", "X Y", {"b": 0.3, "c": 0.2, "g": 0.1, "h": 0.05, "N": 1e3, "Nv": 2e3},
    [
        ("F", "X", "b*F*Y/Nv", True), ("X", "F", "g*X", False), ("M", "Y", "c*M*X/N", True), ("Y", "M", "h*Y", False),
    ],
    {"F": "0.99*N", "X": "0.01*N", "M": "Nv"},
)  # fmt: skip
