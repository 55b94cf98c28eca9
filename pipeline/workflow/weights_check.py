"""Finds weights that cannot be read, before a run: pointers of Git LFS, web pages, truncated or empty files.

Only the structure of a file is looked at (a safetensors header, the directory of a zip), so large weights cost nothing.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator

from vlpipe.pipeline.errors import shown
from vlpipe.pipeline.files import File, Weights

LFS = b"version https://git-lfs.github.com/spec/"
PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml|error)", re.IGNORECASE)
TORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # older published files end in .pth.tar
ENDINGS = (".safetensors", *TORCH)
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# what torch.load raises where the pickle ends early, besides UnpicklingError
BROKEN_PICKLE = (EOFError, RuntimeError, ValueError, LookupError, AssertionError, struct.error)
FASTTEXT = b"\xba\x16\x4f\x2f"  # also ends in .bin
# JSON objects that a loader reads from a folder of weights
SETTINGS = (
    *("config.json", "open_clip_config.json", "preprocessor_config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
)
MAX_SETTINGS_BYTES = 1 << 26  # a larger file is not parsed before the run
MAX_HEADER_BYTES = 100_000_000  # as safetensors itself


def file_problems(file: File) -> list[str]:
    """Returns one text per problem of an existing file parameter, with the path.

    Any file may be a pointer of Git LFS; of Weights, each file with one of ENDINGS is checked, in a folder also shards.
    """
    if os.path.isfile(file.path):
        return [text for text in [_problem(file.path, isinstance(file, Weights))] if text]
    if not isinstance(file, Weights) or not os.path.isdir(file.path):
        return []
    found = [_problem(path, True) for path in _files(file.path)]
    return [text for text in found if text] + _missing_shards(file.path)


def _files(folder: str) -> Iterator[str]:
    """Yields the files of a folder and of its subfolders, such as `tokenizer`, that a loader may read."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(names):
            if name.endswith((*ENDINGS, ".json", ".txt", ".model", ".onnx")):
                yield os.path.join(where, name)


def _problem(path: str, weights: bool) -> str:
    try:
        with open(path, "rb") as handle:
            first = handle.read(1024)
        size = os.path.getsize(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if first.startswith(LFS):
        return f"{path} is a pointer of Git LFS, not the file itself; get it with `git lfs pull`"
    if not weights:
        return ""
    if not size:
        return f"{path} is empty; wanted weights"
    if PAGE.match(first):
        return f"{path} is a web page, not weights: it begins with {shown(first[:40].decode('latin-1'))}"
    if os.path.basename(path) in SETTINGS and size <= MAX_SETTINGS_BYTES:
        return _settings_problem(path)
    if not path.endswith(ENDINGS):
        return ""
    if path.endswith(".safetensors"):
        return _safetensors_problem(path, first, size)
    return _torch_problem(path, first)


def _settings_problem(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except (ValueError, RecursionError) as error:
        return f"{path} is damaged: it is no JSON ({type(error).__name__}: {error})"
    return "" if isinstance(found, dict) else f"{path} is no JSON object, but {shown(found, 60)}"


def _safetensors_problem(path: str, first: bytes, size: int) -> str:
    """https://github.com/huggingface/safetensors#format: length of the header, the header (JSON), the tensors."""
    num = int.from_bytes(first[:8], "little")
    if len(first) < 8 or num > MAX_HEADER_BYTES or first[8:9] not in (b"{", b""):
        return f"{path} is not a safetensors file: it begins with {shown(first[:24])}"
    if 8 + num > size:
        return f"{path} is truncated: it has {size:,} bytes, its header alone needs {8 + num:,}"
    with open(path, "rb") as handle:
        handle.seek(8)
        data = handle.read(num)
    try:
        tensors = [one for name, one in json.loads(data).items() if name != "__metadata__"]
        wanted = 8 + num + max((int(one["data_offsets"][1]) for one in tensors), default=0)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError) as error:
        return f"{path} is not a safetensors file: its header cannot be read: {type(error).__name__}: {error}"
    if wanted != size:
        what = "truncated" if wanted > size else "damaged"
        return f"{path} is {what}: it has {size:,} bytes, its header says {wanted:,}"
    return ""


def _torch_problem(path: str, first: bytes) -> str:
    if first.startswith(FASTTEXT):
        return ""
    if first.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as file:
                names = file.namelist()
                size = os.path.getsize(path)
                if any(one.header_offset + one.compress_size > size for one in file.infolist()):
                    return f"{path} is damaged: its directory names data behind its end"
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            return f"{path} is truncated or damaged: {error}; get it again"
        known = ("/data.pkl", "/constants.pkl")
        if path.endswith(TORCH) and not any(name.endswith(known) for name in names):
            return (
                f"{path} is a zip file, but not one of torch.save: it has {', '.join(names[:3]) or 'nothing'}"
            )
        return ""
    if first.startswith(PICKLES):
        return _old_torch_problem(path)
    if path.endswith(".tar") or first[257:262] == b"ustar":
        return ""
    if path.endswith((".pth", ".pt", ".ckpt")) or os.path.basename(path) == "pytorch_model.bin":
        return f"{path} is not a file of torch.save: it begins with {shown(first[:24])}"
    return ""


def _old_torch_problem(path: str) -> str:
    """Reads a file as torch.save wrote before 1.6, because its length is known only afterwards."""
    import torch

    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN_PICKLE as error:
        return f"{path} is truncated or damaged: {str(error)[:200] or type(error).__name__}; get it again"
    except pickle.UnpicklingError as error:  # objects other than tensors are for the stage to judge
        if "truncated" in str(error):
            return f"{path} is truncated: {str(error)[:200]}; get it again"
    return ""


def _missing_shards(folder: str) -> list[str]:
    """Returns a text for each index of weights in several files that names a file which is not there."""
    found = []
    for name in sorted(os.listdir(folder)):
        if name.endswith((".safetensors.index.json", ".bin.index.json")):
            path = os.path.join(folder, name)
            try:
                with open(path, "rb") as handle:
                    files = sorted(set(json.load(handle)["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
                found.append(f"{path} is not an index of weights: {type(error).__name__}: {error}")
                continue
            lacking = [one for one in files if not os.path.isfile(os.path.join(folder, one))]
            if lacking:
                found.append(f"{path} names files that are not there: {', '.join(lacking[:4])}")
    return found
