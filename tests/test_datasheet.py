"""release.json: every file, the card, what the evaluation found, and open questions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT

from anonymize.cli import main
from anonymize.errors import ReleaseError
from anonymize.recipe import Recipe
from anonymize.release import problems, seal
from anonymize.run import run
from anonymize.state import private_folder


@pytest.fixture
def finished(dataset: Path, tmp_path: Path) -> Path:
    run(dataset, tmp_path / "release", Recipe(generator="mask"), key=bytes(32))
    return tmp_path / "release"


def test_every_file_is_listed_with_its_hash(finished: Path) -> None:
    result = CliRunner().invoke(main, ["seal", str(finished)])
    assert result.exit_code == 0, result.stderr
    described = json.loads((finished / "release.json").read_text())
    files = {p.relative_to(finished).as_posix(): p for p in finished.rglob("*") if p.is_file()}
    assert set(described["files"]) == set(files) - {"release.json"}
    for name, digest in described["files"].items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    assert not list(problems(finished))
    assert described["card"] is None
    assert "Not evaluated" in json.dumps(described["datasheet"])
    assert "not anonymisation" in described["datasheet"]["preprocessing"]["What was done?"]


def test_the_datasheet_is_filled_where_it_is_known(dataset: Path, tmp_path: Path) -> None:
    release = tmp_path / "release"
    summary = run(dataset, release, key=bytes(32))
    seal(release, ROOT / "samples" / "report.json")
    described = json.loads((release / "release.json").read_text())
    sheet = described["datasheet"]
    assert described["card"].startswith((ROOT / "models/inpaint-128/README.md").read_text()[:200])
    assert f"{summary.written} pictures" in sheet["composition"]["How many instances are there?"]
    verdict = json.loads((ROOT / "samples" / "report.json").read_text())["verdict"]
    assert verdict["text"] in sheet["composition"]["Is it possible to identify individuals?"]
    assert described["evaluation"]["verdict"] == verdict
    assert "roc" not in described["evaluation"]["attacks"][0]
    open_questions = [q for part in sheet.values() for q, answer in part.items() if answer is None]
    assert "Were the people notified, and did they consent?" in open_questions
    assert str(dataset) not in json.dumps(described)


@pytest.mark.parametrize("text", [None, "{", "{}", '{"attacks": [1]}'])
def test_what_is_no_report_seals_nothing(text: str | None, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ReleaseError, match="is no report"):
        seal(finished, path)
    assert private_folder(finished).is_dir()
    assert not (finished / "release.json").exists()
