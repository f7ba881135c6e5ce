"""`anonymize train` and recipe files from the command line."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from anonymize.cli import main
from anonymize.generators import check_sums

TOY = "channels = [16, 24]\ncells = 2\nbatch = 4\nbf16 = false\ncell_steps = 2\n"


def test_too_few_faces_to_train_on_are_refused(dataset: Path, tmp_path: Path) -> None:
    command = ["train", str(dataset), str(tmp_path / "out"), "--steps", "1", "--set", "cells=9"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "fewer cells" in result.stderr


def test_pictures_that_are_listed_are_not_trained_on(dataset: Path, tmp_path: Path) -> None:
    command = ["train", str(dataset), str(tmp_path / "out"), "--set", "cells=9", "--exclude"]
    listed = tmp_path / "leave-out.txt"
    first, second = sorted(dataset.rglob("*.jpg"))[:2]
    listed.write_text(f"# blurred\n{first.relative_to(dataset)}\n")
    result = CliRunner().invoke(main, [*command, str(listed)])
    assert result.exit_code == 2
    assert "got 8 faces" in result.stderr  # of nine pictures, and too few for so many cells
    listed.write_text(f"{second}\n")
    result = CliRunner().invoke(main, [*command, str(listed)])
    assert result.exit_code == 2
    assert "expected paths below it" in result.stderr


def test_train_exports_a_model_that_run_can_use(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(TOY)
    out = tmp_path / "out"
    command = ["train", str(dataset), str(out), "--recipe", str(tmp_path / "toy.toml")]
    result = CliRunner().invoke(main, [*command, "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out / "export")
    assert len(check_sums(out / "export")) == 8
    assert CliRunner().invoke(main, command).exit_code == 2  # the folder holds a run
    assert CliRunner().invoke(main, [*command, "--resume", "--steps", "3"]).exit_code == 0
    settings = ["--set", f"generator_options.weights='{out / 'export'}'", "--max-withheld", "1"]
    result = CliRunner().invoke(main, ["run", str(dataset), str(tmp_path / "r"), *settings])
    assert result.exit_code == 0, result.output


def test_a_run_follows_its_recipe_file(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('generator = "mask"\nformat = "png"\n')
    command = ["run", str(dataset), str(tmp_path / "release"), "--recipe", str(tmp_path / "r.toml")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    files = list((tmp_path / "release").rglob("*.png"))
    assert len(files) == 9
    with Image.open(files[0]) as picture:
        assert picture.format == "PNG"


def test_wrong_recipes_exit_with_2(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("generatr = 1\n")
    command = ["run", str(dataset), str(tmp_path / "release"), "--recipe", str(tmp_path / "r.toml")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "unknown key 'generatr'" in result.stderr
    assert not (tmp_path / "release.private").exists()


def test_perturbations_are_trained_by_the_same_command(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["train", str(dataset), str(out), "--kind", "perturb", "--steps", "1"]
    settings = ["--set", "batch=2"]
    assert CliRunner().invoke(main, [*command, "--start", str(tmp_path)]).exit_code == 2
    result = CliRunner().invoke(main, [*command, *settings])
    assert result.exit_code == 0, result.output
    assert len(check_sums(Path(result.stdout.strip()))) == 4
