"""A model of one's own in YAML: SIR, whose R0 is beta/gamma."""

from meningitis.model import Model
from meningitis.symbolic import r0

SIR = """
name: sir
closed: true
compartments:
  - {name: S, meaning: susceptible}
  - {name: I, meaning: infectious, infected: true}
  - {name: R, meaning: immune}
parameters:
  - {name: beta, symbol: "\\\\beta", unit: 1/day, default: 0.4, bounds: [0, 5], kind: rate, meaning: transmission rate,
     distribution: {kind: uniform, low: 0.2, high: 0.6}}
  - {name: gamma, symbol: "\\\\gamma", unit: 1/day, default: 0.2, bounds: [0, 5], kind: rate, meaning: recovery rate,
     distribution: {kind: uniform, low: 0.1, high: 0.3}}
  - {name: population, symbol: N, unit: persons, default: 1000, bounds: [1, 1.0e9], kind: count, meaning: size,
     distribution: {kind: fixed, low: 1000, high: 1000}}
flows:
  - {name: infection, source: S, target: I, rate: beta * S * I / population, new_infection: true, case: true}
  - {name: recovery, source: I, target: R, rate: gamma * I}
initial: {S: population - 1, I: 1}
"""

print(r0(Model.from_yaml(SIR)))
