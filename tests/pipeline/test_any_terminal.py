"""Texts of any language are shown on a terminal of any encoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import Runs

TEXT = """
name: pages
steps:
  pages: {use: "verb_toys:Pages", num_rows: 4, shard_rows: 4, word: "猫 é"}
"""


def cli(encoding: str, *args: str | Path) -> str:
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", *map(str, args)]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(encoding.partition(":")[0])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("pages"), TEXT)
    runs("run", "--local")
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"\u732b \xe9"), ("cp1252", r"\u732b é"), ("ascii:strict", r"\u732b \xe9"), ("utf-8", "猫 é")],
)
def test_what_cannot_be_shown_is_an_escape(pages: Runs, encoding: str, shown: str) -> None:
    assert shown in cli(encoding, "show", pages.step("pages"))
    assert shown in cli(encoding, "why", pages.file, "page00000000-a", "--root", pages.root)


def test_json_is_whole_in_any_encoding(pages: Runs) -> None:
    said = cli("ascii", "why", pages.file, "page00000000-a", "--root", pages.root, "--json")
    assert "猫 é" in json.loads(said)["events"][0]["lines"][1]
