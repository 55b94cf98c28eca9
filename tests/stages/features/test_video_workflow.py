"""Videos to features to tokens as a workflow: in this process and on Ray."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from vlpipe.models.video.s3dg import S3dG

WORKFLOW = """
name: toy
steps:
  videos: {{use: "video_list:VideoList", videos: {videos}, copies: 3, shard_rows: 4}}
  features:
    use: "features.s3d:S3dFeatures"
    from: videos
    max_reject_rate: 0.4
    videos: {videos}
    weights: {weights}
    windows: {{fps: 10, frames: 4, stride: 4, side: 32}}
  fit: {{use: "features.video_tokens:FitVideoTokens", from: features, k: 3, levels: 2}}
  tokens: {{use: "features.video_tokens:VideoTokens", from: features, tree: {{from: fit, path: tree}}}}
"""


def files(root: Path) -> dict[str, str]:
    """Digests of all rows, rejects and artifacts."""
    found = [p for p in root.rglob("*") if p.suffix in (".parquet", ".npy") and "_shards" not in p.name]
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in found
        if not p.is_relative_to(root / "_work")
    }


def run(root: Path, workflow: Path, *more: str) -> dict[str, str]:
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        str(workflow),
        "--root",
        str(root),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return files(root)


@pytest.fixture
def workflow(tmp_path: Path, videos: Path) -> Path:
    torch.manual_seed(0)
    torch.save(S3dG(num_words=0).state_dict(), tmp_path / "s3d_howto100m.pth")
    file = tmp_path / "toy.yaml"
    file.write_text(WORKFLOW.format(videos=videos, weights=tmp_path / "s3d_howto100m.pth"))
    return file


@pytest.mark.slow
def test_ray_and_local_leave_the_same_bytes(tmp_path: Path, workflow: Path) -> None:
    local = run(tmp_path / "local", workflow, "--local")
    assert sum("features-" in name and "_rejects" not in name for name in local) == 3
    assert any(name.endswith("tree/centroids-1.npy") for name in local)
    shard = next((tmp_path / "local").glob("features-*/000000.parquet"))
    told = json.loads(pq.read_schema(shard).field("s3d").metadata[b"windows"])
    assert (told["fps"], told["frames"], told["stride"]) == (10, 4, 4)
    weights = hashlib.sha256((tmp_path / "s3d_howto100m.pth").read_bytes()).hexdigest()
    assert set(pq.read_table(shard)["s3d_weights"].to_pylist()) == {f"{weights}:unit"}
    assert run(tmp_path / "ray", workflow) == local
