from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import rows, run

from vlpipe.pipeline.engine.worker.guard import is_nobodys, is_out_of_memory
from vlpipe.pipeline.errors import StepFailed

TEXT = """
steps:
  a: {use: "toys:Numbers", num_rows: 20, shard_rows: 10}
  b: {use: "memory_toys:NeedsMemory", from: a, kind: KIND}
"""
WORDS = {"device": r"OutOfMemoryError: CUDA out of memory", "host": r"RuntimeError: .*DefaultCPUAllocator"}


@pytest.mark.parametrize(
    "isolated",
    [
        pytest.param(False, id="here"),
        pytest.param(True, id="in its own process", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["device", "host"])
def test_no_row_is_rejected_and_the_run_continues_with_less(
    tmp_path: Path, kind: str, isolated: bool
) -> None:
    text = TEXT.replace("KIND", kind)
    text = text.replace("kind:", "row_group_timeout_s: 60, kind:") if isolated else text
    with pytest.raises(StepFailed, match=rf"(?s)step 'b'.*{WORDS[kind]}") as failed:
        run(tmp_path, text)
    assert isolated or "no row was rejected for it" in str(failed.value)
    folders = list((tmp_path / "root").glob("b-*"))
    assert len(folders) == 1
    assert not list(folders[0].glob("_rejects/*"))
    assert not list(folders[0].glob("_receipts/*"))
    done = run(tmp_path, text, ("b.most=100",))
    assert rows(tmp_path, done["b"]).num_rows == 20


def test_a_row_that_alone_is_too_much_is_not_rejected_either(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="out of memory"):
        run(tmp_path, TEXT.replace("KIND", "device"), ("b.most=100", "b.never=3"))
    assert not list((tmp_path / "root").glob("b-*/_rejects/*"))


def test_what_counts_as_the_machines_fault() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_nobodys(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    assert is_nobodys(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_nobodys(RuntimeError("shape '[3]' is invalid for input of size 4"))
    assert not is_nobodys(ValueError("DefaultCPUAllocator: words of a row"))
