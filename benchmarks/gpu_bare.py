"""Imported before vlpipe by the parts of `gpu.py`, so that they run on a machine where it is not installed.

It makes `vlpipe` importable from this checkout, and replaces simplejpeg, where that is missing, by a module that decodes
nothing: Pillow then decodes JPEGs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
HAS_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None


def _decode_jpeg(*_: Any, **__: Any) -> Any:
    raise ValueError("simplejpeg is not installed")


def _add(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


if importlib.util.find_spec("vlpipe") is None:
    _add("vlpipe", __path__=[str(REPO)])  # vlpipe.models is the folder models/
if not HAS_SIMPLEJPEG:
    _add("simplejpeg", decode_jpeg=_decode_jpeg)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS; read when CUDA starts
