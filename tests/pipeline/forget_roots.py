"""A finished root of twenty pages that a test may forget in, and what lies in it."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs
from forget_toys import CHAIN

from vlpipe.pipeline.engine.records.receipts import read_receipts
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.store import Store


class Forgets(Runs):
    """20 pages; `list` is the file that says how many."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.list = folder / "num.txt"
        self.list.write_text("20")
        super().__init__(folder, CHAIN.replace("LIST", str(self.list)))

    def forget(self, *lines: str, yes: bool = True) -> list[str]:
        entries = self.folder / "entries.txt"
        entries.write_text("\n".join(lines))
        return self("forget", entries, *(["--yes"] if yes else []))


def traces(root: Path, *needles: str) -> list[str]:
    """Files below the root that hold one of these texts, in a Parquet cell or anywhere else."""
    found = []
    for path in (p for p in root.rglob("*") if p.is_file()):
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        found += [f"{path.relative_to(root)}: {n}" for n in needles if n in text]
    return found


def rows(step: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(step.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]


def shards(root: Path) -> dict[str, tuple[Shard, str, str]]:
    """Key, digest and rows of every shard."""
    store = Store(str(root))
    steps = [p.name for p in root.iterdir() if (p / "manifest.json").exists()]
    return {
        r.shard.path: (r.shard, r.input_digest, r.artifacts_digest)
        for s in steps
        for r in read_receipts(store, s)
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = Forgets(tmp_path_factory.mktemp("done"))
    runs("run", "--local")
    return runs.root


@pytest.fixture
def runs(tmp_path: Path, done: Path) -> Forgets:
    """A root in which all is done."""
    runs = Forgets(tmp_path)
    shutil.copytree(done, runs.root)
    return runs
