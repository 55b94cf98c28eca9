"""The two spaces that texts and stretches of video can be compared in here, and what of them the rows must hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import File, Weights
from vlpipe.stages.features.batches import fixed_batches
from vlpipe.stages.features.windows import WindowFeats, need_windows, read_windows
from vlpipe.stages.filter.scores import device

if TYPE_CHECKING:
    import torch

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]  # N texts -> (N, D)
COLUMNS = {
    "s3d": "s3d_weights",
    "frame_feats": "frame_weights",
}  # of windows -> which weights they are from, "digest" or "digest:more"


def window_column(words: File | None) -> str:
    """MIL-NCE's word list goes with its S3D-G's windows."""
    return "s3d" if words else "frame_feats"


def check_windows(schema: pa.Schema, who: str, column: str) -> None:
    """SchemaError unless rows have the column of windows, in a space that texts share."""
    need_windows(schema, who, column)
    need(schema, who, **{COLUMNS[column]: pa.string()})
    told = (schema.field(column).metadata or {}).get(b"windows")
    how = json.loads(told) if told else {}
    if how.get("vector", "embedding") != "embedding" or how.get("l2"):
        raise SchemaError(
            f"{who} compares {column!r} with texts by the plain dot product: features.s3d must write `vector: embedding` "
            f"and `l2: false`, but it writes vector: {how['vector']}, l2: {str(how['l2']).lower()}"
        )


def same_weights(rows: pa.Table, column: str, model: Weights) -> Iterator[WindowFeats]:
    """Windows row by row. VlpipeError when they are of other weights than the texts will be."""
    name = COLUMNS[column]
    for told in rows[name].unique().to_pylist():
        if (told or "").partition(":")[0] != model.digest:
            raise VlpipeError(
                f"{column!r} is of weights {told}, but texts would be compared with {model.digest}: "
                f"give the same `model` as the step that made {column!r}"
            )
    return read_windows(rows[column])


def text_encoder(model: Weights, words: File | None, max_words: int, batch_size: int) -> Encode:
    """MIL-NCE's bag of words when its word list is given, else the text side of an image-text model (unit vectors)."""
    return (
        _bag_of_words(model, words, max_words, batch_size) if words else _blip(model, max_words, batch_size)
    )


def encode_each(encode: Encode, texts: Sequence[str]) -> Vectors:
    """(N, D); a text that comes again (as candidates do) is encoded once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = encode(list(places))
    return vectors[[places[text] for text in texts]]


def _bag_of_words(model: Weights, words: File, max_words: int, batch_size: int) -> Encode:
    import torch

    from vlpipe.models.s3dg import S3dG
    from vlpipe.models.words import Words

    try:
        net, known = S3dG.load(model.path).eval().to(device()), Words.load(words.path)
    except ValueError as error:
        raise VlpipeError(str(error)) from error
    if net.text_module is None:
        raise VlpipeError(f"{model.path} has no text side (text_module.*): it cannot score texts")
    rows = net.text_module.word_embd.num_embeddings
    if known.num_words + 1 != rows:
        raise VlpipeError(
            f"{words.path} has {known.num_words} words, but the weights have vectors of {rows - 1}"
        )

    def encode(batch: list[str]) -> torch.Tensor:
        return net.text(torch.from_numpy(known.ids(batch, max_words)).to(device()))

    return _in_batches(encode, batch_size)


def _blip(model: Weights, max_length: int, batch_size: int) -> Encode:
    from vlpipe.stages.features.weights import load

    blip = load(model, max_length)
    return _in_batches(
        lambda batch: blip.text_features(*blip.tokenizer.encode(batch, max_length)), batch_size
    )


def _in_batches(encode: Callable[[list[str]], torch.Tensor], batch_size: int) -> Encode:
    import torch

    def run(texts: Sequence[str]) -> Vectors:
        found = []
        for batch, num_real in fixed_batches(texts, batch_size):
            with torch.inference_mode():
                found.append(encode(batch)[:num_real].float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    return run
