"""`vlpipe report`: one self-contained HTML page. It loads no resources, and its content security policy forbids any."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from vlpipe.stages.report.charts import histograms, losses, results
from vlpipe.stages.report.funnel import funnel
from vlpipe.stages.report.gallery import gallery
from vlpipe.stages.report.html import count, esc, seconds, without_secrets
from vlpipe.stages.report.judges import judges
from vlpipe.stages.report.limits import limits
from vlpipe.stages.report.pictures import pictures
from vlpipe.stages.report.texts import Texts, judged_texts, text_table
from vlpipe.stages.report.view import RunView, StepView

__all__ = ["RunView", "StepView", "render"]

_COLOURS = files("vlpipe.pipeline.ui") / "static/colours.css"  # those of `vlpipe ui`
_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")


def render(run: RunView) -> str:
    """Returns the HTML page; the same run gives the same text."""
    sections = [(name, body) for name, body in _sections(run) if body]
    nav = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name, _ in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{inner}</section>' for name, inner in sections
    )
    style = "".join(path.read_text(encoding="utf-8") for path in (_COLOURS, _STYLE))
    script = _SCRIPT.read_text(encoding="utf-8")
    about = f'<p class="about">{esc(without_secrets(run.description))}</p>'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n{_policy(script)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(run.title)}</title>\n<style>{style}</style></head>\n"
        f'<body><header><div class="top"><h1>{esc(run.title)}</h1>'
        '<button id="theme" title="light or dark" aria-label="light or dark">&#9680;</button></div>'
        f"{about}{_tiles(run)}<nav>{nav}</nav></header>\n"
        f"<main>{body}</main>\n<script>{script}</script></body></html>\n"
    )


def _policy(script: str) -> str:
    """Allows only embedded images, inline styles and this script, so that injected markup cannot run or load anything."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _sections(run: RunView) -> list[tuple[str, str]]:
    texts = judged_texts(run)
    return [
        ("Results", results(run)),
        ("Funnel", funnel(run) if run.steps else ""),
        ("Texts and scores", "" if texts is None else _texts(texts)),
        ("Judges", judges(run)),
        ("Pictures", pictures(run)),
        ("Gallery", gallery(run)),
        ("Losses", losses(run)),
        ("What limits", _limits(run)),
    ]


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


def _tiles(run: RunView) -> str:
    done = sum(step.status == "done" for step in run.steps)
    spent = sum(step.seconds or 0.0 for step in run.steps)
    listed = sum(step.rows_in for step in run.steps if not step.inputs)
    tiles = [
        ("steps done", f"{done} of {len(run.steps)}"),
        ("rows listed", count(listed)),
        ("filtered", count(sum(step.num_of("filtered") for step in run.steps))),
        ("faults", count(sum(step.num_of("fault") for step in run.steps))),
        ("computing time", seconds(spent)),
    ]
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in tiles)
        + "</div>"
    )
