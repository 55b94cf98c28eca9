"""workflows/curate.yaml on real alt-texts: rows kept, every reason counted, and 50 rejected rows that were read by hand.

    git worktree add ../before 3b6f513                          # the code of 2026-11-21
    python benchmarks/curate.py --before ../before              # about 2 minutes on 2 cores
    python benchmarks/curate.py --before ../before --write      # and puts the page into curate.md beside this file

The list: the 5,000 photos of Flickr8k in the order of their names, over the built-in server, each with the alt-text of
the same row of LAION's list (`alttext/laion_10000.parquet`): so a text does not describe its photo, which no rule of
curate.yaml looks at. The photos have 160 x 160 pixels, and DataComp wants 200: `min_side` is left out, the one thing set
otherwise than in the file.

The 50 rows are drawn from the rejected ones, sorted by their row in the list, with seed 0. curate_read.tsv has their
verdicts, by row of LAION's list: a draw that needs another row says so. No text is stored there; the page quotes the
first characters.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from record import machine, machine_line, table

HERE = Path(__file__).parent
NUM_READ, SHOWN_CHARS = 50, 24


class Rejected(NamedTuple):
    """row: in the list; reason: the rule by which its text went, or the code; detail: with the value."""

    row: int
    reason: str
    detail: str


def listed(folder: Path, data: Path) -> list[str]:
    """Writes the list; returns its texts."""
    photos = sorted(path.name for path in (data / "flickr8k" / "images").glob("*.jpg"))
    texts = pq.read_table(data / "alttext" / "laion_10000.parquet")["TEXT"].to_pylist()[: len(photos)]
    urls = [f"http://flickr.test/{name}" for name in photos]
    pq.write_table(pa.table({"url": urls, "text": texts}), folder / "pairs.parquet")
    return texts


def run(folder: Path, data: Path, checkout: Path | None) -> list[Rejected]:
    """Runs the workflow of a checkout (None: of this one); returns the rejected rows by their place in the list."""
    root = folder / ("after" if checkout is None else "before")
    program = "vlpipe.pipeline.cli.main" if checkout is None else "vlpipe.pipeline.cli"
    home = HERE.parent if checkout is None else checkout
    command = [sys.executable, "-m", program, "run", str(home / "workflows" / "curate.yaml"), "--local"]
    for setting in (
        f"images.list={folder / 'pairs.parquet'}",
        f"images.serve={{flickr.test: {data / 'flickr8k' / 'images'}}}",
        "judged.skip=[language, min_side]",
    ):
        command += ["--set", setting]
    env = {**os.environ, "PYTHONPATH": str(home / ".src")}
    subprocess.run([*command, "--root", str(root)], env=env, check=True, stdout=subprocess.DEVNULL)
    urls = pq.read_table(folder / "pairs.parquet")["url"].to_pylist()
    rows = {url: n for n, url in enumerate(urls)}
    fetched = pa.concat_tables(pq.read_table(path, columns=["id", "url"]) for path in shards(root, "images"))
    row_of = {one["id"]: rows[one["url"]] for one in fetched.to_pylist()}
    found = []
    for path in sorted(root.glob("*/_rejects/*.parquet")):
        for one in pq.read_table(path).to_pylist():
            rule = re.match(r"web: (\w+) \((.*)\)$", one["detail"] or "")
            found.append(
                Rejected(row_of[one["id"]], *(rule.groups() if rule else (one["why"], one["detail"] or "")))
            )
    return sorted(found)


def shards(root: Path, step: str) -> list[Path]:
    return sorted(root.glob(f"{step}-*/[0-9]*.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="a checkout of 3b6f513")
    parser.add_argument("--write", action="store_true", help="write curate.md")
    options = parser.parse_args()
    data = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data").resolve()
    if not all((data / name).is_dir() for name in ("alttext", "flickr8k")):
        print("skipped: no alttext and flickr8k in VLPIPE_DATA or ../shared/data")
        return
    at = machine()
    with tempfile.TemporaryDirectory() as name:
        texts = listed(Path(name), data)
        before, after = (run(Path(name), data, checkout) for checkout in (options.before.resolve(), None))
    page = markdown(at, texts, before, after)
    print(page)
    if options.write:
        (HERE / "curate.md").write_text(page)


def markdown(at: dict[str, object], texts: list[str], before: list[Rejected], after: list[Rejected]) -> str:
    reasons = {one.reason for one in (*before, *after)}
    counts = [Counter(one.reason for one in each) for each in (before, after)]
    rows = [["kept", *(f"{len(texts) - len(each):,}" for each in (before, after))]]
    rows += [
        [reason, *(f"{count[reason]:,}" for count in counts)]
        for reason in sorted(reasons, key=lambda reason: -counts[0][reason])
    ]
    lines = [line.split("\t") for line in (HERE / "curate_read.tsv").read_text().splitlines()]
    verdicts = {int(row): verdict for row, verdict in lines}
    read = sorted(random.Random(0).sample(after, NUM_READ))
    judged = Counter((one.reason, verdicts.get(one.row, "not read")) for one in read)
    parts = [
        "# `workflows/curate.yaml` on real alt-texts",
        f"Written by `python benchmarks/curate.py --before ../before --write`. {machine_line(at)}",
        f"{len(texts):,} rows: the photos of Flickr8k, each with an alt-text of LAION's list; `min_side` is left out, as "
        "the photos are 160 pixels wide. Before: 3b6f513 of 2026-11-21, where py3langid chose among all its 142 languages.",
        table(["rows", "before", "after"], rows),
        "`english` and `too_few_words` are the rules by which the only text of a row went (`no_text_kept`).",
        f"{NUM_READ} of the {len(after)} rejected rows, drawn with seed 0 and read by hand:",
        table(
            ["rule, verdict", "rows"],
            [[f"{rule}: {verdict}", n] for (rule, verdict), n in sorted(judged.items())],
        ),
        "The rows, by their place in LAION's list, with the beginning of the text:",
        "| row | text | rule and value | verdict |\n| ---: | --- | --- | --- |\n"
        + "\n".join(
            f"| {one.row} | {shown(texts[one.row])} | {one.reason}: {one.detail.partition(',')[0]} "
            f"| {verdicts.get(one.row, 'not read')} |"
            for one in read
        ),
    ]
    return "\n\n".join(parts) + "\n"


def shown(text: str) -> str:
    cut = text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "\u2026"
    return re.sub(r"([|_*`<\[])", r"\\\1", cut)


if __name__ == "__main__":
    main()
