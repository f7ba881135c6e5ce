"""The benchmarks run and say what they promise; how fast anything is, no test asks."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from anonymize.errors import ConfigError
from anonymize.images import read
from anonymize.recipe import Recipe
from anonymize.run import run

TOP = Path(__file__).parent.parent
SCRIPT, LOOKS = TOP / "benchmarks" / "throughput.py", TOP / "eval" / "bench" / "looks.py"


def measured(*arguments: object) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--json", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def test_systems_are_compared_on_the_same_pictures(dataset: Path) -> None:
    systems = ["anonymize inpaint", "anonymize blur", "decode and encode"]
    found = measured(dataset, "--limit", 4, "--systems", *systems)
    assert found["schema"] == 1
    assert found["images"] == 4
    assert found["ratio_to_deface"] == {}
    for name in ("images_per_second", "cpu_seconds_per_image", "peak_mib"):
        values = found[name]
        assert isinstance(values, dict)
        assert list(values) == systems
        assert min(values.values()) > 0
    shares = found["milliseconds_per_image"]
    assert isinstance(shares, dict)
    assert {"generate", "audit: CenterFace", "verify: recogniser", "decode"} <= set(shares)


def test_the_ratio_to_deface_is_that_of_the_rates() -> None:
    pytest.importorskip("deface.deface", reason="its command needs what `make bench` installs")
    systems = ["anonymize inpaint", "deface blur"]
    found = measured("--crops", "--limit", 3, "--systems", *systems)
    rates = found["images_per_second"]
    assert isinstance(rates, dict)
    expected = {system: rates[system] / rates["deface blur"] for system in systems}
    assert found["ratio_to_deface"] == expected


def test_looks_are_told_from_what_viewers_answer(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sheets show as many outputs as originals, of different people; answers are counted."""
    release, out = tmp_path / "release", tmp_path / "out"
    run(people, release, Recipe(generator="mask"), key=bytes(32))
    script = runpy.run_path(str(LOOKS))
    script["ask"](people, release, out, 4, 0, 200)
    truth = json.loads((out / "truth.json").read_text())
    edited = [number for number, (_, is_edited) in truth.items() if is_edited]
    assert len(edited) == 4
    assert len({Path(source).parent for source, _ in truth.values()}) == len(truth) == 8
    assert read(out / "page-01.png").shape == (600, 600, 3)
    sharp, dull = tmp_path / "sharp.txt", tmp_path / "dull.txt"
    sharp.write_text("\n".join(f"{number}: a grey oval" for number in edited))
    dull.write_text("")
    script["tell"](out, [sharp, dull])
    rows = capsys.readouterr().out.splitlines()
    assert "| sharp | 4 of 4, 100%" in rows[-3]
    assert "| 0 of 4, 0%" in rows[-3]
    assert "| dull | 0 of 4, 0%" in rows[-2]
    dull.write_text("99")
    with pytest.raises(ConfigError, match="99"):
        script["tell"](out, [dull])
