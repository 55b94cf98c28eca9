"""Ids of models on the hub: what they mean in a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlpipe.pipeline.engine.records import keys
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.hf_hub import hub_commit
from vlpipe.pipeline.storage.store import Store

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub's client, with one model in two revisions; the hub itself cannot be asked."""
    model = tmp_path / "hub" / "models--org--name"
    (model / "refs").mkdir(parents=True)
    for ref, commit in COMMITS.items():
        (model / "refs" / ref).write_text(commit)
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "snapshots" / commit / "text.txt").write_text(ref)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return model


def test_a_hub_id_is_the_commit_it_means(hub: Path) -> None:
    assert hub_commit("org/name") == COMMITS["main"]
    assert hub_commit("org/name@v2") == COMMITS["v2"]
    assert hub_commit(f"org/name@{'c' * 40}") == "c" * 40
    assert hub_commit("org/other", remembered="d" * 40) == "d" * 40
    with pytest.raises(
        VlpipeError, match=r"x: there is no file or folder 'chekpoints/blip' .* write a path that exists"
    ):
        hub_commit("chekpoints/blip", "x: ")
    with pytest.raises(VlpipeError, match=r"there is no file or folder '\./blip'"):
        hub_commit("./blip")
    digests = keys.FileDigests(Store(str(hub.parent / "root")))
    assert digests.of_hub("org/name") == f"hub:org/name@{COMMITS['main']}"
