"""A model of one's own in Python: SEIR, swept over its transmission rate."""

from meningitis.analysis import final_sizes
from meningitis.engine import simulate
from meningitis.model import Compartment, Distribution, Flow, InitialState, Model, Parameter


def rate(name: str, value: float, meaning: str) -> Parameter:
    """A rate per day that sensitivity work samples from half to twice its value."""
    sampled = Distribution(kind="uniform", low=value / 2, high=2 * value)
    bounds = (0.0, 100 * value)
    return Parameter(
        name=name, symbol=rf"\{name}", unit="1/day", default=value, bounds=bounds, distribution=sampled, kind="rate",
        meaning=meaning,
    )  # fmt: skip


POPULATION = Parameter(
    name="population", symbol="N", unit="persons", default=1000, bounds=(1, 1e9), kind="count", meaning="size",
    distribution=Distribution(kind="fixed", low=1000, high=1000),
)  # fmt: skip
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
        rate("beta", 0.5, "transmission"),
        rate("sigma", 0.25, "onset"),
        rate("gamma", 0.2, "recovery"),
        POPULATION,
    ),
    flows=(
        Flow(name="infection", source="S", target="E", rate="beta * S * I / population", new_infection=True),
        Flow(name="onset", source="E", target="I", rate="sigma * E", case=True),
        Flow(name="recovery", source="I", target="R", rate="gamma * I"),
    ),
    initial=InitialState(values={"S": "population - 1", "E": 1}),
)

run = simulate(SEIR, parameters={"beta": [0.3, 0.5]}, days=120)
print(run.frame().groupby("set")["I"].max().round(1).to_list())
print(final_sizes(SEIR, SEIR.values(), {"beta": [0.3, 0.5]}).frame())
