"""A model of one's own in Python: SEIR, swept over its transmission rate."""

from meningitis.analysis import final_sizes
from meningitis.engine import simulate
from meningitis.model import Compartment, Distribution, Flow, InitialState, Model, Parameter

SEIR = Model(
    name="seir",
    closed=True,
    compartments=(
        Compartment(name="S", meaning="susceptible"),
        Compartment(name="E", meaning="infected, not yet infectious", infected=True),
        Compartment(name="I", meaning="infectious", infected=True),
        Compartment(name="R", meaning="immune"),
    ),
    parameters=(
        Parameter(
            name="beta", symbol=r"\beta", default=0.5, meaning="transmission",
            distribution=Distribution(kind="uniform", low=0.25, high=1.0),  # for sensitivity work
        ),
        Parameter(name="sigma", symbol=r"\sigma", default=0.25, meaning="onset"),
        Parameter(name="gamma", symbol=r"\gamma", default=0.2, meaning="recovery"),
        Parameter(name="population", symbol="N", default=1000, kind="count", meaning="size"),
    ),
    flows=(
        Flow(name="infection", source="S", target="E", rate="beta * S * I / population", new_infection=True),
        Flow(name="onset", source="E", target="I", rate="sigma * E", case=True),
        Flow(name="recovery", source="I", target="R", rate="gamma * I"),
    ),
    initial=InitialState(values={"S": "population - 1", "E": 1}),
)  # fmt: skip

run = simulate(SEIR, parameters={"beta": [0.3, 0.5]}, days=120)
print(run.frame().groupby("set")["I"].max().round(1).to_list())
print(final_sizes(SEIR, SEIR.values(), {"beta": [0.3, 0.5]}).frame())
