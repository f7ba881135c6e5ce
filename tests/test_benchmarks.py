"""The benchmarks run and say what they promise; how fast anything is, no test asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "throughput.py"


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
