"""The commands that judge data sets, releases and methods: `audit`, `eval`, `compare`, `sweep`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from anonymize.console import FAILED, FILE, FOLDER, GATE, PATH, Meter, reported, say
from anonymize.errors import ConfigError

GATE_OPTION = (str, float)

_DEVICES = click.Choice(["auto", "cpu", "cuda"])

_MEASURING = (
    click.option("--attack", "attacks", multiple=True, help="Only these; may be repeated."),
    click.option("--utility", "utilities", multiple=True, help="Only these; may be repeated."),
    click.option("--embedder", "embedders", multiple=True, default=["dlib"], show_default=True),
    click.option("--budget", default="smoke", show_default=True, help="Of training utility."),
    click.option("--pairs", type=(FILE, FOLDER), help="CSV fold,a,b,same and its photographs."),
    click.option("--people", type=click.IntRange(8), help="Only so many people, chosen by a hash."),
    click.option("--images", type=click.IntRange(2), help="Only so many originals of each."),
    click.option("--seed", default=0, show_default=True, help="Of every random choice."),
    click.option("--device", default="auto", type=_DEVICES),
)


def measuring(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say how something is attacked and measured."""
    for option in reversed(_MEASURING):
        command = option(command)
    return command


@click.command()
@click.argument("src", type=PATH)
@click.option("-o", "--out", type=FOLDER, help="Folder for audit.json and audit.html. Private.")
@click.option("--from", "reader", default="", help="Format of SRC.  [sniffed]")
@click.option("--limit", default=2000, show_default=True, help="Pictures whose faces are compared.")
@click.option("--all", "everything", is_flag=True, help="Compare the faces of all pictures.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", type=_DEVICES)
@click.option("--json", "as_json", is_flag=True, help="Print the audit as JSON. Private.")
@reported
def audit(
    src: Path,
    out: Path | None,
    limit: int,
    everything: bool,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Tell what the dataset SRC gives away before anything is published.

    People and pictures, names and identifiers in paths, columns and metadata, duplicates, wrong
    labels, how well its people are recognised, and whether it is one that was withdrawn.
    """
    import torch

    from anonymize.devices import choose
    from anonymize.eval.audit import audit as examine
    from anonymize.eval.audit import table

    torch.set_num_threads(1)
    most = None if everything else limit
    with Meter() as meter:
        result = examine(
            src, out, limit=most, device=choose(device), progress=meter.steps, **options
        )
    click.echo(json.dumps(result, sort_keys=True) if as_json else table(result))
    if out is not None and not as_json:
        click.echo(f"audit {out / 'audit.html'}")


@click.command("eval")
@click.argument("original", type=FOLDER)
@click.argument("anonymized", type=FOLDER)
@click.option("-o", "--out", required=True, type=FOLDER, help="Folder for the report.")
@click.option("--links", type=FILE, help="CSV source,output.  [default: private links, or names]")
@click.option("--max-risk", multiple=True, type=GATE_OPTION, metavar="NAME VALUE")
@click.option("--min-utility", multiple=True, type=GATE_OPTION, metavar="NAME VALUE")
@click.option("--second", type=FOLDER, help="Release of the same originals under another key.")
@click.option("--third", type=FOLDER, help="One that the cross-key attacker learns from.")
@click.option("--training", type=FOLDER, help="The generator's training faces.")
@click.option("--beside", multiple=True, type=PATH, help="Other reports.")
@click.option("--show", default=0, type=click.IntRange(0), help="REAL pairs to put on the page.")
@measuring
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@reported
def evaluate(
    original: Path,
    anonymized: Path,
    links: Path | None,
    second: Path | None,
    third: Path | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Attack the release ANONYMIZED of the photographs ORIGINAL and measure its utility.

    Works on any tool's output: two folders, one folder per person in ORIGINAL, and a link table.
    Exits with 3 if a gate fails.
    """
    import torch

    from anonymize.devices import choose
    from anonymize.eval.command import Request, carry_out
    from anonymize.eval.links import read_table
    from anonymize.eval.report import table

    if third is not None and second is None:
        raise ConfigError("--third needs --second: the attack joins the first two releases")
    torch.set_num_threads(1)
    others = [(folder, _private_links(folder)) for folder in (second, third) if folder is not None]
    known = read_table(links) if links is not None else _private_links(anonymized)
    request = Request(
        original, anonymized, links=known, others=others, device=choose(device), **options
    )
    with Meter() as meter:
        report, gates = carry_out(request, meter.steps, lambda name: say(f"{name} ..."))
    click.echo(json.dumps(report, sort_keys=True) if as_json else table(report))
    if not as_json:
        click.echo(f"report {request.out / 'report.html'}")
    if not all(gate.passed for gate in gates):
        sys.exit(GATE)


def _private_links(release: Path) -> dict[str, str] | None:
    """The links of one of our own unsealed releases; None for other tools' folders."""
    from anonymize.state import private_folder, read_links

    return dict(read_links(release)) if private_folder(release).is_dir() else None


@click.command()
@click.argument("reports", nargs=-1, required=True, type=PATH)
@click.option("--baseline", required=True, type=PATH)
@click.option("--tolerance", default=0.0, show_default=True, help="Beyond the intervals.")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
@reported
def compare(reports: tuple[Path, ...], baseline: Path, tolerance: float, as_json: bool) -> None:
    """Hold REPORTS against a baseline report: what got better or worse beyond the intervals.

    Exits with 3 if a figure got worse, is missing, or a gate of a report failed.
    """
    from anonymize.eval.compare import compare as hold
    from anonymize.eval.compare import differences, table
    from anonymize.eval.report import read_report

    before, failed, results = read_report(baseline), False, []
    for path in reports:
        report = read_report(path)
        changes, missing = hold(before, report, tolerance)
        broken = [gate["name"] for gate in report["gates"] if not gate["passed"]]
        broken += ["verdict: void"] if report["verdict"]["level"] == "void" else []
        failed |= bool(missing or broken or any(change.worse for change in changes))
        results.append(
            {
                "report": str(path),
                "changes": [asdict(change) for change in changes],
                "missing": missing,
                "failed_gates": broken,
                "notes": differences(before, report),
            }
        )
        if not as_json:
            click.echo(f"{path}\n{table(changes, missing)}")
            for note in differences(before, report):
                click.echo(f"note    {note}")
            for name in broken:
                click.echo(f"gate    {name} failed")
    if as_json:
        click.echo(json.dumps({"schema": 1, "reports": results}))
    if failed:
        sys.exit(GATE)


@click.command()
@click.argument("src", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--method", "given", multiple=True, metavar="NAME[=KEY=VALUE,...]")
@click.option("--methods", "file", type=FILE, help="TOML file with a recipe per table.")
@click.option("--key-file", type=FILE, help="Key of every release.  [default: one in OUT.private]")
@click.option("--workers", type=click.IntRange(1), help="Threads.  [default: all cores]")
@measuring
@click.option("--json", "as_json", is_flag=True, help="Print the trade-off as JSON.")
@reported
def sweep(
    src: Path,
    out: Path,
    given: tuple[str, ...],
    file: Path | None,
    key_file: Path | None,
    workers: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare methods: anonymise SRC by each, attack and measure them alike, print the trade-off.

    OUT receives table.md, sweep.html, sweep.json and a report for each method. Key, links,
    originals, embeddings and the releases lie in OUT.private: they are all of the same people, so
    none of them is for publication. The same command goes on after an interruption, or with more
    methods. Exits with 1 if a method failed.
    """
    from anonymize.devices import single_threaded
    from anonymize.eval.tradeoff import markdown
    from anonymize.seeds import kept_key
    from anonymize.sweep import Sweep, methods
    from anonymize.sweep import sweep as compare_methods

    single_threaded()
    key = None if key_file is None else kept_key(key_file)
    options["workers"] = workers or os.cpu_count() or 1
    plan = Sweep(src, out, methods(file, given), key=key, **options)
    with Meter() as meter:
        result = compare_methods(plan, progress=meter, steps=meter.steps, tell=say)
    click.echo(json.dumps(result, sort_keys=True) if as_json else markdown(result), nl=as_json)
    say(f"page {out / 'sweep.html'}")
    if result["failed"]:
        sys.exit(FAILED)
