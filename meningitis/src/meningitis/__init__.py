"""A compartmental model of meningitis epidemics with carriers and two stages of infection."""

__version__ = "0.1.0"
