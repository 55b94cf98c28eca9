"""The dataset card of an export: what it holds, counted while it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import yaml

NUM_HOSTS = 20  # in the card
MAX_HOSTS = 200_000  # counted at once; about 30 MB
SIZES = (  # of the Hub: https://huggingface.co/docs/hub/datasets-cards
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)


@dataclass
class Counts:
    """Counts over written rows: texts by source, images by format, rows by host. others: rows of hosts that were let go."""

    num_rows: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    others: int = 0

    def row(self, host: str, sources: Sequence[str], format: str) -> None:
        """Counts one row."""
        self.num_rows += 1
        self.texts.update(sources)
        self.formats[format] += 1
        self.hosts[host] += 1

    def as_json(self) -> dict[str, Any]:
        """Returns what `add` takes."""
        counters = {name: dict(getattr(self, name)) for name in ("texts", "formats", "hosts")}
        return {"num_rows": self.num_rows, "others": self.others, **counters}

    def add(self, other: Mapping[str, Any]) -> None:
        """Adds the counts of a part, given as JSON. If there are more than MAX_HOSTS hosts, the rarest half is let go."""
        self.num_rows += other["num_rows"]
        self.others += other["others"]
        self.texts.update(other["texts"])
        self.formats.update(other["formats"])
        self.hosts.update(other["hosts"])
        if len(self.hosts) > MAX_HOSTS:
            kept = Counter(dict(self.hosts.most_common(MAX_HOSTS // 2)))
            self.others += self.hosts.total() - kept.total()
            self.hosts = kept


def host(url: str | None) -> str:
    """Returns the host of a URL without `www.`; `no host` for a file."""
    try:
        found = urlsplit(url or "").hostname
    except ValueError:
        found = None
    return found.removeprefix("www.") if found else "no host"


def card(
    counts: Counts,
    earlier: Mapping[str, int],
    *,
    split: str,
    title: str,
    description: str,
    license: str,
    language: Sequence[str],
    limits: Sequence[str],
) -> str:
    """Returns README.md of a dataset folder. earlier: step -> its number of rows."""
    head: dict[str, Any] = {
        "pretty_name": title,
        "task_categories": ["image-to-text", "text-to-image"],
        "size_categories": [next((name for most, name in SIZES if counts.num_rows < most), "n>1B")],
        "configs": [{"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*"}]}],
    }
    head |= {"license": license} if license else {}
    head |= {"language": list(language)} if language else {}
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {_line(title)}",
        *([description.strip()] if description.strip() else []),
        f"{counts.num_rows:,} images with {counts.texts.total():,} texts.",
        "## How it was made\n\nWritten by vlpipe." + (_earlier(earlier, counts) if earlier else ""),
        "## Texts\n\n" + _table(("source", "texts", "share"), counts.texts, counts.texts.total()),
        "`web`: written beside the image on the web. `synth`: made by a captioning model. `human`: written for the image.",
        "## Where the images are from\n\n" + _hosts(counts),
        "Images by format:\n\n" + _table(("format", "images", "share"), counts.formats, counts.num_rows),
        "## Rights\n\n" + _rights(license),
    ]
    if limits:
        parts.append("## Known limits\n\n" + "\n".join(f"- {_line(one)}" for one in limits))
    return "\n\n".join(parts) + "\n"


def _earlier(earlier: Mapping[str, int], counts: Counts) -> str:
    rows = [f"| {_cell(name)} | {num:,} |" for name, num in earlier.items()]
    return "\n\n| step | rows |\n|---|---|\n" + "\n".join([*rows, f"| this dataset | {counts.num_rows:,} |"])


def _hosts(counts: Counts) -> str:
    """Returns the table of the commonest hosts. Ties are in the order of their names."""
    common = sorted(counts.hosts.items(), key=lambda item: (-item[1], item[0]))[:NUM_HOSTS]
    text = _table(("host", "images", "share"), dict(common), counts.num_rows)
    num_others = counts.num_rows - sum(num for _, num in common)
    if num_others:
        hosts = f"{len(counts.hosts) - len(common):,}" + (" or more" if counts.others else "")
        text += f"\n\n{num_others:,} images are from {hosts} other hosts."
    if counts.others:
        text += " Counts of hosts are lower bounds."
    return text


def _table(header: Sequence[str], counts: Mapping[str, int], total: int) -> str:
    lines = [
        f"| {_cell(name)} | {num:,} | {num / total:.1%} |"
        for name, num in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return "\n".join(["| " + " | ".join(header) + " |", "|---|---|---|", *lines])


def _rights(license: str) -> str:
    of_set = f"The collection is published under {_line(license)}. " if license else ""
    return (
        f"{of_set}Images and web texts belong to their authors. Rows that `vlpipe forget` removed, by their authors' wish, "
        "are not in this version."
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Returns a text as a cell of a Markdown table: hosts come from URLs, which may hold anything."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    for sign in "\\|`*_<>[]":
        plain = plain.replace(sign, "\\" + sign)
    return plain
