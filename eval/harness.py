"""Runs the attacks and the measures of utility that were asked for, and keeps what they said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from anonymize.eval import attacks, learned, metadata, utility
from anonymize.eval.attacks import Attack
from anonymize.eval.context import context
from anonymize.eval.learner import BUDGETS, read_pairs, training_utility
from anonymize.eval.memory import memory
from anonymize.eval.risk import Outcome, Search, UnmeasurableError, judged, measure
from anonymize.eval.trial import Trial
from anonymize.eval.unlink import cross_key
from anonymize.eval.utility import Utility, unchanged

from anonymize.embedders import DlibEmbedder, Embedder
from anonymize.errors import ConfigError

BY_SCORE: dict[str, tuple[Attack, ...]] = {
    "oo": (attacks.oo,),
    "oa": (attacks.oa,),
    "ao": (attacks.ao,),
    "semi-informed": (learned.linear, learned.tuned),
    "reverse-map": (learned.reverse,),
    "negation": (attacks.negation,),
    "set-averaging": (attacks.set_averaging,),
    "context": (context,),
    "control": (attacks.control,),
}
"""Attacks by a recogniser's scores, by the name that gates use."""

ATTACKS = (*BY_SCORE, "cross-key", "metadata-join", "generator-memory")

UTILITIES = ("geometry", "consistency", "distance", "attributes", "training")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evaluate.

    Attributes:
        attacks, utilities: names of `ATTACKS` and `UTILITIES`; `oo` always runs, being the gate.
        budget: of training utility, a key of `BUDGETS`.
        device: where training utility trains.
        releases: trials over the same originals under a second and perhaps a third key.
        training: folder of the generator's training faces.
        pairs: CSV of verification pairs and the folder of their photographs.
    """

    attacks: Sequence[str] = ATTACKS
    utilities: Sequence[str] = UTILITIES
    budget: str = "smoke"
    releases: Sequence[Trial] = ()
    training: Path | None = None
    pairs: tuple[Path, Path] | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for what, names, known in (
            ("attack", self.attacks, ATTACKS),
            ("utility", self.utilities, UTILITIES),
            ("budget", [self.budget], BUDGETS),
        ):
            for name in names:
                if name not in known:
                    raise ConfigError(f"unknown {what} {name!r}: expected {', '.join(known)}")


@dataclass(slots=True)
class Evaluation:
    """Results: attacks with verdicts, measures of utility, and what was left out and why.

    `unchanged` counts outputs that still show the original face, pixel for pixel but for recoding.
    """

    attacks: list[Outcome] = field(default_factory=list)
    utilities: list[Utility] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unchanged: int = 0


def evaluate(
    trial: Trial,
    embedders: Sequence[Embedder],
    plan: Plan,
    tell: Callable[[str], None] = lambda name: None,
) -> Evaluation:
    """Attacks a trial with every recogniser and measures its utility.

    Args:
        trial: originals and outputs.
        embedders: recognisers, each an attacker of its own.
        plan: what to do.
        tell: takes the name of each part as it begins.
    """
    result = Evaluation()
    for embedder in embedders:
        _attack(trial, embedder, plan, result, tell)
    if "metadata-join" in plan.attacks:
        tell("metadata-join")
        _try(result, "metadata-join", lambda: metadata.join(trial), trial)
    result.attacks = judged(result.attacks)
    _use(trial, embedders, plan, result, tell)
    return result


def _attack(
    trial: Trial,
    embedder: Embedder,
    plan: Plan,
    result: Evaluation,
    tell: Callable[[str], None],
) -> None:
    for name, ways in BY_SCORE.items():
        if name != "oo" and name not in plan.attacks:
            continue
        tell(f"{name} ({embedder.name})")
        for way in ways:
            attack = partial(way, trial, embedder)
            _try(result, f"{name} ({embedder.name})", attack, trial)
        if name == "semi-informed" and not isinstance(embedder, DlibEmbedder):
            reason = "only dlib's ResNet can be fine-tuned here"
            result.skipped.append((f"semi-informed, fine-tuned ({embedder.name})", reason))
    if "cross-key" in plan.attacks:
        _cross(trial, embedder, plan, result)
    if "generator-memory" in plan.attacks:
        if plan.training is None:
            reason = "needs --training FOLDER, the faces that the generator learnt from"
            result.skipped.append((f"generator-memory ({embedder.name})", reason))
        else:
            tell(f"generator-memory ({embedder.name})")
            with _or_skipped(result, f"generator-memory ({embedder.name})"):
                result.attacks.append(memory(trial, embedder, plan.training))


@contextmanager
def _or_skipped(result: Evaluation, name: str) -> Iterator[None]:
    """Notes why something could not be measured, and goes on."""
    try:
        yield
    except UnmeasurableError as error:
        result.skipped.append((name, str(error)))


def _try(result: Evaluation, name: str, attack: Callable[[], list[Search]], trial: Trial) -> None:
    """Adds the outcomes of an attack, or why there are none."""
    with _or_skipped(result, name):
        result.attacks += [measure(search, trial.seed) for search in attack()]


def _cross(trial: Trial, embedder: Embedder, plan: Plan, result: Evaluation) -> None:
    if not plan.releases:
        reason = "needs --second, a release of the same originals under another key"
        result.skipped.append((f"cross-key ({embedder.name})", reason))
        return
    second, third = plan.releases[0], plan.releases[1] if len(plan.releases) > 1 else None
    name = f"cross-key ({embedder.name})"
    _try(result, name, lambda: cross_key(trial, second, third, embedder), trial)
    if third is None:
        reason = "needs --third, a release that the attacker may learn from"
        result.skipped.append((f"cross-key, fitted ({embedder.name})", reason))


def _use(
    trial: Trial,
    embedders: Sequence[Embedder],
    plan: Plan,
    result: Evaluation,
    tell: Callable[[str], None],
) -> None:
    result.unchanged = unchanged(trial)
    if "geometry" in plan.utilities:
        tell("geometry")
        result.utilities += [*utility.geometry(trial), utility.dense(trial)]
    for embedder in embedders:
        original = next(
            o for o in result.attacks if (o.attack, o.embedder) == ("oo", embedder.name)
        )
        if "consistency" in plan.utilities:
            tell(f"consistency ({embedder.name})")
            with _or_skipped(result, f"consistency ({embedder.name})"):
                outcome, value = utility.consistency(trial, embedder, original)
                result.attacks.append(outcome)
                result.utilities += [value, utility.collisions(trial, embedder)]
        if "distance" in plan.utilities:
            result.utilities += utility.distances(trial, embedder)
    if "attributes" in plan.utilities:
        tell("attributes")
        result.utilities += utility.attributes(trial)
    if "training" in plan.utilities:
        tell(f"training utility ({plan.budget})")
        result.utilities += _train(trial, plan)


def _train(trial: Trial, plan: Plan) -> list[Utility]:
    budget, pairs = BUDGETS[plan.budget], None
    if plan.pairs is not None:
        table, root = plan.pairs
        pairs = read_pairs(table, root, budget.side, set(trial.names))
    return training_utility(trial, budget, pairs, device=plan.device)
