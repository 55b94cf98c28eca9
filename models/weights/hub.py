"""A folder on disk, or one fetched from the Hugging Face hub: afterwards there is no difference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def local_folder(folder_or_hub_id: str | Path, patterns: Sequence[str]) -> Path:
    """The folder itself if it exists; else the hub repository of that name (`ORG/NAME`, or `ORG/NAME@REVISION`),
    of which files matching `patterns` are fetched.
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(str(folder_or_hub_id)):
        raise ValueError(
            f"weights: {str(folder_or_hub_id)!r} is neither an existing folder nor a hub id such as "
            "Salesforce/blip-itm-base-coco"
        )
    from huggingface_hub import snapshot_download

    repo, _, revision = str(folder_or_hub_id).partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises many kinds; each means the same to the reader
        raise ValueError(
            f"weights: there is no folder {folder_or_hub_id}, and it cannot be downloaded from the hub: {error}"
        ) from error
