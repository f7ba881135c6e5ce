"""What a run will take, from a sample: `anonymize run --dry-run`."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anonymize.eval.stats import wilson
from anonymize.readers import open_source
from anonymize.recipe import Recipe
from anonymize.run import Progress, run

SAMPLE = 200
"""Pictures that are tried."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a whole run would take, if the rest of the source is like the sample.

    Attributes:
        pictures: in the source.
        sample: how many were tried.
        seconds: of a whole run on this machine, without loading the models.
        bytes: of the release.
        withheld: share of pictures, 0..1, with the 95 % interval (Wilson) `withheld_low` to
            `withheld_high`.
        reasons: of the withheld ones in the sample.
    """

    pictures: int
    sample: int
    seconds: float
    bytes: int
    withheld: float
    withheld_low: float
    withheld_high: float
    reasons: dict[str, int]


def estimate(source: Path, recipe: Recipe, progress: Progress, **options: Any) -> Estimate:
    """Anonymises a sample chosen by a fresh key into a folder that is deleted at once.

    Args:
        source: SRC.
        recipe: of the whole run.
        progress: told how far the sample is.
        options: as of `run.run`: `device`, `workers`, `batch_size`, `exclude`, `clean_list`.
    """
    began: list[float] = []

    def watch(phase: str, done: int, total: int, withheld: int) -> None:
        began.append(time.perf_counter())
        progress(phase, done, total, withheld)

    total = sum(1 for _ in open_source(source, recipe.reader, **recipe.reader_options))
    with tempfile.TemporaryDirectory() as folder:
        release = Path(folder) / "release"
        summary = run(source, release, recipe, limit=SAMPLE, progress=watch, **options)
        spent = time.perf_counter() - began[0]
        size = sum(path.stat().st_size for path in release.rglob("*") if path.is_file())
    scale = total / summary.read
    share = wilson(summary.withheld, summary.read)
    return Estimate(
        total,
        summary.read,
        spent * scale,
        int(size * scale),
        share.value,
        share.low,
        share.high,
        summary.reasons,
    )


def table(found: Estimate) -> str:
    """The estimate in lines for a terminal."""
    hours, rest = divmod(round(found.seconds), 3600)
    lines = [
        f"pictures       {found.pictures}, of which {found.sample} were tried",
        f"time           {hours} h {rest // 60:02} min {rest % 60:02} s on this machine",
        f"disk           {found.bytes / 1e6:,.0f} MB",
        f"withheld       {found.withheld:.1%} ({found.withheld_low:.1%} to "
        f"{found.withheld_high:.1%})",
        *(f"  {count:<12} {reason}" for reason, count in found.reasons.items()),
    ]
    return "\n".join(lines)


def as_dict(found: Estimate) -> dict[str, Any]:
    """The estimate as plain values."""
    return {"schema": 1, **asdict(found)}
