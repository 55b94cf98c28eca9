"""A cluster of two nodes that share little: code and files reach both, and a root that only one sees stops the run at once.

The second node runs in a mount namespace of its own, in which folders of the first are hidden.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_clusters import BIN, free_ports, ray_head

import vlpipe  # type: ignore[import-untyped, unused-ignore]

STAGE = '''
"""A user's own stage, beside the YAML."""
import os, time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import pyarrow as pa
from vlpipe.pipeline.shard import with_field
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.stage import MapStage, SourceStage
from words import upper

@dataclass(frozen=True, kw_only=True)
class Listed(SourceStage):
    list: ListFile

    def row_schema(self):
        return pa.schema([("id", pa.string())])

    def rows(self):
        yield pa.table({"id": Path(self.list.path).read_text().split()})

    def schema(self, inp):
        return with_field(inp, pa.field("sees_driver", pa.bool_()))

    @contextmanager
    def open(self):
        def work(table):
            time.sleep(0.3)
            return table.append_column("sees_driver", pa.array([os.path.exists("DRIVER/w.yaml")] * table.num_rows))
        yield work

@dataclass(frozen=True, kw_only=True)
class Said(MapStage):
    vocab: File
    LOADS_WEIGHTS = True

    def schema(self, inp):
        return with_field(inp, pa.field("word", pa.string()))

    @contextmanager
    def open(self):
        word = upper(Path(self.vocab.path).read_text().strip())
        yield lambda t: t.append_column("word", pa.array([word] * t.num_rows))
'''
WORKFLOW = """
name: lab
steps:
  listed: {use: "lab:Listed", list: ids.txt, shard_rows: 1}
  said: {use: "lab:Said", from: listed, vocab: ./lists/vocab.txt}
"""

needs_unshare = pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0
    if Path("/usr/bin/unshare").exists()
    else True,
    reason="hiding folders from a node needs `unshare -m`, which needs root",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `vlpipe` is called: a workflow, a stage, the module it imports, the files it reads."""
    at = tmp_path_factory.mktemp("nodes") / "driver"
    (at / "lists").mkdir(parents=True)
    (at / "lab.py").write_text(STAGE.replace("DRIVER", str(at)))
    (at / "words.py").write_text("def upper(text):\n    return text.upper()\n")
    (at / "lists" / "vocab.txt").write_text("meant\n")
    (at / "ids.txt").write_text(" ".join(f"id{n}" for n in range(12)))
    (at / ".gitignore").write_text("lists\nids.txt\n")
    (at / "w.yaml").write_text(WORKFLOW)
    return at


@contextmanager
def two_nodes(hidden: Sequence[str | Path]) -> Iterator[str]:
    """The address of a cluster with one CPU here and one where `hidden` are empty folders; started in other folders."""
    (port,) = free_ports(1)
    options = ["--num-cpus", "1", "--object-store-memory", "80000000"]
    other = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
    other += ["--address", f"127.0.0.1:{port}"]
    mounts = "; ".join(f"mount -t tmpfs none {shlex.quote(str(path))}" for path in hidden)
    second = ["unshare", "-m", "bash", "-ec", f"{mounts}; cd /; exec {shlex.join(other)}"]
    env = {**os.environ, "PYTHONPATH": "", "RAY_AUTH_MODE": "disabled"}
    with ray_head(port, *options, "--include-dashboard", "false", env=env, cwd="/"):
        process = subprocess.Popen(second, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_nodes(port, 2, env)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for_nodes(port: int, num: int, env: dict[str, str]) -> None:
    code = (
        "import sys, time\nfrom ray._raylet import GcsClient\n"
        f"gcs = GcsClient(address='127.0.0.1:{port}')\n"
        f"for _ in range(600):\n    len(gcs.get_all_node_info()) >= {num} and sys.exit(0)\n    time.sleep(0.1)\n"
        "sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=120).returncode == 0


def vlpipe_run(folder: Path, root: Path, address: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "vlpipe"), "run", "w.yaml", "--root", str(root), "--address", address]
    env = {
        name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"
    }  # of a test before, by Ray
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def hidden_code(folder: Path) -> list[str | Path]:
    """The user's folder, and vlpipe itself."""
    return [folder, *vlpipe.__path__]


def read(root: Path, step: str) -> pa.Table:
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted(root.glob(f"{step}-*/*.parquet")) if path.name[0] != "_"]
    )


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a cluster whose second node sees neither code nor `unseen` beside the driver's folder."""
    unseen = folder.parent / "unseen"
    unseen.mkdir()
    with two_nodes([*hidden_code(folder), unseen]) as found:
        yield found


@needs_unshare
@pytest.mark.slow
def test_code_and_files_of_the_driver_reach_a_node_that_does_not_see_them(
    folder: Path, tmp_path: Path, address: str
) -> None:
    root = tmp_path / "root"
    done = vlpipe_run(folder, root, address)
    assert done.returncode == 0, done.stderr
    rows = read(root, "said")
    assert rows["id"].to_pylist() == [f"id{n}" for n in range(12)]
    assert rows["word"].to_pylist() == ["MEANT"] * 12
    assert set(rows["sees_driver"].to_pylist()) == {True, False}  # both nodes worked


@needs_unshare
@pytest.mark.slow
def test_a_root_that_a_node_does_not_see_is_said_before_any_work(folder: Path, address: str) -> None:
    root = folder.parent / "unseen"
    done = vlpipe_run(folder, root, address)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "does not see the root" in said
    assert "a root must lie where every node sees it" in said
    assert "Traceback" not in said
    assert not list(root.glob("listed*"))
