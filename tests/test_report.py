"""Training utility, the report, its gates and the commands that make and compare reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anonymize.eval.compare import compare, table
from anonymize.eval.harness import Evaluation, Plan
from anonymize.eval.learner import BUDGETS, Pairs, accuracy, read_pairs, train, training_utility
from anonymize.eval.links import link
from anonymize.eval.page import render
from anonymize.eval.report import check, read_report, verdict
from anonymize.eval.risk import TOO_WEAK, Outcome
from anonymize.eval.stats import Estimate
from anonymize.eval.trial import Trial, load
from anonymize.eval.utility import Utility, geometry
from click.testing import CliRunner, Result

from anonymize.cli import main
from anonymize.errors import ConfigError

TINY = replace(BUDGETS["smoke"], side=32, width=8, steps=40, batch=32)


def toys(people: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures whose two colours name the person."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(30, 225, (people, 2, 1, 1, 3))
    crops = np.zeros((people, each, 32, 32, 3))
    crops[:, :, :16], crops[:, :, 16:] = colours[:, None, 0], colours[:, None, 1]
    crops += rng.normal(0, 12, crops.shape)
    labels = np.repeat(np.arange(people), each)
    return np.clip(crops, 0, 255).astype(np.uint8).reshape(-1, 32, 32, 3), labels


def toy_pairs(seed: int) -> Pairs:
    crops, labels = toys(40, 2, seed)
    left = np.arange(0, 80, 2)
    right = np.concatenate([left + 1, (left + 7) % 80])
    people = np.concatenate([labels[left]] * 2)
    same, lefts = np.arange(80) < 40, np.concatenate([left, left])
    return Pairs(crops, lefts, right, same, people, people % 10)


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_a_recogniser_learns_and_noise_teaches_it_nothing() -> None:
    pairs, (crops, labels) = toy_pairs(1), toys(30, 8, 0)
    net = train(crops, labels, TINY, 0, quiet)
    learnt, decided = accuracy(net, pairs)
    assert learnt > 0.8
    assert decided.shape == (80,)
    again = accuracy(train(crops, labels, TINY, 0, quiet), pairs)[0]
    assert again == learnt


def test_the_same_pictures_retain_everything(people: Path) -> None:
    """A = O: same recipe, same seeds, so the same recogniser twice."""
    trial = load(people, people, link(people, people, None))
    accuracy_, retention = training_utility(trial, TINY)
    assert accuracy_.value is not None
    assert accuracy_.value.value == accuracy_.reference
    assert retention.value is not None
    assert retention.value.value == pytest.approx(1)


def test_pairs_of_training_people_are_left_out(people: Path, tmp_path: Path) -> None:
    names = [p.name for p in sorted(people.iterdir())][:4]
    pictures = {n: [f"{n}/{p.name}" for p in sorted((people / n).glob("*.jpg"))] for n in names}
    rows = ["fold,a,b,same"]
    rows += [f"{i},{pictures[n][0]},{pictures[n][1]},1" for i, n in enumerate(names)]
    rows += [f"0,{pictures[names[0]][0]},{pictures[names[1]][1]},0"]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(rows) + "\n")
    kept = read_pairs(path, people, 32, {names[0]})
    assert len(kept.same) == 3
    assert kept.same.all()
    with pytest.raises(ConfigError, match="every pair"):
        read_pairs(path, people, 32, set(names))


def test_geometry_of_unchanged_pictures_is_perfect(people: Path) -> None:
    trial = load(people, people, link(people, people, None))
    found = {u.name: u.value.value for u in geometry(trial) if u.value is not None}
    assert found["detection"] == 1
    assert found["box-iou"] == pytest.approx(1)
    assert found["nme-5"] == found["yaw"] == found["pitch"] == 0


def test_pose_follows_the_nose() -> None:
    from anonymize.eval.utility import HEAD, _angles

    def seen(yaw: float, pitch: float) -> np.ndarray:
        y, p = np.deg2rad([yaw, pitch])
        turn = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        nod = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
        points = HEAD @ (nod @ turn).T + [0, 0, 900]
        return 300 * points[:, :2] / points[:, 2:] + 125

    angles = _angles(np.array([[250, 250]] * 3), np.stack([seen(0, 0), seen(20, 0), seen(0, 15)]))
    assert abs(angles[1] - angles[0])[0] == pytest.approx(20, abs=2)
    assert abs(angles[2] - angles[0])[1] == pytest.approx(15, abs=2)


def row(attack: str, risk: float, high: float, low: float = 0.0, rank1: float = 0.5) -> Outcome:
    bound = Estimate(risk, low, high, 100)
    rate = Estimate(rank1, max(0, rank1 - 0.1), min(1, rank1 + 0.1), 100)
    return Outcome(attack, "", "dlib", rate, None, 0.01, bound, bound)


STRONG = row("oo", 0.9, 1.0, 0.8, 0.99)


def test_gates_hold_the_unkind_end_of_the_interval() -> None:
    result = Evaluation([STRONG, row("oa", 0.01, 0.04)])
    result.utilities = [Utility("detection", Estimate(0.99, 0.95, 1, 100), "higher")]
    result.utilities += [Utility("nme-5", Estimate(0.03, 0.02, 0.06, 100), "lower")]
    limits = [("oa", 0.03), ("oa", 0.05), ("semi-informed", 0.5)]
    gates = check(result, limits, [("detection", 0.97), ("detection", 0.94), ("nme-5", 0.05)])
    assert [gate.passed for gate in gates] == [False, True, False, False, True, False]
    assert gates[2].why == "was not measured"


def test_a_weak_attacker_passes_no_gate() -> None:
    weak = replace(STRONG, rank1=Estimate(0.1, 0, 0.2, 100), verdict=TOO_WEAK)
    (gate,) = check(Evaluation([weak, row("oa", 0.0, 0.01)]), [("oa", 0.9)], [])
    assert not gate.passed
    assert gate.why == TOO_WEAK
    assert verdict([weak, row("oa", 0.0, 0.01)])["level"] == "void"


def test_no_gate_for_what_is_no_risk() -> None:
    for name in ("aa-same-key", "oo", "control", "nonsense"):
        with pytest.raises(ConfigError, match="max-risk"):
            check(Evaluation([STRONG]), [(name, 0.5)], [])


def test_verdicts_never_say_safe() -> None:
    held = verdict([STRONG, row("oa", 0.0, 0.02, -0.01)])
    assert held["level"] == "held"
    assert verdict([STRONG, row("oa", 0.3, 0.4, 0.2)])["level"] == "broken"
    assert verdict([STRONG, row("oa", 0.05, 0.08, 0.02)])["level"] == "leaks"
    assert "safe" not in json.dumps(held)


def test_unknown_names_are_refused_before_any_work() -> None:
    for wrong in ({"attacks": ["guess"]}, {"utilities": ["beauty"]}, {"budget": "huge"}):
        with pytest.raises(ConfigError, match="expected"):
            Plan(**wrong)  # type: ignore[arg-type]


def report(risk: tuple[float, float, float], use: tuple[float, float, float]) -> dict[str, Any]:
    names = ("value", "low", "high")
    rows = {
        "attack": "oa",
        "variant": "",
        "embedder": "dlib",
        "risk": dict(zip(names, risk, strict=True)),
    }
    value = dict(zip(names, use, strict=True))
    kept = {"name": "detection", "better": "higher", "value": value}
    inputs = {"originals_sha256": "0"}
    return {"schema": 1, "attacks": [rows], "utilities": [kept], "gates": [], "inputs": inputs}


def test_compare_looks_beyond_the_intervals() -> None:
    old = report((0.1, 0.05, 0.15), (0.9, 0.85, 0.95))
    cases: list[tuple[dict[str, Any], float, tuple[bool, bool, bool, bool]]] = [
        (report((0.12, 0.08, 0.2), (0.9, 0.8, 0.95)), 0, (False, False, False, False)),
        (report((0.3, 0.2, 0.4), (0.7, 0.6, 0.8)), 0, (True, False, True, False)),
        (report((0.01, 0.0, 0.02), (0.99, 0.97, 1)), 0, (False, True, False, True)),
        (report((0.3, 0.2, 0.4), (0.7, 0.6, 0.8)), 0.06, (False, False, False, False)),
    ]
    for new, tolerance, expected in cases:
        changes, missing = compare(old, new, tolerance)
        flags = [flag for c in changes for flag in (c.worse, c.better)]
        assert tuple(flags) == expected
        assert not missing
    new = report((0.3, 0.2, 0.4), (0.7, 0.6, 0.8))
    new["utilities"] = []
    changes, missing = compare(old, new)
    assert missing == ["detection"]
    assert "worse" in table(changes, missing)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, people: Path) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "release"
    options = ["--generator", "pixelate", "--max-withheld", "1"]
    done = CliRunner().invoke(main, ["run", str(people), str(folder), *options])
    assert done.exit_code == 0, done.output
    return folder


QUICK = ["--attack", "oa", "--attack", "metadata-join", "--utility", "geometry"]


@pytest.fixture
def evaluated(release: Path, people: Path, tmp_path: Path) -> Callable[..., tuple[Result, Path]]:
    def invoke(*options: str, out: str = "report") -> tuple[Result, Path]:
        folder = tmp_path / out
        command = ["eval", str(people), str(release), "-o", str(folder), *QUICK, *options]
        return CliRunner().invoke(main, command), folder

    return invoke


def test_eval_writes_a_report(evaluated: Callable[..., tuple[Result, Path]], people: Path) -> None:
    done, folder = evaluated("--show", "2")
    assert done.exit_code == 0, done.output
    found = read_report(folder)
    assert found["release"]["label"].startswith("not anonymisation")
    assert {r["attack"] for r in found["attacks"]} == {"oo", "oa", "metadata-join"}
    assert found["inputs"]["people"] == 12
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 4
    assert not re.search(r"(src|href)=\"https?:", page)
    for person in people.iterdir():
        assert person.name not in page + json.dumps(found)
    assert not list(folder.glob("*.sqlite"))


def test_the_same_seed_gives_the_same_report(
    evaluated: Callable[..., tuple[Result, Path]],
) -> None:
    first, second = (evaluated(out=name)[1] for name in ("one", "two"))
    for name in ("report.json", "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_gates_decide_the_exit_code(evaluated: Callable[..., tuple[Result, Path]]) -> None:
    done, _ = evaluated("--max-risk", "oa", "0.0001", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["gates"][0]["passed"] is False
    assert evaluated("--max-risk", "oa", "1", out="lax")[0].exit_code == 0
    assert evaluated("--max-risk", "aa-same-key", "1", out="none")[0].exit_code == 2


def test_compare_is_cis_gate(evaluated: Callable[..., tuple[Result, Path]], tmp_path: Path) -> None:
    _, folder = evaluated()
    same = CliRunner().invoke(main, ["compare", str(folder), "--baseline", str(folder)])
    assert same.exit_code == 0, same.output
    better = read_report(folder)
    for value in better["utilities"]:
        if value["name"] == "nme-5":
            value["value"] = {"value": 0.0, "low": 0.0, "high": 0.0, "count": 1}
    (tmp_path / "better.json").write_text(json.dumps(better))
    worse = ["compare", str(folder), "--baseline", str(tmp_path / "better.json"), "--json"]
    done = CliRunner().invoke(main, worse)
    assert done.exit_code == 3
    changes = json.loads(done.stdout)["reports"][0]["changes"]
    assert [c["name"] for c in changes if c["worse"]] == ["nme-5"]
    (tmp_path / "other.json").write_text("{}")
    broken = ["compare", str(folder), "--baseline", str(tmp_path / "other.json")]
    assert CliRunner().invoke(main, broken).exit_code == 2


def test_other_tools_need_a_table_only(people: Path, tmp_path: Path) -> None:
    """Flat output names, linked by a CSV."""
    rows = ["source,output"]
    (tmp_path / "out").mkdir()
    for index, path in enumerate(sorted(people.glob("*/*.jpg"))):
        (tmp_path / "out" / f"{index}.jpg").write_bytes(path.read_bytes())
        rows.append(f"{path.parent.name}/{path.name},{index}.jpg")
    (tmp_path / "links.csv").write_text("\n".join(rows) + "\n")
    command = ["eval", str(people), str(tmp_path / "out"), "-o", str(tmp_path / "report"), *QUICK]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "--links" in refused.output
    done = CliRunner().invoke(main, [*command, "--links", str(tmp_path / "links.csv")])
    assert done.exit_code == 3, done.output  # originals passed off as outputs
    assert "72 outputs still show the original face" in done.output
    found = read_report(tmp_path / "report")
    naive = next(r for r in found["attacks"] if r["attack"] == "oa")
    original = next(r for r in found["attacks"] if r["attack"] == "oo")
    assert naive["rank1"] == original["rank1"]
    assert found["verdict"]["level"] == "broken"


def test_results_do_not_depend_on_the_order_of_links(people: Path) -> None:
    from anonymize.eval.harness import evaluate

    from anonymize.embedders import DlibEmbedder

    links = link(people, people, None)
    plan = Plan(["oa", "negation", "set-averaging", "context"], ["geometry", "distance"])
    results = []
    for order in (links, links[::-1]):
        trial: Trial = load(people, people, order)
        results.append(evaluate(trial, [DlibEmbedder()], plan))
    assert results[0] == results[1]


def test_the_page_escapes_what_it_shows(evaluated: Callable[..., tuple[Result, Path]]) -> None:
    found = read_report(evaluated()[1])
    found["release"]["name"] = "<script>alert(1)</script>"
    assert "<script>" not in render(found).replace("&lt;script&gt;", "")
