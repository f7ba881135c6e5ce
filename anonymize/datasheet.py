"""The release package: what a data set's users are told about it, filled in where it is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anonymize.errors import ReleaseError
from anonymize.generators import bundled
from anonymize.run import RUN
from anonymize.writers import sha256

RELEASE = "release.json"


def package(release: Path, report: Path | None) -> dict[str, Any]:
    """Everything that release.json says of a finished release.

    Args:
        release: DST.
        report: report.json of `anonymize eval`, or its folder.

    Returns:
        Schema 1: `files` (path to SHA-256 of all others), `card` of the generator (Mitchell et al.
        2019), `evaluation`, and `datasheet` (Gebru et al. 2021) with None where only the publisher
        knows the answer.

    Raises:
        ReleaseError: the report cannot be read.
    """
    run = json.loads((release / RUN).read_text("utf-8"))
    evaluation = None if report is None else summary(report)
    paths = sorted(path for path in release.rglob("*") if path.is_file())
    files = {p.relative_to(release).as_posix(): sha256(p) for p in paths if p.name != RELEASE}
    return {
        "schema": 1,
        "tool": run["tool"],
        "files": files,
        "card": _card(run),
        "evaluation": evaluation,
        "datasheet": datasheet(run, evaluation),
    }


def summary(report: Path) -> dict[str, Any]:
    """The verdict, gates and figures of a report, without its curves."""
    path = report / "report.json" if report.is_dir() else report
    try:
        whole = json.loads(path.read_text("utf-8"))
        attacks = [
            {name: row[name] for name in ("attack", "variant", "embedder", "rank1", "risk", "tar")}
            for row in whole["attacks"]
        ]
        utilities = [{name: row[name] for name in ("name", "value")} for row in whole["utilities"]]
        kept = {name: whole[name] for name in ("verdict", "gates", "inputs", "seed")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path} is no report of `anonymize eval`: {error!r}") from error
    return {**kept, "report_sha256": sha256(path), "attacks": attacks, "utilities": utilities}


def _card(run: dict[str, Any]) -> str | None:
    """The card of the bundled model, if that is what the run used."""
    card = bundled("inpaint-128") / "README.md"
    same = card.is_file() and sha256(card) == run["weights"].get("README.md")
    return card.read_text("utf-8") if same else None


def datasheet(
    run: dict[str, Any], evaluation: dict[str, Any] | None
) -> dict[str, dict[str, str | None]]:
    """Gebru et al.'s questions by section; None is the publisher's to answer."""
    counts, recipe = run["counts"], run["recipe"]
    reasons = "; ".join(f"{n}: {reason}" for reason, n in counts["reasons"].items()) or "none"
    return {
        "motivation": {
            "For what purpose was the dataset created?": None,
            "Who created the dataset, and on behalf of which entity?": None,
            "Who funded its creation?": None,
        },
        "composition": {
            "What do the instances represent?": "Pictures of people. " + _who(run),
            "How many instances are there?": f"{counts['written']} pictures of {counts['people']} "
            f"people; {counts['faces_replaced']} faces were replaced in them.",
            "Is it a sample of a larger set?": f"{counts['read']} pictures were read; "
            f"{counts['withheld']} of them are withheld. {reasons}.",
            "Is there a label with each instance?": "A pseudonym, the same for all pictures of one "
            "person of the source. Nothing else of the source's labels was kept.",
            "Are there errors or noise?": "Wrong labels of the source are wrong here too.",
            "Is it possible to identify individuals?": _identified(evaluation),
            "Does it identify subpopulations?": "Not by labels. Hair, clothes and scenery are the "
            "source's, and apparent sex, age and skin tone follow them.",
        },
        "collection process": {
            "How was the data of the source acquired?": None,
            "Were the people notified, and did they consent?": None,
            "Was there an ethical review?": None,
        },
        "preprocessing": {
            "What was done?": f"{run['tool']} with the generator {recipe['generator']}, region "
            f"{recipe['region']}. {run['label']}. The recipe is in {RUN}.",
            "Was the raw data kept?": None,
            "Is the software available?": "Yes, under Apache-2.0.",
        },
        "uses": {
            "What has it been used for, and what could it be?": None,
            "What should it not be used for?": "To look for the people of the source.",
        },
        "distribution": {
            "Under which licence or terms?": None,
            "When and where?": None,
        },
        "maintenance": {
            "Who maintains it, and how can they be reached?": None,
            "How does someone ask to be left out?": None,
            "Will it be updated?": None,
        },
    }


def _who(run: dict[str, Any]) -> str:
    if run["label"] == "anonymisation":
        return "Every face found was replaced by that of a person who does not exist."
    return f"The faces found were obscured: {run['label']}."


def _identified(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated. Context (hair, clothes, scenery) is that of the source."
    return f"{evaluation['verdict']['text']} Context (hair, clothes, scenery) is the source's."
