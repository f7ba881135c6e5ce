"""The trade-off of several methods over one dataset: a table, the Pareto front and a page.

A method is a point of the privacy-utility plane: the risk of the worst attack on its faces against
what its outputs are still good for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anonymize.eval.page import BAD, GOOD, GRID, INK, MUTED, fill, svg, worst
from anonymize.eval.report import SCHEMA, spread

NEAR, TICKS = 10, (-5, 0, 5, 10, 20, 50, 100)
"""Per cent of risk up to which the plane is linear where a method has much more, and its ticks."""

STEPS = (-6, *(side * step for step in range(8, 130, 10) for side in (1, -1)))
"""Heights in points at which a method's name is tried beside it, nearest first."""

Point = tuple[float, float]
"""(risk, utility) of a method, shares of 1."""

RISKS = {
    "oa": "who is this (`oa`)",
    "semi-informed (fine-tuned)": "learnt, fine-tuned",
    "context": "context",
}
"""Attacks that get a column: name in reports, with the variant where only that one is meant."""

UTILITIES = {
    "training-retention": "training retention",
    "same-key": "same-key rank-1",
    "detection": "detection",
}
"""Utilities that get a column. The first that was measured spans the plane."""

PART_OF = {"training-retention": "training", "same-key": "consistency", "detection": "geometry"}
"""What `--utility` calls the measurement that a figure comes from."""

NOT_ASKED = "was not asked for"


def build(reports: Mapping[str, dict[str, Any]], failed: Sequence[str] = ()) -> dict[str, Any]:
    """The trade-off as JSON-ready values; like the reports, it names no person, path or picture.

    Args:
        reports: of each method that was measured, from `report.build`, over the same originals.
        failed: the methods that could not be made or measured.

    Returns:
        `inputs`, `seed` and `environment` of the reports; `originals`, what share of people each
        recogniser finds in these; `utility`, the name of the plane's axis, None if nothing spans
        it; `methods`, of which each has `risk` (of the worst attack on
        faces), `risks`, `utilities`, `published` (0..1), `unchanged` (outputs that still
        show the original face), `pareto`, and in `missing` why a figure is None; and `failed`.
    """
    methods = [_method(name, report) for name, report in reports.items()]
    axis = next((n for n in UTILITIES if any(m["utilities"][n] for m in methods)), None)
    for method, optimal in zip(methods, pareto([_point(m, axis) for m in methods]), strict=True):
        method["pareto"] = optimal
    first = next(iter(reports.values()), {})
    inputs = ("people", "originals", "attacker_people")
    return {
        "schema": SCHEMA,
        "inputs": {name: first["inputs"][name] for name in inputs if first},
        "originals": {
            row["embedder"]: row["rank1"]
            for row in first.get("attacks", ())
            if row["attack"] == "oo"
        },
        "seed": first.get("seed"),
        "environment": first.get("environment", {}),
        "utility": axis,
        "methods": methods,
        "failed": list(failed),
    }


def pareto(points: Sequence[Point | None]) -> list[bool]:
    """Which points are Pareto-optimal: none other has as little risk and as much utility.

    A risk below zero is an attack that did worse than its control by chance, and counts as zero.
    Points that coincide stand or fall together; None, a method without a point, is not optimal.
    """
    known = [(max(0.0, p[0]), p[1]) for p in points if p is not None]

    def beaten(risk: float, use: float) -> bool:
        return any(r <= risk and u >= use and (r, u) != (risk, use) for r, u in known)

    return [p is not None and not beaten(max(0.0, p[0]), p[1]) for p in points]


def _method(name: str, report: dict[str, Any]) -> dict[str, Any]:
    risks = {attack: _risk(report, attack) for attack in RISKS}
    utilities = {use: _utility(report, use) for use in UTILITIES}
    void = report["verdict"]["level"] == "void"
    missing = {attack: _unattacked(report, attack) for attack, risk in risks.items() if not risk}
    missing |= {use: _unmeasured(report, use) for use, value in utilities.items() if not value}
    top = None if void else worst(report)
    if top is None:
        missing["risk"] = report["verdict"]["text"] if void else "no attack on faces was asked for"
    return {
        "name": name,
        "label": report["release"].get("label", ""),
        "published": report["inputs"]["outputs"] / report["inputs"]["originals"],
        "unchanged": report["inputs"]["unchanged_outputs"],
        "risk": top,
        "risks": risks,
        "utilities": utilities,
        "missing": missing,
    }


def _risk(report: dict[str, Any], attack: str) -> dict[str, float] | None:
    """The greatest risk of an attack over its variants and recognisers."""
    rows = [
        row["risk"]
        for row in report["attacks"]
        if attack in (row["attack"], f"{row['attack']} ({row['variant']})")
    ]
    return max(rows, key=lambda risk: float(risk["value"]), default=None)


def _utility(report: dict[str, Any], name: str) -> dict[str, float] | None:
    """The least utility of a kind over recognisers."""
    rows = [u["value"] for u in report["utilities"] if u["name"].split(" (")[0] == name]
    return min((r for r in rows if r), key=lambda value: float(value["value"]), default=None)


def _unattacked(report: dict[str, Any], attack: str) -> str:
    return _skipped(report, attack.split(" (")[0])


def _unmeasured(report: dict[str, Any], name: str) -> str:
    notes = [u["note"] for u in report["utilities"] if u["name"].split(" (")[0] == name]
    return str(notes[0]) if notes else _skipped(report, PART_OF[name])


def _skipped(report: dict[str, Any], part: str) -> str:
    reasons = [s["reason"] for s in report["skipped"] if s["name"].startswith(part)]
    return str(reasons[0]) if reasons else NOT_ASKED


def _point(method: dict[str, Any], axis: str | None) -> Point | None:
    use = method["utilities"].get(axis)
    if method["risk"] is None or use is None:
        return None
    return method["risk"]["value"], use["value"]


def markdown(tradeoff: dict[str, Any]) -> str:
    """The table with its legend, and below it what was not measured and what is not promised."""
    heads = ["method", "worst risk to faces", *RISKS.values(), *UTILITIES.values(), "published"]
    lines = [caption(tradeoff), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in tradeoff["methods"]:
        name = f"**{method['name']}**" if method["pareto"] else method["name"]
        cells = [name, *(_cell(value) for value in figures(method))]
        lines.append(f"| {' | '.join(cells)} | {method['published']:.1%} |")
    lines += ["", legend(tradeoff, "**Bold**")]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(tradeoff))]) + "\n"


def figures(method: dict[str, Any]) -> list[dict[str, float] | None]:
    """A method's estimates in the order of the table's columns."""
    return [method["risk"], *method["risks"].values(), *method["utilities"].values()]


def _cell(value: dict[str, float] | None) -> str:
    return spread(value) if value else "not measured"


def caption(tradeoff: dict[str, Any]) -> str:
    """What was attacked, in one line."""
    inputs = tradeoff["inputs"]
    if not inputs:
        return "No method could be measured."
    found = "; ".join(f"{name} {spread(rate)}" for name, rate in tradeoff["originals"].items())
    return (
        f"{inputs['originals']} pictures of {inputs['people']} people, of whom the attacker knows "
        f"{inputs['attacker_people']}; seed {tradeoff['seed']}. Recognised in the originals: "
        f"{found}. Intervals are 95 % bootstraps over people."
    )


def legend(tradeoff: dict[str, Any], mark: str) -> str:
    """How to read the table and the plane."""
    risk = (
        "Risk is what an attack finds beyond its control; the worst one is the greatest of the "
        "attacks on faces, which `context` is not."
    )
    if tradeoff["utility"] is None:
        return f"{risk} No utility was measured, so no method is better than another here."
    return (
        f"{mark}: Pareto-optimal, no other method here has as little of that risk and as much "
        f"{UTILITIES[tradeoff['utility']]}. Where intervals overlap, other people may decide "
        f"otherwise. {risk} One below zero counts as zero."
    )


def notes(tradeoff: dict[str, Any]) -> list[str]:
    """What failed, what was not measured and why, and what the methods promise."""
    failed, said = tradeoff["failed"], dict[tuple[str, str], list[str]]()
    for method in tradeoff["methods"]:
        for figure, reason in method["missing"].items():
            title = RISKS.get(figure) or UTILITIES.get(figure, "worst risk to faces")
            said.setdefault((f"{title} not measured for ", reason), []).append(method["name"])
    for method in tradeoff["methods"]:
        said.setdefault(("", method["label"]), []).append(method["name"])
    everybody = [method["name"] for method in tradeoff["methods"]]
    lines = [f"{', '.join(failed)} failed: see what the command said"] if failed else []
    lines += [
        f"{m['name']} failed open: {m['unchanged']} outputs still show the original face"
        for m in tradeoff["methods"]
        if m["unchanged"]
    ]
    for (what, reason), names in said.items():
        who = "any method" if what and names == everybody else ", ".join(names)
        lines.append(f"{what}{who}: {reason}")
    return lines


def render(tradeoff: dict[str, Any], links: Mapping[str, str]) -> str:
    """The page.

    Args:
        tradeoff: from `build`.
        links: relative address of each method's own report.
    """
    axis = tradeoff["utility"]
    drawn = [m for m in tradeoff["methods"] if _point(m, axis)]
    return fill(
        "tradeoff.html",
        tradeoff=tradeoff,
        links=links,
        caption=caption(tradeoff),
        legend=legend(tradeoff, "Green").replace("`", ""),
        notes=[note.replace("`", "") for note in notes(tradeoff)],
        heads=[title.replace("`", "") for title in (*RISKS.values(), *UTILITIES.values())],
        rows=[(method, figures(method)) for method in tradeoff["methods"]],
        plane=svg(lambda axes: _plane(axes, drawn, axis), 10.8, 5.4) if drawn else "",
    )


def _plane(axes: Any, methods: Sequence[dict[str, Any]], axis: str) -> None:
    """Worst risk against utility: a point with both intervals for each method, and the front."""
    points, front = list[Point](), list[Point]()
    for method in methods:
        use, risk, optimal = method["utilities"][axis], method["risk"], method["pareto"]
        x, y = 100 * use["value"], max(0.0, 100 * risk["value"])
        bounds = {"xerr": _arms(use, x), "yerr": _arms(risk, y)}
        axes.errorbar(x, y, **bounds, fmt="none", ecolor=GRID, elinewidth=1.2, capsize=2, zorder=2)
        colour, size = (GOOD, 7) if optimal else (MUTED, 5)
        axes.plot(x, y, "o", color=colour, ms=size, zorder=4)
        points.append((x, y))
        front += [(x, y)] if optimal else []
    line = zip(*sorted(front), strict=True)
    axes.plot(*line, drawstyle="steps-pre", color=GOOD, lw=1.3, zorder=3)
    axes.axhline(0, color=BAD, lw=0.8, ls=":")
    axes.grid(color=GRID, lw=0.4)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    axes.set_xlabel(f"utility: {UTILITIES[axis]} in % (right is better)")
    scale = _scale(axes, max(y for _, y in points))
    axes.set_ylabel(f"risk of the worst attack on faces in % (down is better){scale}")
    _name(axes, [m["name"] for m in methods], points)


def _arms(value: dict[str, float], middle: float) -> list[list[float]]:
    """An interval as lengths to both sides of where it is drawn, in per cent."""
    ends = (middle - 100 * value["low"], 100 * value["high"] - middle)
    return [[max(0.0, end)] for end in ends]


def _scale(axes: Any, highest: float) -> str:
    """Keeps one bad method from flattening the others; returns what to say of it."""
    said = ""
    if highest > 3 * NEAR:
        axes.set_yscale("symlog", linthresh=NEAR, linscale=2)
        axes.set_yticks(TICKS, [f"{tick}" for tick in TICKS])
        axes.minorticks_off()
        axes.set_ylim(top=110)
        said = f",\nlogarithmic above {NEAR} %"
    axes.set_ylim(bottom=max(-NEAR / 2, axes.get_ylim()[0]))
    return said


def _name(axes: Any, names: Sequence[str], points: Sequence[Point]) -> None:
    """Writes each name near its point, where it covers neither a point nor another name."""
    axes.figure.canvas.draw()  # places on the canvas are known from here on
    places = axes.transData.transform(points) * 72 / axes.figure.dpi
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    order = sorted(range(len(names)), key=lambda i: (-places[i][1], places[i][0]))
    for index in order:
        x, y = places[index]
        width, height = 5.2 * len(names[index]) + 2, 12
        offsets = [(dx, dy) for dy in STEPS for dx in (8, -8 - width)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in offsets]
        best = next((i for i, b in enumerate(boxes) if not any(_meet(b, t) for t in taken)), 0)
        taken.append(boxes[best])
        far = abs(offsets[best][1] + height / 2) > height
        axes.annotate(
            names[index],
            points[index],
            xytext=(offsets[best][0], offsets[best][1] + 3),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            zorder=5,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6} if far else None,
        )


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
