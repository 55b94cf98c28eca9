"""YouCook2's annotations: a sentence for each step of a recipe.

Zhou et al. 2018, https://arxiv.org/abs/1703.09788; http://youcook2.eecs.umich.edu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import File
from vlpipe.stages.clips.spans import CutsSpans, SpansByVideo
from vlpipe.stages.lists.folder import wanted
from vlpipe.stages.lists.json_values import load_json


@dataclass(frozen=True, kw_only=True)
class YouCook2(CutsSpans):
    """Turns video rows into one clip per annotated step, with its sentence; see `CutsSpans`.

    annotations: `youcookii_annotations_trainval.json`, {database: {VIDEO_ID: {subset, annotations: [{segment: [start, end],
    sentence}]}}}. subset: those videos alone; "" for all. Raises VlpipeError for a file of another form, naming the video
    and the step.
    """

    NAME: ClassVar[str] = "annotated.youcook2:YouCook2"

    annotations: File
    subset: Literal["training", "validation", "testing", ""] = ""

    def spans_by_video(self) -> SpansByVideo:
        path = self.annotations.path
        database = wanted(load_json(path), "database", dict, str(path))
        found: SpansByVideo = {}
        for video, about in database.items():
            where = f"{path}: database.{video}"
            if self.subset and wanted(about, "subset", str, where) != self.subset:
                continue
            for n, one in enumerate(wanted(about, "annotations", list, where)):
                at = f"{where}.annotations[{n}]"
                sentence = wanted(one, "sentence", str, at).strip()
                try:
                    start_s, end_s = map(float, wanted(one, "segment", list, at))
                except (TypeError, ValueError):
                    start_s, end_s = 0.0, 0.0
                if not (0 <= start_s < end_s < float("inf") and sentence):
                    raise VlpipeError(
                        f"{at}: wanted a segment [start, end] with 0 <= start < end, and a sentence; got {shown(one)}"
                    )
                found.setdefault(video, {}).setdefault((start_s, end_s), []).append(sentence)
        if not found:
            raise VlpipeError(
                f"{path}: no video has an annotation" + (f" of subset {self.subset}" * bool(self.subset))
            )
        return found
