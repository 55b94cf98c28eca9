"""What came out of a run, as a sentence and three figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vlpipe.stages.common.row import LOSSES, RESULTS
from vlpipe.stages.report.html import count, esc, number, seconds
from vlpipe.stages.report.texts import Texts, has_texts
from vlpipe.stages.report.view import RunView, StepView

NUM_FIGURES = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """value: as it is shown; label: what it is; said: the same in a part of a sentence, empty if it is not said."""

    value: str
    label: str
    said: str = ""


def headline(run: RunView, texts: Texts | None) -> str:
    """Returns a sentence and three figures as HTML. texts: the judged texts of the run.

    First the figure of the workflow's first criterion (`x-criteria`), or one that two evaluations have; then rows and texts
    that were kept; then further criteria, the last loss, time.
    """
    figures = list(islice(_figures(run, texts), NUM_FIGURES))
    done, failed = (sum(step.status == status for step in run.steps) for status in ("done", "failed"))
    state = f"{done} of {len(run.steps)} steps are done" + (f", {failed} failed" if failed else "")
    said = "; ".join([state, *(one.said for one in figures if one.said)])
    tiles = "".join(f"<div><b>{esc(one.value)}</b><span>{esc(one.label)}</span></div>" for one in figures)
    return f'<p class="outcome">{esc(said)}.</p><div class="tiles">{tiles}</div>'


def _figures(run: RunView, texts: Texts | None) -> Iterator[Figure]:
    results = _results(run)
    yield from results[:1]
    yield from _rows(run)
    if texts is not None:
        yield from _texts(texts)
    yield from results[1:]
    yield from _loss(run)
    yield Figure(seconds(sum(step.seconds or 0.0 for step in run.steps)), "of computing")
    yield Figure(count(sum(step.num_of("fault") for step in run.steps)), "rows with a fault")
    yield Figure(count(sum(step.num_of("filtered") for step in run.steps)), "rows filtered by a rule")


def _results(run: RunView) -> list[Figure]:
    """Returns the figures of the criteria whose evaluations are done; without criteria, the first one that the last
    evaluation and an earlier one of the same stage have."""
    found = {
        f"{step.name}.{row['name']}": row["value"]
        for step in run.steps
        if step.dataset is not None and step.dataset.schema.equals(RESULTS)
        for row in step.dataset.table(["name", "value"]).to_pylist()
        if row["value"] is not None
    }
    pairs = [(figure, other) for figure, _, other in run.criteria] or list(_compared(run, list(found)))
    figures = []
    for figure, other in pairs:
        value = found.get(figure)
        if value is None or (isinstance(other, str) and other not in found):
            continue
        if isinstance(other, str):
            label = f"{figure}; {other}: {number(found[other])}"
            said = f"{figure} is {number(value)}, {other} {number(found[other])}"
        else:
            label, said = figure, f"{figure} is {number(value)}"
        figures.append(Figure(number(value), label, said))
    return figures


def _compared(run: RunView, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (figure of the last evaluation, the same of the first one with the same stage)."""
    steps = [s for s in run.steps if s.dataset is not None and s.dataset.schema.equals(RESULTS)]
    for last in reversed(steps):
        for first in (s for s in steps if s is not last and s.use == last.use):
            for name in (
                one.removeprefix(f"{last.name}.") for one in names if one.startswith(f"{last.name}.")
            ):
                if f"{first.name}.{name}" in names:
                    yield f"{last.name}.{name}", f"{first.name}.{name}"
                    return


def _rows(run: RunView) -> Iterator[Figure]:
    """Yields the rows of the step with texts that is farthest from where rows enter, and how many entered for it."""
    depth: dict[str, int] = {}
    above: dict[str, set[str]] = {}  # step -> the steps where its rows entered
    for step in run.steps:
        inputs = [name for name in step.inputs if name in depth]
        depth[step.name] = 1 + max((depth[name] for name in inputs), default=0)
        above[step.name] = set().union(*(above[name] for name in inputs)) if inputs else {step.name}
    having = [step for step in run.steps if has_texts(step)]
    if not having:
        return
    last = max(reversed(having), key=lambda step: depth[step.name])
    listed = sum(_entered(step) for step in run.steps if step.name in above[last.name])
    if listed >= last.rows_out:
        said = f"of {count(listed)} listed rows, {count(last.rows_out)} are in {last.name}"
        yield Figure(f"{count(last.rows_out)} of {count(listed)}", f"rows are in {last.name}", said)
    else:  # several rows were made of one
        yield Figure(count(last.rows_out), f"rows are in {last.name}")


def _entered(step: StepView) -> int:
    return step.rows_in or step.rows_out


def _texts(texts: Texts) -> Iterator[Figure]:
    kept, dropped = sum(one[2] for one in texts.sources), sum(one[3] for one in texts.sources)
    if kept + dropped:
        share = f"{100 * kept / (kept + dropped):.0f} %"
        said = f"{share} of {count(kept + dropped)} judged texts were kept"
        yield Figure(share, f"of {count(kept + dropped)} judged texts were kept in {texts.step}", said)


def _loss(run: RunView) -> Iterator[Figure]:
    """Yields the last value of the last training's first loss."""
    for step in reversed(run.steps):
        if step.dataset is not None and step.dataset.schema.equals(LOSSES) and step.dataset.num_rows:
            rows = step.dataset.table().to_pylist()
            of_name = [row for row in rows if row["name"] == rows[0]["name"] and row["value"] is not None]
            if of_name:
                last = max(of_name, key=lambda row: row["step"])
                label = f"{last['name']} of {step.name} after {count(last['step'])} steps"
                yield Figure(number(last["value"]), label, f"{label} is {number(last['value'])}")
            return
