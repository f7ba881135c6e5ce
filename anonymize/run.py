"""`anonymize run`: a dataset of real people in, a release of people who do not exist out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from anonymize import engines, identities, kept, registry
from anonymize import recipe as recipes
from anonymize.engines import Engine
from anonymize.enrolment import Choice, enrol, open_again
from anonymize.errors import ConfigError, WeightsError
from anonymize.generators import Job, Learner, promise
from anonymize.identities import Person
from anonymize.lists import read_labels
from anonymize.packages import version
from anonymize.pipeline import chunks
from anonymize.readers import open_source
from anonymize.recipe import Recipe
from anonymize.record import Face, Floats, Record
from anonymize.stages import RESEMBLES, job
from anonymize.state import Input, Row, State, open_state
from anonymize.work import NOTHING, Setting, Task, versions, weights
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
    engine: str = "local",
    workers: int | None = 1,
    limit: int | None = None,
    exclude: Path | None = None,
    clean_list: Path | None = None,
    people_file: Path | None = None,
    resume: bool = False,
    retry: bool = False,
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
        engine: who does the work, see `anonymize.engines`; of no effect on the result.
        workers: how many do it, None for as many as there is room for; of no effect on the result.
        limit: only the first so many pictures, in the keyed order.
        exclude: labels of people who are left out, one a line.
        clean_list: the pictures to take, and their labels (`anonymize.lists.Clean`).
        people_file: the people of this key, read and added to, so that whoever was published once
            stays the same new person whoever else comes or goes.
        resume: go on with a run that was interrupted.
        retry: try again what a finished run withheld for no reason of the picture's own.
        overwrite: destroy an earlier release of ours in `release` first.
        add: take in what was added to `source` since the run, with the people it has.
        progress: told how far it is.

    Raises:
        ConfigError: folders, key or recipe that do not fit.
        ReleaseError: `release` is not empty, or not resumable with this recipe.
    """
    recipe = recipe or Recipe()
    if batch_size < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"got batch size {batch_size}, workers {workers}: expected 1 or more")
    check_places(source, release)
    open_source(source, recipe.reader, **recipe.reader_options)  # before anything is overwritten
    start = engines.prepare(engine, device, workers, batch_size)
    choice = Choice(limit, read_labels(exclude) if exclude else set(), clean_list)
    again = resume or retry or add
    state = open_state(release, key, again, overwrite)
    try:
        if add:
            state.reopen()
            stored = json.loads(state.get("recipe") or "{}")
            recipe = recipes.build(Recipe, stored, str(state.folder))
        job = _Run(source.absolute(), release, recipe, state, start, progress, people_file)
        return job.whole(choice, retry)
    except (ConfigError, WeightsError):
        if not again and not state.count("faces IS NOT NULL OR withheld IS NOT NULL"):
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
    start: engines.Start
    progress: Progress
    people_file: Path | None
    engine: Engine = field(init=False)
    generator: Any = None
    templates: dict[str, Floats] = field(default_factory=dict)
    writer: Writer = field(init=False)

    def whole(self, choice: Choice, retry: bool) -> Summary:
        self._remember_recipe()
        reader = open_again(self.state, self.source, self.recipe, choice)
        if retry:
            self.state.retry()
        if self.state.get("summary") is not None:
            return Summary(**json.loads(self.state.get("summary") or ""))
        ignored = enrol(self.state, reader, choice)
        with self.start(Setting(self.source, self.recipe, self.state.key)) as engine:
            self.engine, self.generator = engine, engine.generator
            self._check_weights()
            self._open_writer()
            self._survey()
            self._invent()
            self._make(self._learn())
            return self._finish(ignored)

    def _remember_recipe(self) -> None:
        values = json.dumps(recipes.as_dict(self.recipe), sort_keys=True)
        known = self.state.get("recipe")
        if known is not None and known != values:
            raise ConfigError("this run was begun with another recipe: resume it with that one")
        self.state.set("recipe", values)

    def _check_weights(self) -> None:
        known, hashes = self.state.get("weights"), weights(self.generator)
        if known is not None and known != hashes:
            raise ConfigError("the generator's weights changed since this run was begun")
        self.state.set("weights", hashes)

    def _open_writer(self) -> None:
        recipe, numbers = self.recipe, cache(self.state.numbers)
        self.writer = registry.load(
            "writer",
            recipe.writer,
            root=self.release,
            scratch=self.state.scratch,
            number=lambda person: numbers()[person],
            kind=recipe.format,
            quality=recipe.quality,
        )
        self.release.mkdir(parents=True, exist_ok=True)

    def _survey(self) -> None:
        """First pass: faces of every picture, and what the visible context suggests."""
        surveyed = self.engine.spread("survey", map(self._task, self.state.to_survey()))

        def keep(record: Record) -> None:
            self.state.surveyed(record.key, record.faces, record.faces[0].logits)

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
        drawn_for, people = weights(self.generator), self.state.people()
        known = kept.load(self.people_file, drawn_for) if self.people_file else {}
        known |= self.state.planned()
        drawn = identities.cast(prior, self.state.key, people, self._resembling, known)
        self.state.plan({name: (known | drawn)[name] for name in people})
        if self.people_file:
            kept.keep(self.people_file, drawn_for, self.state.planned())
        self.state.set("planned", "1")

    def _resembling(self, cast: Mapping[str, Person]) -> set[str]:
        """Those of the new people who look like the person they replace, by drafts of them."""
        drafts = (pair for pair in self.state.drafts(DRAFTS) if pair[0].person in cast)
        tasks = (self._task(item, faces, cast) for item, faces in drafts)
        judged = groupby(self.engine.spread("cast", tasks), key=lambda record: record.identity)
        withheld, found = self.state.count("withheld IS NOT NULL"), set[str]()
        for done, (person, records) in enumerate(judged, 1):
            if any(record.withheld == RESEMBLES for record in records):
                found.add(person or "")
            self.progress("cast", done, len(cast), withheld)
        return found

    def _learn(self) -> bytes:
        """Shows everybody to a generator that must know them all; what it must be told again."""
        if not isinstance(self.generator, Learner):
            return b""
        learnt = self.state.folder / LEARNT
        if not learnt.is_file():  # else some faces may be made already: people stay as grouped
            place([self.generator.fit(self._subjects())], learnt, self.state.scratch)
        return learnt.read_bytes()

    def _subjects(self) -> Iterator[Job]:
        """The labelled face of every surveyed picture, aligned, in the keyed order."""
        labelled = (pair for pair in self.state.to_make() if pair[0].labelled)
        records = self.engine.spread("learn", (self._task(*pair) for pair in labelled))
        total = self.state.count("labelled AND faces IS NOT NULL AND withheld IS NULL")
        withheld = self.state.count("withheld IS NOT NULL")
        for done, record in enumerate(records, 1):
            self.progress("learn", done, total, withheld)
            if record.withheld is None:  # else the second pass says so again
                blank = job(record.faces[0], self.generator.baseline)
                yield replace(blank, person=record.identity)

    def _make(self, learnt: bytes) -> None:
        """Second pass: replace, audit, verify, write."""
        people, writer = self.state.planned(), self.writer
        writer.begin(json.loads(self.state.get("marks") or "{}"))
        todo = self.state.to_make(writer.order)
        tasks = (self._task(item, faces, people) for item, faces in todo)
        self._journal(
            "replace",
            self.engine.spread("replace", tasks, learnt),
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

    def _task(
        self, item: Input, faces: tuple[Face, ...] = (), people: Mapping[str, Person] | None = None
    ) -> Task:
        """What a worker is told of a picture; unlabelled ones have no identity."""
        who = item.person if item.labelled else None
        planned = (people or {}).get(item.person)
        return Task(
            Record(item.handle, who, NOTHING, faces),
            item.source,
            planned.code if planned else None,
            self.templates.get(item.person),
        )

    def _store(self, record: Record) -> None:
        """Writes what may be published and journals the outcome."""
        locator, digest = self.writer.write(record, self.state.person(record.key))
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
            "versions": versions(),
            "device": self.engine.device,
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
