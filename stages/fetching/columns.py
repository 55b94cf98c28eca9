"""Schema of fetched image rows."""

from __future__ import annotations

import pyarrow as pa

from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED

FETCHED = pa.schema(
    [*LISTED, pa.field("http_status", pa.int32()), pa.field("final_url", pa.string()), *IMAGE_FIELDS]
)
MATCHES = pa.field("hash_matches", pa.bool_())  # of `on_hash_mismatch: flag`; null without an expected hash
