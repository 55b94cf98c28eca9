"""20,000 images, 198 of them corrupt: 19,802 rows, 198 named rejects, exit 0. (Peers: 0 rows and exit 0, or an abort.)"""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

NUM, BAD = 20_000, frozenset(range(37, 20_000, 101))  # 198 of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captions file and 20,000 small JPEGs; the bad ones end in the middle."""
    root = tmp_path_factory.mktemp("many")
    (root / "images").mkdir()
    whole = []
    for k in range(50):
        buffer = io.BytesIO()
        Image.linear_gradient("L").rotate(7 * k).resize((40, 40)).convert("RGB").save(buffer, "JPEG")
        whole.append(buffer.getvalue())
    for n in range(NUM):
        data = whole[n % 50]
        (root / "images" / f"{n:05d}.jpg").write_bytes(data[: len(data) // 2] if n in BAD else data)
    images = [{"id": n, "file_name": f"{n:05d}.jpg"} for n in range(NUM)]
    annotations = [{"id": n, "image_id": n, "caption": f"picture {n}"} for n in range(NUM)]
    (root / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


def vlpipe(folder: Path, rate: str) -> tuple[int, str]:
    file = folder / "w.yaml"
    file.write_text(
        f'steps:\n  images: {{use: "lists.coco:CocoCaptions", annotations: {folder}/captions.json, '
        f"images: {folder}/images, shard_rows: 5000, max_reject_rate: {rate}}}\n"
    )
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(file), "--local", "--root"]
    done = subprocess.run(
        [*command, str(folder / f"root{rate}")], capture_output=True, text=True, check=False
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_every_bad_row_is_named_and_every_good_one_is_there(folder: Path) -> None:
    assert len(BAD) == 198
    code, said = vlpipe(folder, "0.05")
    assert code == 0, said
    (step,) = (folder / "root0.05").glob("images-*")
    names = [
        n
        for k in range(4)
        for n in pq.read_table(step / f"{k:06d}.parquet", columns=["url"])["url"].to_pylist()
    ]
    assert names == [f"{n:05d}.jpg" for n in range(NUM) if n not in BAD]
    rejects = [r for k in range(4) for r in pq.read_table(step / f"_rejects/{k:06d}.parquet").to_pylist()]
    assert len(rejects) == 198
    assert {(r["kind"], r["why"]) for r in rejects} == {("fault", "truncated")}


@pytest.mark.slow
def test_above_the_rate_the_step_fails_and_names_the_worst_reasons(folder: Path) -> None:
    code, said = vlpipe(folder, "0.005")
    assert code == 1
    assert "rows failed, more than max_reject_rate 0.005 allows; most frequent reasons: truncated x" in said
