"""Did a release get better or worse than another one, beyond what the intervals explain?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anonymize.eval.report import NOT_RISKS


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in two reports; `worse` and `better` are both False within the intervals."""

    kind: str
    name: str
    before: dict[str, float]
    after: dict[str, float]
    worse: bool
    better: bool


def compare(
    baseline: dict[str, Any], report: dict[str, Any], tolerance: float = 0.0
) -> tuple[list[Change], list[str]]:
    """Holds a report against a baseline.

    A figure got worse when its whole interval lies beyond the baseline's interval, on the bad
    side, by more than the tolerance.

    Args:
        baseline: an earlier report.
        report: the new one.
        tolerance: allowed beyond the intervals, in the figure's own unit.

    Returns:
        Every figure that both have, and the names of those that only the baseline has.
    """
    before, after = figures(baseline), figures(report)
    changes = []
    for name, (kind, higher, old) in before.items():
        if name not in after:
            continue
        new = after[name][2]
        up, down = new["low"] > old["high"] + tolerance, new["high"] < old["low"] - tolerance
        changes.append(Change(kind, name, old, new, down if higher else up, up if higher else down))
    return changes, [name for name in before if name not in after]


def differences(baseline: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """What makes two reports hard to compare: other originals, another seed, other versions."""
    found = []
    if baseline["inputs"]["originals_sha256"] != report["inputs"]["originals_sha256"]:
        found.append("the originals are not the same pictures")
    if baseline["seed"] != report["seed"]:
        found.append("the seeds differ, so other people play the attacker")
    return found


def figures(report: dict[str, Any]) -> dict[str, tuple[str, bool, dict[str, float]]]:
    """Name to kind, whether higher is better, and the estimate."""
    found: dict[str, tuple[str, bool, dict[str, float]]] = {}
    for row in report["attacks"]:
        if row["attack"] == "oo":  # a weaker attacker would make every risk look better
            found[f"attacker/{row['embedder']}"] = ("attacker", True, row["rank1"])
        if row["attack"] not in NOT_RISKS:
            parts = (row["attack"], row["variant"], row["embedder"])
            found["/".join(part for part in parts if part)] = ("risk", False, row["risk"])
    for row in report["utilities"]:
        if row["value"] is not None:
            found[row["name"]] = ("utility", row["better"] == "higher", row["value"])
    return found


def table(changes: list[Change], missing: list[str]) -> str:
    """What got worse, what got better, how much stayed."""
    lines = []
    for word in ("worse", "better"):
        for change in (c for c in changes if getattr(c, word)):
            old, new = change.before, change.after
            lines.append(
                f"{word:<7} {change.kind:<8} {change.name:<44} "
                f"{old['value']:.4f} ({old['low']:.4f} to {old['high']:.4f}) -> "
                f"{new['value']:.4f} ({new['low']:.4f} to {new['high']:.4f})"
            )
    same = sum(not (c.worse or c.better) for c in changes)
    lines.append(f"{same} of {len(changes)} figures stayed within their intervals")
    lines += [f"missing: {name} is in the baseline only" for name in missing]
    return "\n".join(lines)
