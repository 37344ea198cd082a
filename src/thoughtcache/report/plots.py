"""Curves as a PNG file, two panels side by side; drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from thoughtcache.report.files import replace_file

Series = tuple[list[float], list[float]]

# Okabe and Ito's colours, told apart with every common colour blindness; yellow is left out (too light on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Lines differ in dashes and markers too: the picture also works in grey.
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANELS_PER_ROW = 2
LEGEND_COLUMNS, LEGEND_LINES_INSIDE, LEGEND_LINE_INCHES = 2, 2, 0.2
"""A panel is higher by so much for each line of the longest legend beyond those that it has room for."""
PANEL_WIDTH_INCHES, PANEL_HEIGHT_INCHES, DOTS_PER_INCH = 5.6, 4.0, 150


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: text above the axes.
        x_label: label of the x axis, with the unit.
        y_label: label of the y axis, with the unit.
        series: label -> (x values, y values) of equal lengths.
        from_zero: whether the y axis begins at zero.
        intervals: label -> (lower ends, upper ends) of a series that has them, drawn as bars.
        x_ticks: value -> text of the ticks of the x axis; empty for ticks by the values.
        x_doubles: whether a doubling is a step of the x axis (a logarithmic axis of base 2).
        connected: whether lines join the points of a series.
    """

    title: str
    x_label: str
    y_label: str
    series: dict[str, Series] = field(default_factory=dict)
    from_zero: bool = False
    intervals: dict[str, Series] = field(default_factory=dict)
    x_ticks: dict[float, str] = field(default_factory=dict)
    x_doubles: bool = False
    connected: bool = True


def plot_curves(path: str | Path, panels: Sequence[Panel]) -> Path:
    """Draw the panels, two per row, at 150 dots per inch. The same label has the same look in every panel.

    Legends stand below the axes, off the lines; a panel with a single series needs none beside its title. An axis whose
    values are all integers (steps, tokens) has no ticks between them.

    Returns:
        The path of the PNG file; a missing parent folder is made.

    Raises:
        ValueError: if there are no panels, or if the lists of a series, or of its interval, differ in length.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not panels:
        raise ValueError("a figure needs at least one panel")
    for panel in panels:
        for label, (x, y) in panel.series.items():
            if len(x) != len(y):
                raise ValueError(f"series {label!r} of panel {panel.title!r} has {len(x)} x and {len(y)} y values")
            if label in panel.intervals and {len(ends) for ends in panel.intervals[label]} != {len(x)}:
                raise ValueError(
                    f"series {label!r} of panel {panel.title!r} has intervals of other lengths than {len(x)}"
                )
    columns = min(len(panels), PANELS_PER_ROW)
    rows = -(-len(panels) // PANELS_PER_ROW)
    lines_below = -(-max(len(panel.series) for panel in panels) // LEGEND_COLUMNS)
    height = PANEL_HEIGHT_INCHES + LEGEND_LINE_INCHES * max(0, lines_below - LEGEND_LINES_INSIDE)
    figure = Figure(figsize=(columns * PANEL_WIDTH_INCHES, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    looks = {label: index for index, label in enumerate(dict.fromkeys(label for p in panels for label in p.series))}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for label, (x, y) in panel.series.items():
            look = looks[label]
            color = PALETTE[look % len(PALETTE)]
            if label in panel.intervals:
                axes.vlines(x, *panel.intervals[label], colors=color, linewidth=1.2)
            axes.plot(
                x,
                y,
                label=label,
                color=color,
                linestyle=LINE_STYLES[look % len(LINE_STYLES)] if panel.connected else "none",
                marker=MARKERS[(look + look // len(PALETTE)) % len(MARKERS)],
                markersize=4.5,
                markevery=max(1, len(x) // 12),
                linewidth=1.8,
            )
        axes.set_title(panel.title, fontsize=13)
        axes.set_xlabel(panel.x_label, fontsize=12)
        axes.set_ylabel(panel.y_label, fontsize=12)
        axes.tick_params(labelsize=11)
        axes.grid(True, color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if panel.from_zero:
            axes.set_ylim(bottom=0)
        if panel.x_doubles:
            axes.set_xscale("log", base=2)
        if panel.x_ticks:
            axes.set_xticks(list(panel.x_ticks), list(panel.x_ticks.values()), minor=False)
            axes.set_xticks([], minor=True)
        elif panel.series and all(value.is_integer() for x, _ in panel.series.values() for value in x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(panel.series) > 1:
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=LEGEND_COLUMNS, fontsize=9, framealpha=0.9
            )
    picture = BytesIO()
    figure.savefig(picture, dpi=DOTS_PER_INCH, format="png")
    return replace_file(path, picture.getvalue())
