"""A gallery of images with texts, scores and decisions, from the last step with scored texts and from the rejects."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import RowFault, cut
from vlpipe.pipeline.shard import Reject, Shard, heavy_names, read_batches
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.storage.printable import without_secrets
from vlpipe.stages.report.html import esc, stranger
from vlpipe.stages.report.texts import has_texts, spread
from vlpipe.stages.report.view import RunView, StepView

NUM_KEPT, NUM_DROPPED = 16, 8
MAX_SHARDS = 8  # shards read per step
HEAD_ROWS = 2048  # rows read per shard, so that a 1 GiB shard is not read for two images
THUMBNAIL_PX = 320
TINY_PX = 96  # images up to this side are embedded as PNG and enlarged without smoothing
MAX_TEXT = 300  # characters
MAX_TEXTS = 8  # of a card
MAX_BYTES = 2 << 20  # of all cards as they stand in the page
COLUMNS = ("id", "url", "texts", "width", "height")


@dataclass(frozen=True, slots=True)
class Card:
    """One row to show. `dropped`: the step that rejected it, and its reject."""

    row: Mapping[str, Any]
    picture: bytes | None
    dropped: tuple[str, Reject] | None = None


def gallery(run: RunView) -> str:
    """Returns the gallery as HTML; empty if there is no row to show."""
    source = judged_images(run)
    cards = [] if source is None else list(kept_cards(source))
    cards += dropped_cards(run)
    if not cards:
        return ""
    buttons = "".join(
        f'<button data-show="{key}"{" class=on" if key == "all" else ""}>{label}</button>'
        for key, label in (("all", "all"), ("kept", "kept"), ("dropped", "dropped"))
    )
    body, left = "", MAX_BYTES
    for card in cards:
        made = _card(card)
        if len(made) <= left:
            body, left = body + made, left - len(made)
    note = f"rows of <b>{esc(source.name)}</b>, and some that were dropped" if source else "dropped rows"
    return f'<p class="filters">{buttons}<span class="note">{note}</span></p><div class="cards">{body}</div>'


def _has_images(step: StepView) -> bool:
    return step.dataset is not None and has_texts(step) and "image" in heavy_names(step.dataset.schema)


def judged_images(run: RunView) -> StepView | None:
    """Returns the last step with images and scored texts; else the last with images and texts; None if there is neither."""
    steps = [step for step in run.steps if _has_images(step)]
    judged = [step for step in steps if any(_is_judged(row) for _, row in _heads(step))]
    return next(iter([*judged[::-1], *steps[::-1]]), None)


def _heads(step: StepView) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """Yields (shard, row) for the first HEAD_ROWS rows of up to MAX_SHARDS evenly spaced shards; rows have only COLUMNS."""
    assert step.dataset is not None
    some = spread(step.dataset, MAX_SHARDS)
    columns = [c for c in COLUMNS if c in some.schema.names]
    for shard in some.shards:
        yield from ((shard, row) for row in _first_rows(some, shard, columns))


def _first_rows(data: Dataset, shard: Shard, columns: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in read_batches(data.store, shard, columns):
        rows += batch.slice(0, HEAD_ROWS - len(rows)).to_pylist()
        if len(rows) == HEAD_ROWS:
            break
    return rows


def _is_judged(row: Mapping[str, Any]) -> bool:
    return any(text["score"] is not None for text in row["texts"] or ())


def evenly(items: Sequence[Any], num: int) -> list[Any]:
    """Returns at most `num` items, evenly spaced, including the first."""
    if not items:
        return []
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, min(num, len(items))).astype(int))]


def kept_cards(step: StepView) -> Iterator[Card]:
    heads = list(_heads(step))
    judged = [item for item in heads if _is_judged(item[1])]
    yield from _with_pictures(
        step, [(shard, Card(row, None)) for shard, row in evenly(judged or heads, NUM_KEPT)]
    )


def dropped_cards(run: RunView) -> list[Card]:
    """Returns up to NUM_DROPPED cards of rejected rows whose image is in an input of the step; reasons alternate."""
    waiting = [cards for step in run.steps for cards in _rejected(run, step)]
    chosen: list[tuple[StepView, Shard, Card]] = []
    while waiting and len(chosen) < NUM_DROPPED:
        chosen += [cards.pop(0) for cards in waiting][: NUM_DROPPED - len(chosen)]
        waiting = [cards for cards in waiting if cards]
    found: list[Card] = []
    for step in {id(s): s for s, _, _ in chosen}.values():
        found += _with_pictures(step, [(shard, card) for s, shard, card in chosen if s is step])
    return found


def _rejected(run: RunView, step: StepView) -> list[list[tuple[StepView, Shard, Card]]]:
    """Returns, per reason, some rows that `step` rejected, with the step and shard that hold their image."""
    rejects = {r.id: r for r in step.rejects_sample}
    by_reason: dict[str, list[tuple[StepView, Shard, Card]]] = {}
    for above in (run.step(name) for name in step.inputs if rejects):
        if above is None or not _has_images(above):
            continue
        for shard, row in _heads(above):
            reject = rejects.get(row["id"])
            if reject is not None:
                card = Card(row, None, (step.name, reject))
                by_reason.setdefault(f"{reject.kind}:{reject.why}", []).append((above, shard, card))
    return [evenly(by_reason[code], NUM_DROPPED) for code in sorted(by_reason)]


def _with_pictures(step: StepView, cards: Sequence[tuple[Shard, Card]]) -> Iterator[Card]:
    assert step.dataset is not None
    images: dict[str, bytes] = {}
    for shard in dict.fromkeys(shard for shard, _ in cards):
        wanted = {card.row["id"] for held, card in cards if held == shard}
        images |= _pictures(step.dataset, shard, wanted)
    yield from (replace(card, picture=images.get(card.row["id"])) for _, card in cards)


def _pictures(data: Dataset, shard: Shard, wanted: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for batch in read_batches(data.store, shard, ["id"], ["image"]):
        chosen = batch.filter(pa.array([i in wanted for i in batch["id"].to_pylist()], pa.bool_()))
        found |= zip(chosen["id"].to_pylist(), chosen["image"].to_pylist(), strict=True)
        if len(found) == len(wanted):
            break
    return found


def thumbnail(data: bytes) -> str:
    """Returns an <img> of the decoded and re-encoded image, so that no bytes of the untrusted file reach the page."""
    from PIL import Image

    from vlpipe.stages.common.pixels import decode

    try:
        image = decode(data)
    except RowFault as fault:
        return f'<div class="nopicture">{esc(fault.why)}</div>'
    tiny = max(image.size) <= TINY_PX
    image.info = {}  # else Pillow would copy comments and profiles
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if tiny else image.save(buffer, "JPEG", quality=80)
    kind = "png" if tiny else "jpeg"
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="" loading="lazy"{" class=tiny" if tiny else ""} src="data:image/{kind};base64,{encoded}">'
    )


def _card(card: Card) -> str:
    row = card.row
    picture = '<div class="nopicture">no picture</div>' if card.picture is None else thumbnail(card.picture)
    texts = "".join(_text(text) for text in (row["texts"] or ())[:MAX_TEXTS])
    more = len(row["texts"] or ()) - MAX_TEXTS
    texts += f'<li class="note">and {more} more texts</li>' if more > 0 else ""
    fate, verdict = _fate(card)
    where, id_ = cut(without_secrets(str(row.get("url") or "")), MAX_TEXT), cut(row["id"], MAX_TEXT)
    return (
        f'<article class="card {fate}">{picture}<div class="body"><p class="fate">{verdict}</p><ul>{texts}</ul>'
        f'<p class="where"><code title="{esc(id_)}">{esc(row["id"][:10])}</code> '
        f'<span title="{esc(where)}">{esc(where)}</span></p></div></article>'
    )


def _fate(card: Card) -> tuple[str, str]:
    if card.dropped is not None:
        step, reject = card.dropped
        detail = f"<small>{esc(stranger(reject.detail, MAX_TEXT))}</small>" if reject.detail else ""
        why = f'<span class="reason {esc(reject.kind)}">{esc(reject.why)}</span>'
        return "dropped", f"<b>dropped</b> in {esc(step)} {why} {detail}"
    if all(text["kept"] is False for text in card.row["texts"] or ()):
        return "dropped", "<b>no text kept</b>"
    return "kept", "<b>kept</b>"


def _text(text: Mapping[str, Any]) -> str:
    said = stranger(str(text["text"]), MAX_TEXT)
    score = "" if text["score"] is None else f'<span class="score">{text["score"]:.2f}</span>'
    why = f'<span class="why">{esc(text["why"])}</span>' if text["why"] else ""
    css = {True: "in", False: "out", None: ""}[text["kept"]]
    tag = "s" if text["kept"] is False else "span"
    source = esc(text["source"])
    label = f'<span class="source {source}">{source}</span>'
    return f'<li class="{css}">{label}<{tag} class="said">{esc(said)}</{tag}>{score}{why}</li>'
