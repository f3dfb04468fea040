"""The study's figures: plain arrays and tables in, matplotlib figures out. Nothing here computes a result."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from meningitis.calendar import DAY, WeekSystem, date_of, epi_week
from meningitis.report.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION, new, strokes, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from meningitis.analysis import Profiles

    Array = NDArray[np.float64]

MARKS = ("o", "s", "^", "D", "v", "P", "X")


def time_axis(axes: Any, days: float, start: dt.date | None = None, system: WeekSystem = "iso") -> None:
    """Label a horizontal axis in days with weeks since the start or, given a first day, with epidemiological weeks.

    A tick has that of the fourth day of the week that begins there.
    """
    step = 28 if days <= 400 else 91
    ticks = np.arange(0, days + 1, step)
    axes.set_xlim(0, days)
    if start is None:
        axes.set_xticks(ticks, [f"{tick / 7:.0f}" for tick in ticks])
        axes.set_xlabel("time since the start (weeks)")
        return
    words = []
    for tick in ticks:
        day = date_of(float(tick), start)
        words.append(f"W{epi_week(day + 3 * DAY, system)[1]:02d}\n{day:%b %Y}" if tick % (2 * step) == 0 else "")
    axes.set_xticks(ticks, words)
    axes.set_xlabel(f"{'ISO' if system == 'iso' else 'CDC'} epidemiological week")


def incidence(
    curves: Mapping[str, Array],
    alert: float,
    epidemic: float,
    *,
    start: dt.date | None = None,
    system: WeekSystem = "iso",
) -> Figure:
    """Weekly cases per 100,000 (W,) by scenario, log scale, and where they reach WHO's two thresholds."""
    with styled():
        figure, axes = new(7.0, 3.8)
        weeks = 0
        for (name, values), stroke in zip(curves.items(), strokes(), strict=False):
            weeks = max(weeks, len(values))
            axes.plot(7 * np.arange(len(values)) + 3.5, np.maximum(values, 1e-4), label=name, **stroke)
        top = max(float(np.max(values)) for values in curves.values())
        for level, word in ((alert, "alert threshold"), (epidemic, "epidemic threshold")):
            axes.axhline(level, color=BLACK, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.text(7 * weeks, level, f"{word} {level:.3g}", ha="right", va="bottom", fontsize=7.5)
        axes.set_ylim(1e-3, 3 * max(top, epidemic))
        plain_log(axes)
        axes.set_ylabel("cases per 100,000 per week")
        time_axis(axes, 7 * weeks, start, system)
        axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def ratio_and_events(
    run: Profiles,
    ratio: str,
    events: Sequence[tuple[str, float | None]],
    *,
    start: dt.date | None = None,
    system: WeekSystem = "iso",
) -> Figure:
    """The first run of `run`: cases per carrier (upper) and persons ill (lower), events marked by letters on both.

    `ratio` is the LaTeX of the ratio that the early and the critical ratio belong to.
    """
    with styled():
        figure, (upper, lower) = new(7.4, 4.9, 2, 1, sharex=True, height_ratios=[3, 2])
        times = run.times
        upper.plot(times, 1000 * run.stage1[0], color=BLUE, label=f"${ratio}$")
        upper.plot(times, 1000 * run.both[0], color=VERMILION, linestyle="--", label="all ill per carrier")
        levels = [(float(run.early[0]), "early ratio", ":"), (float(run.critical[0]), "critical ratio", "-.")]
        for level, word, line in levels:
            if np.isfinite(level):
                upper.axhline(1000 * level, color=BLACK, linewidth=1.0, linestyle=line, label=word)
        # By difference, for the critical ratio is 0 where no carrier falls ill.
        if np.any(np.abs(run.threshold[0] - run.critical[0]) > 0.01 * run.critical[0]):
            upper.plot(
                times,
                1000 * run.threshold[0],
                color=GREEN,
                linestyle=(0, (5, 1, 1, 1)),
                label="stage I spreads\nbelow this",
            )
        # The early ratio is not known where the infection does not grow.
        drawn = np.concatenate([run.both[0], run.critical, run.early])
        top = drawn[np.isfinite(drawn)].max(initial=0.0)
        upper.set_ylim(0, 1.15 * 1000 * top if top > 0 else None)
        upper.set_ylabel("per 1,000 carriers")
        upper.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
        lower.plot(times, run.prevalence[0], color=BLUE)
        lower.set_ylabel("persons ill")
        lower.set_ylim(0, None)
        happened = [(name, day) for name, day in events if day is not None]
        for k, (_, day) in enumerate(happened):
            for axes in (upper, lower):
                axes.axvline(day, color="#666666", linewidth=0.8, linestyle=(0, (2, 2)))
            raised = 1.02 + 0.06 * (k % 3)
            upper.text(day, raised, "abcdefghij"[k], transform=upper.get_xaxis_transform(), ha="center", fontsize=8)
        words = [f"{'abcdefghij'[k]} {name} (day {day:.0f})" for k, (name, day) in enumerate(happened)]
        half = (len(words) + 1) // 2
        figure.suptitle("   ".join(words[:half]) + "\n" + "   ".join(words[half:]), fontsize=8, ha="center")
        time_axis(lower, float(times[-1]), start, system)
    return figure


def ratio_sweeps(panels: Mapping[str, tuple[Sequence[str], Profiles]], ratio: str) -> Figure:
    """Cases per carrier over time, a panel for each swept parameter: labels of its values, and their runs."""
    with styled():
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        figure, grid = new(7.6, 0.4 + 2.5 * rows, rows, columns, sharex=True, squeeze=False)
        for axes, (title, (labels, run)) in zip(grid.ravel(), panels.items(), strict=False):
            for k, (label, stroke) in enumerate(zip(labels, strokes(), strict=False)):
                axes.plot(run.times, 1000 * run.stage1[k], label=label, **stroke)
                axes.axhline(1000 * run.critical[k], color=stroke["color"], linewidth=0.7, linestyle="-.")
                if np.isfinite(run.early[k]):
                    axes.axhline(1000 * run.early[k], color=stroke["color"], linewidth=0.7, linestyle=":")
            levels = np.concatenate([run.stage1[:, 7:].ravel(), run.critical])
            levels = levels[levels > 0]
            if levels.size:  # where nobody falls ill, no logarithm
                high = np.max(run.stage1, initial=levels.max(), where=np.isfinite(run.stage1))
                axes.set_ylim(500 * levels.min(), 2200 * high)
                plain_log(axes)
            axes.set_title("\n".join(wrap(title, 58)), fontsize=8, fontweight="normal")
            # Above the curves, where the limits leave room for one line.
            axes.legend(fontsize=6.5, ncols=3, loc="upper center", handlelength=2.2, columnspacing=1.0, borderaxespad=0)
            time_axis(axes, float(run.times[-1]))
            axes.set_xticks(axes.get_xticks()[::2])  # half as many: the panels are narrow
            axes.xaxis.set_major_formatter(lambda day, _: f"{day / 7:.0f}")
        for axes in grid.ravel()[len(panels) :]:
            axes.axis("off")
        for axes in grid[:, 0]:
            axes.set_ylabel(f"${ratio}$, per 1,000 carriers")
        for axes in grid[:-1].ravel():
            axes.set_xlabel("")
    return figure


def plain_log(axes: Any) -> None:
    """A vertical log axis whose ticks are plain numbers at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    decades = np.log10(axes.get_ylim()[1] / axes.get_ylim()[0])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def tornado(indices: Mapping[str, Mapping[str, float]]) -> Figure:
    """Normalised indices of R0 by parameter (LaTeX symbol), one set of bars for each model, ranked by the first."""
    with styled():
        first = next(iter(indices.values()))
        union = dict.fromkeys(name for table in indices.values() for name in table)
        order = sorted(union, key=lambda name: abs(first.get(name, 0.0)))
        figure, axes = new(7.0, 0.9 + 0.34 * len(order))
        height = 0.8 / len(indices)
        for k, (label, table) in enumerate(indices.items()):
            places = np.arange(len(order)) + (0.5 - (k + 0.5) / len(indices)) * 0.8
            widths = [table.get(name, 0.0) for name in order]
            hatch = None if k == 0 else "////"
            colour = BLUE if k == 0 else "white"
            axes.barh(places, widths, height, label=label, color=colour, edgecolor=BLUE, hatch=hatch, linewidth=0.8)
            for name, place, width in zip(order, places, widths, strict=True):
                if name not in table:
                    continue
                side = "left" if width >= 0 else "right"
                axes.text(width, place, f" {width:+.2g} ", va="center", ha=side, fontsize=6.5)
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.set_yticks(range(len(order)), [f"${name}$" for name in order])
        axes.set_xlabel(r"normalised index $(\partial R_0/\partial x)\,(x/R_0)$, dimensionless")
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right")
    return figure


def dots(table: pd.DataFrame, estimates: Mapping[str, str], label: str) -> Figure:
    """Estimates with intervals by parameter, a panel for each outcome.

    `estimates` maps a column to what it is called; `table` has those, each with NAME_low and NAME_high, and outcome and
    symbol. The horizontal axis is `label`.
    """
    with styled():
        outcomes = list(dict.fromkeys(table["outcome"]))
        symbols = list(dict.fromkeys(table["symbol"]))[::-1]
        columns = 3
        rows = (len(outcomes) + columns - 1) // columns
        figure, grid = new(
            7.6, rows * (0.9 + 0.2 * len(symbols)), rows, columns, sharex=True, sharey=True, squeeze=False
        )
        places = {symbol: k for k, symbol in enumerate(symbols)}
        apart = np.linspace(0.15, -0.15, len(estimates)) if len(estimates) > 1 else np.zeros(1)
        strokes_of = ((BLUE, "o", "full"), (VERMILION, "s", "none"))
        for axes, outcome in zip(grid.ravel(), outcomes, strict=False):
            part = table[table["outcome"] == outcome]
            axes.axvline(0, color=BLACK, linewidth=0.8)
            for (name, word), shift, (colour, mark, fill) in zip(estimates.items(), apart, strokes_of, strict=False):
                y = part["symbol"].map(places).to_numpy(dtype=float) + shift
                # Not error bars: an estimate may lie outside a percentile interval, and shows it.
                axes.hlines(y, part[f"{name}_low"], part[f"{name}_high"], color=colour, linewidth=1.2)
                axes.plot(part[name], y, mark, color=colour, markersize=4, fillstyle=fill, label=word)
            axes.set_title(str(outcome), fontsize=9)
            axes.set_yticks(range(len(symbols)), [f"${symbol}$" for symbol in symbols])
        for axes in grid.ravel()[len(outcomes) :]:
            axes.axis("off")
        for axes in grid[-1]:
            axes.set_xlabel(label, fontsize=8)
        if len(estimates) > 1:
            grid[0, 0].legend(fontsize=7)
    return figure


def ever_infected_curves(epsilon: Array, p: Array, share: Array) -> Figure:
    """Share ever infected against carrier odds at some p, and against p at some carrier odds; share is (epsilon, p)."""
    with styled():
        figure, (left, right) = new(7.2, 3.3, 1, 2, sharey=True)
        for j, stroke in zip(_spread(len(p), 5), strokes(), strict=False):
            left.plot(epsilon, 100 * share[:, j], label=f"$p$ = {p[j]:.2g}", **stroke)
        for i, stroke in zip(_spread(len(epsilon), 5), strokes(), strict=False):
            right.plot(p, 100 * share[i], label=rf"$\varepsilon$ = {epsilon[i]:.2g}", **stroke)
        left.set_xlabel(r"odds of a carrier transmitting, $\varepsilon$")
        right.set_xlabel("proportion ill at once, $p$")
        left.set_ylabel("ever infected (% of population)")
        left.set_ylim(0, max(100.0, 105 * float(np.nanmax(share))))  # infections per person can exceed 1
        for axes in (left, right):
            axes.legend(fontsize=7.5)
    return figure


def ever_infected_map(epsilon: Array, p: Array, share: Array) -> Figure:
    """Map of the share ever infected (epsilon, p), with contours labelled in per cent."""
    with styled():
        figure, axes = new(6.0, 3.9)
        mesh = axes.pcolormesh(
            p,
            epsilon,
            100 * share,
            cmap="cividis",
            shading="gouraud",
            vmin=0,
            vmax=max(100.0, 100 * float(np.nanmax(share))),
            rasterized=True,
        )
        lines = axes.contour(p, epsilon, 100 * share, levels=range(10, 100, 10), colors="white", linewidths=0.9)
        axes.clabel(lines, fmt="%d %%", fontsize=7)
        axes.set_xlabel("proportion ill at once, $p$")
        axes.set_ylabel(r"odds of a carrier transmitting, $\varepsilon$")
        axes.grid(visible=False)
        figure.colorbar(mesh, ax=axes, label="ever infected (% of population)")
    return figure


def relative_to_basic(p: Array, outcomes: Mapping[str, Array], rescaled: Mapping[str, Array]) -> Figure:
    """Outcomes over p as multiples of those at p = 0: at equal phi, and with phi rescaled to equal early cases."""
    with styled():
        figure, grid = new(7.2, 3.3, 1, 2, sharey=True)
        titles = (r"equal $\varphi$", r"$\varphi$ rescaled to equal early cases")
        for axes, table, title in zip(grid, (outcomes, rescaled), titles, strict=True):
            for (name, values), stroke, mark in zip(table.items(), strokes(), MARKS, strict=False):
                axes.plot(p, values, label=name, marker=mark, markersize=3.5, **stroke)
            axes.axhline(1, color=BLACK, linewidth=0.8)
            plain_log(axes)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("proportion ill at once, $p$")
        grid[0].set_ylabel("multiple of the value at $p$ = 0")
        grid[0].legend(fontsize=7.5)
    return figure


def percentile_bands(
    times: Array,
    bands: Mapping[float, Array],
    label: str,
    *,
    start: dt.date | None = None,
    system: WeekSystem = "iso",
) -> Figure:
    """Median, 50 % and 95 % bands of a quantity over time; `bands` maps percentile (0-100) to values (T,)."""
    with styled():
        figure, axes = new(7.0, 3.2)
        axes.fill_between(times, bands[2.5], bands[97.5], color=SKY, alpha=0.45, linewidth=0, label="95 % of draws")
        axes.fill_between(times, bands[25], bands[75], color=BLUE, alpha=0.55, linewidth=0, label="50 % of draws")
        axes.plot(times, bands[50], color=BLACK, label="median")
        axes.set_ylabel(label)
        axes.set_ylim(0, None)
        time_axis(axes, float(times[-1]), start, system)
        axes.legend()
    return figure


def spread_threshold(
    times: Array,
    share: Array,
    needed: Array,
    reproduction: Array,
    *,
    start: dt.date | None = None,
    system: WeekSystem = "iso",
) -> Figure:
    """Susceptible share and the share that carriage needs to spread (T,), and R(t) below."""
    with styled():
        figure, (upper, lower) = new(7.0, 4.2, 2, 1, sharex=True)
        upper.plot(times, share, color=BLUE, label="susceptible share, $S/N$")
        upper.plot(times, needed, color=VERMILION, linestyle="--", label="share above which carriers spread")
        upper.set_ylim(0, 1)
        upper.set_ylabel("proportion")
        upper.legend()
        lower.plot(times, reproduction, color=ORANGE)
        lower.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
        lower.set_ylim(0, None)
        lower.set_ylabel("$R(t)$")
        time_axis(lower, float(times[-1]), start, system)
    return figure


def _spread(length: int, count: int) -> list[int]:
    return sorted({round(k) for k in np.linspace(0, length - 1, count)})
