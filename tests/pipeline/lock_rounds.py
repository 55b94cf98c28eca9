"""Two runs wait for the workers of a run that was killed: do they ever both hold the root?

    python tests/pipeline/lock_rounds.py 50          # on a folder
    python tests/pipeline/lock_rounds.py 20 s3       # on a moto server

In each round a `vlpipe run` is killed; a process of it lives for another second; two more, which have started up already,
are let go at once. One must end well and the other must be refused (or find all done), and the root must verify.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from lock_toys import noted  # noqa: E402
from moto_s3 import serving  # noqa: E402

from vlpipe.pipeline.engine.locking.lock import holder_run, processes_of  # noqa: E402
from vlpipe.pipeline.engine.records.receipts import receipt_numbers  # noqa: E402
from vlpipe.pipeline.inspect.on_disk import step_folders  # noqa: E402
from vlpipe.pipeline.storage.store import Store  # noqa: E402

TEXT = """
name: rounds
steps:
  numbers: {{use: "toys:Numbers", num_rows: 40, shard_rows: 4}}
  noted: {{use: "lock_toys:Noted", from: numbers, file: {file}, seconds: {seconds}}}
  scale: {{use: "toys:Scale", from: noted, by: 3}}
"""
# A `vlpipe` that has done its imports and waits for a file to appear.
READY = """
import os, sys, time
from vlpipe.pipeline.cli import main
from vlpipe.pipeline.engine import local_executor, runner
import toys, lock_toys
go = sys.argv.pop(1)
print("ready", flush=True)
while not os.path.exists(go):
    time.sleep(0.001)
main.main()
"""


def vlpipe(*args: str, go: Path | None = None, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READY, str(go), *args] if go else ["vlpipe", *args]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **env},
    )


def killed_run(folder: Path, root: str) -> str:
    """Start a run, kill it amid its work; returns its id."""
    store, go = Store(root), folder / "first"
    go.touch()
    first = vlpipe("run", str(folder / "w.yaml"), "--local", "--root", root, go=go)
    while sum(len(receipt_numbers(store, f)) for f in step_folders(store)) < 12:
        assert first.poll() is None, first.stdout and first.stdout.read()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    return holder_run(store)


def one_round(folder: Path, root: str, linger_s: float = 1.0) -> tuple[str, list[str]]:
    """How it went ("well", or what is wrong), and the last lines that the two said."""
    notes = str(folder / "notes.txt")
    (folder / "w.yaml").write_text(TEXT.format(file=notes, seconds=0.05))
    dead = killed_run(folder, root)
    before = set(noted(notes))
    go = folder / "go"
    both = [vlpipe("run", str(folder / "w.yaml"), "--local", "--root", root, go=go) for _ in range(2)]
    for one in both:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    lingering = subprocess.Popen(["sleep", str(linger_s)], env={**os.environ, "VLPIPE_RUN": dead})
    while lingering.pid not in processes_of(
        dead
    ):  # /proc shows its environment some time after it has started
        assert lingering.poll() is None
    go.touch()
    lingering.wait()
    said = [one.communicate()[0] for one in both]
    last = [text.strip().splitlines()[-1] for text in said]
    codes = sorted(one.returncode for one in both)
    worked = set(noted(notes)) - before
    verify = vlpipe("verify", root)
    verdict = verify.communicate()[0]
    if len(worked) > 1:
        return "both held the root", last
    if verify.returncode or "all match their records" not in verdict:
        return f"the root does not verify: {verdict}", last
    refused = ["in use by another run" in " ".join(text.split()) for text in said]
    done = ["nothing to do" in text for text in said]
    if codes == [0, 1] and any(refused):
        return "well: one ran, one was refused", last
    if codes == [0, 0] and any(done):
        return "well: one ran, one found all done", last
    return f"ended with {codes}", said


def main(num_rounds: int, where: str) -> Counter[str]:
    how: Counter[str] = Counter()
    with serving() if where == "s3" else nullcontext() as server:
        for number in range(num_rounds):
            with tempfile.TemporaryDirectory() as folder:
                root = server.new_root() if server else f"{folder}/root"
                verdict, said = one_round(Path(folder), root)
            how[verdict] += 1
            print(
                f"{number + 1:3}  {verdict}" + ("" if verdict.startswith("well") else f"  {said}"), flush=True
            )
    return how


if __name__ == "__main__":
    found = main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "folder")
    print(dict(found))
    sys.exit(not all(how.startswith("well") for how in found))
