"""Weights and word lists that are no such thing: weights/ and security/models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.workflow.weights_check import file_problems

Case = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "said"), [("weights/lfs.safetensors", "Git LFS"), ("weights/html.pth", "web page")]
)
def test_the_plan_names_them(case: Case, name: str, said: str) -> None:
    (problem,) = file_problems(Weights(path=str(case(name))))
    assert str(case(name)) in problem
    assert said in problem


def test_a_word_list_with_objects_is_refused(case: Case) -> None:
    """In a process of its own: NumPy followed a pointer out of the file."""
    code = "import sys; from vlpipe.models.video.words import read_words; read_words(sys.argv[1])"
    command = [sys.executable, "-c", code, str(case("security/models/crash-words.npy"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "ValueError" in done.stderr or "VlpipeError" in done.stderr
