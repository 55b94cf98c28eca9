"""Schemas of a cue (one subtitle), a video row and a clip row.

Rows do not contain the bytes of a video: `video` is the path of the file below the folder `videos`, `num_bytes` and `sha256`
identify its content. Times are seconds on the video's own clock.
"""

from __future__ import annotations

import pyarrow as pa

from vlpipe.stages.common.row import TEXTS

WORD = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("word", pa.string())])
CUE = pa.struct(
    [
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("text", pa.string()),
        ("words", pa.list_(WORD)),  # null: the source has no word times
        ("source", pa.string()),  # auto (speech recognition, noisier) | manual | unknown
        ("lang", pa.string()),  # BCP 47, as stated by the source; null: not stated
    ]
)
CUES = pa.list_(CUE)

# The columns that decoding needs to find and check a file.
FILE_FIELDS = (
    pa.field("url", pa.string()),  # its origin: a URL, or the path below the root
    pa.field("video", pa.string()),  # path below the folder `videos`
    pa.field("num_bytes", pa.int64()),
    pa.field("sha256", pa.string()),
)
VIDEOS = pa.schema(
    [
        ("id", pa.string()),
        *FILE_FIELDS,
        ("video_id", pa.string()),  # YouTube's 11 characters, or the file name without its ending
        ("duration_s", pa.float64()),  # from the container's header, may be wrong; null: not stated
        ("width", pa.int32()),  # as shown: after rotation and sample aspect ratio
        ("height", pa.int32()),
        ("fps", pa.float64()),  # mean; null: unknown
        ("codec", pa.string()),
        ("cues", CUES),
    ]
)

CANDIDATE = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("text", pa.string())])
CLIPS = pa.schema(
    [
        ("id", pa.string()),
        ("parent", pa.string()),  # id of the video row
        *FILE_FIELDS,
        ("video_id", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("texts", TEXTS),  # source: asr (cues of auto or unknown source) | human
        ("candidates", pa.list_(CANDIDATE)),  # texts near in time, nearest first (for MIL-NCE), or empty
    ]
)
