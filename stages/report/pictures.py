"""Pictures that steps made for people: reconstructions, drawn images, predicted words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import read_batches
from vlpipe.stages.pictures.rows import PICTURES
from vlpipe.stages.report.html import esc, stranger
from vlpipe.stages.report.view import RunView, StepView

NUM_SHOWN = 12  # per step
MAX_BYTES = 2 << 20  # of all pictures as they stand in the page
WIDEST = 640  # pixels; wider ones are made smaller
MAX_TEXT = 300  # characters


def pictures(run: RunView) -> str:
    """Returns a part per step with rows PICTURES, as HTML; empty if there is none. Reads only rows that are shown."""
    parts, left = [], MAX_BYTES
    for step in run.steps:
        if step.dataset is None or not step.dataset.schema.equals(PICTURES) or not step.dataset.num_rows:
            continue
        cards: list[str] = []
        for row in _first(step):
            card = _card(row)
            if len(card) > left:
                break
            left -= len(card)
            cards.append(card)
        more = step.dataset.num_rows - len(cards)
        note = f' <span class="note">and {more:,} more that are not shown</span>' if more else ""
        parts.append(f'<h3>{esc(step.name)}{note}</h3><div class="sheets">{"".join(cards)}</div>')
    return "".join(parts)


def _first(step: StepView) -> Iterator[Mapping[str, Any]]:
    """Yields the first NUM_SHOWN rows."""
    assert step.dataset is not None
    count = 0
    for shard in step.dataset.shards:
        for batch in read_batches(step.dataset.store, shard, None, ["image"]):
            for k in range(min(len(batch), NUM_SHOWN - count)):
                yield batch.slice(k, 1).to_pylist()[0]
                count += 1
            if count == NUM_SHOWN:
                return


def _card(row: Mapping[str, Any]) -> str:
    title = f"<p><b>{esc(stranger(row['title'], MAX_TEXT))}</b></p>" if row["title"] else ""
    lines = "".join(f"<p>{esc(stranger(line, MAX_TEXT))}</p>" for line in row["lines"] or ())
    panels = esc(stranger(" | ".join(row["panels"] or ()), MAX_TEXT))
    body = f'{title}{lines}<p class="note">{panels}</p>'
    return f'<article class="sheet">{_embedded(row["image"])}<div class="body">{body}</div></article>'


def _embedded(data: bytes) -> str:
    """Returns an <img> of the decoded and re-encoded picture: a PNG, or a JPEG if it has to be made smaller."""
    from PIL import Image

    from vlpipe.stages.common.pixels import decode

    try:
        image = decode(data)
    except RowFault as fault:
        return f'<div class="nopicture">{esc(fault.why)}</div>'
    image.info = {}  # else Pillow would copy comments and profiles
    buffer, small = io.BytesIO(), image.width <= WIDEST and image.height <= WIDEST
    if small:
        image.save(buffer, "PNG")
    else:
        image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    kind, css = ("png", " class=tiny") if small else ("jpeg", "")
    return f'<img alt="" loading="lazy"{css} src="data:image/{kind};base64,{encoded}">'
