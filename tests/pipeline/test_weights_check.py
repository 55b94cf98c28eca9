"""Weights that cannot be read are found by the plan, with their path; whole ones are not complained about."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlpipe.models.weights.published import read_state
from vlpipe.pipeline.errors import WorkflowError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.pipeline.workflow.weights_check import file_problems

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 990\n"
TENSORS = {"a.weight": torch.arange(3000.0), "b": torch.zeros(2, 3)}


def problem(path: Path) -> str:
    found = file_problems(Weights(path=str(path)))
    assert all(str(path) in text for text in found)
    return "; ".join(found).replace(f"{path}/", "").replace(f"{path} ", "")


def whole(folder: Path) -> list[Path]:
    save_file(TENSORS, folder / "a.safetensors", metadata={"format": "pt"})
    save_file({}, folder / "none.safetensors")
    torch.save(TENSORS, folder / "new.pth")
    torch.save({"model": TENSORS, "args": argparse.Namespace(x=1)}, folder / "args.pth")
    torch.save(TENSORS, folder / "old.pth.tar", _use_new_zipfile_serialization=False)
    torch.save({"args": argparse.Namespace()}, folder / "oldargs.pth", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "script.pt")
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    (folder / "lid.bin").write_bytes(b"\xba\x16\x4f\x2f" + b"fasttext")
    (folder / "lid.ftz").write_bytes(b"\xba\x16\x4f\x2f" + b"fasttext")
    return sorted(folder.iterdir())


def test_whole_files_are_not_complained_about(tmp_path: Path) -> None:
    assert {path.name: problem(path) for path in whole(tmp_path)} == {
        path.name: "" for path in tmp_path.iterdir()
    }
    assert problem(tmp_path) == ""


@pytest.mark.parametrize(
    "name", ["a.safetensors", "new.pth", "args.pth", "old.pth.tar", "oldargs.pth", "script.pt"]
)
def test_half_a_file_is_found(tmp_path: Path, name: str) -> None:
    whole(tmp_path)
    data = (tmp_path / name).read_bytes()
    for size in (len(data) - 1, len(data) // 2, 30) if name != "oldargs.pth" else (len(data) // 2,):
        (tmp_path / name).write_bytes(data[:size])
        text = problem(tmp_path / name)
        assert "truncated" in text or "damaged" in text, (size, text)


BROKEN = {
    "a.safetensors": [
        (LFS, "is a pointer of Git LFS, not the file itself; get it with `git lfs pull`"),
        (b"", "is empty; wanted weights"),
        (b"<!DOCTYPE html><html>", "is a web page, not weights: it begins with '<!DOCTYPE html><html>'"),
        (b"\x10\0\0\0\0\0\0\0{not json at all}", "is not a safetensors file: its header cannot be read"),
        (b"hello, this is text", "is not a safetensors file: it begins with b'hello"),
    ],
    "a.pth": [
        (LFS, "is a pointer of Git LFS"),
        (b"  <html>404", "is a web page"),
        (b"Entry not found", "is not a file of torch.save: it begins with b'Entry not found'"),
        (b"PK\x03\x04 and no directory", "is truncated or damaged: File is not a zip file"),
    ],
    "lid.ftz": [(LFS, "is a pointer of Git LFS"), (b"", "is empty"), (b"<html>", "is a web page")],
}


@pytest.mark.parametrize(("name", "data", "said"), [(n, d, s) for n in BROKEN for d, s in BROKEN[n]])
def test_broken_files_are_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert problem(tmp_path / name).startswith(said)


def test_a_folder_is_checked_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_bytes(LFS)
    (tmp_path / "model.safetensors").write_bytes(LFS)
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = file_problems(Weights(path=str(tmp_path)))
    assert [text.removeprefix(f"{tmp_path}/").split(" ")[0] for text in found] == [
        "model.safetensors",
        "tokenizer/vocab.txt",
        "model.safetensors.index.json",
    ]
    assert found[2].endswith("names files that are not there: model-1.safetensors")


def test_any_file_may_be_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(LFS)
    (tmp_path / "empty.txt").write_bytes(b"")
    assert "is a pointer of Git LFS" in file_problems(File(path=str(tmp_path / "vocab.txt")))[0]
    assert file_problems(File(path=str(tmp_path / "empty.txt"))) == []


def test_the_plan_finds_them_for_every_stage_that_loads_weights(tmp_path: Path) -> None:
    import importlib
    import pkgutil

    from vlpipe import stages
    from vlpipe.pipeline.workflow.stage_checks import class_problems
    from vlpipe.pipeline.workflow.step_keys import STEP_KEYS

    found = set()
    (tmp_path / "w.safetensors").write_bytes(LFS)
    (tmp_path / "list.csv").write_text("url,text\nhttp://a.test/,x\n")
    for module in pkgutil.walk_packages(stages.__path__, "vlpipe.stages."):
        source = Path(importlib.util.find_spec(module.name).origin or "").read_text()  # type: ignore[union-attr]
        if ": Weights" not in source or "class " not in source:
            continue
        for name, cls in vars(importlib.import_module(module.name)).items():
            fields = getattr(cls, "__dataclass_fields__", {})
            is_stage = getattr(cls, "__module__", "") == module.name and hasattr(cls, "preflight")
            if is_stage and not class_problems(cls, STEP_KEYS):  # else it is a base of stages
                for field in (one for one in fields.values() if "Weights" in str(one.type)):
                    found.add((f"{module.name.removeprefix('vlpipe.stages.')}:{name}", field.name))
    assert len(found) >= 12
    for use, parameter in sorted(found):
        (tmp_path / "w.yaml").write_text(
            f'steps:\n  images: {{use: "fetching.images:FetchImages", list: {tmp_path}/list.csv}}\n'
            f'  scored: {{use: "{use}", from: images, {parameter}: {tmp_path}/w.safetensors}}\n'
        )
        with pytest.raises(WorkflowError) as caught:
            Workflow.load(str(tmp_path / "w.yaml"))
        if "missing, and it has no default" not in str(caught.value):
            assert "w.safetensors is a pointer of Git LFS" in str(caught.value), use


def test_reading_says_what_is_wrong_with_the_path(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "args": argparse.Namespace(x=1)}, tmp_path / "args.pth")
    with pytest.raises(
        ValueError, match=r"args.pth cannot be read .*: it contains objects of argparse.Namespace, which"
    ):
        read_state(tmp_path / "args.pth")
    for name in ("a.pth", "a.safetensors"):
        for data in (LFS, b"<html>", b"PK\x03\x04"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(
                ValueError, match=rf"{name} (cannot be read as a file of tensors|is not a safetensors file)"
            ):
                read_state(tmp_path / name)
    torch.save({"state_dict": {f"module.{n}": t for n, t in TENSORS.items()}}, tmp_path / "dp.pth")
    assert set(read_state(tmp_path / "dp.pth")) == set(TENSORS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model_type": "clip"', "config.json is damaged: it is no JSON"),
        (b"\xff\xfe", "config.json is damaged: it is no JSON"),
        (b"[" * 100_000, "config.json is damaged: it is no JSON (RecursionError"),
        (b"[1]", "config.json is no JSON object, but [1]"),
        (b"{}", ""),
    ],
)
def test_settings_that_cannot_be_read_are_found(tmp_path: Path, content: bytes, said: str) -> None:
    whole(tmp_path)
    (tmp_path / "trainer_state.json").write_bytes(b"no loader reads it")
    (tmp_path / "config.json").write_bytes(content)
    assert problem(tmp_path).startswith(said)
    assert bool(problem(tmp_path)) == bool(said)
