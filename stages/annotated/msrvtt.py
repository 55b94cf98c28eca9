"""MSR-VTT's annotations: twenty sentences for each clip of ten to thirty seconds.

Xu et al. 2016, https://doi.org/10.1109/CVPR.2016.571; Yu et al. 2018 (the test of 1,000 pairs),
https://arxiv.org/abs/1808.02559.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import File
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.clips.spans import CutsSpans, SpansByVideo
from vlpipe.stages.lists.folder import wanted
from vlpipe.stages.lists.json_values import load_json
from vlpipe.stages.lists.list import text_of
from vlpipe.stages.lists.readers import read_rows

COLUMNS = ("video_id", "sentence")
WHOLE = (0.0, 1.0)  # stands for the times, which are those of the clip in its film on YouTube


@dataclass(frozen=True, kw_only=True)
class MsrVtt(CutsSpans):
    """Turns video rows into one clip each, the whole video, with its sentences; see `CutsSpans`.

    The files are the cut clips, `video0.mp4`, ...; a row's `video_id` is the name without the ending. annotations:
    `videodatainfo.json`, {videos: [{video_id, split}], sentences: [{video_id, caption}]}, or a .csv with columns video_id
    and sentence, such as `MSRVTT_JSFUSION_test.csv` (key, vid_key, video_id, sentence). split: `train`, `validate` or
    `test` of the JSON's videos; "" for all. Raises VlpipeError for a file of another form, naming the place.
    """

    NAME: ClassVar[str] = "annotated.msrvtt:MsrVtt"
    WHOLE: ClassVar[bool] = True

    annotations: File
    split: str = ""

    def preflight(self) -> list[str]:
        problems = super().preflight()
        if self.split and self.annotations.path.endswith(".csv"):
            problems.append("split: a .csv of MSR-VTT has no splits")
        return problems

    def spans_by_video(self) -> SpansByVideo:
        path = Path(self.annotations.path)
        texts = _of_table(path) if path.suffix == ".csv" else self._of_json(path)
        if not texts:
            raise VlpipeError(f"{path}: there is no sentence" + f" of split {self.split}" * bool(self.split))
        return {video: {WHOLE: several} for video, several in texts.items()}

    def _of_json(self, path: Path) -> dict[str, list[str]]:
        content = load_json(path)
        splits = {}
        for n, one in enumerate(wanted(content, "videos", list, str(path))):
            where = f"{path}: videos[{n}]"
            splits[wanted(one, "video_id", str, where)] = wanted(one, "split", str, where)
        if self.split and self.split not in splits.values():
            have = ", ".join(sorted(set(splits.values())))
            raise VlpipeError(f"{path}: no video is of split {self.split!r}; there are {have}")
        found: dict[str, list[str]] = {}
        for n, one in enumerate(wanted(content, "sentences", list, str(path))):
            where = f"{path}: sentences[{n}]"
            video, caption = wanted(one, "video_id", str, where), wanted(one, "caption", str, where).strip()
            if video not in splits:
                raise VlpipeError(f"{where}: {video} is not among the videos")
            if caption and (not self.split or splits[video] == self.split):
                found.setdefault(video, []).append(caption)
        return found


def _of_table(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for where, row in read_rows(path, {name: name for name in COLUMNS}):
        if isinstance(row, BadLine):
            raise row
        video, sentence = (text_of(row[name], where).strip() for name in COLUMNS)
        if not video or not sentence:
            raise VlpipeError(f"{where}: wanted a video_id and a sentence, got {shown(dict(row))}")
        found.setdefault(video, []).append(sentence)
    return found
