"""The flow diagram of any declared model, drawn from the declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from meningitis.notation import Notation, per_person
from meningitis.report.style import BLACK, BLUE, VERMILION, new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from meningitis.model import Flow, Model

Point = tuple[float, float]
STEP, DROP, HALF = 1.9, 1.45, 0.32  # centimetre-like units: between boxes, between rows, half a box


def flow_diagram(model: Model, values: Mapping[str, float] | None = None) -> Figure:
    """Boxes for compartments, arrows for flows labelled with their rates per person; dashed where zero at `values`."""
    from matplotlib.patches import FancyBboxPatch

    values = model.values() if values is None else values
    at = positions(model)
    force, labels = flow_labels(model)
    with styled():
        width = max(x for x, _ in at.values()) + 1.6
        figure, axes = new(min(8.0, max(5.0, 1.0 * width)), 3.5)
        for compartment in model.compartments:
            x, y = at[compartment.name]
            colour = VERMILION if compartment.infected else (BLACK if compartment.dead else BLUE)
            axes.add_patch(
                FancyBboxPatch(
                    (x - HALF, y - HALF),
                    2 * HALF,
                    2 * HALF,
                    boxstyle="round,pad=0.02,rounding_size=0.08",
                    facecolor="white",
                    edgecolor=colour,
                    linewidth=2.2 if compartment.infected else 1.4,
                    zorder=3,
                )
            )
            name = model.latex_names[model.symbols[compartment.name]]
            axes.text(x, y, f"${name}$", ha="center", va="center", fontsize=13, zorder=4)
        for flow in model.flows:
            _arrow(axes, flow, at, labels[flow.name], absent=_is_zero(model, flow, values))
        if force:
            axes.set_title(force, fontsize=12, fontweight="normal", loc="left", pad=2)
        axes.set_aspect("equal")
        xs, ys = zip(*at.values(), strict=True)
        axes.set_xlim(min(xs) - 0.7, max(xs) + 0.7)
        axes.set_ylim(min(ys) - 0.6, max(*ys, DROP) + 0.6)
        axes.axis("off")
    return figure


def positions(model: Model) -> dict[str, Point]:
    """Centres: the way of infection in one row from left to right, the immune below it, the dead above its end."""
    infected = [c.name for c in model.compartments if c.infected]
    sources = {flow.source for flow in model.flows if flow.new_infection}
    first = [c.name for c in model.compartments if c.name in sources and not c.infected]
    dead = [c.name for c in model.compartments if c.dead and not c.infected]
    rest = [c.name for c in model.compartments if c.name not in {*infected, *first, *dead}]
    row = [*first, *infected]
    at = {name: (STEP * place, 0.0) for place, name in enumerate(row)}
    middle = STEP * (len(row) - 1 + len(first)) / 2
    for place, name in enumerate(rest):
        at[name] = (middle + STEP * (place - (len(rest) - 1) / 2), -DROP)
    for place, name in enumerate(dead):
        at[name] = (STEP * (len(row) - 0.15 + place), DROP)
    return at


def flow_labels(model: Model) -> tuple[str, dict[str, str]]:
    """The force of infection in LaTeX (empty where flows of infection share none), and a LaTeX label for each flow."""
    write = Notation(model)
    force, rates = per_person(model)
    written = "" if force is None else rf"$\lambda = {write.latex(force)}$   per day".replace(r"\frac", r"\dfrac")
    return written, {name: f"${write.latex(rate)}$" for name, rate in rates.items()}


def _is_zero(model: Model, flow: Flow, values: Mapping[str, float]) -> bool:
    rate = model.flow_rates()[flow.name]
    return bool(rate.subs({model.symbols[name]: value for name, value in values.items()}) == 0)


def _arrow(axes: object, flow: Flow, at: Mapping[str, Point], label: str, *, absent: bool) -> None:
    from matplotlib.patches import FancyArrowPatch

    begin, end = _ends(flow, at)
    dx, dy = end[0] - begin[0], end[1] - begin[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    skips = abs(dy) < 1e-9 and abs(dx) > 1.5 * STEP
    bend = -0.38 if skips else 0.0
    gap = HALF + 0.06
    # Leave the box through its edge: the larger component of the direction reaches the side first.
    cut = gap * length / max(abs(dx), abs(dy), 1e-9)
    ux, uy = dx / length, dy / length
    tail = (begin[0], begin[1] + gap) if skips else (begin[0] + cut * ux, begin[1] + cut * uy)
    head = (end[0], end[1] + gap) if skips else (end[0] - cut * ux, end[1] - cut * uy)
    axes.add_patch(  # type: ignore[attr-defined]
        FancyArrowPatch(
            tail,
            head,
            arrowstyle="-|>",
            mutation_scale=11,
            connectionstyle=f"arc3,rad={bend}",
            linestyle="--" if absent else "-",
            linewidth=1.1,
            color="#777777" if absent else "#222222",
            shrinkA=0,
            shrinkB=0,
            zorder=2,
        )
    )
    # Arrows that share a target meet there: their labels stand nearer the tail, where they are apart.
    share = 0.5 if abs(dy) < 1e-9 else 0.4
    x = tail[0] + share * (head[0] - tail[0]) - bend * 0.5 * (head[1] - tail[1])
    y = tail[1] + share * (head[1] - tail[1]) - bend * 0.5 * (head[0] - tail[0])
    if abs(dy) < 1e-9:
        y += 0.1
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8} if abs(dy) > 1e-9 else None
    va = "bottom" if abs(dy) < 1e-9 else "center"
    axes.text(x, y, label, ha="center", va=va, fontsize=10, bbox=box, zorder=5)  # type: ignore[attr-defined]


def _ends(flow: Flow, at: Mapping[str, Point]) -> tuple[Point, Point]:
    if flow.source is None:
        x, y = at[str(flow.target)]
        return (x - 1.2, y + 0.9), (x, y)
    if flow.target is None:
        x, y = at[flow.source]
        return (x, y), (x - 0.8, y - 1.1)
    return at[flow.source], at[flow.target]
