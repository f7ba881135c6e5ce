"""What the documents say: every command line in them is one that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import ROOT

from anonymize.cli import main

PAGES = ["README.md", "CONTRIBUTING.md", "eval/README.md", "eval/lfw-dev.md", "docs/cluster.md"]
PAGES += [str(card.relative_to(ROOT)) for card in sorted(ROOT.glob("models/*/README.md"))]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `anonymize …` in code, without comments."""
    code = re.findall(r"```\w*\n(.*?)```", text, re.S)
    lines = [line for block in code for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for line in lines:
        line = line.removeprefix("$ ").partition("  #")[0].strip()
        if line.startswith("anonymize ") and "…" not in line:
            yield shlex.split(line.replace("\\|", "|"))[1:]


def accepted(words: list[str]) -> None:
    """Fails unless the command exists and takes each option."""
    if words[0].startswith("-") or words[0] == "X":
        return
    command = main.commands[words[0]]
    known = {name for option in command.params for name in option.opts}
    for word in words[1:]:
        if word.startswith("-"):
            assert word.split("=")[0] in known, f"anonymize {' '.join(words)}: no {word}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_documents_exist(page: str) -> None:
    for words in commands((ROOT / page).read_text("utf-8")):
        accepted(words)


def test_the_table_of_commands_is_complete() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `anonymize ([a-z]+)", text, re.M))
    assert listed == set(main.commands)
    row = next(line for line in text.splitlines() if line.startswith("| `anonymize run SRC"))
    run = main.commands["run"]
    assert isinstance(run, click.Command)
    mentioned = set(re.findall(r"--[a-z-]+", row))
    options = {o.opts[0] for o in run.params if isinstance(o, click.Option)}
    assert mentioned <= options | {"--json"}


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        accepted(["run", "SRC", "DST", "--no-such-option"])
    with pytest.raises(KeyError):
        accepted(["nonsense"])


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        path = ROOT / page
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_scripts_named_in_documents_are_there() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for script in re.findall(r"(?:eval/bench|benchmarks)/\w+\.py", text):
            assert Path(ROOT / script).is_file(), f"{page}: {script}"
