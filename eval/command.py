"""What `anonymize eval` does: loads, attacks, measures and writes the report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from anonymize.eval.cache import Cache
from anonymize.eval.harness import ATTACKS, UTILITIES, Plan, evaluate
from anonymize.eval.links import link
from anonymize.eval.page import render
from anonymize.eval.report import Gate, build, check, describe, read_report
from anonymize.eval.trial import Chosen, Progress, Trial, load, silent
from PIL import Image

from anonymize import registry
from anonymize.embedders import Embedder
from anonymize.errors import ConfigError
from anonymize.record import Pixels


@dataclass(frozen=True, slots=True)
class Request:
    """An evaluation as the command line asks for it.

    Attributes:
        originals, anonymised: the two folders.
        out: folder that receives report.json and report.html; embeddings are cached in
            `out.private`, because they belong to real people.
        links: source to output, None for outputs of the same names.
        embedders: names of recognisers.
        attacks, utilities, budget: see `harness.Plan`; empty for all.
        people, images: at most so many people, and originals of each.
        others: further releases of the same originals, with their links.
        training: folder of the generator's training faces.
        pairs: CSV of verification pairs and the folder of their photographs.
        beside: reports to show in the same plane.
        max_risk, min_utility: gates.
        show: before/after pairs to put on the page.
        seed: of every random choice.
        device: a torch device type.
        cache: of embeddings, to be shared by several evaluations; default `out.private`.
    """

    originals: Path
    anonymised: Path
    out: Path
    links: Mapping[str, str] | None = None
    embedders: Sequence[str] = ("dlib",)
    attacks: Sequence[str] = ()
    utilities: Sequence[str] = ()
    budget: str = "smoke"
    people: int | None = None
    images: int | None = None
    others: Sequence[tuple[Path, Mapping[str, str] | None]] = ()
    training: Path | None = None
    pairs: tuple[Path, Path] | None = None
    beside: Sequence[Path] = ()
    max_risk: Sequence[tuple[str, float]] = ()
    min_utility: Sequence[tuple[str, float]] = ()
    show: int = 0
    seed: int = 0
    device: str = "cpu"
    cache: Path | None = None


def carry_out(
    request: Request,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Any], list[Gate]]:
    """Evaluates, writes the report's files, returns the report and its gates.

    Raises:
        ConfigError: something asked for is unknown or absent.
    """
    from anonymize.eval.report import NOT_RISKS

    for name, _ in request.max_risk:
        if name not in ATTACKS or name in NOT_RISKS:  # before hours of work, not after
            known = ", ".join(a for a in ATTACKS if a not in NOT_RISKS)
            raise ConfigError(f"--max-risk: got {name!r}, expected one of {known}")
    plan = Plan(  # refuses what it does not know
        request.attacks or ATTACKS,
        request.utilities or UTILITIES,
        request.budget,
        training=request.training,
        pairs=request.pairs,
        device=request.device,
    )
    beside = [read_report(path) for path in request.beside]
    embedders: list[Embedder] = [
        registry.load("embedder", name, request.device) for name in request.embedders
    ]
    private = request.out.with_name(request.out.name + ".private")
    cache = Cache(request.cache or private / "embeddings.sqlite")
    trial = _load(request, request.anonymised, request.links, cache, progress)
    releases = [
        _load(request, folder, links, cache, progress, trial.chosen)
        for folder, links in request.others
    ]
    evaluation = evaluate(trial, embedders, replace(plan, releases=releases), tell)
    gates = check(evaluation, request.max_risk, request.min_utility)
    report = build(trial, evaluation, gates, describe(request.anonymised))
    request.out.mkdir(parents=True, exist_ok=True)
    page = render(report, beside, _shown(trial, request.show))
    (request.out / "report.html").write_text(page, "utf-8")
    part = request.out / "report.json.part"
    part.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", "utf-8")
    part.replace(request.out / "report.json")  # last and at once: where it is, all is complete
    cache.close()
    return report, gates


def _load(
    request: Request,
    folder: Path,
    table: Mapping[str, str] | None,
    cache: Cache,
    progress: Progress,
    like: Chosen | None = None,
) -> Trial:
    links = link(request.originals, folder, dict(table) if table is not None else None)
    return load(
        request.originals,
        folder,
        links,
        cache=cache,
        seed=request.seed,
        people=request.people,
        images=request.images,
        like=like,
        progress=progress,
    )


def _shown(trial: Trial, count: int) -> list[tuple[bytes, bytes]]:
    """JPEG pairs of originals and outputs, chosen by the seed."""
    rows = np.random.default_rng(trial.seed).permutation(len(trial.a.paths))[:count]
    return [
        (_thumbnail(trial.o.image(trial.a.links[row])), _thumbnail(trial.a.image(row)))
        for row in rows
    ]


def _thumbnail(image: Pixels) -> bytes:
    picture = Image.fromarray(image)
    picture.thumbnail((220, 220))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=88)
    return data.getvalue()
