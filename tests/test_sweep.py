"""Several methods beside each other: the table, the front, the page, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from anonymize.eval.tradeoff import build, markdown, pareto, render
from click.testing import CliRunner, Result

import anonymize.sweep as sweeping
from anonymize.cli import main
from anonymize.errors import ConfigError, ReleaseError
from anonymize.recipe import Recipe
from anonymize.sweep import METHODS, Sweep, methods, sweep, take

CHEAP = ["--attack", "oa", "--utility", "geometry"]


def estimate(value: float, wide: float = 0.04) -> dict[str, float]:
    return {"value": value, "low": value - wide, "high": value + wide, "count": 100}


def report(risk: float, **utilities: float | None) -> dict[str, Any]:
    """A report as far as a trade-off reads it; a utility that is None could not be measured."""
    attacks = [
        {"attack": "oo", "variant": "", "risk": estimate(1), "rank1": estimate(0.95)},
        {"attack": "oa", "variant": "", "risk": estimate(risk / 2)},
        {"attack": "semi-informed", "variant": "linear", "risk": estimate(risk / 4)},
        {"attack": "semi-informed", "variant": "fine-tuned", "risk": estimate(risk)},
        {"attack": "context", "variant": "head", "risk": estimate(0.9)},
    ]
    values = [
        {"name": name.replace("_", "-"), "value": None if use is None else estimate(use)}
        for name, use in utilities.items()
    ]
    return {
        "verdict": {"level": "leaks", "text": ""},
        "release": {"name": "x", "label": "a <promise>"},
        "inputs": {
            "people": 20,
            "originals": 80,
            "attacker_people": 10,
            "outputs": 60,
            "unchanged_outputs": 0,
        },
        "seed": 0,
        "environment": {"python": "3"},
        "attacks": [attack | {"embedder": "dlib"} for attack in attacks],
        "utilities": [value | {"note": "too few people"} for value in values],
        "skipped": [],
    }


def test_the_front_of_known_points() -> None:
    points = [(0.1, 0.9), (0.2, 0.9), (0.0, 0.5), (0.3, 0.95), (0.3, 0.4), None]
    assert pareto(points) == [True, False, True, True, False, False]
    assert pareto([(0.1, 0.5), (0.1, 0.5)]) == [True, True]
    # doing worse than the control is chance, not privacy
    assert pareto([(-0.2, 0.5), (0.0, 0.6)]) == [False, True]
    assert pareto([]) == []


def test_the_front_is_a_chain_that_beats_the_rest() -> None:
    points = [((7 * i % 31) / 31, (11 * i % 37) / 37) for i in range(60)]
    best = pareto(points)
    front = sorted({p for p, optimal in zip(points, best, strict=True) if optimal})
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(front))
    for point, optimal in zip(points, best, strict=True):
        assert optimal or any(f[0] <= point[0] and f[1] >= point[1] for f in front)


def test_the_table_has_a_row_per_method_and_says_what_is_missing() -> None:
    good = report(0.02, detection=0.99, training_retention=0.9)
    bad = report(0.5, detection=0.5, training_retention=None)
    bad["inputs"] = bad["inputs"] | {"unchanged_outputs": 3}
    found = build({"good": good, "bad": bad}, ["ugly"])
    assert found["utility"] == "training-retention"
    assert [m["pareto"] for m in found["methods"]] == [True, False]
    assert found["methods"][0]["published"] == 0.75
    text = markdown(found)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {9}
    assert rows[1][:2] == ["| **good**", "2.0% (-2.0% to 6.0%)"]
    assert rows[1][3:5] == ["2.0% (-2.0% to 6.0%)", "90.0% (86.0% to 94.0%)"]
    assert rows[2][5:7] == ["not measured", "not measured"]
    assert "- training retention not measured for bad: too few people" in text
    assert "- same-key rank-1 not measured for any method: was not asked for" in text
    assert "- ugly failed: " in text
    assert "- bad failed open: 3 outputs still show the original face" in text
    assert "Recognised in the originals: dlib 95.0% (91.0% to 99.0%)." in text


def test_a_report_that_proves_nothing_is_never_optimal() -> None:
    weak = report(0.0, detection=1.0)
    weak["verdict"] = {"level": "void", "text": "This report proves nothing."}
    found = build({"weak": weak, "strong": report(0.3, detection=0.5)})
    assert [m["pareto"] for m in found["methods"]] == [False, True]
    assert "worst risk to faces not measured for weak: This report proves nothing." in markdown(
        found
    )


def test_the_page_shows_the_plane_and_nothing_from_elsewhere() -> None:
    reports = {
        f"m{i}": report(i / 10, training_retention=1 - (i - 2) ** 2 / 9, detection=1)
        for i in range(5)
    }
    found = build(reports)
    page = render(found, {name: f"reports/{name}/report.html" for name in reports})
    for name, method in zip(reports, found["methods"], strict=True):
        assert page.count(f">{name}<") + page.count(f" {name} -->") >= 2, name  # plane and table
        assert f'href="reports/{name}/report.html"' in page
        assert method["pareto"] == (name in ("m0", "m1", "m2"))
    assert page.count("Pareto-optimal</span>") == 3
    assert "training retention in %" in page
    assert "<promise>" not in page
    assert "&lt;promise&gt;" in page
    assert not re.search(r"(src|href)=\"https?:|<script", page)
    assert page == render(found, {name: f"reports/{name}/report.html" for name in reports})


def test_without_a_utility_there_is_no_plane_and_the_page_says_so() -> None:
    found = build({"one": report(0.1)})
    assert found["utility"] is None
    assert not found["methods"][0]["pareto"]
    assert "Nothing to draw" in render(found, {})
    assert "No utility was measured" in markdown(found)


def test_methods_by_name_by_settings_and_from_a_file(tmp_path: Path) -> None:
    assert list(methods()) == list(METHODS)
    found = methods(given=["blur", "fine=generator=inpaint,generator_options.steps=4"])
    assert found == {
        "blur": Recipe(generator="blur"),
        "fine": Recipe(generator="inpaint", generator_options={"steps": 4}),
    }
    file = tmp_path / "methods.toml"
    file.write_text('[head]\ngenerator = "inpaint"\nregion = "head"\n')
    assert methods(file, ["mask"]) == {
        "head": Recipe(region="head"),
        "mask": Recipe(generator="mask"),
    }


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("nonsense", "expected one of mask, blur"),
        ("blur=strong", "expected NAME or NAME=KEY=VALUE"),
        ("x=generator=blur,colour=red", "unknown key 'colour'"),
        ("../x=generator=blur", "letters, digits"),
    ],
)
def test_wrong_methods_are_refused(wrong: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        methods(given=[wrong])


def test_a_wrong_file_of_methods_is_refused(tmp_path: Path) -> None:
    for text, says in (("[a\n", "cannot read"), ("a = 1\n", "expected a table"), ("[a]\nb=1", "b")):
        (tmp_path / "methods.toml").write_text(text)
        with pytest.raises(ConfigError, match=says):
            methods(tmp_path / "methods.toml")


def test_everything_is_checked_before_anything_is_made(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blur = {"blur": Recipe(generator="blur")}
    wrong: list[dict[str, Any]] = [
        {"methods": {"x": Recipe(generator="blurr")}},
        {"methods": {"x": Recipe(generator="blur", generator_options={"colour": 1})}},
        {"methods": {"x": Recipe(generator="blur", writer="recordio")}},
        {"attacks": ["guess"]},
        {"budget": "huge"},
        {"embedders": ["nobody"]},
        {"out": people / "inside"},
    ]
    for values in wrong:
        with pytest.raises(ConfigError, match=r"expected|options|inside"):
            sweep(Sweep(**{"source": people, "out": out, "methods": blur} | values))
    assert not list(tmp_path.iterdir())


def test_people_are_taken_once_and_alike(people: Path, tmp_path: Path) -> None:
    take(people, tmp_path / "a", 9, 2)
    taken = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.jpg")}
    assert len(taken) == 18
    assert len({path.parent for path in taken}) == 9
    take(people, tmp_path / "b", 9, 2)
    assert taken == {p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*.jpg")}
    assert (tmp_path / "a" / min(taken)).read_bytes() == (people / min(taken)).read_bytes()
    (tmp_path / "few").mkdir()
    for picture in (people / "person-00").iterdir():  # of nobody known, so of nobody twice
        (tmp_path / "few" / picture.name).symlink_to(picture)
    with pytest.raises(ConfigError, match="got 0 people"):
        take(tmp_path / "few", tmp_path / "c")


Invoke = Callable[..., Result]


@pytest.fixture
def swept(people: Path, tmp_path: Path) -> Invoke:
    def invoke(*options: str) -> Result:
        few = ["--people", "8", "--images", "2"]
        command = ["sweep", str(people), str(tmp_path / "out"), *few, *CHEAP, *options]
        return CliRunner().invoke(main, command)

    return invoke


def test_sweep_compares_and_goes_on(
    swept: Invoke, tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = swept("--method", "mask")
    assert first.exit_code == 0, first.output
    done = swept("--method", "mask", "--method", "hard=generator=pixelate")
    assert done.exit_code == 0, done.output
    assert "mask: run" not in done.stderr  # its report is there
    assert "hard: run" in done.stderr
    out = tmp_path / "out"
    assert (out / "table.md").read_text("utf-8") == done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("| ")] == [
        "method",
        "**mask**",
        "**hard**",
    ]
    found = json.loads((out / "sweep.json").read_text("utf-8"))
    assert found["schema"] == 1
    assert found["utility"] == "detection"
    for method in found["methods"]:
        assert (out / "reports" / method["name"] / "report.html").is_file()
    monkeypatch.delattr(sweeping, "run")  # a third call needs neither
    monkeypatch.delattr(sweeping, "carry_out")
    again = swept("--method", "mask", "--method", "hard=generator=pixelate", "--json")
    assert json.loads(again.stdout) == found
    _holds_nothing_private(out, people)


def _holds_nothing_private(out: Path, people: Path) -> None:
    """No picture, key or name of a person where somebody might publish it."""
    private = out.with_name("out.private")
    assert private.stat().st_mode & 0o777 == 0o700
    key = (private / "key").read_text("ascii").strip()
    names = {path.name for path in people.iterdir()}
    for path in out.rglob("*"):
        assert not path.is_symlink()
        assert path.suffix in ("", ".html", ".json", ".md"), path
        if path.is_file():
            text = path.read_text("utf-8")
            assert not {word for word in (key, str(people), *names) if word in text}


def test_a_killed_sweep_goes_on(
    swept: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sweeping.carry_out

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "carry_out", killed)
    interrupted = swept("--method", "blur")
    assert interrupted.exit_code == 130
    assert "run it again to go on" in interrupted.stderr
    release = tmp_path / "out.private" / "releases" / "blur"
    made = {path: path.stat().st_mtime_ns for path in release.rglob("*.jpg")}
    assert len(made) == 16
    monkeypatch.setattr(sweeping, "carry_out", original)
    done = swept("--method", "blur")
    assert done.exit_code == 0, done.output
    assert made == {path: path.stat().st_mtime_ns for path in release.rglob("*.jpg")}
    assert "replace:" not in done.stderr


def test_one_table_has_one_setting(swept: Invoke, tmp_path: Path) -> None:
    assert swept("--method", "mask").exit_code == 0
    for other, says in (
        (["--seed", "1"], "seed"),
        (["--method", "mask=generator=blur"], "generator"),
        (["--key-file", str(tmp_path / "key")], "another key"),
    ):
        refused = swept("--method", "mask", *other)
        assert refused.exit_code == 2, refused.output
        assert says in refused.stderr


def test_a_method_that_fails_does_not_stop_the_others(swept: Invoke) -> None:
    many = "many=generator=k-same-pixel,generator_options.k=50"
    done = swept("--method", many, "--method", "mask")
    assert done.exit_code == 1
    assert "many failed: k-same-pixel: got" in done.stderr
    assert "| **mask** |" in done.stdout
    assert "- many failed" in done.stdout


def test_a_wrong_method_and_a_foreign_folder(people: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(
        main, ["sweep", str(people), str(tmp_path / "out"), "--method", "x"]
    )
    assert refused.exit_code == 2
    assert "unknown method 'x'" in refused.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(ReleaseError, match="not empty"):
        sweep(Sweep(people, tmp_path / "out", {"mask": Recipe(generator="mask")}))
