"""The report: what was measured, as plain values with stable keys, and the gates over it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anonymize.eval.harness import Evaluation
from anonymize.eval.risk import TOO_WEAK, UNLEARNT, Outcome
from anonymize.eval.trial import Shots, Trial
from anonymize.eval.utility import Utility

from anonymize.errors import ConfigError

SCHEMA = 1

NOT_RISKS = ("oo", "control", "aa-same-key")
"""Rows among the attacks that are a gate, a floor and a measure of utility."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit that CI enforces: the bound of the interval that is less kind to the release."""

    kind: str
    name: str
    limit: float
    value: float | None
    passed: bool
    why: str


def build(
    trial: Trial,
    evaluation: Evaluation,
    gates: Sequence[Gate] = (),
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole report as JSON-ready values; it names no person, path or picture.

    Args:
        trial: what was evaluated.
        evaluation: results.
        gates: limits and whether they held.
        about: what is known of the release, from `describe`.
    """
    report: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "verdict": verdict(evaluation.attacks, evaluation.unchanged),
            "gates": [asdict(gate) for gate in gates],
            "release": about or {},
            "inputs": {
                "originals": len(trial.o.paths),
                "outputs": len(trial.a.paths),
                "people": len(trial.names),
                "attacker_people": int(trial.attacker.sum()),
                "enrolled_originals": int(trial.enrolled.sum()),
                "unreadable": int((~trial.o.readable).sum() + (~trial.a.readable).sum()),
                "unchanged_outputs": evaluation.unchanged,
                "originals_sha256": _digest(trial.o),
                "outputs_sha256": _digest(trial.a),
            },
            "seed": trial.seed,
            "environment": environment(),
            "attacks": [_outcome(outcome) for outcome in evaluation.attacks],
            "utilities": [asdict(u) | {"gap": u.gap} for u in evaluation.utilities],
            "skipped": [{"name": name, "reason": why} for name, why in evaluation.skipped],
        }
    )
    return report


def describe(release: Path) -> dict[str, Any]:
    """What run.json of one of our own releases says of it: name, label, number of cells."""
    path = release / "run.json"
    try:
        run = json.loads(path.read_text("utf-8"))
        name = str(run["recipe"]["generator"])
        if run["recipe"]["region"] != "face":
            name += f" ({run['recipe']['region']})"
        cells = int(run["identities"].get("cells", 0))
        return {"name": name, "label": str(run["label"]), "cells": cells}
    except (OSError, ValueError, KeyError, TypeError):
        return {"name": release.name, "label": "unknown method", "cells": 0}


def environment() -> dict[str, str]:
    """Versions that results depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("anonymize", "torch", "numpy", "scikit-learn", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _digest(shots: Shots) -> str:
    return hashlib.sha256("\n".join(sorted(shots.digests)).encode()).hexdigest()


def _outcome(outcome: Outcome) -> dict[str, Any]:
    values = asdict(outcome)
    edges, mated, nonmated = values.pop("histogram")
    far, tar = values.pop("roc")
    evidence = values.pop("evidence")
    return values | {
        "evidence": evidence and {"rank1": evidence[0], "chance": evidence[1]},
        "histogram": {"edges": edges, "mated": mated, "nonmated": nonmated},
        "roc": {"far": far, "tar": tar},
    }


def plain(value: Any) -> Any:
    """JSON-ready: numbers rounded to 6 digits, those that are no numbers become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def risks(attacks: Iterable[Outcome]) -> list[Outcome]:
    """The rows that are threats."""
    return [outcome for outcome in attacks if outcome.attack not in NOT_RISKS]


def verdict(attacks: Sequence[Outcome], unchanged: int = 0) -> dict[str, Any]:
    """The first thing that a reader sees. It never says safe."""
    gates = [o for o in attacks if o.attack == "oo"]
    threats = risks(attacks)
    broken = sorted((o for o in threats if o.risk.low > 0), key=lambda o: -o.risk.value)
    if unchanged:
        return {
            "level": "broken",
            "text": f"{unchanged} outputs still show the original face: the tool failed open.",
        }
    if not broken and (not gates or all(o.verdict.startswith(TOO_WEAK) for o in gates)):
        return {
            "level": "void",
            "text": "This report proves nothing: no recogniser in it finds people even in the "
            "originals.",
        }
    if all(o.verdict.startswith(TOO_WEAK) for o in threats):
        return {"level": "void", "text": "This report proves nothing: no attack in it counts."}
    best = max(gates, key=lambda o: o.rank1.value, default=threats[0])
    if broken:
        worst = broken[0]
        names = ", ".join(dict.fromkeys(o.title for o in broken))
        return {
            "level": "broken" if worst.risk.value > 0.1 else "leaks",
            "text": f"People are recognised: {worst.title} with {worst.embedder} finds "
            f"{worst.rank1.value:.1%} of them (control {worst.control.value:.1%}). "
            f"Beyond the control: {names}.",
        }
    return {
        "level": "held",
        "text": f"No attack got beyond its control. The strongest recogniser here finds "
        f"{best.rank1.value:.1%} of people in the originals. Stronger attackers may exist.",
    }


def check(
    evaluation: Evaluation,
    max_risk: Iterable[tuple[str, float]],
    min_utility: Iterable[tuple[str, float]],
) -> list[Gate]:
    """Holds results against limits; what was not measured does not pass.

    A risk passes when the upper end of its interval is within the limit for every variant and
    recogniser; an attack whose recogniser is too weak on originals cannot pass. A utility passes
    when the lower end of its interval reaches the limit (where lower is better: the upper end).

    Raises:
        ConfigError: a name that this evaluation cannot have.
    """
    from anonymize.eval.harness import ATTACKS

    gates = []
    if evaluation.unchanged:
        count = evaluation.unchanged
        why = f"{count} outputs still show the original face"
        gates.append(Gate("fail-open", "unchanged-outputs", 0, count, False, why))
    for name, limit in max_risk:
        if name not in ATTACKS or name in NOT_RISKS:
            known = ", ".join(a for a in ATTACKS if a not in NOT_RISKS)
            raise ConfigError(f"--max-risk: got {name!r}, expected one of {known}")
        gates.append(_risk_gate(evaluation.attacks, name, limit))
    for name, limit in min_utility:
        gates.append(_utility_gate(evaluation.utilities, name, limit))
    return gates


def _risk_gate(attacks: Sequence[Outcome], name: str, limit: float) -> Gate:
    rows = [o for o in attacks if o.attack == name]
    if not rows:
        return Gate("max-risk", name, limit, None, False, "was not measured")
    strong = {o.embedder for o in attacks if o.attack == "oo" and TOO_WEAK not in o.verdict}
    if not any(o.embedder in strong or o.embedder == "metadata" for o in rows):
        return Gate("max-risk", name, limit, None, False, TOO_WEAK)
    if all(UNLEARNT in o.verdict for o in rows):
        return Gate("max-risk", name, limit, None, False, f"{TOO_WEAK} ({UNLEARNT})")
    worst = max(rows, key=lambda o: o.risk.high)
    value = worst.risk.high
    why = f"{worst.title} with {worst.embedder}: risk at most {value:.4f}"
    return Gate("max-risk", name, limit, value, value <= limit, why)


def _utility_gate(utilities: Sequence[Utility], name: str, limit: float) -> Gate:
    rows = [u for u in utilities if name in (u.name, u.name.split(" (")[0])]
    if not rows or any(u.value is None for u in rows):
        why = rows[0].note if rows else "was not measured"
        return Gate("min-utility", name, limit, None, False, why)
    higher = rows[0].better == "higher"
    ends = [u.value.low if higher else u.value.high for u in rows if u.value is not None]
    value = min(ends) if higher else max(ends)
    passed = value >= limit if higher else value <= limit
    word = "at least" if higher else "at most"
    return Gate("min-utility", name, limit, value, passed, f"{name}: {word} {value:.4f}")


def table(report: dict[str, Any]) -> str:
    """The short table for a terminal."""
    lines = [report["verdict"]["text"], ""]
    lines.append(f"{'attack':<30} {'recogniser':<14} {'rank-1':>20} {'control':>8}  risk")
    for row in report["attacks"]:
        title = f"{row['attack']} ({row['variant']})" if row["variant"] else row["attack"]
        lines.append(
            f"{title:<30} {row['embedder']:<14} {spread(row['rank1']):>20} "
            f"{row['control']['value']:>8.1%}  {spread(row['risk'])}  {row['verdict']}"
        )
    lines += ["", f"{'utility':<30} {'value':>24} {'originals':>10}"]
    for row in report["utilities"]:
        if row["value"] is None:
            lines.append(f"{row['name']:<30} {row['note']}")
            continue
        value, reference = row["value"], row["reference"]
        shown = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        lines.append(f"{row['name']:<30} {shown:>24} {'' if reference is None else reference:>10}")
    lines += [f"skipped {row['name']}: {row['reason']}" for row in report["skipped"]]
    for gate in report["gates"]:
        word = "passed" if gate["passed"] else "FAILED"
        lines.append(f"gate {word}: {gate['kind']} {gate['name']} {gate['limit']}: {gate['why']}")
    return "\n".join(lines)


def spread(value: dict[str, float]) -> str:
    """An estimate in per cent with its interval."""
    return f"{value['value']:.1%} ({value['low']:.1%} to {value['high']:.1%})"


def read_report(path: Path) -> dict[str, Any]:
    """A report.json, or the one in a report's folder.

    Raises:
        ConfigError: unreadable, or of another schema.
    """
    path = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read report {path}: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is not a report of schema {SCHEMA}")
    return report
