"""The two joint embedding spaces of text and video (S3D-G, image-text model), and the columns that each needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import need
from vlpipe.stages.common.batches import fixed_batches
from vlpipe.stages.common.scores import device
from vlpipe.stages.features.windows import WEIGHTS_OF, WindowFeats, need_windows, read_windows

if TYPE_CHECKING:
    import torch

    from vlpipe.models.video.s3dg import TextModule

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]  # N texts -> (N, D)


def window_column(words: File | None) -> str:
    """Returns the column of windows to compare with: `s3d` if MIL-NCE's word list is given, else `frame_feats`."""
    return "s3d" if words else "frame_feats"


def check_windows(schema: pa.Schema, who: str, column: str) -> None:
    """Raises SchemaError unless rows have `column`, with vectors that may be compared with texts, and that of its weights.

    who: name of the stage, for the error text.
    """
    need_windows(schema, who, column)
    need(schema, who, **{WEIGHTS_OF[column]: pa.string()})
    settings = (schema.field(column).metadata or {}).get(b"windows")
    how = json.loads(settings) if settings else {}
    if how.get("vector", "embedding") != "embedding" or how.get("l2"):
        raise SchemaError(
            f"{who} compares {column!r} with texts by the plain dot product: set `vector: embedding` and `l2: false` in "
            f"`windows` of features.s3d, which has vector: {how['vector']}, l2: {str(how['l2']).lower()}"
        )


def same_weights(rows: pa.Table, column: str, model: Weights) -> Iterator[WindowFeats]:
    """Yields the windows of each row. Raises VlpipeError if they come from other weights than `model`."""
    name = WEIGHTS_OF[column]
    for weights in rows[name].unique().to_pylist():
        if (weights or "").partition(":")[0] != model.digest:
            raise VlpipeError(
                f"{column!r} was computed with weights {weights}, but texts would be encoded with {model.digest}: "
                f"give the same `model` as the step that made {column!r}"
            )
    return read_windows(rows[column])


def text_encoder(model: Weights, words: File | None, max_words: int, batch_size: int) -> Encode:
    """Returns MIL-NCE's bag-of-words encoder if its word list is given, else that of an image-text model (unit vectors)."""
    return (
        _bag_of_words(model, words, max_words, batch_size)
        if words
        else _image_text_model(model, max_words, batch_size)
    )


def encode_each(encode: Encode, texts: Sequence[str]) -> Vectors:
    """Encodes N texts -> (N, D); each distinct text is encoded once, since candidates repeat."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = encode(list(places))
    return vectors[[places[text] for text in texts]]


def _bag_of_words(model: Weights, words: File, max_words: int, batch_size: int) -> Encode:
    import torch

    from vlpipe.models.video.words import Words

    try:
        net, known = _text_module(model.path).eval().to(device()), Words.load(words.path)
    except ValueError as error:
        raise VlpipeError(str(error)) from error
    num_words = net.word_embd.num_embeddings - 1
    if known.num_words != num_words:
        raise VlpipeError(
            f"{words.path} has {known.num_words} words, but the weights have vectors of {num_words}: "
            "`words` must be the list published with these weights"
        )

    def encode(batch: list[str]) -> torch.Tensor:
        found: torch.Tensor = net(torch.from_numpy(known.ids(batch, max_words)).to(device()))
        return found

    return _in_batches(encode, batch_size)


def _text_module(path: str) -> TextModule:
    """Returns the text encoder of S3D-G, 21.5 of its 31.2 million parameters. ValueError if the file has none."""
    from vlpipe.models.video.s3dg import TextModule
    from vlpipe.models.weights.published import fill, read_state

    prefix = "text_module."
    state = {n.removeprefix(prefix): v for n, v in read_state(path).items() if n.startswith(prefix)}
    sizes = {
        name: state[f"{name}.weight"].shape
        for name in ("word_embd", "fc1", "fc2")
        if f"{name}.weight" in state
    }
    if len(sizes) < 3:
        raise ValueError(
            f"{path} has no text encoder (text_module.*): it cannot score texts; set `model` to MIL-NCE's S3D-G, or, for an "
            "image-text model, remove `words`"
        )
    num_rows, word_dim = sizes["word_embd"]
    net = TextModule(sizes["fc2"][0], num_rows - 1, word_dim, sizes["fc1"][0])
    fill(net, state, "S3D-G's text encoder")
    return net


def _image_text_model(model: Weights, max_length: int, batch_size: int) -> Encode:
    from vlpipe.models.interface.capabilities import EmbedsTexts
    from vlpipe.stages.common.model import load

    loaded = load(model, max_length, needs=[EmbedsTexts])
    return _in_batches(
        lambda batch: loaded.embed_texts(*loaded.tokenizer.encode(batch, max_length)), batch_size
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
