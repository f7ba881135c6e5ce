"""Reads the documents' code blocks, and runs their commands as a reader would, only smaller.

A block of `sh` is commands, and so is each line after `$ ` in one of `console`. A block whose first
line is a comment with a file's name is that file. A comment before a block tells tests more:

    <!-- test: skip REASON -->                  needs a network, a GPU or hours
    <!-- test: with eval --attack oa; … -->     adds arguments to `anonymize eval …` of this block
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from conftest import PEOPLE, ROOT

from anonymize.cli import main
from anonymize.console import GATE

FENCE = re.compile(
    r"^(?:<!-- test: (?P<note>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
FILE = re.compile(r"# ([\w.]+\.\w+)\n")
FINISHED = {0, GATE}
"""A gate that fails is a result: a dozen people prove little, and one of them may be withheld."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document.

    Attributes:
        page: where it stands.
        language: after the fence.
        code: between the fences.
        note: what the comment before it tells tests, or nothing.
    """

    page: str
    language: str
    code: str
    note: str

    @property
    def skipped(self) -> str | None:
        """Why its commands are not run, or None."""
        return self.note.removeprefix("skip ") if self.note.startswith("skip ") else None

    @property
    def commands(self) -> list[str]:
        """Its lines of shell, with what tests add."""
        if self.language == "console":
            lines = [x[2:] for x in self.code.splitlines() if x.startswith("$ ")]
        else:
            lines = self.code.splitlines() if self.language == "sh" else []
        return [self._made_small(line.partition("  #")[0].strip()) for line in lines]

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        name = FILE.match(self.code)
        return name[1] if name else None

    def _made_small(self, line: str) -> str:
        for addition in self.note.removeprefix("with ").split("; ") if self.note else []:
            verb, _, arguments = addition.partition(" ")
            if re.match(rf"(\w+=\S+ )?anonymize {verb}\b", line):
                line += f" {arguments}"
        return line


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(page, found["language"], found["code"], found["note"] or "")
        for found in FENCE.finditer(text)
    ]


def furnish(folder: Path) -> None:
    """Puts what the documents speak of into an empty folder, as few sample people as will do.

    One person comes later, the others are more than the eight that an evaluation needs: whether
    one of them is withheld is the key's to decide.
    """
    shutil.copytree(ROOT / "docs", folder / "docs")
    *people, last = sorted(PEOPLE.iterdir())
    for person in people:
        for picture in sorted(person.iterdir())[:2]:
            _copy(picture, folder / "photos" / person.name)
            _copy(picture, folder / "samples" / "people" / person.name)
    for picture in last.iterdir():
        _copy(picture, folder / "new" / last.name)
    for person in (*people, last):
        _copy(person / "5.jpg", folder / "faces" / f"{person.name}.jpg")
    _copy(ROOT / "samples" / "report.json", folder / "samples")


def _copy(file: Path, target: Path) -> None:
    """Copies a file to a path, or under its own name into a folder."""
    path = target if target.suffix else target / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, path)


def carry_out(page: str) -> Iterator[tuple[str, int, str]]:
    """Runs the commands of a page in the current folder: each one, its exit code and its output."""
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.code, "utf-8")
        elif block.skipped is None:
            for command in block.commands:
                yield command, *_run(command)


def _run(command: str) -> tuple[int, str]:
    """In this process where that does as well, because torch takes seconds to import."""
    if command.startswith("anonymize ") and not set(command) & set("|<>$&;*`"):
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        return done.exit_code, f"{done.output}{done.exception or ''}"
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-ec", command],
        env={**os.environ, "PATH": here},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return run.returncode, run.stdout
