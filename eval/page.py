"""The report as one self-contained HTML page: verdict first, then pictures of the numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from anonymize.eval.report import NOT_RISKS, spread
from anonymize.eval.stats import Array

INK, GRID = "#24303c", "#d5dbe1"
BAD, GOOD, MUTED, WARM = "#b3261e", "#1b6e4b", "#7a8794", "#c77700"


def render(
    report: dict[str, Any],
    beside: Sequence[dict[str, Any]] = (),
    images: Sequence[tuple[bytes, bytes]] = (),
) -> str:
    """The page.

    Args:
        report: from `report.build`.
        beside: reports of other methods over the same originals, for the plane.
        images: JPEG pairs (before, after) that the user chose to show.
    """
    return fill(
        "page.html",
        report=report,
        threats=[row for row in report["attacks"] if row["attack"] not in NOT_RISKS],
        floor=_floor(report),
        bars=svg(lambda axes: _bars(axes, report), 8.6, 0.6 + 0.34 * _count(report)),
        histograms=svg(lambda axes: _histograms(axes, report), 8.6, 2.6, 3),
        curves=svg(lambda axes: _curves(axes, report), 9.4, 3.2, 3),
        plane=svg(lambda axes: _plane(axes, [report, *beside]), 6.4, 4.2),
        images=[tuple(base64.b64encode(side).decode() for side in pair) for pair in images],
    )


def fill(template: str, **values: Any) -> str:
    """A page from a template of this package; all of them share `base.html`."""
    from jinja2 import Environment, FunctionLoader

    folder = files("anonymize.eval")
    loader = FunctionLoader(lambda name: (folder / name).read_text("utf-8"))
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["spread"] = spread
    return str(environment.get_template(template).render(**values))


def _floor(report: dict[str, Any]) -> str:
    """The attribute floor of protocols: M cells over N people."""
    cells = int(report["release"].get("cells", 0) or 0)
    people = report["inputs"]["people"] - report["inputs"]["attacker_people"]
    if not cells:
        return ""
    return (
        f"Codes were drawn in {cells} coarse cells: a perfect anonymiser that keeps them would "
        f"still be found about {min(1, cells / people):.1%} of the time (M/N with M = {cells} "
        f"cells and N = {people} people), and have a TAR of about {cells} times the FAR."
    )


def _count(report: dict[str, Any]) -> int:
    return sum(row["attack"] not in NOT_RISKS for row in report["attacks"])


def svg(draw: Callable[[Any], None], width: float, height: float, columns: int = 1) -> str:
    """An SVG by matplotlib, text kept as text, the same bytes every time.

    Args:
        draw: receives the axes, or the row of them.
        width, height: in inches.
        columns: how many axes stand side by side.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "anonymize",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns)
        draw(axes)
        data = io.StringIO()
        figure.savefig(data, format="svg", metadata={"Date": None}, transparent=True)
    text = data.getvalue()
    return text[text.index("<svg") :]


def _bars(axes: Any, report: dict[str, Any]) -> None:
    """Rank-1 of each attack with its interval, beside chance and control."""
    rows = [row for row in report["attacks"] if row["attack"] not in NOT_RISKS][::-1]
    for place, row in enumerate(rows):
        rate, weak = row["rank1"], row["verdict"].startswith("attack too weak")
        colour = MUTED if weak else BAD if row["risk"]["low"] > 0 else GOOD
        axes.barh(place, 100 * rate["value"], 0.55, color=colour, alpha=0.75)
        axes.plot([100 * rate["low"], 100 * rate["high"]], [place] * 2, color=INK, lw=1.2)
        axes.plot(100 * row["control"]["value"], place, "D", color=INK, ms=4, mfc="white")
        axes.plot([100 * row["chance"]] * 2, [place - 0.32, place + 0.32], color=WARM, lw=1.6)
    labels = [" ".join((_title(row), f"[{row['embedder']}]")) for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_xlim(left=0)
    axes.margins(y=0.02)
    axes.set_xlabel("rank-1 in % · line: 95 % interval · diamond: control · orange: chance")
    axes.grid(axis="x", color=GRID, lw=0.6)
    axes.set_axisbelow(True)


def _title(row: dict[str, Any]) -> str:
    return f"{row['attack']} ({row['variant']})" if row["variant"] else str(row["attack"])


def _chosen(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Originals, the naive attack and the strongest semi-informed one, first recogniser."""
    found = []
    for attack in ("oo", "oa", "semi-informed"):
        rows = [row for row in report["attacks"] if row["attack"] == attack]
        if rows:
            found.append(max(rows, key=lambda row: row["rank1"]["value"]))
    return found


def _histograms(axes: Any, report: dict[str, Any]) -> None:
    names = {"oo": "originals (oo)", "oa": "outputs, naive (oa)"}
    rows = _chosen(report)
    for axis, row in zip(axes, rows, strict=False):
        histogram = row["histogram"]
        for kind, colour in (("nonmated", MUTED), ("mated", BAD)):
            counts, total = histogram[kind], max(1, sum(histogram[kind]))
            shares = [count / total for count in counts]
            if shares:
                axis.stairs(shares, histogram["edges"], fill=True, color=colour, alpha=0.55)
        axis.set_title(names.get(row["attack"], _title(row)), fontsize=9)
        axis.set_yticks([])
        axis.set_xlabel("score (red: same person, grey: others)", fontsize=8)
    for axis in axes[len(rows) :]:
        axis.set_axis_off()


def _curves(axes: Any, report: dict[str, Any]) -> None:
    roc, det, cmc = axes
    for row in [*_chosen(report), *(r for r in report["attacks"] if r["attack"] == "aa-same-key")]:
        label = f"{_title(row)} [{row['embedder']}]"
        if row["roc"]["far"]:
            roc.plot(row["roc"]["far"], row["roc"]["tar"], label=label, lw=1.5)
            det.plot(*_deviates(row["roc"]), label=label, lw=1.5)
        cmc.plot(range(1, len(row["cmc"]) + 1), row["cmc"], label=label, lw=1.5)
    roc.plot([1e-5, 1], [1e-5, 1], color=GRID, lw=1, ls="--")
    roc.set_xscale("log")
    roc.set_xlim(1e-4, 1)
    roc.set_ylim(0, 1.02)
    roc.set_xlabel("false accept rate")
    roc.set_ylabel("true accept rate")
    ticks = [0.01, 0.1, 0.5, 0.9, 0.99]
    for axis in (det.xaxis, det.yaxis):  # ISO/IEC 19795-1: normal deviates
        axis.set_ticks(_normal(ticks), [f"{tick:g}" for tick in ticks])
    limits = _normal([0.001, 0.995])
    det.set_xlim(*limits)
    det.set_ylim(*limits)
    det.set_xlabel("false match rate")
    det.set_ylabel("false non-match rate")
    cmc.set_ylim(0, 1.02)
    cmc.set_xlabel("rank")
    cmc.set_ylabel("found within rank")
    cmc.legend(fontsize=7.5, frameon=False, loc="center right")
    for axis in axes:
        axis.grid(color=GRID, lw=0.6)


def _deviates(roc: dict[str, list[float]]) -> tuple[Array, Array]:
    """False match and false non-match rates of a curve, as normal deviates."""
    return _normal(roc["far"]), _normal(1 - np.asarray(roc["tar"]))


def _normal(rates: Iterable[float]) -> Array:
    from scipy.stats import norm

    return np.asarray(norm.ppf(np.clip(np.asarray(rates), 1e-5, 1 - 1e-5)))


def _plane(axes: Any, reports: Sequence[dict[str, Any]]) -> None:
    """Utility against the worst privacy risk, a point for each method."""
    for index, report in enumerate(reports):
        risk = worst(report)
        use = [u["value"] for u in report["utilities"] if u["name"].startswith("same-key")]
        if risk is None or not use or use[0] is None:
            continue
        name = report["release"].get("name", "release")
        x, y = 100 * use[0]["value"], 100 * risk["value"]
        colour = BAD if index == 0 else MUTED
        axes.errorbar(
            x,
            y,
            yerr=[[max(0, y - 100 * risk["low"])], [max(0, 100 * risk["high"] - y)]],
            fmt="o",
            color=colour,
            capsize=2,
        )
        axes.annotate(name, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)
    axes.set_xlim(-3, 108)
    axes.set_xlabel("utility: same-key rank-1 in % (right is better)")
    axes.set_ylabel("risk of the worst attack on faces in % (down is better)")
    axes.grid(color=GRID, lw=0.6)


def worst(report: dict[str, Any]) -> dict[str, float] | None:
    """The greatest risk among the attacks on faces: naive, semi-informed, reversal, sets."""
    names = ("oa", "ao", "semi-informed", "reverse-map", "negation", "set-averaging")
    rows = [row["risk"] for row in report["attacks"] if row["attack"] in names]
    return max(rows, key=lambda risk: float(risk["value"]), default=None)
