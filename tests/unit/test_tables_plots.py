"""Tables as text, and figures as files."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
from matplotlib import image
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tests.support.terminal import Terminal

from thoughtcache.evaluation.accuracy import Accuracy
from thoughtcache.report.plots import DOTS_PER_INCH, Panel, plot_curves
from thoughtcache.report.tables import (
    ResultRow,
    format_accuracy,
    format_flops,
    markdown,
    markdown_table,
    print_table,
    print_wide,
)

ACCURACY = Accuracy(
    correct=927, total=1000, low=0.9096, high=0.9414, mean_tokens=50.0, evictions_mean=9.0, elapsed_seconds=3.0
)
ROWS = [
    ResultRow(name="full cache", window=None, flops_per_token=311_400.0, seconds={"eval": 3.0}, parameters=0),
    ResultRow(
        name="PTE",
        accuracy=ACCURACY,
        window=16,
        kv_cache_kib=37.5,
        flops_per_token=404_000.0,
        seconds={"train": 98.04, "eval": 4.0},
        parameters=12_345,
    ),
]


def test_accuracy_as_text():
    assert format_accuracy(ACCURACY) == "92.7 % (91.0-94.1)"


@pytest.mark.parametrize(
    ("flops", "text"),
    [(12.0, "12"), (999.0, "999"), (1000.0, "1.00 k"), (311_400.0, "311 k"), (6.184e9, "6.18 G"), (45.67e12, "45.7 T")],
)
def test_flops_as_text(flops, text):
    assert format_flops(flops) == text


def test_markdown_by_hand():
    # Peak memory was measured in no row: its column is gone.
    assert markdown_table(ROWS) == (
        "| name | accuracy (95 %) | window | KV KiB | FLOP/token | eval s | train s | parameters |\n"
        "| :-- | --: | --: | --: | --: | --: | --: | --: |\n"
        "| full cache | - | full | - | 311 k | 3.0 | - | 0 |\n"
        "| PTE | 92.7 % (91.0-94.1) | 16 | 37.5 | 404 k | 4.0 | 98.0 | 12,345 |\n"
    )


def test_markdown_keeps_its_columns_when_a_name_holds_a_bar():
    text = markdown_table([ResultRow(name="a | b"), ResultRow(name="c", peak_memory_mib=1234.56)])
    assert text.splitlines()[2] == r"| a \| b | full | - |"
    assert text.splitlines()[3] == "| c | full | 1,234.6 |"


@pytest.mark.parametrize("table", [print_table, markdown_table])
def test_a_table_without_rows_is_refused(table):
    with pytest.raises(ValueError, match="at least one row"):
        table([])


def test_a_log_gets_the_whole_table_on_narrow_consoles():
    stream = io.StringIO()
    print_table(ROWS, title="chains", console=Console(file=stream, force_terminal=False, width=30))
    lines = stream.getvalue().splitlines()
    assert "chains" in lines[0]
    [line] = [line for line in lines if "PTE" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["PTE", "92.7 % (91.0-94.1)", "16", "37.5", "404 k", "4.0", "98.0", "12,345"]


def test_a_terminal_keeps_its_width_and_every_digit():
    stream = Terminal()
    print_table(ROWS, console=Console(file=stream, force_terminal=True, color_system=None, width=70))
    assert max(len(line) for line in stream.getvalue().splitlines()) <= 70
    # Wrapped, not cut: the last column still holds every character.
    last = [line.rstrip("┃│").replace("┃", "│").rpartition("│")[2].strip() for line in stream.getvalue().splitlines()]
    assert "".join(cell for cell in last if "━" not in cell and "─" not in cell) == "parameters012,345"


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_table_is_cut(width, terminal):
    table = Table()
    for index in range(8):
        table.add_column(f"column {index}")
    table.add_row(*[f"{index}:0123456789" for index in range(8)])
    stream = Terminal() if terminal else io.StringIO()
    print_wide(table, Console(file=stream, force_terminal=terminal, color_system=None, width=width))
    text = stream.getvalue()
    assert "…" not in text
    assert sum(character.isdigit() for character in text) == 8 * (1 + 11)


def test_a_coloured_log_is_as_wide_as_its_table():
    table = Table("a", "b")
    table.add_row("0123456789" * 9, "right")
    stream = io.StringIO()
    console = Console(file=stream, _environ={"TERM": "xterm", "FORCE_COLOR": "1"}, width=40)
    assert console.is_terminal
    print_wide(table, console)
    assert "0123456789" * 9 in stream.getvalue()
    assert console.width == 40


def panels() -> list[Panel]:
    steps = [float(step) for step in range(25)]
    return [
        Panel(
            title="accuracy",
            x_label="step",
            y_label="%",
            series={"one": (steps, steps), "two": (steps, [step / 2 for step in steps])},
        ),
        Panel(title="empty", x_label="tokens", y_label="MiB"),
    ]


def test_two_panels_side_by_side(tmp_path):
    path = plot_curves(tmp_path / "new" / "curves.png", panels())
    height, width, _ = image.imread(path).shape
    assert (width, height) == (round(2 * 5.6 * DOTS_PER_INCH), round(4.0 * DOTS_PER_INCH))
    # A picture, not a white page.
    assert image.imread(path)[..., :3].std() > 0.05


def test_three_panels_take_two_rows(tmp_path):
    height, width, _ = image.imread(plot_curves(tmp_path / "c.png", [*panels(), panels()[0]])).shape
    assert (width, height) == (1680, 1200)


def test_figures_refuse_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="at least one panel"):
        plot_curves(tmp_path / "c.png", [])
    uneven = Panel(title="t", x_label="x", y_label="y", series={"s": ([1.0, 2.0], [1.0])})
    with pytest.raises(ValueError, match="'s' of panel 't' has 2 x and 1 y"):
        plot_curves(tmp_path / "c.png", [uneven])
    assert not (tmp_path / "c.png").exists()


def test_no_global_state_of_matplotlib_is_touched(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_curves(tmp_path / "c.png", panels())
    assert ("matplotlib.pyplot" in sys.modules) == before


def drawn(monkeypatch, tmp_path, series):
    """The axes of a figure with one panel."""
    found = []
    save = Figure.savefig

    def watched(figure, *arguments, **options):
        save(figure, *arguments, **options)
        found.extend(figure.axes)

    monkeypatch.setattr(Figure, "savefig", watched)
    plot_curves(tmp_path / "c.png", [Panel(title="t", x_label="x", y_label="y", series=series)])
    [axes] = found
    axes.figure.draw_without_rendering()
    return axes


@pytest.mark.parametrize("last", [1.0, 2.0, 3.0, 7.0])
def test_steps_have_no_ticks_between_them(last, monkeypatch, tmp_path):
    steps = [float(step) for step in range(1, int(last) + 1)]
    axes = drawn(monkeypatch, tmp_path, {"one": (steps, [0.5] * len(steps))})
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_seconds_may_have_ticks_between_them(monkeypatch, tmp_path):
    axes = drawn(monkeypatch, tmp_path, {"one": ([0.1, 0.25, 0.4], [1.0, 2.0, 3.0])})
    assert not all(float(tick).is_integer() for tick in axes.get_xticks())


def test_legends_stand_off_the_lines(monkeypatch, tmp_path):
    steps = [float(step) for step in range(9)]
    # Lines in every corner and in the middle: no place inside the axes is free.
    series = {f"{slope}": (steps, [slope * step for step in steps]) for slope in (-2, -1, 0, 1, 2)}
    axes = drawn(monkeypatch, tmp_path, series)
    legend, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.y1 < inside.y0
    assert legend.y0 >= 0, "inside the picture"


def test_intervals_ticks_and_doublings(monkeypatch, tmp_path):
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), savefig(self, *a, **k)))
    series = {"a": ([8.0, 16.0, 32.0], [1.0, 2.0, 3.0])}
    intervals = {"a": ([0.5, 1.0, 2.5], [1.5, 3.0, 3.5])}
    ticks = {8.0: "8", 16.0: "16", 32.0: "32"}
    panel = Panel(title="t", x_label="x", y_label="y", series=series, intervals=intervals)
    plot_curves(tmp_path / "a.png", [panel, replace(panel, x_ticks=ticks, x_doubles=True, connected=False)])
    plain, doubled = drawn[0].axes
    bars = [[point.tolist() for point in path] for path in plain.collections[0].get_segments()]
    assert bars == [[[8.0, 0.5], [8.0, 1.5]], [[16.0, 1.0], [16.0, 3.0]], [[32.0, 2.5], [32.0, 3.5]]]
    assert [line.get_linestyle() for axes in (plain, doubled) for line in axes.lines] == ["-", "None"]
    assert (plain.get_xscale(), doubled.get_xscale()) == ("linear", "log")
    assert [text.get_text() for text in doubled.get_xticklabels()] == ["8", "16", "32"]
    with pytest.raises(ValueError, match="intervals of other lengths than 3"):
        plot_curves(tmp_path / "b.png", [replace(panel, intervals={"a": ([1.0], [2.0])})])


def test_a_single_line_needs_no_legend(monkeypatch, tmp_path):
    assert drawn(monkeypatch, tmp_path, {"one": ([1.0, 2.0], [1.0, 2.0])}).get_legend() is None


def test_a_cell_of_several_lines_is_one_line():
    assert markdown(["name", "value"], [["instruction", "Be short.\nUse |x|.\r\n\nEnd"]]).splitlines()[2:] == [
        r"| instruction | Be short. Use \|x\|.  End |"
    ]
