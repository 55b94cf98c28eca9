"""Templates of prompts: the shipped lists, and files of a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.stages.data_track.templates import read_templates, shipped
from vlpipe.stages.data_track.zero_shot import Task, ZeroShot

COLOURS = Task(classes={"red": [], "blue": []})


def stage(**more: object) -> ZeroShot:
    return ZeroShot(model=Weights(path="anywhere"), tasks={"colour": COLOURS}, **more)  # type: ignore[arg-type]


def test_each_shipped_template_has_room_for_a_name_and_is_there_once() -> None:
    assert len(shipped()["photos"]) == 30
    for name, templates in shipped().items():
        assert all(one.count("{}") == 1 for one in templates), name
        assert len(set(templates)) == len(templates), name


def test_they_take_the_place_of_the_tasks_own() -> None:
    assert COLOURS.prompts() == [["a photo of a red."], ["a photo of a blue."]]
    assert COLOURS.prompts(shipped()["pets"]) == [
        ["a photo of a red, a kind of pet.", "a picture of my pet, a red."],
        ["a photo of a blue, a kind of pet.", "a picture of my pet, a blue."],
    ]


def test_a_file_has_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\ufeff# mine\na {} here\n\n  the {}  \n")
    assert read_templates(str(tmp_path / "mine.txt")) == ["a {} here", "the {}"]
    for content, message in (
        ("a {}\nno hole\n", r"mine\.txt, line 2: 'no hole' has no \{\}"),
        ("\n", "has no template"),
    ):
        (tmp_path / "mine.txt").write_text(content)
        with pytest.raises(VlpipeError, match=message):
            read_templates(str(tmp_path / "mine.txt"))
    with pytest.raises(VlpipeError, match="cannot be read as text"):
        read_templates(str(tmp_path / "absent.txt"))


def test_what_does_not_fit_is_said_before_the_run(tmp_path: Path) -> None:
    assert stage(template_list="photos").preflight() == []
    (problem,) = stage(template_list="photo").preflight()
    assert problem.startswith("template_list: there is no list 'photo'; did you mean")
    both = stage(template_list="photos", template_file=File(path="x"))
    assert both.preflight() == ["set template_list or template_file, not both"]
