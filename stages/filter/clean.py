"""Cleans web alt-text: repairs the encoding, removes HTML entities, tags, line breaks and invisible characters.

The steps are repeated until nothing changes (COYO-700M has `&amp;#39;`), so cleaning is idempotent.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.shard import Out, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.texts import FlatTexts, normalized

MAX_ROUNDS = 10  # a text that still changes after these is adversarial; real texts need 1 to 3
RAW = "alt_raw"
EMPTY = "empty"

AMPS = re.compile(r"&(?:amp;)+(?=#?\w+;)", re.IGNORECASE)  # an ampersand escaped any number of times
HUGE_CODES = re.compile(r"&#(?:\d{8,}|x[0-9a-f]{8,});?", re.IGNORECASE)  # beyond the highest code point
SCRIPT_BEGINS = re.compile(r"<(script|style)\b[^<>]*>", re.IGNORECASE)
SCRIPT_ENDS = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in ("script", "style")}
# Tags inside a line of text, which separate no words: `<b>music</b>, m<sup>2</sup>`. After a `<` one is left to TAGS, as
# what is left of `<<b>b>` would be a tag again.
INLINE = re.compile(
    r"(?<!<)</?(?:a|abbr|acronym|b|bdi|bdo|big|cite|code|del|dfn|em|font|i|ins|kbd|mark|nobr|q|s|samp|small|span|strike"
    r"|strong|sub|sup|tt|u|var|wbr)(?=[\s/>])[^<>]*>",
    re.IGNORECASE,
)
TAGS = re.compile(r"<(?!person>)[a-z/!?][^<>]*>", re.IGNORECASE)  # CC12M writes <PERSON> for names


@dataclass(frozen=True, kw_only=True)
class CleanTexts(MapStage):
    """Cleans the texts of `sources`. `alt_raw` stores the original of each changed text, null for unchanged ones.

    Order: entities, tags, ftfy (mojibake, curly quotes, ligatures, NFC), control and format characters (bidi marks and
    zero-width characters, so joined emoji are split), spaces, truncation to `max_chars` (2,000 as in LAION). An empty
    result is stored with kept=False, why='empty'. Counts: `cleaned`, the number of changed texts. Fault: endless_markup
    (a text still changes after 10 rounds).
    """

    sources: tuple[str, ...] = ("web",)
    max_chars: Annotated[int, Field(ge=1)] = 2000

    NAME: ClassVar[str] = "filter.clean:CleanTexts"
    VERSION: ClassVar[int] = 3  # 3: tags inside a line leave no space

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.clean", id=pa.string(), texts=TEXTS)
        if RAW in inp.names:
            need(inp, "filter.clean", **{RAW: pa.list_(pa.string())})
        return with_field(inp, pa.field(RAW, pa.list_(pa.string())))

    @contextmanager
    def open(self) -> Iterator[Work]:
        fix = repairer()
        yield lambda rows: self._clean(rows, fix)

    def _clean(self, rows: pa.Table, fix: Callable[[str], str]) -> Out:
        texts = FlatTexts(rows["texts"])
        before = texts.field("text").to_pylist()
        ours = [source in self.sources for source in texts.field("source").to_pylist()]
        after = [
            clean(t, fix, self.max_chars) if mine and t else t for t, mine in zip(before, ours, strict=True)
        ]
        changed = [a != b for a, b in zip(after, before, strict=True)]
        raw = [b if c else None for b, c in zip(before, changed, strict=True)]
        if RAW in rows.column_names:  # cleaned before: keep the first original
            earlier = texts.aligned(RAW, rows[RAW]).to_pylist()
            raw = [e if e is not None else r for e, r in zip(earlier, raw, strict=True)]
        rows = texts.replace(rows, text=pa.array(after, pa.string()))
        emptied = [EMPTY if mine and not a else None for a, mine in zip(after, ours, strict=True)]
        rows = FlatTexts(rows["texts"]).drop(rows, pa.array(emptied, pa.string()))
        at = rows.schema.get_field_index(RAW)
        rows = rows if at < 0 else rows.remove_column(at)
        return Out(
            rows.append_column(RAW, texts.nested(pa.array(raw, pa.string()))),
            counts={"cleaned": sum(changed)},
        )


def repairer() -> Callable[[str], str]:
    """Returns ftfy's `fix_text` without entity decoding and NFC, which `clean_once` does.

    Raises VlpipeError if ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise VlpipeError("filter.clean needs ftfy: pip install 'vlpipe[web]'") from error
    config = ftfy.TextFixerConfig(unescape_html=False, normalization=None, explain=False)
    return lambda text: ftfy.fix_text(text, config)


def clean(text: str, fix: Callable[[str], str], max_chars: int) -> str:
    """Applies `clean_once` until the text stops changing. Raises RowFault `endless_markup` after 10 rounds."""
    for _ in range(MAX_ROUNDS):
        cleaned = clean_once(text, fix, max_chars)
        if cleaned == text:
            return text
        text = cleaned
    raise RowFault(
        "endless_markup", f"the text still changes after {MAX_ROUNDS} rounds of cleaning: {text[:80]!r}"
    )


def clean_once(text: str, fix: Callable[[str], str], max_chars: int) -> str:
    if "&" in text:
        text = html.unescape(HUGE_CODES.sub("\ufffd", AMPS.sub("&", text)))
    if "<" in text:
        text = TAGS.sub(" ", INLINE.sub("", without_scripts(text)))
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(visible, normalized("NFC", fix(text))))
    return " ".join(text.split())[:max_chars].rstrip()


def without_scripts(text: str) -> str:
    """Replaces each closed <script> or <style> element by a space.

    Runs in linear time, even for a thousand unclosed `<script>` tags.
    """
    parts, at = [], 0
    endless: set[str] = set()  # tag names without a further end tag
    for begin in SCRIPT_BEGINS.finditer(text):
        name = begin[1].lower()
        if begin.start() < at or name in endless:
            continue
        end = SCRIPT_ENDS[name].search(text, begin.end())
        if end is None:
            endless.add(name)
            continue
        parts += [text[at : begin.start()], " "]
        at = end.end()
    return "".join([*parts, text[at:]])


def visible(char: str) -> str:
    """Returns a space for whitespace, "" for control, format and surrogate characters, else the character."""
    if char.isspace():
        return " "
    return "" if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char
