"""Whether drawn images show what their texts say, by a detector of demo scenes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.demo.check_text import parse
from vlpipe.stages.demo.scenes import PLACES, SIZES

if TYPE_CHECKING:
    from vlpipe.stages.common.detector import Detector

Seen = Mapping[str, str]  # attribute -> value, of the object that the detector is surest of
Claims = Mapping[str, frozenset[str]]
KINDS = ("shape", "colour", "size", "place")
LARGE = (SIZES["small"][1] + SIZES["large"][0]) / 2  # radius of an object, as a fraction of the image's side
EDGES = (0.37, 0.63)  # between the places of `demo.scenes`: left, middle, right


@dataclass(frozen=True, kw_only=True)
class PromptsFound(GatherStage):
    """Emits RESULTS of rows of `drawing.draw`: shares of what texts claim that the detector finds in their images.

    `claims/first`: images 0 of each text; `claims/best`: those of rank 0; `claims/all`: all; `claims/shuffled`: all, with
    the text of the next row's, of another text. `KIND/first` and so on for shape, colour, size and place alone. An image
    without a detection fulfils no claim. num_rows: claims. The object is the detection with the highest score: its class is
    the shape, its attribute the colour, its box gives size and place.
    """

    NAME: ClassVar[str] = "ground_truth.prompts:PromptsFound"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    detector: Weights
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.05

    def schema(self, inp: pa.Schema) -> pa.Schema:
        columns = {"draw": pa.int32(), "rank": pa.int32(), "texts": TEXTS, "image": pa.binary()}
        need(inp, "ground_truth.prompts", id=pa.string(), **columns)
        return RESULTS

    def run(self, job: Job) -> None:
        from vlpipe.stages.common.detector import load

        detector, rejects = load(self.detector.path), list[Reject]()
        found = list(self._found(job, detector, rejects))
        job.reject(rejects)
        if len({said for said, _, _, _ in found}) < 2:
            raise VlpipeError("ground_truth.prompts: wanted images of at least two texts")
        job.emit(pa.Table.from_pylist(list(shares(found)), RESULTS))

    def _found(
        self, job: Job, detector: Detector, rejects: list[Reject]
    ) -> Iterator[tuple[str, int, int, Seen | None]]:
        """Yields (text, draw, rank, what is seen)."""
        for data in job.inputs:
            for table in data.batches(["id", "texts", "draw", "rank"], ["image"]):
                rows = table.select(["id", "texts", "draw", "rank"]).to_pylist()
                for row, image in zip(rows, table["image"], strict=True):
                    try:
                        seen = self._seen(detector, image.as_py())
                    except RowFault as fault:
                        rejects.append(Reject(row["id"], "fault", fault.why, fault.detail))
                        continue
                    yield row["texts"][0]["text"], row["draw"], row["rank"], seen

    def _seen(self, detector: Detector, data: bytes) -> Seen | None:
        image = decode(data)
        pixels, (across, down) = detector.pixels(image)
        found = detector.model.detect(pixels, self.min_score, limit=1)
        if not len(found.labels):
            return None
        left, top, right, bottom = found.boxes[0].tolist()
        attribute = int(found.attributes[0])
        wide, high = across / image.width, down / image.height
        box = (left * wide, top * high, right * wide, bottom * high)
        colour = detector.attributes[attribute] if attribute >= 0 else ""
        return described(detector.classes[int(found.labels[0])], colour, box)


def described(shape: str, colour: str, box: tuple[float, ...]) -> Seen:
    """Returns what a detection shows. box: x1, y1, x2, y2 in fractions of the image's side."""
    left, top, right, bottom = box
    radius = (right - left + bottom - top) / 4
    across, down = (sum(at > edge for edge in EDGES) for at in ((left + right) / 2, (top + bottom) / 2))
    place = next(
        p for p in PLACES if p == (("top", "middle", "bottom")[down], ("left", "middle", "right")[across])
    )
    return {
        "shape": shape,
        "colour": colour,
        "size": "large" if radius > LARGE else "small",
        "place": "-".join(place),
    }


def claimed(text: str) -> dict[str, str]:
    """Returns what a text of one object claims: attribute -> value. Raises VlpipeError for another text."""
    claims = parse(text)
    if claims is None or len(claims) != 1:
        raise VlpipeError(f"ground_truth.prompts: {text!r} is not a text of the demo world about one object")
    said: Claims = claims[0].said
    found = {kind: next(iter(said[kind])) for kind in ("shape", "colour", "size") if kind in said}
    if said.keys() & {"row", "column", "centre"}:
        row, column = (next(iter(said.get(axis, {"middle"}))) for axis in ("row", "column"))
        found["place"] = f"{row}-{column}"
    return found


def shares(found: list[tuple[str, int, int, Seen | None]]) -> Iterator[dict[str, Any]]:
    """Yields rows of RESULTS. found: (text, draw, rank, what is seen) of at least two different texts."""
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for k, (said, draw, rank, seen) in enumerate(found):
        others = (found[(k + step) % len(found)][0] for step in range(1, len(found)))
        groups = {
            "first": said if draw == 0 else None,
            "best": said if rank == 0 else None,
            "all": said,
            "shuffled": next(other for other in others if other != said),
        }
        for group, claims in groups.items():
            for kind, value in (claimed(claims) if claims else {}).items():
                hit = seen is not None and seen[kind] == value
                hits["claims", group].append(hit)
                hits[kind, group].append(hit)
    for kind in ("claims", *KINDS):
        for group in ("first", "best", "all", "shuffled"):
            own = hits[kind, group]
            share = sum(own) / len(own) if own else None
            yield {"name": f"{kind}/{group}", "value": share, "num_rows": len(own)}
