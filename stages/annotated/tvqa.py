"""The spans of TVQA's videos that its questions are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlpipe.pipeline.files import File
from vlpipe.stages.clips.spans import CutsSpans, SpansByVideo
from vlpipe.stages.lists.published.tvqa import read_tvqa


@dataclass(frozen=True, kw_only=True)
class Tvqa(CutsSpans):
    """Turns video rows into one clip per span `ts` of TVQA's lines, with its questions as texts; see `CutsSpans`.

    A row's `video_id` is the line's `vid_name`. Lines without times are left out. `downstream.video_questions:TvqaQuestions`
    with `localised: true` puts the questions of a span, with their answers, to its clip. Subtitles (`tvqa_subtitles`) become
    `cues` if they lie beside the videos, NAME.srt beside NAME.mp4. Raises VlpipeError for a file of another form.
    """

    NAME: ClassVar[str] = "annotated.tvqa:Tvqa"

    questions: File

    def spans_by_video(self) -> SpansByVideo:
        found: SpansByVideo = {}
        for line in read_tvqa(self.questions):
            if (span := line.span()) is not None:
                asked = found.setdefault(line.video, {}).setdefault(span, [])
                if line.question not in asked:
                    asked.append(line.question)
        return found
