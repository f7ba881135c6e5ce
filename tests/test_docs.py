"""What the documents say: their commands exist, and those of the README and of docs/ work."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from anonymize.eval.harness import ATTACKS
from conftest import ROOT
from documents import FINISHED, blocks, carry_out, furnish

from anonymize.cli import main

RUN = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
"""Documents whose every command is carried out."""

PAGES = [*RUN, "CONTRIBUTING.md", "eval/README.md", "eval/lfw-dev.md"]
PAGES += [str(card.relative_to(ROOT)) for card in sorted(ROOT.glob("models/*/README.md"))]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `anonymize …` in code, without comments."""
    code = re.findall(r"```\w*\n(.*?)```", text, re.S)
    lines = [line for block in code for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for line in lines:
        line = line.removeprefix("$ ").partition("  #")[0].partition(" > ")[0].strip()
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


def headings(path: Path) -> set[str]:
    """What the headings of a document are called in links to them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        path = ROOT / page
        for target in re.findall(r"\]\(([^):]+)\)", path.read_text("utf-8")):
            file, _, heading = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), f"{page}: {target}"
            assert not heading or heading in headings(there), f"{page}: {target}"


def test_scripts_named_in_documents_are_there() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for script in re.findall(r"(?:eval/bench|benchmarks)/\w+\.py", text):
            assert Path(ROOT / script).is_file(), f"{page}: {script}"


@pytest.mark.parametrize("page", [page for page in RUN if page != "docs/api.md"])
def test_the_commands_of_a_document_work(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = 0
    for command, code, output in carry_out(page):
        assert code in FINISHED, f"{page}: {command}\n{output}"
        done += 1
    assert done > 0


def test_few_blocks_are_skipped_and_each_says_why() -> None:
    skipped = [block for page in RUN for block in blocks(page) if block.skipped is not None]
    assert len(skipped) <= 4
    assert all(re.search("network|GPU|hours", block.skipped or "") for block in skipped)


def test_no_command_escapes_and_no_note_is_idle() -> None:
    """Fenced commands stand in blocks that are run, and what tests add reaches one."""
    for page in RUN:
        for block in blocks(page):
            if block.language not in ("sh", "console"):
                assert not re.search(r"^(\$ )?anonymize ", block.code, re.M), block
                assert not block.note
            if block.note.startswith("with "):
                for addition in block.note.removeprefix("with ").split("; "):
                    arguments = addition.partition(" ")[2]
                    assert any(line.endswith(arguments) for line in block.commands), block
            else:
                assert not block.note or block.skipped
        fences = re.findall(r"^```", (ROOT / page).read_text("utf-8"), re.M)
        assert len(fences) == 2 * len(blocks(page)), page


def test_the_api_reference_is_that_of_the_docstrings() -> None:
    script = ROOT / "docs" / "make_api.py"
    spec = importlib.util.spec_from_file_location("make_api", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert written == module.text(), "run python docs/make_api.py"
    assert "|  |" not in written, "a public name without a docstring"


def test_the_threat_model_has_every_attack() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    rows = re.findall(r"^\| .* \| `([a-z-]+)` \|$", text, re.M)
    assert sorted(rows) == sorted(ATTACKS)
