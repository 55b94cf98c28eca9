"""Take out one mend after the other, and see the property test find it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

KINDS = {  # of edits that can find it, so that it does not take hundreds of cases
    "W1": "elsewhere",
    "W2": "swap_artifacts,swap_files,swap_in_list",
    "W3": "remade",
    "W4": "retry_grow",
    "W5": "kill_code",
    "W5-helpers": "code_helper",
    "W7": "duplicate",
    "D4": "kill_grow",
    "D4-names": "rename",
    "retry": "retry_killed",
}


def find(name: str, *more: str) -> str:
    """What was found, in one line; empty when nothing was."""
    command = [
        sys.executable,
        str(Path(__file__).parent),
        "--without",
        name,
        "--kinds",
        KINDS[name],
        "--stop",
        *more,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"^case (\d+) of seed (\d+): (.*)$", said, re.MULTILINE)
    return f"{name}: seed {found[2]}, case {found[1]} of {KINDS[name]}: {found[3]}" if found else ""


def main() -> int:
    lost = 0
    for name in KINDS:
        said = find(name, "--cases", "60")
        lost += not said
        print(said or f"{name}: NOT FOUND", flush=True)
    return lost


if __name__ == "__main__":
    sys.exit(main())
