from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.stages.vision_language.tiny import MAKERS
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.caption.local import LocalCaption
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.row import text
from vlpipe.stages.vision_language.batching import collated, padded_length
from vlpipe.stages.vision_language.model import PADS_LEFT, Arrays, VisionLanguageModel, load

Rows = Callable[..., pa.Table]
Captioner = Callable[[str], Weights]
PROMPT = "Describe the image . {alt_text}"
ALT = [
    "a red dog",
    "two dogs on the left of a small blue square",
    "star",
    "",
    "the picture is large and yellow",
]
GAP = 1e-4  # of the two likeliest tokens, from which on the choice is clear


def rows_of(image_rows: Rows, num: int) -> pa.Table:
    return image_rows([[text(ALT[i % 5], "web")] for i in range(num)])


def captions(stage: LocalCaption, table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    out = run_map(stage, table).table
    texts = [[t for t in ts if t["source"] == "synth"] for ts in out["texts"].to_pylist()]
    return dict(zip(out["id"].to_pylist(), texts, strict=True))


def inputs_of(model: VisionLanguageModel, table: pa.Table) -> list[Arrays]:
    found = []
    for row in table.to_pylist():
        prompt = PROMPT.format(alt_text=row["texts"][0]["text"])
        found += model.prepared(decode(row["image"]), [model.worded(prompt)])
    return found


def generated(model: Any, arrays: dict[str, torch.Tensor], num: int) -> Any:
    with torch.inference_mode():
        return model.generate(
            **arrays,
            max_new_tokens=num,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )


@pytest.mark.parametrize("kind", MAKERS)
def test_greedy_captions_are_those_of_the_librarys_own_loop(
    kind: str, captioner: Captioner, image_rows: Rows
) -> None:
    """Against `from_pretrained(...).generate`, one row at a time and without padding, as far as the choice is clear."""
    weights, table = captioner(kind), rows_of(image_rows, 10)
    stage = LocalCaption(model=weights, prompt=PROMPT, max_tokens=8, truncated="keep")
    found = captions(stage, table)
    ours = load(weights, "fp32")
    theirs = AutoModelForImageTextToText.from_pretrained(weights.path).eval()
    num_equal = 0
    for row, arrays in zip(table["id"].to_pylist(), inputs_of(ours, table), strict=True):
        out = generated(theirs, {name: torch.from_numpy(value) for name, value in arrays.items()}, 8)
        top = torch.stack([step[0].topk(2).values for step in out.logits])
        new = out.sequences[0][-len(out.logits) :].tolist()
        clear = [bool(gap > GAP) for gap in (top[:, 0] - top[:, 1])]
        if all(clear):
            stop = next((at for at, one in enumerate(new) if one in ours.ends), len(new))
            assert (
                found[row][0]["text"] == ours.tokenizer.decode(new[:stop], skip_special_tokens=True).strip()
            )
            num_equal += 1
    assert num_equal >= 8
    assert len({ts[0]["text"] for ts in found.values()}) > 2


@pytest.mark.parametrize("kind", MAKERS)
def test_padding_and_batch_size_do_not_change_logits(
    kind: str, captioner: Captioner, image_rows: Rows
) -> None:
    """Logits of each step within 1e-5 of those of the row alone, without padding; equal ids where the choice is clear."""
    model = load(captioner(kind), "fp32")
    groups: dict[int, list[Arrays]] = {}
    for arrays in inputs_of(model, rows_of(image_rows, 10)):
        groups.setdefault(padded_length(arrays, model.side), []).append(arrays)
    num_padded = 0
    for group in groups.values():
        for size in (len(group), 16):
            batch = collated((group * 16)[:size], model.side, model.pad_id)
            together = generated(model.model, batch, 4)
            for at, arrays in enumerate(group):
                alone = generated(model.model, {n: torch.from_numpy(v) for n, v in arrays.items()}, 4)
                for mine, own in zip(together.logits, alone.logits, strict=False):
                    assert float((mine[at] - own[0]).abs().max()) <= 1e-5
                    two = own[0].topk(2).values
                    if two[0] - two[1] <= GAP:
                        break
                    assert int(mine[at].argmax()) == int(own[0].argmax())
                num_padded += arrays["input_ids"].shape[1] < batch["input_ids"].shape[1]
    assert (num_padded > 5) == bool(model.side)
    assert (model.side == "left") == (model.kind in PADS_LEFT)


@pytest.mark.parametrize("kind", ["blip", "smolvlm", "qwen2_vl"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_gets_the_same_captions_alone_in_any_company_order_and_batch_size(
    kind: str, temperature: float, captioner: Captioner, image_rows: Rows
) -> None:
    num = 3 if temperature else 1
    stage = LocalCaption(
        model=captioner(kind), prompt=PROMPT, max_tokens=6, temperature=temperature, num_captions=num
    )
    table = rows_of(image_rows, 21)
    together = captions(stage, table)
    assert captions(stage, table.slice(4, 1)) == {"row4": together["row4"]}
    assert captions(stage, table.take(list(range(20, -1, -1)))) == together
    assert captions(replace(stage, batch_size=32), table) == together
    assert {len(ts) for ts in together.values()} == {num}
    assert len({t["text"] for ts in together.values() for t in ts}) > 3
    if temperature:
        assert captions(replace(stage, seed=1), table) != together
        fewer = captions(replace(stage, num_captions=2), table)
        assert fewer == {row: ts[:2] for row, ts in together.items()}


def test_fields_of_the_row_are_in_the_prompt_and_each_prompt_has_its_caption(
    captioner: Captioner, image_rows: Rows
) -> None:
    image = image_rows([[]])["image"][0].as_py()
    same = image_rows([[text(alt, "web")] for alt in ALT], [image] * 5)
    stage = LocalCaption(model=captioner("qwen2_vl"), prompt=PROMPT, max_tokens=6, truncated="keep")
    assert len({ts[0]["text"] for ts in captions(stage, same).values()}) > 2
    assert len({ts[0]["text"] for ts in captions(replace(stage, prompt="Describe"), same).values()}) == 1
    both = replace(stage, prompt="", prompts={"short": "Describe", "fused": PROMPT})
    found = captions(both, same)
    assert [t["model"] for t in found["row0"]] == ["digest-qwen2_vl/short", "digest-qwen2_vl/fused"]
    assert [ts[1]["text"] for ts in found.values()] == [
        ts[0]["text"] for ts in captions(stage, same).values()
    ]


def test_a_caption_that_is_cut_or_empty_stays_in_sight_but_is_not_kept(
    captioner: Captioner, image_rows: Rows
) -> None:
    table = rows_of(image_rows, 20)
    stage = LocalCaption(model=captioner("blip"), prompt=PROMPT, max_tokens=5, temperature=1.0)
    out = run_map(stage, table)
    found = [t for ts in out.table["texts"].to_pylist() for t in ts[1:]]
    assert {(t["kept"], t["why"]) for t in found} <= {(None, None), (False, "truncated"), (False, "empty")}
    cut = [t for t in found if t["why"] == "truncated"]
    assert out.counts["truncated"] == len(cut) > 0
    assert sum(n for name, n in out.counts.items() if name != "tokens_out") == 20
    assert 20 <= out.counts["tokens_out"] <= 100
    kept = captions(replace(stage, truncated="keep"), table)
    assert {t["why"] for ts in kept.values() for t in ts} <= {None, "empty"}


def test_an_unreadable_image_is_a_reject_and_the_others_are_as_without_it(
    captioner: Captioner, image_rows: Rows
) -> None:
    table = rows_of(image_rows, 4)
    images = table["image"].to_pylist()
    stage = LocalCaption(model=captioner("git"), max_tokens=4)
    broken = image_rows(table["texts"].to_pylist(), [*images[:2], b"<html>", images[3]])
    out = run_map(stage, broken)
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("row2", "fault", "not_an_image")]
    whole = captions(stage, table)
    assert captions(stage, broken) == {row: whole[row] for row in ("row0", "row1", "row3")}


@pytest.mark.parametrize("kind", MAKERS)
def test_it_computes_in_bf16_and_can_be_tuned(kind: str, captioner: Captioner, image_rows: Rows) -> None:
    stage = LocalCaption(
        model=captioner(kind), prompt="Describe", max_tokens=3, precision="bf16", truncated="keep"
    )
    found = captions(stage, rows_of(image_rows, 2))
    assert {len(ts) for ts in found.values()} == {1}
    assert load(stage.model, "bf16").model.dtype == torch.bfloat16
    with stage.trials() as compute:
        compute(2)


def test_an_older_blip2_folder_without_the_number_of_queries_is_read(
    captioner: Captioner, image_rows: Rows, tmp_path: Path
) -> None:
    folder, table = tmp_path / "old", rows_of(image_rows, 2)
    shutil.copytree(captioner("blip2").path, folder)
    config = json.loads((folder / "processor_config.json").read_text())
    config.pop("num_query_tokens")
    (folder / "processor_config.json").write_text(json.dumps(config))
    stage = LocalCaption(model=captioner("blip2"), prompt=PROMPT, max_tokens=3, truncated="keep")
    old = replace(stage, model=Weights(path=str(folder), digest=stage.model.digest))
    assert captions(old, table) == captions(stage, table)


def test_code_in_the_folder_is_not_run(captioner: Captioner, image_rows: Rows, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(captioner("blip").path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "odd",
        "auto_map": {"AutoConfig": "odd.Odd", "AutoModelForImageTextToText": "odd.Odd"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Odd: pass\n")
    with pytest.raises(VlpipeError, match="it needs code of its own, which is not run"):
        run_map(LocalCaption(model=Weights(path=str(folder))), rows_of(image_rows, 1))
    assert not (tmp_path / "ran").exists()


def test_what_cannot_work_is_said_before_the_run(captioner: Captioner, image_rows: Rows) -> None:
    model = captioner("blip")
    bad = LocalCaption(
        model=model, batch_size=5, prompt="a", prompts={"": "{x.y}"}, min_tokens=9, max_tokens=3
    )
    assert [p.split(",")[0].split(";")[0] for p in bad.preflight()] == [
        "batch_size must be a positive multiple of 16",
        "give either `prompt`",
        "prompts: a name is empty",
        "the prompt '{x.y}' cannot be read: {x.y} is not a name",
        "min_tokens must be at most max_tokens",
    ]
    assert LocalCaption(model=model, num_captions=2, top_k=5).preflight() == [
        "num_captions: captions with temperature 0 are all the same; set it above 0",
        "top_p and top_k are of sampling; set temperature above 0",
    ]
    assert LocalCaption(model=model, temperature=1.0, num_beams=2).preflight() == [
        "num_beams is a search for the likeliest text; it needs temperature 0"
    ]
    schema = image_rows([[]]).schema
    with pytest.raises(SchemaError, match=r"the prompt has a field \{alt\}, which the rows lack"):
        LocalCaption(model=model, prompt="{alt}").schema(schema)
    assert LocalCaption(model=model, prompt="{alt_text} {id}").schema(schema) == schema
