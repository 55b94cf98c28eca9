"""Training of a small model with as many threads as cores, alone and beside a busy process, by how OpenMP's threads wait.

    python benchmarks/thread_wait.py            # two minutes on 2 cores; needs a machine that does nothing else
    python benchmarks/thread_wait.py --write    # and puts the page into thread_wait.md beside this file

Each measurement is a process of its own; the ways are measured in turn, and the page has their medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from record import machine, machine_line, table

HERE = Path(__file__).parent
ROUNDS = 3
SECONDS = 4.0
WAYS: dict[str, dict[str, str]] = {
    "the library's own": {},
    "GOMP_SPINCOUNT=1000 (vlpipe's)": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
TRAIN = f"""
import os, time, torch
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
optimiser, x = torch.optim.AdamW(model.parameters()), torch.randn(64, 17, 128)
def step():
    optimiser.zero_grad()
    model(x).square().mean().backward()
    optimiser.step()
step()
began, steps = time.monotonic(), 0
while time.monotonic() - began < {SECONDS}:
    step()
    steps += 1
print(steps / (time.monotonic() - began))
"""


def steps_per_second(way: dict[str, str], busy: int) -> float:
    """Of a process that trains beside `busy` processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        done = subprocess.run(
            [sys.executable, "-c", TRAIN], env=env | way, capture_output=True, text=True, check=True
        )
        return float(done.stdout)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write thread_wait.md")
    options = parser.parse_args()
    at = machine()
    seen: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for busy in (0, 1):
            for name, way in WAYS.items():
                seen.setdefault((name, busy), []).append(steps_per_second(way, busy))
    first = next(iter(WAYS))
    base = {busy: statistics.median(seen[first, busy]) for busy in (0, 1)}
    rows = []
    for name in WAYS:
        alone, beside = (statistics.median(seen[name, busy]) for busy in (0, 1))
        rows.append(
            (name, f"{alone:.1f}", f"{alone / base[0]:.2f}", f"{beside:.1f}", f"{beside / base[1]:.2f}")
        )
    header = ("how threads wait", "steps/s alone", "ratio", "steps/s beside a busy process", "ratio")
    text = (__doc__ or "").strip()
    page = "\n".join(["# How threads wait\n", text, "", machine_line(at), "", table(header, rows), ""])
    print(page)
    if options.write:
        (HERE / "thread_wait.md").write_text(page)


if __name__ == "__main__":
    main()
