"""`vlpipe report`: one self-contained HTML page. It loads no resources, and its content security policy forbids any."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vlpipe.pipeline.errors import cut
from vlpipe.pipeline.storage.printable import size, without_secrets
from vlpipe.stages.report.charts import histograms, losses, results
from vlpipe.stages.report.funnel import funnel
from vlpipe.stages.report.gallery import gallery
from vlpipe.stages.report.headline import headline
from vlpipe.stages.report.html import count, esc, seconds, stranger
from vlpipe.stages.report.judges import judges
from vlpipe.stages.report.limits import limits
from vlpipe.stages.report.pictures import pictures
from vlpipe.stages.report.texts import Texts, judged_texts, text_table
from vlpipe.stages.report.view import RunView, StepView

__all__ = ["RunView", "StepView", "render"]

MAX_BYTES = 10_000_000
FRAME_BYTES = 200_000  # of the page around the sections: styles, the header, navigation
MAX_ABOUT = 4_000  # characters
MAX_ALARMS = 20
_COLOURS = files("vlpipe.pipeline.ui") / "static/colours.css"  # those of `vlpipe ui`
_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")


def render(run: RunView) -> str:
    """Returns the HTML page, of at most MAX_BYTES whatever the run holds; the same run gives the same text.

    First what the run was for and what came out, then alarms, the funnel, the gallery, results, losses, and the rest.
    """
    texts = judged_texts(run)
    sections = fitting([(name, body) for name, body in _sections(run, texts) if body])
    nav = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name, _ in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{inner}</section>' for name, inner in sections
    )
    style = "".join(path.read_text(encoding="utf-8") for path in (_COLOURS, _STYLE))
    script = _SCRIPT.read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n{_policy(script)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(run.title)}</title>\n<style>{style}</style></head>\n"
        f'<body><header><div class="top"><h1>{esc(run.title)}</h1>'
        '<button id="theme" title="light or dark" aria-label="light or dark">&#9680;</button></div>'
        f"{_about(run.description)}{headline(run, texts)}{_alarms(run)}<nav>{nav}</nav></header>\n"
        f"<main>{body}</main>\n<script>{script}</script></body></html>\n"
    )


def _about(description: str) -> str:
    """Returns what the run was for: the first paragraph of the workflow's comment, and the others to be opened."""
    first, _, rest = cut(without_secrets(description.strip()), MAX_ABOUT).partition("\n\n")
    more = f'<details class="about"><summary>more</summary>{esc(rest)}</details>' if rest.strip() else ""
    return (f'<p class="about">{esc(first)}</p>' if first else "") + more


def _policy(script: str) -> str:
    """Allows only embedded images, inline styles and this script, so that injected markup cannot run or load anything."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _sections(run: RunView, texts: Texts | None) -> list[tuple[str, str]]:
    return [
        ("Funnel", _counts(run) + funnel(run) if run.steps else ""),
        ("Gallery", gallery(run)),
        ("Results", results(run)),
        ("Losses", losses(run)),
        ("Texts and scores", "" if texts is None else _texts(texts)),
        ("Judges", judges(run)),
        ("Pictures", pictures(run)),
        ("What limits", _limits(run)),
    ]


def fitting(sections: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the sections, with a sentence in place of each that would make the page larger than MAX_BYTES.

    Each part limits what it shows, so that this happens to data only that no part foresees.
    """
    found, left = [], MAX_BYTES - FRAME_BYTES
    for name, body in sections:
        num_bytes = len(body.encode())
        if num_bytes > left:
            body = f'<p class="note">left out: it has {size(num_bytes)}; <code>vlpipe ui</code> shows it</p>'
            num_bytes = len(body)
        left -= num_bytes
        found.append((name, body))
    return found


def _alarms(run: RunView) -> str:
    lines = [(step.name, text) for step in run.steps for text in step.alarms]
    shown = "".join(
        f"<li><b>{esc(name)}</b>: {esc(stranger(text, 300))}</li>" for name, text in lines[:MAX_ALARMS]
    )
    more = f"<li>and {len(lines) - MAX_ALARMS} more</li>" if len(lines) > MAX_ALARMS else ""
    return (
        f'<div class="alarms" role="alert"><b>Look at these</b><ul>{shown}{more}</ul></div>' if lines else ""
    )


def _limits(run: RunView) -> str:
    table = limits(run)
    about = (
        '<p class="note">Rows per second of one worker, for steps that run a model. Computing alone: its rate if '
        "it never waited; achieved: the share of that rate that the step reached. Other: reading, writing and starting.</p>"
    )
    return about + table if table else ""


def _texts(texts: Texts) -> str:
    about = f'<p class="note">texts of {count(texts.num_rows)} rows of <b>{esc(texts.step)}</b></p>'
    return about + text_table(texts) + histograms(texts.scores)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _counts(run: RunView) -> str:
    listed = sum(step.rows_in for step in run.steps if not step.inputs)
    spent = sum(step.seconds or 0.0 for step in run.steps)
    filtered, faults = (sum(step.num_of(kind) for step in run.steps) for kind in ("filtered", "fault"))
    parts = (f"{count(listed)} rows listed", f"{count(filtered)} filtered", f"{count(faults)} faults")
    return f'<p class="note">{", ".join(parts)}; {seconds(spent)} of computing</p>'
