"""The command line: parses, prints and sets exit codes; the work is in the library."""

from __future__ import annotations

import csv
import io
import json
import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from anonymize.cli_eval import audit, compare, evaluate, sweep
from anonymize.console import FAILED, FILE, FOLDER, GATE, PATH, Meter, reported, say
from anonymize.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="anonymize")
def main() -> None:
    """Turns face datasets of real people into datasets of people who do not exist."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)


@main.command()
@click.argument("src", type=PATH)
@click.argument("dst", type=FOLDER)
@click.option("--from", "reader", help="Format of SRC; see `anonymize list reader`.  [sniffed]")
@click.option("--to", "writer", help="Format of DST; see `anonymize list writer`.  [folder]")
@click.option("--skip-bad", is_flag=True, help="Count damaged records of SRC and go on.")
@click.option("--generator", help="Generator name; see `anonymize list generator`.")
@click.option("--detector", help="Detector name; see `anonymize list detector`.")
@click.option(
    "--aligned",
    default="none",
    type=click.Choice(["arcface", "mscelab", "none"]),
    help="SRC holds crops that are aligned like this: no detection.",
)
@click.option("--region", type=click.Choice(["face", "head"]), help="How much is replaced.")
@click.option("--recipe", "recipe_file", type=FILE, help="TOML file with the run's configuration.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override the recipe.")
@click.option("--key-file", type=FILE, help="Secret key to use; created if absent. Keep it safe.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(1))
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="Work in threads here, or on the Ray cluster of RAY_ADDRESS, or one of this machine.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Threads, or Ray's processes.  [all cores or GPUs]"
)
@click.option("--limit", type=click.IntRange(1), help="Only so many pictures, chosen by the key.")
@click.option("--exclude", type=FILE, help="Labels of people to leave out, one a line.")
@click.option("--clean-list", type=FILE, help="Take only the pictures of this list, as labelled.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option(
    "--retry",
    is_flag=True,
    help="Try again what a finished run withheld by an internal error or for lack of memory.",
)
@click.option("--overwrite", is_flag=True, help="Destroy an earlier release in DST first.")
@click.option("--dry-run", is_flag=True, help="Try 200 pictures and say what all would take.")
@click.option(
    "--max-withheld",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Exit with 3 if a greater share was withheld.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@reported
def run(
    src: Path,
    dst: Path,
    reader: str | None,
    writer: str | None,
    skip_bad: bool,
    generator: str | None,
    detector: str | None,
    aligned: str,
    region: str | None,
    recipe_file: Path | None,
    settings: tuple[str, ...],
    key_file: Path | None,
    max_withheld: float,
    as_json: bool,
    resume: bool,
    retry: bool,
    overwrite: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Anonymise the pictures below SRC into the folder DST.

    SRC holds a folder per person, or is a table, RecordIO, tar shards, MS-Celeb-1M's TSV or a
    verification set. DST receives a folder per new person, or what --to names, manifest.jsonl and
    run.json; key and link table lie in DST.private until `anonymize seal DST` destroys them.
    """
    if resume + retry + overwrite > 1:
        raise ConfigError("--resume, --retry and --overwrite exclude each other: give one of them")
    from anonymize.recipe import Recipe, load
    from anonymize.run import check_places

    check_places(src, dst)
    if aligned != "none" and detector is not None:
        raise ConfigError("--aligned and --detector exclude each other: give one of them")
    detector = f"aligned:{aligned}" if aligned != "none" else detector
    named = {"reader": reader, "writer": writer, "generator": generator}
    named |= {"detector": detector, "region": region}
    chosen = [f"{name}={value}" for name, value in named.items() if value is not None]
    chosen += ["reader_options.skip_bad=true"] if skip_bad else []
    recipe = load(Recipe, recipe_file, [*settings, *chosen])

    from anonymize import registry
    from anonymize.devices import single_threaded
    from anonymize.generators import promise
    from anonymize.run import run as anonymize

    made = registry.find("generator", recipe.generator)[0]
    if made.baseline:
        say(f"{recipe.generator}: {promise(made)}")
    single_threaded()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, resumable
    if dry_run:
        return _estimate(src, recipe, options, as_json)
    with Meter() as meter:
        summary = anonymize(
            src,
            dst,
            recipe,
            key=_key(key_file),
            people_file=_people(key_file),
            resume=resume,
            retry=retry,
            overwrite=overwrite,
            progress=meter,
            **options,
        )
    if as_json:
        click.echo(json.dumps({"schema": 1, **asdict(summary)}))
    else:
        click.echo(_table(summary, dst))
    if summary.withheld > max_withheld * summary.read:
        share = summary.withheld / summary.read
        say(f"anonymize: {share:.1%} withheld, more than --max-withheld allows")
        sys.exit(GATE)


def _estimate(src: Path, recipe: Any, options: dict[str, Any], as_json: bool) -> None:
    from anonymize.estimate import as_dict, estimate, table

    del options["limit"]
    with Meter() as meter:
        found = estimate(src, recipe, meter, **options)
    click.echo(json.dumps(as_dict(found)) if as_json else table(found))


@main.command()
@click.argument("src", type=FOLDER)
@click.argument("dst", type=FOLDER)
@click.option("--exclude", type=FILE, help="Labels of people to leave out, one a line.")
@click.option("--key-file", type=FILE, help="The key that the release was made with.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@reported
def add(
    src: Path, dst: Path, exclude: Path | None, key_file: Path | None, device: str, as_json: bool
) -> None:
    """Take pictures that were added to SRC since into its release DST, which is not sealed yet.

    Nobody who is there already changes; new pictures of them show the same new person. A sealed
    release is made again into another DST, with the same --key-file.
    """
    from anonymize.devices import single_threaded
    from anonymize.run import run as anonymize

    single_threaded()
    with Meter() as meter:
        summary = anonymize(
            src,
            dst,
            key=_key(key_file) if key_file is not None and key_file.exists() else None,
            people_file=_people(key_file),
            exclude=exclude,
            workers=None,
            device=device,
            add=True,
            progress=meter,
        )
    result = json.dumps({"schema": 1, **asdict(summary)}) if as_json else _table(summary, dst)
    click.echo(result)


def _people(key_file: Path | None) -> Path | None:
    """Where the new people of a kept key are kept: beside it."""
    return None if key_file is None else key_file.with_name(f"{key_file.name}.people")


def _key(path: Path | None) -> bytes | None:
    from anonymize.seeds import kept_key

    return None if path is None else kept_key(path)


def _table(summary: Any, dst: Path) -> str:
    lines = [
        f"read           {summary.read}",
        f"written        {summary.written}",
        f"withheld       {summary.withheld}",
        *(f"  {count:<12} {reason}" for reason, count in summary.reasons.items()),
        f"people         {summary.people}",
        f"faces replaced {summary.faces_replaced}",
    ]
    lines += [f"passed over    {n}: {kind}" for kind, n in summary.ignored.items() if n]
    lines += [f"release        {dst}", f"private        {dst}.private (destroy: anonymize seal)"]
    return "\n".join(lines)


@main.command()
@click.argument("dst", type=FOLDER)
@reported
def links(dst: Path) -> None:
    """Print the private link table of DST as CSV: source,output (paths below SRC and DST)."""
    from anonymize.state import read_links

    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["source", "output"])
    table.writerows(read_links(dst))
    click.echo(text.getvalue().encode("utf-8", "surrogateescape"), nl=False)


@main.command()
@click.argument("dst", type=FOLDER)
@click.option("--report", type=PATH, help="What `anonymize eval` found, for release.json.")
@reported
def seal(dst: Path, report: Path | None) -> None:
    """Check the release DST, describe it, then destroy its key, link table and journal.

    release.json, which DST receives, lists every file with its hash and holds the generator's card,
    what REPORT found, and a datasheet whose open questions are the publisher's to answer.
    """
    from anonymize.release import seal as close

    count = close(dst, report)
    click.echo(f"sealed {dst}: {count} pictures; the link to their sources is gone")


@main.command()
@click.argument("src", type=PATH)
@click.argument("dst", type=FOLDER)
@click.argument("out", type=FILE)
@click.option("--pairs", default=24, show_default=True, type=click.IntRange(1))
@reported
def sheet(src: Path, dst: Path, out: Path, pairs: int) -> None:
    """Draw originals of SRC beside their outputs in DST as the PNG file OUT. Keep it private."""
    from anonymize.sheet import draw

    out.write_bytes(draw(src, dst, pairs))
    click.echo(out)


@main.command("list")
@click.argument("kind", required=False)
@reported
def list_(kind: str | None) -> None:
    """List components: all kinds, or one."""
    from anonymize import registry

    for each in [kind] if kind else registry.BUILTIN:
        for name, target in sorted(registry.names(each).items()):
            click.echo(f"{each:<10} {name:<14} {target}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@reported
def doctor(as_json: bool) -> None:
    """Check that everything a run needs is here and works."""
    from anonymize.doctor import examine

    findings = examine()
    if as_json:
        checks = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"schema": 1, "checks": checks}))
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.good else 'FAIL'} {finding.name:<20} {finding.detail}")
    if not all(finding.good for finding in findings):
        sys.exit(FAILED)


@main.command()
@click.argument("src", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--recipe", "recipe_file", type=FILE, help="TOML file with the training recipe.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override the recipe.")
@click.option("--exclude", type=FILE, help="Pictures to leave out, one a line, paths below SRC.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps of the whole run.")
@click.option("--kind", default="inpaint", type=click.Choice(["inpaint", "perturb"]))
@click.option("--start", type=FOLDER, help="Exported inpainting model to start from.")
@click.option("--minutes", default=0.0, help="Stop after this time; --resume goes on.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in OUT.")
@reported
def train(
    src: Path,
    out: Path,
    recipe_file: Path | None,
    settings: tuple[str, ...],
    exclude: Path | None,
    steps: int | None,
    kind: str,
    start: Path | None,
    minutes: float,
    device: str,
    resume: bool,
) -> None:
    """Train a generator on the faces below SRC; OUT receives the model.

    Train only on faces that belong to no one, or whose owners agreed.
    """
    from anonymize.devices import choose
    from anonymize.lists import read_labels
    from anonymize.perturb_train import PerturbRecipe, train_perturb
    from anonymize.recipe import TrainRecipe, load
    from anonymize.train import train as learn

    if kind == "perturb" and start is not None:
        raise ConfigError("--start is for --kind inpaint: perturb starts afresh or resumes")
    overrides = [*settings, *([f"steps={steps}"] if steps else [])]
    common: dict[str, Any] = {"resume": resume, "minutes": minutes, "report": say}
    common["device"] = choose(device)
    common["exclude"] = read_labels(exclude) if exclude else ()
    if kind == "perturb":
        exported = train_perturb(src, out, load(PerturbRecipe, recipe_file, overrides), **common)
    else:
        whole = load(TrainRecipe, recipe_file, overrides)
        exported = learn(src, out, whole, start=start, **common)
    click.echo(exported)


main.add_command(audit)
main.add_command(evaluate)
main.add_command(compare)
main.add_command(sweep)
