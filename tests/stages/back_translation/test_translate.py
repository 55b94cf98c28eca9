"""Back-translation by tiny random models: what reaches them, what is kept, and that it does not depend on the batch."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.back_translation import translate
from vlpipe.stages.back_translation.translate import BackTranslations
from vlpipe.stages.common.row import TEXTS, text

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "dog", "cat", "on", "sofa", "two", "blue"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Weights]:
    """Two T5 models of one layer, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    found = []
    for seed in (0, 1):
        path = tmp_path_factory.mktemp(f"t5_{seed}")
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=len(WORDS),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
        T5ForConditionalGeneration(config).save_pretrained(path)
        fast = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
        fast.pre_tokenizer = pre_tokenizers.Whitespace()
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=fast, **special).save_pretrained(path)
        found.append(Weights(path=str(path)))
    return found


def rows(texts: list[list[dict[str, Any]] | None]) -> pa.Table:
    return pa.table({"id": [f"r{k}" for k in range(len(texts))], "texts": pa.array(texts, TEXTS)})


def test_texts_are_translated_there_and_back(folders: list[Weights]) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    stage = BackTranslations(forward=folders[0], backward=folders[1], num=2, num_beams=3, max_length=6)
    texts = [
        [text("a red dog", "web"), text("two cat", "web", kept=False)],
        None,
        [text("blue sofa on", "web")],
    ]
    out = run_map(stage, rows(texts)).table["back_translations"].to_pylist()
    assert out[0][1] is None
    assert out[1] == []
    for (found, *_), said in ((out[0], "a red dog"), (out[2], "blue sofa on")):
        for path, num in ((folders[0].path, 1), (folders[1].path, 2)):
            model, tokenizer = (cls.from_pretrained(path) for cls in (AutoModelForSeq2SeqLM, AutoTokenizer))
            given = tokenizer(said, return_tensors="pt")
            ids = model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                num_beams=3,
                num_return_sequences=num,
                max_new_tokens=6,
            )
            back = [one.strip() for one in tokenizer.batch_decode(ids, skip_special_tokens=True)]
            said = back[0]
        assert found == list(dict.fromkeys(back))
    again = run_map(stage, rows(texts[2:])).table["back_translations"].to_pylist()
    assert again == out[2:]


def test_batches_have_one_shape(folders: list[Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another width changes last bits, and so now and then a word: a row alone, in `vlpipe retry`, would be another."""
    from transformers import T5ForConditionalGeneration

    shapes = []
    generate = T5ForConditionalGeneration.generate

    def spy(self: Any, **given: Any) -> Any:
        shapes.append((tuple(given["input_ids"].shape), tuple(given["attention_mask"].shape)))
        return generate(self, **given)

    monkeypatch.setattr(T5ForConditionalGeneration, "generate", spy)
    stage = BackTranslations(forward=folders[0], backward=folders[1], num_beams=2, max_length=7)
    run_map(stage, rows([[text("a", "web")]]))
    run_map(stage, rows([[text("a red dog on a blue sofa", "web")]] * 17))
    assert set(shapes) == {((16, 7), (16, 7))}


def test_what_says_the_same_is_left_out(folders: list[Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        def __init__(self, weights: Weights, *_: int) -> None:
            self.back = weights is folders[1]

        def __call__(self, texts: list[str], num: int) -> list[list[str]]:
            if not self.back:
                return [[f"<{one}>"] for one in texts]
            return [[one[1:-1].upper(), "one " + one[1:-1], "one " + one[1:-1]][:num] for one in texts]

    monkeypatch.setattr(translate, "Translator", Fixed)
    stage = BackTranslations(forward=folders[0], backward=folders[1], num=3, sources=("web",), column="back")
    table = rows([[text("a dog", "web"), text("a cat", "synth"), text(" ", "web")], [text("a sofa", "web")]])
    out = run_map(stage, table)
    assert out.table["back"].to_pylist() == [[["one a dog"], None, []], [["one a sofa"]]]
    assert out.counts == {"translated": 2, "same": 1}


def test_problems_are_named_before_the_run(folders: list[Weights]) -> None:
    stage = BackTranslations(forward=folders[0], backward=folders[1], num=5, batch_size=10)
    first, second = stage.preflight()
    assert first.startswith("batch_size must be a positive multiple of 16, got 10")
    assert second == "num must be at most num_beams = 4, got 5"
