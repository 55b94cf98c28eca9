"""VideoBERT against a second implementation: transformers' BERT over the paper's sequence and its one vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_codes import MaskedCodes
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.video.videobert import VideoBert

WORDS, CLS, SEP, MASK, CODES = 15, 2, 3, 4, 9
NEXT, TOKENS = WORDS, WORDS + 1 + CODES  # [>] comes after the words, then the video tokens
WIDTH, LAYERS = 16, 2


def ours() -> VideoBert:
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "layers": LAYERS, "heads": 2, "max_text_length": 8, "max_video_length": 6}
    tokens = {"vocab_size": WORDS, "start": CLS, "end": SEP, "mask": MASK, "num_codes": CODES}
    return VideoBert(**tokens, **sizes, init_std=0.3).eval()


def theirs(model: VideoBert) -> BertForPreTraining:
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=8 + 6 + 2,
        attn_implementation="eager",
    )
    found = BertForPreTraining(config).eval()
    own = model.state_dict()
    state = {
        "cls.predictions.bias": own["word_head.decoder.bias"],
        "cls.predictions.decoder.bias": own["word_head.decoder.bias"],
    }
    for name, value in own.items():
        if ".attention.qkv." in name:
            kind = name.rpartition(".")[2]
            at = name.replace("encoder.blocks", "bert.encoder.layer").rpartition(".qkv.")[0]
            for part, one in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"{at}.self.{part}.{kind}"] = one
        else:
            state[renamed(name)] = value
    missing, unexpected = found.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return found


def renamed(name: str) -> str:
    for a, b in (
        ("encoder.embed.words", "bert.embeddings.word_embeddings"),
        ("encoder.embed.positions", "bert.embeddings.position_embeddings"),
        ("encoder.embed.types", "bert.embeddings.token_type_embeddings"),
        ("encoder.embed.norm", "bert.embeddings.LayerNorm"),
        ("encoder.blocks", "bert.encoder.layer"),
        ("attention.out", "attention.output.dense"),
        ("attention.norm", "attention.output.LayerNorm"),
        ("feed_forward.up", "intermediate.dense"),
        ("feed_forward.down", "output.dense"),
        ("feed_forward.norm", "output.LayerNorm"),
        ("word_head.dense", "cls.predictions.transform.dense"),
        ("word_head.norm", "cls.predictions.transform.LayerNorm"),
        ("word_head.decoder", "cls.predictions.decoder"),
        ("match_head", "cls.seq_relationship"),
    ):
        name = name.replace(a, b)
    return name.replace("pooler.dense", "bert.pooler.dense") if name.startswith("pooler") else name


TEXTS = [[CLS, 7, MASK, 9, SEP], [CLS, MASK, SEP], [CLS, 12, 13, 14, 8, MASK, SEP]]
WANTED = [
    [IGNORE, IGNORE, 8, IGNORE, IGNORE],
    [IGNORE, 10, IGNORE],
    [IGNORE, IGNORE, 5, IGNORE, IGNORE, 6, IGNORE],
]
VIDEOS = [[0, CODES], [CODES, 5, 3, 1], [2, 2, 8]]  # CODES: masked
SEEN = [[IGNORE, 4], [6, IGNORE, IGNORE, 1], [IGNORE, 7, IGNORE]]
MATCHES = [1, 0, 1]


def sequences(regime: str) -> tuple[Tensor, ...]:
    """ids, mask, types and labels of `[CLS] text [>] video [SEP]`, `[CLS] text [SEP]` or `[CLS] [>] video [SEP]`."""
    rows = []
    for text, wanted, video, seen in zip(TEXTS, WANTED, VIDEOS, SEEN, strict=True):
        if regime == "video":
            text, wanted = [CLS, SEP], [IGNORE, IGNORE]
        codes = [MASK if c == CODES else WORDS + 1 + c for c in video]
        places = [IGNORE if c == IGNORE else WORDS + 1 + c for c in seen]
        if regime == "text":
            rows.append((text, [0] * len(text), wanted))
            continue
        ids = [*text[:-1], NEXT, *codes, SEP]
        types = [0] * len(text) + [1] * (len(codes) + 1)
        rows.append((ids, types, [*wanted[:-1], IGNORE, *places, IGNORE]))
    longest = max(len(ids) for ids, _, _ in rows)

    def padded(k: int, fill: int) -> Tensor:
        return torch.tensor([list(row[k]) + [fill] * (longest - len(row[k])) for row in rows])

    mask = padded(0, -1) >= 0
    return padded(0, 0), mask.long(), padded(1, 0), padded(2, IGNORE)


def stream(rows: list[list[int]], target: list[list[int]], **more: Tensor) -> Stream:
    longest = max(map(len, rows))
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    data, ids = (
        torch.tensor([row + [fill] * (longest - len(row)) for row in some])
        for some, fill in ((rows, 0), (target, IGNORE))
    )
    return Stream(data, mask, target={"ids": ids, **more})


def gradients_agree(model: VideoBert, other: BertForPreTraining, one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    model.zero_grad()
    other.zero_grad()
    one.backward()
    two.backward()
    found: dict[str, Any] = dict(other.named_parameters())
    compared = 0
    for name, value in model.named_parameters():
        if value.grad is None or name == "word_head.decoder.bias":
            continue
        if ".attention.qkv." in name:
            kind = name.rpartition(".")[2]
            at = name.replace("encoder.blocks", "bert.encoder.layer").rpartition(".qkv.")[0]
            wanted = torch.cat([found[f"{at}.self.{part}.{kind}"].grad for part in ("query", "key", "value")])
        else:
            wanted = found[renamed(name)].grad
        torch.testing.assert_close(value.grad, wanted, rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("regime", ["text", "video", "pair"])
def test_masked_words_and_tokens_in_each_regime(regime: str) -> None:
    model = ours()
    other = theirs(model)
    streams = {"text": stream(TEXTS, WANTED), "video": stream(VIDEOS, SEEN)}
    given = {name: s for name, s in streams.items() if regime in ("pair", name)}
    out = Outputs(model, Batch(given, torch.arange(3)))
    objectives = [o for name, o in (("text", MaskedLm()), ("video", MaskedCodes())) if name in given]
    terms = [next(t for n, t in o(out).items() if n in o.LOSSES) for o in objectives]
    ids, mask, types, labels = sequences(regime)
    logits = other(input_ids=ids, attention_mask=mask, token_type_ids=types).prediction_logits
    wanted = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert sum(int(t.count) for t in terms) == int((labels != IGNORE).sum())
    gradients_agree(model, other, torch.stack([t.total for t in terms]).sum(), wanted)


def test_alignment_is_told_at_the_first_token() -> None:
    model = ours()
    other = theirs(model)
    text, video = stream(TEXTS, WANTED), stream(VIDEOS, SEEN, match=torch.tensor(MATCHES))
    term = Match()(Outputs(model, Batch({"text": text, "video": video}, torch.arange(3))))["match"]
    ids, mask, types, _ = sequences("pair")
    logits = other(input_ids=ids, attention_mask=mask, token_type_ids=types).seq_relationship_logits
    wanted = F.cross_entropy(logits, torch.tensor(MATCHES), reduction="sum")
    gradients_agree(model, other, term.total, wanted)
