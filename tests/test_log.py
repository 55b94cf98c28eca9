"""The log, with its tables of what was found from outside, names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tests_that_the_log_names_exist() -> None:
    log = (ROOT / "docs" / "log.md").read_text()
    table = log.partition("### Found from outside")[2].partition("\n#")[0]
    named = set(re.findall(r"`(test_\w+)`", log))
    defined = {
        n for p in (ROOT / "tests").rglob("*.py") for n in re.findall(r"def (test_\w+)", p.read_text())
    }
    assert len(named) > 250
    assert named - defined == set()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    wanted = [
        f"{kind}{n}" for kind, most in (("W", 11), ("D", 4), ("C", 10), ("R", 10)) for n in range(1, most + 1)
    ]
    numbers = {number for row in rows for number in row.split(", ")}
    assert {*wanted, "A1", "A2", "A9", "A12"} - numbers == set()
    of_data = log.partition("### Data: found from outside")[2].partition("\n#")[0]
    rows = [line.split("|")[1].strip() for line in of_data.splitlines() if line.startswith("| ")]
    numbers |= {number for row in rows for number in row.split(", ")}
    faults = [*(f"data F{n}" for n in range(1, 21)), *(f"bugs {n}" for n in (*range(1, 29), "2b"))]
    faults += [f"A{n}" for n in (*range(1, 15), "6b", "6c")]
    assert {*faults} - numbers == set()
