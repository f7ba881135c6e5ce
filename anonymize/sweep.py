"""`anonymize sweep`: several methods over one dataset, each attacked and measured alike."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anonymize import recipe as recipes
from anonymize import registry, seeds
from anonymize.devices import choose
from anonymize.errors import AnonymizeError, ConfigError, ReleaseError
from anonymize.eval import harness, tradeoff
from anonymize.eval.command import Request, carry_out
from anonymize.eval.links import pictures
from anonymize.eval.report import read_report
from anonymize.eval.trial import LEAST, silent
from anonymize.eval.trial import Progress as Steps
from anonymize.recipe import Recipe
from anonymize.run import Progress, check_places, run
from anonymize.state import private_folder, read_links

METHODS: dict[str, dict[str, Any]] = {
    "mask": {"generator": "mask"},
    "blur": {"generator": "blur"},
    "pixelate": {"generator": "pixelate"},
    "k-same-pixel": {"generator": "k-same-pixel"},
    "k-same-eigen": {"generator": "k-same-eigen"},
    "k-same-select": {"generator": "k-same-select"},
    "perturb": {"generator": "perturb"},
    "perturb-pgd": {"generator": "perturb:pgd"},
    "inpaint": {"generator": "inpaint"},
    "inpaint-head": {"generator": "inpaint", "region": "head"},
    "inpaint-2-steps": {"generator": "inpaint", "generator_options": {"steps": 2}},
}
"""What is compared unless something else is asked for: recipes by name."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
"""What a method may be called, because folders are called after it."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to compare, and how.

    Attributes:
        source: SRC, a folder per person.
        out: receives what may be shown: table, page and reports. All else lies in `out.private`.
        methods: recipes by name, see `methods`.
        people: only so many people with two pictures or more; None takes everybody.
        images: only so many pictures of each.
        key: the secret of every release; default a fresh one, kept in `out.private`.
        attacks, utilities, embedders, budget, pairs, seed: as of `anonymize.eval.command.Request`.
        device: `auto`, `cpu` or `cuda`.
        workers: threads of the runs.
    """

    source: Path
    out: Path
    methods: Mapping[str, Recipe]
    people: int | None = None
    images: int | None = None
    key: bytes | None = None
    attacks: Sequence[str] = ()
    utilities: Sequence[str] = ()
    embedders: Sequence[str] = ("dlib",)
    budget: str = "smoke"
    pairs: tuple[Path, Path] | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 1

    @property
    def private(self) -> Path:
        """Key, originals, releases with their links, and embeddings."""
        return private_folder(self.out)

    @property
    def settings(self) -> dict[str, Any]:
        """What figures depend on besides the recipes: one table, one setting."""
        names = ("people", "images", "attacks", "utilities", "embedders", "budget", "seed")
        values = {name: getattr(self, name) for name in names}
        paths = [str(path.resolve()) for path in (self.source, *(self.pairs or ()))]
        return dict(json.loads(json.dumps(values | {"source and pairs": paths})))


def methods(file: Path | None = None, given: Sequence[str] = ()) -> dict[str, Recipe]:
    """The methods to compare: a file's, then those given by name, or else `METHODS`.

    Args:
        file: TOML with a table per method, each a recipe.
        given: `NAME` of `METHODS` or of a generator, or `NAME=KEY=VALUE,KEY=VALUE`.

    Raises:
        ConfigError: unreadable, unknown, or a name that cannot be a folder's.
    """
    found = _from_file(file) if file is not None else {}
    for text in given:
        name, equals, settings = text.partition("=")
        found[name] = _from_settings(text, settings) if equals else _named(name)
    if not found:
        found = {name: _named(name) for name in METHODS}
    for name in found:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"method {name!r}: expected a name of letters, digits, - and _, such as "
                "fine=generator=inpaint,generator_options.steps=4"
            )
    return found


def _from_file(path: Path) -> dict[str, Recipe]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read methods {path}: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name}: got {table!r}, expected a table [{name}]")
    return {n: recipes.build(Recipe, table, f"{path} [{n}]") for n, table in tables.items()}


def _from_settings(text: str, settings: str) -> Recipe:
    parts = settings.split(",")
    if not all("=" in part for part in parts):
        raise ConfigError(f"--method: got {text!r}, expected NAME or NAME=KEY=VALUE,KEY=VALUE")
    return recipes.load(Recipe, None, parts, "--method")


def _named(name: str) -> Recipe:
    generators = registry.names("generator")
    if name not in METHODS and name not in generators:
        known = ", ".join(dict.fromkeys([*METHODS, *generators]))
        raise ConfigError(
            f"unknown method {name!r}: expected one of {known}; or NAME=KEY=VALUE,KEY=VALUE"
        )
    return Recipe(**METHODS.get(name, {"generator": name}))


def sweep(
    plan: Sweep,
    *,
    progress: Progress = lambda *_: None,
    steps: Steps = silent,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Makes and measures whatever is missing; writes table.md, sweep.json and sweep.html.

    What an earlier call finished is not made again, and what it began goes on. A method that fails
    does not stop the others.

    Args:
        plan: what to do.
        progress: told how far a run is.
        steps: told how far an evaluation is.
        tell: takes a line on what begins, and on what failed.

    Returns:
        See `anonymize.eval.tradeoff.build`.

    Raises:
        ConfigError: something unknown or unusable, told before any work is done.
        ReleaseError: `out` holds something else.
    """
    _check(plan)
    _open(plan)
    take(plan.source, plan.private / "originals", plan.people, plan.images)
    reports, failed, result = dict[str, Any](), list[str](), dict[str, Any]()
    for name, recipe in plan.methods.items():
        try:
            reports[name] = _measured(plan, name, recipe, progress, steps, tell)
        except AnonymizeError as error:
            tell(f"{name} failed: {error}")  # not in the table: it may name pictures
            failed.append(name)
        result = tradeoff.build(reports, failed)
        _write(plan.out, result)
    return result


def _check(plan: Sweep) -> None:
    """Refuses before hours of work what would be refused after."""
    check_places(plan.source, plan.out)
    for name, recipe in plan.methods.items():
        registry.check("generator", recipe.generator, **recipe.generator_options)
        if recipe.writer != "folder":
            raise ConfigError(f"method {name}: got writer {recipe.writer!r}, expected 'folder'")
    for embedder in plan.embedders:
        registry.find("embedder", embedder)
    attacks, utilities = plan.attacks or harness.ATTACKS, plan.utilities or harness.UTILITIES
    harness.Plan(attacks, utilities, plan.budget)


def _open(plan: Sweep) -> None:
    """Makes the private folder, or checks that it belongs to this very sweep."""
    private = plan.private
    if not private.is_dir() and plan.out.is_dir() and any(plan.out.iterdir()):
        raise ReleaseError(
            f"OUT {plan.out} is not empty and {private} is not there, so nothing can go on: "
            "choose another OUT, or remove what is in it"
        )
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    if plan.key is not None and not (private / "key").exists():
        seeds.write_key(private / "key", plan.key)
    if plan.key not in (None, seeds.kept_key(private / "key")):
        raise ConfigError(f"--key-file holds another key than {private}: go on with that one")
    _remember(private / "settings.json", "settings", plan.settings)
    for name, recipe in plan.methods.items():
        _remember(private / f"{name}.json", f"method {name}", recipes.as_dict(recipe))


def _remember(path: Path, what: str, values: dict[str, Any]) -> None:
    """Keeps values, or refuses others than those that are kept."""
    text = json.dumps(values, sort_keys=True)
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(text, "utf-8")
        part.replace(path)
    elif (known := json.loads(path.read_text("utf-8"))) != json.loads(text):
        other = [key for key, value in json.loads(text).items() if known.get(key) != value]
        raise ConfigError(
            f"{what}: {', '.join(other)} differ from what this sweep was begun with "
            f"({path}): give the same again, or choose another OUT"
        )


def take(source: Path, folder: Path, people: int | None = None, images: int | None = None) -> None:
    """Links the pictures of a sweep into a folder, once, so that all methods meet the same.

    Args:
        source: a folder per person.
        folder: receives the links; left alone if it is there.
        people: only so many of those with two pictures or more, by a hash of their names.
        images: only the first so many of each.

    Raises:
        ConfigError: fewer people than an evaluation needs.
    """
    if folder.is_dir():
        return
    by_person: dict[str, list[str]] = {}
    for path in pictures(source):  # one outside every folder is a person of its own, as in `link`
        by_person.setdefault(str(Path(path).parent) if "/" in path else path, []).append(path)
    able = [name for name, paths in by_person.items() if len(paths) > 1]
    if len(able) < LEAST:
        raise ConfigError(
            f"SRC {source}: got {len(able)} people with two pictures or more, expected at least "
            f"{LEAST}: pictures are grouped into people by their folder"
        )
    able.sort(key=lambda name: hashlib.sha256(os.fsencode(name)).hexdigest())
    part = folder.with_name(f"{folder.name}.part")  # so that a killed sweep links the rest, too
    for name in by_person if people is None else able[:people]:
        for path in by_person[name][:images]:
            target = part / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                target.symlink_to((source / path).resolve())
    part.rename(folder)


def _measured(
    plan: Sweep,
    name: str,
    recipe: Recipe,
    progress: Progress,
    steps: Steps,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """The report of one method, made unless it is there."""
    report = plan.out / "reports" / name
    if (report / "report.json").is_file():
        return read_report(report)
    originals, release = plan.private / "originals", plan.private / "releases" / name
    tell(f"{name}: run")
    run(
        originals,
        release,
        recipe,
        key=seeds.read_key(plan.private / "key"),
        device=plan.device,
        workers=plan.workers,
        resume=private_folder(release).is_dir(),
        progress=progress,
    )
    request = Request(
        originals,
        release,
        report,
        dict(read_links(release)),
        plan.embedders,
        plan.attacks,
        plan.utilities,
        plan.budget,
        pairs=plan.pairs,
        seed=plan.seed,
        device=choose(plan.device),
        cache=plan.private / "embeddings.sqlite",
    )
    carry_out(request, steps, lambda part: tell(f"{name}: {part}"))
    return read_report(report)


def _write(out: Path, result: dict[str, Any]) -> None:
    """The table, the figures and the page, as far as the sweep is."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(tradeoff.markdown(result), "utf-8")
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    (out / "sweep.json").write_text(text, "utf-8")
    links = {m["name"]: f"reports/{m['name']}/report.html" for m in result["methods"]}
    (out / "sweep.html").write_text(tradeoff.render(result, links), "utf-8")
