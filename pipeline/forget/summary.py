"""The text that `vlpipe forget` prints: what is removed from each folder, and which models were made from the rows."""

from __future__ import annotations

from collections.abc import Iterator

from vlpipe.pipeline.engine.records.answers import REL
from vlpipe.pipeline.forget.scan import FolderChanges, ForgetPlan, Model, made_from


def tell(found: ForgetPlan) -> Iterator[str]:
    """Yields a line per folder, then the exports, which are rebuilt, and the models, which are kept."""
    copies = [model for model in found.models if model.copies]
    models = [model for model in found.models if not model.copies]
    going = {model.folder for model in copies}
    width = max(
        map(len, [*(one.folder for one in found.folders), *(one.folder for one in found.models)]), default=0
    )
    for one in found.folders:
        if one.folder not in going:
            yield f"  {one.folder:{width}}  {_touched(one)}"
    if found.answers:
        yield f"  {REL:{width}}  {sum(found.answers.values()):,} recorded answer(s) of servers"
    for model in copies:
        yield f"  {model.folder:{width}}  the whole folder, because it has {_read(model)}; the next run rebuilds it"
    num_content = found.unmatched["sha256"]
    num_kept = found.unmatched.total() - num_content
    if num_kept:
        yield f"{num_kept:,} of the entries match no row here; they are remembered and apply to later lists"
    if num_content:
        yield f"{num_content:,} sha256 match no row here; to exclude them from later lists, put them on a `blocklist`"
    for one in found.folders:
        if one.num_orphans:
            yield (
                f"{one.num_orphans:,} row(s) stay dropped in {one.folder} as duplicates of these rows; of a group whose "
                "kept row is among these, nothing is left"
            )
    if found.unread:
        yield f"not searched, because these artifacts are neither Parquet nor JSON: {', '.join(found.unread)}"
    if models:
        yield "these were made from the rows and are kept unchanged:"
    for model in models:
        yield f"  {model.folder:{width}}  {model.digest[:12]}  {_read(model)}"


def advice(found: ForgetPlan, workflow: str) -> Iterator[str]:
    """Yields what the user has to do afterwards."""
    if any(model.copies for model in found.models):
        yield f"the next `vlpipe run {workflow}` rebuilds the exports without the rows"
    for one in found.folders:
        if one.num_orphans:
            folders = ", ".join(made_from(found, one.folder))
            yield (
                f"to keep one row of such a group again, remove {folders}, which decides anew without the forgotten rows, "
                f"then `vlpipe run {workflow}`"
            )
    if any(not model.copies for model in found.models):
        yield (
            "to retrain a model (or remake other artifacts listed above) without these rows, remove its folder, then "
            f"`vlpipe run {workflow}`"
        )


def _touched(one: FolderChanges) -> str:
    counts = (
        (one.num_ids, "row(s)"),
        (len(one.heirs), "row(s) that lose a text copied from them"),
        (sum("/artifacts/" in path for path in one.files), "artifact(s)"),
        (one.num_rejects, "reject(s)"),
        (one.num_lines, "line(s) of its log"),
    )
    parts = [f"{num:,} {what}" for num, what in counts if num]
    parts += ["its unfinished parts"] if one.parts else []
    return ", ".join(parts) or "references to them"


def _read(model: Model) -> str:
    parts = [f"{model.num_rows:,} of the rows"] if model.num_rows else []
    parts += [f"texts that {model.num_heirs:,} other row(s) copied from them"] if model.num_heirs else []
    parts = [" and ".join(parts)] if parts else []
    return ", ".join([*parts, *(f"made from {name}" for name in model.made_from)]) or "references to them"
