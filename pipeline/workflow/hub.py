"""Weights on the Hugging Face hub: which commit a name means, and that commit as a folder.

A name alone is no identity: what it means changes with the next push. `huggingface_hub` comes with transformers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vlpipe.pipeline.errors import VlpipeError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 10.0
# The same weights for frameworks that no stage uses.
OTHERS = ["*.h5", "*.msgpack", "*.ot", "*.onnx", "onnx/*", "*.tflite", "*.gguf", "*.mlmodel", "openvino*"]


def hub_commit(name: str, who: str = "", remembered: str = "") -> str:
    """The commit that `ORG/NAME` or `ORG/NAME@REVISION` means now, as the hub says.

    Where the hub cannot be asked: the commit that its client downloaded for that revision, then the one `remembered`.
    who: put before the error. VlpipeError: no such model, or nobody can tell.
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
        f"{who}{name!r} is no file or folder here (from {os.getcwd()}), and as a hub id it means no known commit: {asked}; "
        f"write a path that exists, or ORG/NAME@COMMIT"
    )


def _ask(repo: str, revision: str | None) -> str:
    """The commit; or, in words, why the hub does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return "HF_HUB_OFFLINE is set, and it was never downloaded"
    try:
        return str(HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_S).sha)
    except Exception as error:  # the client raises many kinds; each means that the hub does not say
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _downloaded(repo: str, revision: str) -> str:
    """The commit of a revision in the local cache of the hub's client; empty when it has none."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(os.environ.get("HF_HUB_CACHE") or HF_HUB_CACHE)
    ref = cache / f"models--{repo.replace('/', '--')}" / "refs" / revision
    found = ref.read_text().strip() if ref.is_file() else ""
    return found if COMMIT.fullmatch(found) else ""


def hub_folder(digest: str) -> str:
    """The folder of a commit, `hub:ORG/NAME@COMMIT`; downloaded unless it is here. VlpipeError: the hub does not give it."""
    from huggingface_hub import snapshot_download

    repo, _, commit = digest.removeprefix("hub:").partition("@")
    cache = os.environ.get("HF_HUB_CACHE")
    try:
        return str(snapshot_download(repo, revision=commit, ignore_patterns=OTHERS, cache_dir=cache))
    except Exception as error:  # the client raises many kinds; each means the same to the reader
        raise VlpipeError(f"the hub does not give {repo} at commit {commit}: {error}") from error
