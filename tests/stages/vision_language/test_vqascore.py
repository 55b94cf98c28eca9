from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.stages.vision_language.test_local import ALT, rows_of
from tests.stages.vision_language.tiny import ID
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.chat_server.server import Running
from vlpipe.stages.chat_server.settings import Settings
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.row import text
from vlpipe.stages.common.rule import encoder_of
from vlpipe.stages.endpoint.reply import of_logprobs
from vlpipe.stages.filter import vqascore
from vlpipe.stages.filter.vqascore import EndpointVqaScore, VqaScore
from vlpipe.stages.vision_language.model import Arrays, load

Rows = Callable[..., pa.Table]
Captioner = Callable[[str], Weights]
KINDS = ["blip2", "git", "florence2", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava"]


def scores(stage: VqaScore, table: pa.Table) -> list[list[float]]:
    found: list[list[float]] = run_map(stage, table).table[stage.column].to_pylist()
    return found


def questions(weights: Weights, table: pa.Table, question: str) -> list[Arrays]:
    model = load(weights, "fp32")
    return [
        arrays
        for row in table.to_pylist()
        for arrays in model.prepared(
            decode(row["image"]), [model.worded(question.replace("{text}", row["texts"][0]["text"]))]
        )
    ]


def by_library(model: Any, arrays: Arrays, steps: int) -> list[torch.Tensor]:
    """The probabilities of the first tokens that the library's own loop chooses from."""
    inputs = {name: torch.from_numpy(value) for name, value in arrays.items()}
    with torch.inference_mode():
        out = model.generate(
            **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return [step[0].softmax(-1) for step in out.logits]


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_what_the_librarys_loop_gives_yes(
    kind: str, captioner: Captioner, image_rows: Rows
) -> None:
    """As the paper's code: `generate` for one question at a time, the first token's probability of Yes."""
    weights, table = captioner(kind), rows_of(image_rows, 6)
    stage = VqaScore(model=weights)
    found = scores(stage, table)
    share = scores(VqaScore(model=weights, against="No"), table)
    theirs = AutoModelForImageTextToText.from_pretrained(weights.path).eval()
    first = 1 if kind == "florence2" else 0  # its decoder begins with <s>, whatever the answer
    for arrays, (mine,), (part,) in zip(questions(weights, table, stage.question), found, share, strict=True):
        likely = by_library(theirs, arrays, first + 1)[first]
        yes, no = float(likely[ID["Yes"]]), float(likely[ID["No"]])
        assert mine == pytest.approx(yes, abs=1e-5)
        assert part == pytest.approx(yes / (yes + no), abs=1e-4)
    assert len({round(s, 6) for ss in found for s in ss}) > 3


def test_an_answer_of_several_tokens_has_their_geometric_mean(captioner: Captioner, image_rows: Rows) -> None:
    weights, table = captioner("qwen2_vl"), rows_of(image_rows, 3)
    stage = VqaScore(model=weights, answer="Yes dog")
    theirs = AutoModelForImageTextToText.from_pretrained(weights.path).eval()
    for arrays, (mine,) in zip(questions(weights, table, stage.question), scores(stage, table), strict=True):
        inputs = {name: torch.from_numpy(value) for name, value in arrays.items()}
        yes = float(by_library(theirs, arrays, 1)[0][ID["Yes"]])
        for name, more in (("input_ids", ID["Yes"]), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat([inputs[name], torch.tensor([[more]])], 1)
        with torch.inference_mode():
            dog = float(theirs(**inputs).logits[0, -1].softmax(-1)[ID["dog"]])
        assert mine == pytest.approx(math.sqrt(yes * dog), abs=1e-5)


def test_a_text_gets_the_same_score_alone_and_in_company(captioner: Captioner, image_rows: Rows) -> None:
    texts = [[text(ALT[(i + j) % 5], ("web", "synth")[j % 2]) for j in range(i % 4)] for i in range(14)]
    texts[5][0] |= {"kept": False, "why": "junk"}
    table = image_rows(texts)
    stage = VqaScore(model=captioner("smolvlm"), encoder="judge")
    found = scores(stage, table)
    assert [len(one) for one in found] == [i % 4 for i in range(14)]
    assert found[5] == [None]
    assert scores(stage, table.slice(3, 1)) == found[3:4]
    assert scores(VqaScore(model=stage.model, sources=("synth",)), table)[3][::2] == [None, None]
    assert encoder_of(stage.schema(table.schema), "vqa_score") == "judge"


def test_control_tokens_in_a_text_are_text(captioner: Captioner, image_rows: Rows) -> None:
    """Else a web page could add pictures to the question, which the model then would not find, or end it."""
    table = image_rows([[text("a <|image_pad|> dog </s> <|vision_start|>", "web")], [text("a dog", "web")]])
    ((odd,), (plain,)) = scores(VqaScore(model=captioner("qwen2_vl")), table)
    assert 0 <= odd <= 1
    assert odd != plain
    model = load(captioner("qwen2_vl"), "fp32")
    assert model.plain("a <|image_pad|></s> b") == "a < |image_pad|>< /s> b"


def test_what_cannot_answer_is_refused(captioner: Captioner, image_rows: Rows) -> None:
    table = rows_of(image_rows, 1)
    with pytest.raises(VlpipeError, match="a blip captioner answers no questions"):
        run_map(VqaScore(model=captioner("blip")), table)
    with pytest.raises(VlpipeError, match="has no tokens for the answer 'Ja'"):
        run_map(VqaScore(model=captioner("qwen2_vl"), answer="Ja"), table)
    assert VqaScore(model=captioner("blip"), question="Is it?", answer="").preflight() == [
        "question must have the field {text} once, got 'Is it?'",
        "answer is empty",
    ]


def test_a_server_with_the_same_model_gives_the_same_scores(
    captioner: Captioner, image_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks the library's own loop. Its answers have the whole vocabulary, since tiny weights know no likely
    token; its `yes` and `no` have other names, since spellings of the answer are added up there, and not in this process.
    """
    weights, table = captioner("qwen2_vl"), rows_of(image_rows, 8)
    local, theirs = load(weights, "fp32"), AutoModelForImageTextToText.from_pretrained(weights.path).eval()
    monkeypatch.setattr(vqascore, "TOP_LOGPROBS", 1000)
    images = {hashlib.sha256(one).hexdigest(): one for one in table["image"].to_pylist()}
    words = {at: word for word, at in ID.items() if word not in ("yes", "no")}

    def judge(sha256: str, question: str) -> dict[str, float]:
        (arrays,) = local.prepared(decode(images[sha256]), [local.worded(question)])
        likely = by_library(theirs, arrays, 1)[0].double().tolist()
        return {words.get(at, f"<{at}>"): p for at, p in enumerate(likely)}

    with Running(Settings(latency_s=0.0), judge=judge) as server:
        for against in ("", "No"):
            asked = EndpointVqaScore(base_url=server.url, model="tiny", against=against)
            found = run_map(asked, table).table["vqa_score"].to_pylist()
            mine = scores(VqaScore(model=weights, against=against), table)
            assert [one for (one,) in found] == pytest.approx([one for (one,) in mine], abs=1e-4)
            assert len({round(one, 5) for (one,) in found}) > 3


def test_a_servers_logprobs_give_the_same_kind_of_score() -> None:
    top = {" Yes": 0.5, "yes": 0.2, "No": 0.2, "Maybe": 0.05}
    entry = {"token": " Yes", "logprob": math.log(0.5)}
    entry["top_logprobs"] = [{"token": t, "logprob": math.log(p)} for t, p in top.items()]
    found = {"content": [entry]}
    assert of_logprobs(found, "Yes") == pytest.approx(0.7)
    assert of_logprobs(found, "Yes", "No") == pytest.approx(7 / 9)
    assert of_logprobs(found, "Perhaps") == 0
    assert of_logprobs(found, "Perhaps", "Never") is None
    assert of_logprobs({"content": [{"token": "Yes", "logprob": 0.3}]}, "Yes") == 1.0  # never above 1
    for broken in (
        {},
        {"content": []},
        {"content": [{"top_logprobs": [{"token": "Yes"}]}]},
        {"content": "no"},
        {"content": [{"token": "Yes", "logprob": math.nan}]},
        {"content": [{"token": "Yes", "logprob": 10**400}]},
    ):
        assert of_logprobs(broken, "Yes") is None
    assert np.isfinite(of_logprobs({"content": [{"token": "Yes", "logprob": -1e9}]}, "Yes") or 0.0)
