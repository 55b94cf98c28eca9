"""Weights on the Hugging Face hub: resolves a name to a commit, and downloads a commit as a folder.

Keys contain the commit because a name changes its content with every push. `huggingface_hub` comes with transformers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vlpipe.pipeline.errors import VlpipeError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 10.0
# The same weights in formats of frameworks that no stage uses; not downloaded.
OTHERS = ["*.h5", "*.msgpack", "*.ot", "*.onnx", "onnx/*", "*.tflite", "*.gguf", "*.mlmodel", "openvino*"]


def hub_commit(name: str, who: str = "", remembered: str = "") -> str:
    """Returns the current commit of `ORG/NAME` or `ORG/NAME@REVISION`, 40 hex digits, as the hub reports it.

    A REVISION that is a commit is returned as it is. If the hub gives none (no network, no such model): the commit of that
    revision in the hub client's local cache, else `remembered`, the commit of an earlier run ("" if there was none).
    who: prefix of the error text. Raises VlpipeError if `name` is no hub id or none of these has a commit.
    """
    if not HUB_ID.fullmatch(name):
        raise VlpipeError(
            f"{who}there is no file or folder {name!r} (from {os.getcwd()}); a hub id looks like ORG/NAME"
        )
    repo, _, revision = name.partition("@")
    if COMMIT.fullmatch(revision):
        return revision
    asked = _ask(repo, revision or None)
    commit = asked if COMMIT.fullmatch(asked) else _downloaded(repo, revision or "main") or remembered
    if commit:
        return commit
    raise VlpipeError(
        f"{who}there is no file or folder {name!r} (from {os.getcwd()}), and as a hub id it has no known commit: {asked}; "
        f"write a path that exists, or ORG/NAME@COMMIT"
    )


def _ask(repo: str, revision: str | None) -> str:
    """Returns the commit from the hub, 40 hex digits; if the hub gives none, a line that says why."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return "HF_HUB_OFFLINE is set, and it was never downloaded"
    try:
        return str(HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_S).sha)
    except Exception as error:  # the client raises many types; each means that the hub gives no commit
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _downloaded(repo: str, revision: str) -> str:
    """Returns the commit of a revision in the hub client's local cache; empty if it is not there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(os.environ.get("HF_HUB_CACHE") or HF_HUB_CACHE)
    ref = cache / f"models--{repo.replace('/', '--')}" / "refs" / revision
    found = ref.read_text().strip() if ref.is_file() else ""
    return found if COMMIT.fullmatch(found) else ""


def hub_folder(digest: str) -> str:
    """Returns the local folder of a commit, downloading it if needed. digest: `hub:ORG/NAME@COMMIT`.

    Raises VlpipeError if the download fails.
    """
    from huggingface_hub import snapshot_download

    repo, _, commit = digest.removeprefix("hub:").partition("@")
    cache = os.environ.get("HF_HUB_CACHE")
    try:
        return str(snapshot_download(repo, revision=commit, ignore_patterns=OTHERS, cache_dir=cache))
    except Exception as error:  # the client raises many types; all mean a failed download
        raise VlpipeError(f"cannot download {repo} at commit {commit} from the hub: {error}") from error
