"""python tests/stages/endpoint/kill_rounds.py FOLDER ROUNDS [--ray] [--worker]: kills a run with SIGKILL after some answers,
again and again, and proves by the server's log that nothing stored is asked again.

Before each run, what the root has stored is read. A question whose answer is among that must not reach the server in the
run. Asked twice at most: what was under way when the run was killed, and the answers that came within the second before.
Prints the figures of each round; exit code 1 if the promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from vlpipe.pipeline.engine.records.answers import (  # noqa: E402
    answers_in,
    number_of,
    part_names,
    read_part,
    segments,
)
from vlpipe.pipeline.storage.store import Store  # noqa: E402
from vlpipe.stages.chat_server.server import Running  # noqa: E402
from vlpipe.stages.chat_server.settings import Settings  # noqa: E402

KEY = "sk-do-not-store-me-4711"
SLOTS = 16
WORKFLOW = """
name: kill
steps:
  pictures: {{use: "picture_toys:Pictures", num: {num}, shard_rows: {shard_rows}}}
  captions:
    use: "caption.endpoint:CaptionEndpoint"
    from: pictures
    base_url: {url}
    model: demo
    prompt: "Describe it. Alt-text: {{alt_text}}"
    api_key_env: DEMO_KEY
    concurrency: 16
    give_up_s: 5
"""


def stored(root: Path) -> set[str]:
    """Returns the digests of the images about which the root has answers: in files, and in segments that a kill left."""
    store = Store(str(root))
    found = {one.sha256 for name in part_names(store) for one in read_part(store, number_of(name)).values()}
    for paths in segments(store).values():
        found |= {one.sha256 for path in paths for one in answers_in(store.read_bytes(path))}
    return {one for one in found if one}


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_bytes().splitlines()]


def start(folder: Path, *, ray: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(folder / "w.yaml")]
    command += ["--root", str(folder / "root"), *([] if ray else ["--local"])]
    env = {**os.environ, "DEMO_KEY": KEY, "PYTHONPATH": str(HERE)}
    out = (folder / "out.txt").open("ab")
    return subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)


def workers(driver: int) -> list[int]:
    """Returns the processes of Ray's workers that compute the captions of this driver's run."""
    found = []
    for line in subprocess.run(
        ["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[1:]:
        pid, _, rest = line.strip().partition(" ")
        if "ray::" in rest and "run" in rest and rest.split()[0] == str(os.getsid(driver)):
            found.append(int(pid))
    return found


def rounds(folder: Path, num: int, *, ray: bool, worker: bool, seed: int, rows: int = 400) -> list[str]:
    """Runs `num` times until a kill, and then to the end; returns what is wrong."""
    rng, wrong, log = random.Random(seed), [], folder / "server.log"
    with (
        log.open("ab", buffering=0) as file,
        Running(Settings(latency_s=0.05, slots=SLOTS, key=KEY), log=file) as server,
    ):
        (folder / "w.yaml").write_text(WORKFLOW.format(url=server.url, num=rows, shard_rows=rows // 4))
        num_lines = allowed = 0
        for number in range(num + 1):
            before, is_last = stored(folder / "root"), number == num
            answers = server.server.num_answers
            kill_at = answers + rng.randrange(10, max(11, (rows - len(before)) // 2))
            run = start(folder, ray=ray)
            while run.poll() is None:
                if not is_last and server.server.num_answers >= kill_at:
                    victims = (workers(run.pid) if worker else []) or [run.pid]
                    for pid in victims:
                        os.kill(pid, signal.SIGKILL)
                    if worker and victims != [run.pid]:
                        kill_at = rows * 100  # the driver starts the shard again by itself
                    break_now = victims == [run.pid]
                    if break_now:
                        break
                time.sleep(0.005)
            killed_at = time.time()
            code = run.wait()
            time.sleep(0.3)  # what is under way reaches the server
            lines = lines_of(log)
            new, num_lines = lines[num_lines:], len(lines)
            asked = [one["image"] for one in new if one["what"] == "asked"]
            again = sorted(set(asked) & before)
            late = sum(one["what"] == "answered" and one["at"] > killed_at - 1 for one in new)
            allowed += 0 if is_last else SLOTS + late
            print(
                f"round {number}: exit {code}, stored before {len(before)}, asked {len(asked)}, of those stored {len(again)}"
            )
            if again:
                wrong.append(f"round {number}: {len(again)} stored answers were asked again")
        if code:
            wrong.append(f"the last run ended with {code}: {(folder / 'out.txt').read_text()[-2000:]}")
    every = [one["image"] for one in lines_of(log) if one["what"] == "asked"]
    twice = len(every) - len(set(every))
    print(f"{len(set(every))} questions, {len(every)} requests: {twice} more, of {allowed} allowed")
    if twice > allowed:
        wrong.append(f"{twice} requests more than questions, {allowed} allowed")
    if len(set(every)) != rows:
        wrong.append(f"{len(set(every))} questions were asked, not {rows}")
    if len(stored(folder / "root")) != rows:
        wrong.append(f"{len(stored(folder / 'root'))} answers are stored, not {rows}")
    return wrong + accounted(folder / "root", rows) + secrets(folder)


def accounted(root: Path, rows: int) -> list[str]:
    """Returns what is wrong with the rows of the captions."""
    import pyarrow.parquet as pq

    (step,) = root.glob("captions-*")
    table = [
        row
        for path in sorted(step.glob("*.parquet"))
        if path.name[0] != "_"
        for row in pq.read_table(path).to_pylist()
    ]
    good = sum(len(row["texts"]) == 2 and row["texts"][1]["why"] is None for row in table)
    wrong = (
        []
        if len({row["id"] for row in table}) == rows == good
        else [f"{len(table)} rows, {good} with a caption"]
    )
    open_ = [*(root / "answers" / "_open").glob("*")]
    return wrong + ([f"segments are left: {open_}"] if open_ else [])


def secrets(folder: Path) -> list[str]:
    """Returns the files that hold the key, the server's log and settings excluded."""
    return [
        f"{path} holds the key"
        for path in folder.rglob("*")
        if path.is_file() and KEY.encode() in path.read_bytes()
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=400)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    wrong = rounds(args.folder, args.rounds, ray=args.ray, worker=args.worker, seed=args.seed, rows=args.rows)
    for one in wrong:
        print(one)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
