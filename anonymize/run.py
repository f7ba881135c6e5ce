"""`anonymize run`: a dataset of real people in, a release of people who do not exist out."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from anonymize import identities, kept, registry
from anonymize import recipe as recipes
from anonymize.aligners import align
from anonymize.devices import choose
from anonymize.embedders import DlibEmbedder
from anonymize.enrolment import Choice, enrol, open_again
from anonymize.errors import ConfigError
from anonymize.generators import Job, Learner, promise
from anonymize.identities import Person
from anonymize.images import decode, encode
from anonymize.lists import read_labels
from anonymize.packages import version
from anonymize.pipeline import Stage, batched, chunks, compose, each, parallel
from anonymize.readers import Reader, open_source
from anonymize.recipe import Recipe
from anonymize.record import Floats, Record
from anonymize.stages import Replace, Survey, job
from anonymize.state import Input, Row, State, open_state
from anonymize.writers import Writer, Written, place, sha256

MANIFEST, RUN, LEARNT = "manifest.jsonl", "run.json", "learnt"
COMMIT = 64
"""Pictures between two commits of the journal."""

DRAFTS = 2
"""Pictures of a person into which the new one is drawn to see that."""


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
    exclude: Path | None = None,
    clean_list: Path | None = None,
    people_file: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    add: bool = False,
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
        exclude: labels of people who are left out, one a line.
        clean_list: the pictures to take, and their labels (`anonymize.lists.Clean`).
        people_file: the people of this key, read and added to, so that whoever was published once
            stays the same new person whoever else comes or goes.
        resume: go on with a run that was interrupted.
        overwrite: destroy an earlier release of ours in `release` first.
        add: take in what was added to `source` since the run, with the people it has.
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
    choice = Choice(limit, read_labels(exclude) if exclude else set(), clean_list)
    state = open_state(release, key, resume or add, overwrite)
    try:
        if add:
            state.reopen()
            stored = json.loads(state.get("recipe") or "{}")
            recipe = recipes.build(Recipe, stored, str(state.folder))
        spread = (choose(device), batch_size, workers, progress)
        job = _Run(source, release, recipe, state, *spread, people_file)
        return job.whole(choice)
    except ConfigError:
        if not (resume or add) and not state.count("faces IS NOT NULL OR withheld IS NOT NULL"):
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
    people_file: Path | None
    generator: Any = None
    detector: Any = None
    auditor: Any = None
    embedder: DlibEmbedder = field(init=False)
    templates: dict[str, Floats] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)  # of the pictures in flight
    reader: Reader = field(init=False)
    writer: Writer = field(init=False)

    def whole(self, choice: Choice) -> Summary:
        self._remember_recipe()
        self.reader = open_again(self.state, self.source, self.recipe, choice)
        if self.state.get("summary") is not None:
            return Summary(**json.loads(self.state.get("summary") or ""))
        ignored = enrol(self.state, self.reader, choice)
        self._components()
        self.release.mkdir(parents=True, exist_ok=True)
        self._survey()
        self._invent()
        self._learn()
        self._make()
        return self._finish(ignored)

    def _remember_recipe(self) -> None:
        values = json.dumps(recipes.as_dict(self.recipe), sort_keys=True)
        known = self.state.get("recipe")
        if known is not None and known != values:
            raise ConfigError("this run was begun with another recipe: resume it with that one")
        self.state.set("recipe", values)

    def _components(self) -> None:
        recipe, device = self.recipe, self.device
        self.detector = registry.load(
            "detector", recipe.detector, device, **recipe.detector_options
        )
        self.generator = registry.load(
            "generator", recipe.generator, device, **recipe.generator_options
        )
        self.auditor = registry.load("detector", recipe.auditor, device, **recipe.auditor_options)
        self.embedder = DlibEmbedder(device)
        numbers = cache(self.state.numbers)
        self.writer = registry.load(
            "writer",
            recipe.writer,
            root=self.release,
            scratch=self.state.scratch,
            number=lambda person: numbers()[person],
            kind=recipe.format,
            quality=recipe.quality,
        )
        known = self.state.get("weights")
        hashes = json.dumps(getattr(self.generator, "hashes", {}), sort_keys=True)
        if known is not None and known != hashes:
            raise ConfigError("the generator's weights changed since this run was begun")
        self.state.set("weights", hashes)

    def _survey(self) -> None:
        """First pass: faces of every picture, and what the visible context suggests."""
        cells = getattr(self.generator, "cells", None) if self.recipe.context_codes else None
        embedder = None if self.generator.baseline else self.embedder
        survey = Survey(self.detector, embedder, cells, self.generator.size, self.recipe.region)
        stage = self._spread(each(self._load), each(survey))
        surveyed = stage(self._empty(item) for item in self.state.to_survey())

        def keep(record: Record) -> None:
            logits = survey.logits.pop(record.key, None)
            self.state.surveyed(record.key, record.faces, logits)

        self._journal("survey", surveyed, "faces IS NOT NULL", keep)

    def _journal(
        self,
        phase: str,
        records: Iterable[Record],
        done_already: str,
        keep: Callable[[Record], None],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Drains a pass: journals each record's outcome, commits now and then, tells progress.

        Args:
            phase: for progress.
            records: what the pass makes.
            done_already: SQL condition of what an interrupted pass had made.
            keep: stores a record that was not withheld.
            settle: called before each commit.
        """
        withheld = self.state.count("withheld IS NOT NULL")
        total, done = self.state.count(), withheld + self.state.count(done_already)
        for group in chunks(records, COMMIT):
            for record in group:
                if record.withheld is None:
                    keep(record)
                else:
                    self.state.finished(record.key, withheld=record.withheld)
                    withheld += 1
                done += 1
                self.inputs.pop(record.key, None)
                self.progress(phase, done, total, withheld)
            settle()
            self.state.commit()

    def _invent(self) -> None:
        """Draws the new people once every context has been seen.

        People whose draft resembles the person they would replace are drawn again, a few times;
        verification withholds the pictures of those who still do.
        """
        if self.generator.baseline:
            return
        self.templates = self.state.templates()
        prior = getattr(self.generator, "prior", None)
        if prior is None or self.state.get("planned"):
            return
        weights, people = self.state.get("weights") or "", self.state.people()
        known = kept.load(self.people_file, weights) if self.people_file else {}
        known |= self.state.planned()
        drawn = identities.cast(prior, self.state.key, people, self._resembling, known)
        self.state.plan({name: (known | drawn)[name] for name in people})
        if self.people_file:
            kept.keep(self.people_file, weights, self.state.planned())
        self.state.set("planned", "1")

    def _resembling(self, cast: Mapping[str, Person]) -> set[str]:
        """Those of the new people who look like the person they replace, by drafts of them."""
        replace = self._replacer({name: person.code for name, person in cast.items()})
        found: set[str] = set()

        def judge(record: Record) -> Record:
            if replace.resembles(record):
                found.add(record.identity or "")
            return record

        judged = self._spread(each(self._load), each(judge))
        drafts = (i for i in self.state.drafts(DRAFTS) if i[0].person in cast)
        records = judged(self._empty(item).but(faces=faces) for item, faces in drafts)
        withheld = self.state.count("withheld IS NOT NULL")
        for done, _ in enumerate(groupby(records, key=lambda record: record.identity), 1):
            self.progress("cast", done, len(cast), withheld)
        self.inputs.clear()
        return found

    def _learn(self) -> None:
        """Shows everybody to a generator that must know them all."""
        if not isinstance(self.generator, Learner):
            return
        learnt = self.state.folder / LEARNT
        if not learnt.is_file():  # else some faces may be made already: people stay as grouped
            place([self.generator.fit(self._subjects())], learnt, self.state.scratch)
        self.generator.restore(learnt.read_bytes())

    def _subjects(self) -> Iterator[Job]:
        """The labelled face of every surveyed picture, aligned, in the keyed order."""
        generator, withheld = self.generator, self.state.count("withheld IS NOT NULL")

        def aligned(record: Record) -> Record:
            return record.but(faces=(align(record.image, record.faces[0], generator.size),))

        labelled = ((i, faces) for i, faces in self.state.to_make() if i.labelled)
        stage = self._spread(each(self._load), each(aligned))
        records = stage(self._empty(i).but(faces=faces) for i, faces in labelled)
        total = self.state.count("labelled AND faces IS NOT NULL AND withheld IS NULL")
        for done, record in enumerate(records, 1):
            self.progress("learn", done, total, withheld)
            if record.withheld is None:  # else the second pass says so again
                blank = job(record.faces[0], self.recipe.region, generator.baseline)
                yield replace(blank, person=record.identity)

    def _replacer(self, codes: Mapping[str, Floats]) -> Replace:
        recipe = self.recipe
        return Replace(
            generator=self.generator,
            region=recipe.region,
            key=self.state.key,
            codes=codes.__getitem__,
            templates=self.templates.__getitem__,
            detector=getattr(self.detector, "finder", self.detector),
            auditor=self.auditor,
            embedder=self.embedder,
            encode=lambda image: encode(image, recipe.format, recipe.quality),
        )

    def _make(self) -> None:
        """Second pass: replace, audit, verify, write."""
        people = self.state.planned()
        replace = self._replacer({name: person.code for name, person in people.items()})
        stage = self._spread(each(self._load), batched(replace, self.batch))
        writer = self.writer
        writer.begin(json.loads(self.state.get("marks") or "{}"))
        todo = self.state.to_make(writer.order)
        made = stage(self._empty(item).but(faces=faces) for item, faces in todo)
        self._journal(
            "replace",
            made,
            "output IS NOT NULL",
            self._store,
            lambda: self.state.mark(writer.flush()),
        )
        written = (
            Written(row.handle, row.person, row.labelled, row.output, row.digest or "")
            for row in self.state.rows()
            if row.output is not None
        )
        self.state.moved(writer.finish(written))

    def _spread(self, *stages: Stage) -> Stage:
        return parallel(compose(*stages), self.workers, self.batch)

    def _empty(self, item: Input) -> Record:
        """A record before its picture is read; unlabelled pictures have no identity."""
        self.inputs[item.handle] = item
        blank = np.zeros((0, 0, 3), np.uint8)
        return Record(item.handle, item.person if item.labelled else None, blank)

    def _load(self, record: Record) -> Record:
        data = self.reader.load(self.inputs[record.key].source)
        return record.but(image=decode(data, self.recipe.max_pixels))

    def _store(self, record: Record) -> None:
        """Writes what may be published and journals the outcome."""
        if self.recipe.crop and record.output is not None:
            head = align(record.output, record.faces[0], self.recipe.crop).crop
            record = record.but(output=head, encoded=None)
        locator, digest = self.writer.write(record, self.inputs[record.key].person)
        self.state.finished(record.key, locator, digest, len(record.faces))

    def _finish(self, ignored: dict[str, int]) -> Summary:
        summary = Summary(**self.state.outcome(), ignored=ignored)
        if summary.read != summary.written + summary.withheld:
            raise AssertionError(f"some of {summary.read} inputs have no single outcome: {summary}")
        digest = place(_manifest(self.state.rows()), self.release / MANIFEST, self.state.scratch)
        place([self._description(summary, digest)], self.release / RUN, self.state.scratch)
        self.state.set("summary", json.dumps(asdict(summary)))
        return summary

    def _description(self, summary: Summary, manifest: str) -> bytes:
        description = {
            "schema": 1,
            "tool": f"anonymize {version('anonymize')}",
            # its own name, because the recipe's may hold a path
            "recipe": _published(self.recipe) | {"generator": self.generator.name},
            "label": promise(self.generator),
            "weights": getattr(self.generator, "hashes", {}),
            "identities": self.state.plan_summary(),
            "counts": {k: v for k, v in asdict(summary).items() if k != "ignored"},
            "versions": {n: version(n) for n in ("torch", "diffusers", "numpy", "opencv")}
            | {"python": platform.python_version()},
            "device": self.device,
            "manifest_sha256": manifest,
            "files": {name: sha256(self.release / name) for name in self.writer.files()},
        }
        return (json.dumps(description, indent=2, sort_keys=True) + "\n").encode()


def _published(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what could name a place or a person; weights are told by their hashes."""
    values = recipes.as_dict(recipe)
    del values["reader"], values["reader_options"]
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = {k: v for k, v in value.items() if not isinstance(v, str)}
    return values


def _manifest(rows: Iterable[Row]) -> Iterator[bytes]:
    """One JSON line per input; nothing in it comes from the source but its count."""
    for row in rows:
        line = {
            "id": row.handle,
            "output": row.output,
            "sha256": row.digest if row.output else None,
            "faces": row.replaced if row.output else None,
            "withheld": row.withheld,
        }
        yield (json.dumps(line) + "\n").encode()
