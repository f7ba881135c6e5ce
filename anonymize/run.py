"""`anonymize run`: a dataset of real people in, a release of people who do not exist out."""

from __future__ import annotations

import heapq
import json
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from anonymize import recipe as recipes
from anonymize import registry, seeds
from anonymize.devices import choose
from anonymize.embedders import DlibEmbedder
from anonymize.errors import ConfigError, ReleaseError
from anonymize.identities import invent, pseudonym
from anonymize.images import decode, encode
from anonymize.pipeline import Stage, batched, chunks, compose, each, parallel
from anonymize.readers import Reader, fingerprint, open_source, sniff
from anonymize.recipe import Recipe
from anonymize.record import Record
from anonymize.stages import Replace, Survey
from anonymize.state import Input, Row, State, private_folder
from anonymize.writers import FolderWriter, place

MANIFEST, RUN = "manifest.jsonl", "run.json"
BASELINE_NOTE = "not anonymisation: the real face is obscured, not replaced"

Progress = Callable[[str, int, int, int], None]
"""Called with the phase, how many pictures are done, of how many, and how many are withheld."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did; read == written + withheld."""

    read: int
    written: int
    withheld: int
    reasons: dict[str, int]
    people: int
    faces_replaced: int
    ignored: dict[str, int]


def run(
    source: Path,
    release: Path,
    recipe: Recipe | None = None,
    *,
    key: bytes | None = None,
    device: str = "auto",
    batch_size: int = 4,
    workers: int = 1,
    limit: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Summary:
    """Anonymises the folder `source` into the folder `release`.

    Args:
        source: SRC, a folder per person, or a file of another format.
        release: DST; its private state goes into `DST.private` beside it.
        recipe: what to do; default `Recipe()`.
        key: the secret; default a fresh one. A kept key gives the same pseudonyms again.
        device: `auto`, `cpu` or `cuda`.
        batch_size: pictures per group; of no effect on the result.
        workers: threads; of no effect on the result.
        limit: only the first so many pictures, in the keyed order.
        resume: go on with a run that was interrupted.
        overwrite: destroy an earlier release of ours in `release` first.
        progress: told how far it is.

    Raises:
        ConfigError: folders, key or recipe that do not fit.
        ReleaseError: `release` is not empty, or not resumable with this recipe.
    """
    recipe = recipe or Recipe()
    if batch_size < 1 or workers < 1:
        raise ConfigError(f"got batch size {batch_size}, workers {workers}: expected 1 or more")
    check_places(source, release)
    open_source(source, recipe.reader, **recipe.reader_options)  # before anything is overwritten
    state = open_state(release, key, resume, overwrite)
    try:
        job = _Run(source, release, recipe, state, choose(device), batch_size, workers, progress)
        return job.whole(limit)
    except ConfigError:
        if not resume and not state.count("faces IS NOT NULL OR withheld IS NOT NULL"):
            state.close()  # nothing was begun: leave nothing behind
            shutil.rmtree(state.folder)
        raise
    finally:
        state.close()


def check_places(source: Path, release: Path) -> None:
    """Refuses a release inside its source or the other way round.

    Raises:
        ConfigError: they are nested or the same, or SRC is no folder.
    """
    if not source.exists():
        raise ConfigError(f"SRC {source}: expected a folder of pictures, found none")
    inner, outer = release.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise ConfigError(
            f"DST {release} and SRC {source} lie inside each other: the release would mix with "
            "originals; choose a DST elsewhere"
        )


def open_state(release: Path, key: bytes | None, resume: bool, overwrite: bool) -> State:
    """Opens or creates the private state of a release, never touching foreign files."""
    private = private_folder(release)
    if overwrite and private.is_dir():
        State(private).close()  # refuses a folder that is not ours
        shutil.rmtree(private)
        shutil.rmtree(release, ignore_errors=True)
    if resume:
        if not private.is_dir():
            raise ReleaseError(f"nothing to resume: {private} does not exist; run without --resume")
        state = State(private)
        if key is not None and key != state.key:
            raise ConfigError(f"--key-file holds another key than {private}; resume with that one")
        return state
    if private.exists():
        raise ReleaseError(
            f"{private} exists: add --resume to go on with that run, or --overwrite to destroy it"
        )
    if release.exists() and (not release.is_dir() or any(release.iterdir())):
        raise ReleaseError(
            f"DST {release} is not an empty folder: choose another, or remove what is in it"
        )
    return State(private, key or seeds.new_key())


@dataclass(slots=True)
class _Run:
    source: Path
    release: Path
    recipe: Recipe
    state: State
    device: str
    batch: int
    workers: int
    progress: Progress
    generator: Any = None
    detector: Any = None
    paths: dict[str, str] = field(default_factory=dict)  # of the pictures in flight
    reader: Reader = field(init=False)

    def whole(self, limit: int | None) -> Summary:
        self._remember_recipe()
        self._open_source(limit)
        if self.state.get("summary") is not None:
            return Summary(**json.loads(self.state.get("summary") or ""))
        ignored = self._enrol(limit)
        self._components()
        self.release.mkdir(parents=True, exist_ok=True)
        self._survey()
        self._invent()
        self._make()
        return self._finish(ignored)

    def _open_source(self, limit: int | None) -> None:
        """Opens SRC; a resumed run must find what was enrolled, and read it in the same way."""
        recipe, known = self.recipe, self.state.get("source")
        name = recipe.reader or sniff(self.source)
        mark = json.dumps([name, fingerprint(self.source), limit])
        if known is not None and known != mark:
            raise ConfigError(
                f"SRC {self.source} (or --from, or --limit) is not what this run was begun with: "
                "resume it with the same, or start another release"
            )
        self.state.set("source", mark)
        self.reader = open_source(self.source, name, **recipe.reader_options)

    def _remember_recipe(self) -> None:
        digest, known = recipes.digest(self.recipe), self.state.get("recipe")
        if known is not None and known != digest:
            raise ConfigError("this run was begun with another recipe: resume it with that one")
        self.state.set("recipe", digest)

    def _enrol(self, limit: int | None) -> dict[str, int]:
        """Puts every picture of the source into the journal once, in the keyed order."""
        stored = self.state.get("ignored")
        if stored is not None:
            return dict[str, int](json.loads(stored))
        inputs: Iterable[Input] = (self._input(i.path, i.label) for i in self.reader)
        if limit is not None:
            inputs = heapq.nsmallest(limit, inputs, key=lambda item: item.handle)
        if not self.state.enrol(inputs):
            raise ConfigError(f"SRC {self.source}: found no picture in it or below it")
        self.state.set("ignored", json.dumps(self.reader.ignored))
        return self.reader.ignored

    def _input(self, path: str, label: str | None) -> Input:
        key = self.state.key
        person = pseudonym(key, f"picture {path}" if label is None else f"label {label}")
        return Input(seeds.handle(key, "picture", path), path, person, label is not None)

    def _components(self) -> None:
        recipe, device = self.recipe, self.device
        self.detector = registry.load(
            "detector", recipe.detector, device, **recipe.detector_options
        )
        self.generator = registry.load(
            "generator", recipe.generator, device, **recipe.generator_options
        )
        known = self.state.get("weights")
        hashes = json.dumps(getattr(self.generator, "hashes", {}), sort_keys=True)
        if known is not None and known != hashes:
            raise ConfigError("the generator's weights changed since this run was begun")
        self.state.set("weights", hashes)

    def _survey(self) -> None:
        """First pass: faces of every picture, and what the visible context suggests."""
        cells = getattr(self.generator, "cells", None) if self.recipe.context_codes else None
        survey = Survey(self.detector, cells, self.generator.size, self.recipe.region)
        stage = self._spread(each(self._load), each(survey))
        surveyed = stage(self._empty(item) for item in self.state.to_survey())

        def keep(record: Record) -> None:
            logits = survey.logits.pop(record.key, None)
            self.state.surveyed(record.key, record.faces, logits)

        self._journal("survey", surveyed, "faces IS NOT NULL", 64, keep)

    def _journal(
        self,
        phase: str,
        records: Iterable[Record],
        done_already: str,
        size: int,
        keep: Callable[[Record], None],
    ) -> None:
        """Drains a pass: journals each record's outcome, commits every `size`, tells progress."""
        withheld = self.state.count("withheld IS NOT NULL")
        total, done = self.state.count(), withheld + self.state.count(done_already)
        for group in chunks(records, size):
            for record in group:
                if record.withheld is None:
                    keep(record)
                else:
                    self.state.finished(record.key, withheld=record.withheld)
                    withheld += 1
                done += 1
                self.progress(phase, done, total, withheld)
            self.state.commit()

    def _invent(self) -> None:
        """Draws the new people once every context has been seen."""
        prior = getattr(self.generator, "prior", None)
        if prior is None or self.state.get("planned"):
            return
        self.state.plan(invent(prior, self.state.key, self.state.people()))
        self.state.set("planned", "1")

    def _make(self) -> None:
        """Second pass: replace, audit, verify, write."""
        recipe, codes = self.recipe, self.state.codes()
        auditor = registry.load("detector", recipe.auditor, self.device, **recipe.auditor_options)
        replace = Replace(
            generator=self.generator,
            region=recipe.region,
            key=self.state.key,
            codes=codes.__getitem__,
            detector=self.detector,
            auditor=auditor,
            embedder=DlibEmbedder(self.device),
            published=lambda image: decode(encode(image, recipe.format, recipe.quality)),
        )
        stage = self._spread(each(self._load), batched(replace, self.batch))
        writer = FolderWriter(self.release, self.state.scratch, recipe.format, recipe.quality)
        made = stage(self._empty(i).but(faces=faces) for i, faces in self.state.to_make())
        self._journal("replace", made, "output IS NOT NULL", 16, lambda r: self._store(r, writer))

    def _spread(self, *stages: Stage) -> Stage:
        return parallel(compose(*stages), self.workers, self.batch)

    def _empty(self, item: Input) -> Record:
        """A record before its picture is read; unlabelled pictures have no identity."""
        self.paths[item.handle] = item.source
        blank = np.zeros((0, 0, 3), np.uint8)
        return Record(item.handle, item.person if item.labelled else None, blank)

    def _load(self, record: Record) -> Record:
        data = self.reader.load(self.paths.pop(record.key))
        return record.but(image=decode(data, self.recipe.max_pixels))

    def _store(self, record: Record, writer: FolderWriter) -> None:
        """Writes what may be published and journals the outcome."""
        path = writer.path(record, record.identity)
        digest = writer.write(writer.encoded(record), path)
        self.state.finished(record.key, path, digest, len(record.faces))

    def _finish(self, ignored: dict[str, int]) -> Summary:
        rows = list(self.state.rows())
        open_rows = [row for row in rows if (row.output is None) == (row.withheld is None)]
        if open_rows:
            raise AssertionError(f"{len(open_rows)} of {len(rows)} inputs have no single outcome")
        written = [row for row in rows if row.output is not None]
        summary = Summary(
            read=len(rows),
            written=len(written),
            withheld=len(rows) - len(written),
            reasons=dict(Counter(row.withheld for row in rows if row.withheld).most_common()),
            people=len({row.person for row in written}),
            faces_replaced=sum(row.replaced or 0 for row in written),
            ignored=ignored,
        )
        digest = place(_manifest(rows), self.release / MANIFEST, self.state.scratch)
        place(self._description(summary, digest), self.release / RUN, self.state.scratch)
        self.state.set("summary", json.dumps(asdict(summary)))
        return summary

    def _description(self, summary: Summary, manifest: str) -> bytes:
        description = {
            "schema": 1,
            "tool": f"anonymize {_version('anonymize')}",
            # its own name, because the recipe's may hold a path
            "recipe": _published(self.recipe) | {"generator": self.generator.name},
            "label": promise(self.generator),
            "weights": getattr(self.generator, "hashes", {}),
            "identities": self.state.plan_summary(),
            "counts": {k: v for k, v in asdict(summary).items() if k != "ignored"},
            "versions": {n: _version(n) for n in ("torch", "diffusers", "numpy", "opencv")}
            | {"python": platform.python_version()},
            "device": self.device,
            "manifest_sha256": manifest,
        }
        return (json.dumps(description, indent=2, sort_keys=True) + "\n").encode()


def promise(generator: Any) -> str:
    """The line that says what a generator's releases are, or are not; takes its class as well."""
    usual = BASELINE_NOTE if generator.baseline else "anonymisation"
    return str(getattr(generator, "label", usual))


def _published(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what could name a place or a person; weights are told by their hashes."""
    values = recipes.as_dict(recipe)
    del values["reader"], values["reader_options"]
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = {k: v for k, v in value.items() if not isinstance(v, str)}
    return values


def _manifest(rows: Iterable[Row]) -> bytes:
    """One JSON line per input; nothing in it comes from the source but its count."""

    def lines() -> Iterator[str]:
        for row in rows:
            line = {
                "id": row.handle,
                "output": row.output,
                "sha256": row.digest,
                "faces": row.replaced,
                "withheld": row.withheld,
            }
            yield json.dumps(line) + "\n"

    return "".join(lines()).encode()


def _version(package: str) -> str:
    if package == "opencv":
        import cv2

        return str(cv2.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
