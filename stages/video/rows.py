"""The records of video: a cue (one subtitle), a video row, a clip row.

No row carries a video's bytes: `video` is the path of the file below the videos root, `num_bytes` and `sha256` say which
file was meant. Times are seconds on the video's own clock.
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
        ("source", pa.string()),  # auto | manual | unknown: who wrote it; a machine's words are noisier
        ("lang", pa.string()),  # BCP 47, as the source says; null: it does not say
    ]
)
CUES = pa.list_(CUE)

# What decoding needs to find and check a file.
FILE_FIELDS = (
    pa.field("url", pa.string()),  # where it came from: a URL, or the path below the root
    pa.field("video", pa.string()),  # path below the videos root
    pa.field("num_bytes", pa.int64()),
    pa.field("sha256", pa.string()),
)
VIDEOS = pa.schema(
    [
        ("id", pa.string()),
        *FILE_FIELDS,
        ("video_id", pa.string()),  # YouTube's 11 characters, or the file's name without its ending
        ("duration_s", pa.float64()),  # as the container says: a hint; null: it does not say
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
        ("candidates", pa.list_(CANDIDATE)),  # texts near in time, nearest first (MIL-NCE); else empty
    ]
)
