"""Components of third parties: installed as a package, or named by module and attribute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PEOPLE, ROOT
from documents import blocks

(BANK,) = (block.code for block in blocks("docs/guide.md") if block.file == "bank.py")
"""The guide's own example."""

STRIPES = """
import numpy as np

class Stripes:
    name, size, baseline = "stripes", 128, True
    label = "not anonymisation: stripes over the face"

    def __call__(self, jobs):
        stripes = np.arange(self.size)[:, None, None] // 8 % 2 == 0
        return [np.where(stripes, np.uint8(255), job.crop) for job in jobs]
"""

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "stripes"
version = "1"

[project.entry-points."anonymize.generator"]
stripes = "stripes:Stripes"

[tool.setuptools]
py-modules = ["stripes"]
"""

CONTRACT = """
from anonymize import registry
from anonymize.testing import check_generator
check_generator({})
"""


def call(path: Path, *command: object, code: int = 0) -> str:
    """Runs Python with a folder on its path, elsewhere than in the repository."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed a package with a generator."""
    base = tmp_path_factory.mktemp("plugin")
    (base / "stripes.py").write_text(STRIPES)
    (base / "pyproject.toml").write_text(PROJECT)
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    call(base, *pip, "--target", base / "site", base)
    return base / "site"


def test_an_installed_generator_is_listed_run_and_checked(installed: Path, tmp_path: Path) -> None:
    listed = call(installed, "-m", "anonymize", "list", "generator")
    assert "generator  stripes        stripes:Stripes" in listed.splitlines()
    command = ["-m", "anonymize", "run", PEOPLE, tmp_path / "dst", "--limit", 4, "--json"]
    summary = json.loads(call(installed, *command, "--generator", "stripes"))
    assert (summary["read"], summary["written"]) == (4, 4)
    described = json.loads((tmp_path / "dst" / "run.json").read_text())
    assert described["recipe"]["generator"] == "stripes"
    assert described["label"] == "not anonymisation: stripes over the face"
    call(installed, "-c", CONTRACT.format("registry.find('generator', 'stripes')[0]"))


def test_a_built_in_name_cannot_be_taken_over(tmp_path: Path) -> None:
    """A package that calls its generator `inpaint` must not end up in anybody's releases."""
    (tmp_path / "fake-1.dist-info").mkdir()
    (tmp_path / "fake-1.dist-info" / "METADATA").write_text("Name: fake\nVersion: 1\n")
    points = "[anonymize.generator]\ninpaint = fake:Fake\nfake = fake:Fake\n"
    (tmp_path / "fake-1.dist-info" / "entry_points.txt").write_text(points)
    listed = call(tmp_path, "-m", "anonymize", "list", "generator")
    assert "fake:Fake" in listed
    assert "inpaint        anonymize.generators:Inpaint" in listed


def test_a_generator_by_module_and_attribute(tmp_path: Path) -> None:
    """Ten lines: no prior, no weights, and not installed."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "bank.py").write_text(BANK)
    bank = ["--generator", "bank:Bank", "--set", f"generator_options.folder={PEOPLE / 'person-11'}"]
    command = ["-m", "anonymize", "run", PEOPLE, tmp_path / "dst", "--limit", 4, "--json"]
    fixed = ["--key-file", ROOT / "samples" / "gate.key"]
    summary = json.loads(call(tmp_path / "own", *command, *fixed, *bank))
    assert (summary["read"], summary["written"]) == (4, 4)
    described = json.loads((tmp_path / "dst" / "run.json").read_text())
    assert described["recipe"]["generator"] == "bank"
    assert described["label"] == "anonymisation"
    assert str(ROOT) not in json.dumps(described)
    made = f"lambda: registry.find('generator', 'bank:Bank')[0]({str(PEOPLE / 'person-11')!r})"
    call(tmp_path / "own", "-c", CONTRACT.format(made))


def test_what_does_not_load_says_so(tmp_path: Path) -> None:
    (tmp_path / "bank.py").write_text(BANK)
    for name, code in (("bank:Other", 2), ("nowhere:Bank", 2), ("bank:Bank", 2)):
        command = ["run", PEOPLE, tmp_path / "dst", "--limit", 4, "--generator", name]
        call(tmp_path, "-m", "anonymize", *command, code=code)
        assert not (tmp_path / "dst").exists()
