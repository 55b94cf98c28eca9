"""Captions from a server: what is asked, what becomes of the answers, and what a hostile server can do."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pytest
from endpoint_toys import Serve, picture, rows, stage
from PIL import Image

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.caption.endpoint import CaptionEndpoint
from vlpipe.stages.caption.fuse import FuseEndpoint
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.endpoint.asking import Price
from vlpipe.stages.endpoint.columns import BadJson, fields_of, parsed
from vlpipe.stages.endpoint.pictures import Sent

SCHEMA = {
    "type": "object",
    "properties": {
        "caption": {"type": "string"},
        "objects": {"type": "array", "items": {"type": "string"}},
        "is_photo": {"type": "boolean"},
    },
}


def echo(sha256: str, prompt: str, seed: int) -> str:
    return f"{prompt} {sha256} {seed}"


def synth(table: pa.Table) -> list[list[dict[str, Any]]]:
    return [[one for one in texts if one["source"] == "synth"] for texts in table["texts"].to_pylist()]


def test_each_row_gets_a_caption_about_its_own_image_and_texts(serve: Serve) -> None:
    table = rows(40)
    table = table.append_column("width", pa.array(range(40), pa.int32()))
    out = run_map(stage(serve(echo), prompt="At {width}: {alt_text} {{}}", temperature=0.7), table)
    for n, (texts, image) in enumerate(
        zip(out.table["texts"].to_pylist(), table["image"].to_pylist(), strict=True)
    ):
        web, caption = texts
        assert web == text(f"alt {n}", "web")
        assert caption["text"].startswith(f"At {n}: alt {n} {{}} {hashlib.sha256(image).hexdigest()}")
        assert (caption["model"], caption["kept"], caption["why"]) == ("demo", None, None)
    assert out.counts["captions_good"] == 40
    assert out.counts["tokens_in"] == 40 * 300


def test_several_prompts_and_captions_are_asked_with_seeds_of_their_own(serve: Serve) -> None:
    server = serve(echo)
    asked = stage(server, prompts={"short": "s", "long": "l"}, num_captions=3, temperature=1.0)
    found = synth(run_map(asked, rows(5)).table)
    assert [len(one) for one in found] == [6] * 5
    assert [one["model"] for one in found[0]] == ["demo/short"] * 3 + ["demo/long"] * 3
    seeds = [[int(one["text"].split()[-1]) for one in texts] for texts in found]
    assert all(one[:3] == one[3:] and len(set(one)) == 3 for one in seeds)
    assert len({seed for one in seeds for seed in one}) == 15
    assert synth(run_map(asked, rows(5)).table) == found


def test_fields_of_texts(serve: Serve) -> None:
    texts = [
        text("dropped", "web", kept=False, why="x"),
        text("from\x00the\nweb", "web"),
        text("first", "synth"),
        text("last", "synth"),
    ]
    table = rows(1, texts=pa.array([texts], TEXTS))
    found = run_map(stage(serve(echo), prompt="[{alt_text}|{caption}|{texts}]"), table).table
    said = synth(found)[0][-1]["text"]
    assert said.startswith("[from the web|last|from the web first last]")


def test_texts_are_fused_without_the_image(serve: Serve) -> None:
    """No picture is sent, none is needed, and each row's own texts are blended."""
    seen: list[str] = []

    def fuse(sha256: str, prompt: str, seed: int) -> str:
        seen.append(sha256)
        return f"blended: {prompt}"

    table = rows(3).drop_columns(["image"])
    texts = [[text(f"Tom Mori at Kyoto {n}", "web"), text("a man", "synth")] for n in range(3)]
    table = table.set_column(2, "texts", pa.array(texts, TEXTS))
    server = serve(fuse)
    asked = FuseEndpoint(base_url=server.url, model="llm", prompt="1: {alt_text} 2: {caption}", max_words=20)
    assert asked.preflight() == []
    out = run_map(asked, table).table
    assert [one["text"] for row in out["texts"].to_pylist() for one in row[2:]] == [
        f"blended: 1: Tom Mori at Kyoto {n} 2: a man" for n in range(3)
    ]
    assert seen == [""] * 3
    blind = FuseEndpoint(base_url=server.url, model="llm", prompt="Describe it.")
    assert "sees nothing of the row but its texts" in blind.preflight()[0]
    assert "is not a name" in FuseEndpoint(base_url=server.url, model="m", prompt="{0}").preflight()[0]


def test_a_json_schema_becomes_columns(serve: Serve) -> None:
    server = serve(echo)
    out = run_map(stage(server, json_schema=SCHEMA), rows(3)).table
    assert out.schema.field("objects").type == pa.list_(pa.string())
    assert out["is_photo"].to_pylist() == [True] * 3
    assert [[one[0]["text"]] for one in synth(out)] == out["objects"].to_pylist()
    both = run_map(stage(server, json_schema=SCHEMA, prompts={"a": "x", "b": "y"}), rows(3)).table
    assert both.schema.field("is_photo").type == pa.list_(pa.bool_())
    assert both["is_photo"].to_pylist() == [[True, True]] * 3


@pytest.mark.parametrize("said", ['{"caption": 5}', "no json", "[1]", '{"caption": "x", "objects": "y"}'])
def test_an_answer_that_is_not_what_the_schema_asks_for(said: str) -> None:
    with pytest.raises(BadJson):
        parsed(said, fields_of(SCHEMA))


def test_an_answer_with_a_fence() -> None:
    found = parsed('```json\n{"caption": "a\\u0000 dog", "objects": null}\n```', fields_of(SCHEMA))
    assert found == {"caption": "a dog", "objects": None, "is_photo": None}


def test_a_server_that_ignores_the_schema(serve: Serve) -> None:
    server = serve(faults={"refusal": 0.5, "empty": 0.5})
    out = run_map(stage(server, json_schema=SCHEMA), rows(20)).table
    assert {one[0]["why"] for one in synth(out)} == {"refusal", "empty"}
    assert out["is_photo"].to_pylist() == [None] * 20
    out = run_map(stage(serve(faults={"loop": 1.0}), json_schema=SCHEMA), rows(2)).table
    assert [one[0]["why"] for one in synth(out)] == ["bad_json"] * 2


def test_pictures_are_sent_as_they_are_or_made_smaller(serve: Serve) -> None:
    seen = []

    def note(sha256: str, prompt: str, seed: int) -> str:
        seen.append(sha256)
        return "a picture of a field"

    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(turned, "JPEG", exif=exif)
    images = [picture(1), picture(2, (300, 200), "JPEG"), turned.getvalue(), picture(3, mode="RGBA")]
    table = rows(4, image=pa.array(images, pa.binary()))
    run_map(stage(serve(note), sent=Sent(max_side=64)), table)
    given = [hashlib.sha256(one).hexdigest() for one in images]
    assert given[0] in seen
    assert not set(given[1:]) & set(seen)
    assert len(set(seen)) == 4


def test_an_image_at_fault_is_a_rejected_row(serve: Serve) -> None:
    images = [picture(0), b"no picture", b"", picture(3)[:40], picture(4, (4000, 3000))[:5000]]
    table = rows(5, image=pa.array(images, pa.binary()))
    out = run_map(stage(serve()), table)
    assert out.table["id"].to_pylist() == ["row0"]
    assert {one.id: one.kind for one in out.rejects} == {f"row{n}": "fault" for n in range(1, 5)}
    assert {one.why for one in out.rejects} <= {"not_an_image", "empty", "truncated", "broken"}
    out = run_map(stage(serve(faults={"bad_image": 1.0})), rows(2))
    assert [(one.why, one.detail) for one in out.rejects] == [("http_400", "cannot identify image file")] * 2


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("refusal", "refusal"),
        ("length", "truncated"),
        ("empty", "empty"),
        ("loop", "repetition"),
        ("foreign", "wrong_language"),
        ("bad_request", "http_400"),
        ("redirect", "redirect"),
        ("wrong_json", "bad_answer"),
        ("deep", "bad_answer"),
        ("html", "bad_answer"),
        ("500", "http_500"),
        ("cut", "disconnected"),
        ("endless", "too_large"),
        ("huge", "too_large"),
        ("hang", "timeout"),
    ],
)
def test_what_is_wrong_with_a_caption_is_told_by_a_code(serve: Serve, fault: str, why: str) -> None:
    captioner = lambda *_: "a small red house on a green meadow under a blue sky"  # noqa: E731
    server = serve(captioner, faults={fault: 1.0}, always=True)
    languages = ("en",) if fault == "foreign" else ()
    asked = stage(server, retries=1, languages=languages, timeout_s=0.4, row_timeout_s=5.0)
    out = run_map(asked, rows(3))
    assert [one["why"] for texts in synth(out.table) for one in texts] == [why] * 3
    assert [one["kept"] for texts in synth(out.table) for one in texts] == [False] * 3
    assert out.counts[f"captions_{why}"] == 3
    assert out.table["texts"].to_pylist()[0][0] == text("alt 0", "web")


def test_too_long(serve: Serve) -> None:
    out = run_map(stage(serve(lambda *_: "one two three four"), max_words=3), rows(1))
    assert synth(out.table)[0][0]["why"] == "too_long"


def test_each_prompt_may_have_a_language_of_its_own(serve: Serve) -> None:
    said = {
        "english": "a small red house on a green meadow under a blue sky",
        "german": "ein kleines rotes Haus auf einer gr\u00fcnen Wiese unter blauem Himmel",
    }
    prompts = {"english": "in English", "german": "auf Deutsch"}

    def speak(_: str, prompt: str, __: int) -> str:
        return said["german" if prompt == "auf Deutsch" else "english"]

    right = stage(serve(speak), prompts=prompts, languages={"english": ("en",), "german": ("de",)})
    assert right.preflight() == []
    assert [[one["why"] for one in texts] for texts in synth(run_map(right, rows(2)).table)] == [
        [None] * 2
    ] * 2
    wrong = stage(serve(lambda *_: said["german"]), prompts=prompts, languages={"english": ("en",)})
    found = synth(run_map(wrong, rows(1)).table)
    assert [one["why"] for one in found[0]] == ["wrong_language", None]
    unknown = stage(serve(), prompts=prompts, languages={"germn": ("de",)})
    assert unknown.preflight() == ["languages: 'germn' is not the name of a prompt; did you mean 'german'?"]


def test_grounded_captions_are_columns_of_labels_and_boxes(serve: Serve) -> None:
    boxes = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    names = {"type": "array", "items": {"type": "string"}}
    schema = {
        "type": "object",
        "properties": {"caption": {"type": "string"}, "labels": names, "boxes": boxes},
    }
    out = run_map(stage(serve(echo), json_schema=schema), rows(2)).table
    assert out.schema.field("boxes").type == pa.list_(pa.list_(pa.float64()))
    assert out["boxes"].to_pylist() == [[[0.5]]] * 2
    said = {"caption": "a dog", "labels": ["dog"], "boxes": [[0, 0.25, 1, "x"]]}
    with pytest.raises(BadJson):
        parsed(json.dumps(said), fields_of(schema))
    said["boxes"] = [[0, 0.25, 1, 0.5]]
    assert parsed(json.dumps(said), fields_of(schema)) == said


def test_rows_without_an_answer_can_be_rejected_to_be_asked_again(serve: Serve) -> None:
    server = serve(faults={"wrong_json": 1.0}, always=True)
    out = run_map(stage(server, retries=0, unanswered="reject"), rows(3))
    assert [(one.kind, one.why) for one in out.rejects] == [("fault", "bad_answer")] * 3
    assert out.table.num_rows == 0


@pytest.mark.parametrize("fault", ["500", "cut", "wrong_json", "html", "endless", "huge", "redirect"])
def test_a_fault_that_passes_costs_another_request_at_most(serve: Serve, fault: str) -> None:
    server = serve(faults={fault: 0.3})
    out = run_map(stage(server), rows(40))
    codes = {one["why"] for texts in synth(out.table) for one in texts}
    final = {"endless": {"too_large"}, "huge": {"too_large"}, "redirect": {"redirect"}}.get(fault, set())
    assert codes == {None, *final}
    assert set(server.server.asked.values()) == ({1} if final else {1, 2})


def test_control_characters_do_not_reach_the_rows(serve: Serve) -> None:
    out = run_map(stage(serve(faults={"control": 1.0})), rows(3))
    for texts in synth(out.table):
        assert texts[0]["text"].isprintable()
        assert texts[0]["text"].endswith("on it\ufffd \ufffd")


def test_the_key_is_sent_and_not_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("DEMO_KEY", key)
    server = serve(faults={"echo": 1.0}, key=key)
    out = run_map(stage(server, api_key_env="DEMO_KEY"), rows(3))
    said = [texts[0]["text"] for texts in synth(out.table)]
    assert all("Bearer (hidden)" in one and key not in one for one in said)


def test_a_key_in_an_error_in_another_spelling_is_not_kept(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("DEMO_KEY", key)
    server = serve(faults={"tell_tale": 1.0}, key=key)
    out = run_map(stage(server, api_key_env="DEMO_KEY", retries=0, unanswered="reject"), rows(2))
    assert [one.why for one in out.rejects] == ["http_502"] * 2
    assert all("(hidden)" in one.detail and key not in one.detail for one in out.rejects)


def test_a_server_that_lets_nobody_in_stops_the_step(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_KEY", "wrong")
    server = serve(key="right")
    with pytest.raises(VlpipeError, match="answers with 401"):
        run_map(stage(server, api_key_env="DEMO_KEY"), rows(3))
    monkeypatch.delenv("DEMO_KEY")
    with pytest.raises(VlpipeError, match="DEMO_KEY is not set"):
        run_map(stage(server, api_key_env="DEMO_KEY"), rows(3))
    gone = CaptionEndpoint(base_url="http://127.0.0.1:9/v1", model="m", prompt="p", give_up_s=0.3)
    with pytest.raises(VlpipeError, match=r"no answer from the server for 0\.3 s"):
        run_map(gone, rows(3))


def test_a_server_that_refuses_forever_stops_the_step(serve: Serve) -> None:
    server = serve(faults={"429": 1.0}, always=True, retry_after="0")
    with pytest.raises(VlpipeError, match="has answered with 429 alone"):
        run_map(stage(server, max_wait_s=0.5), rows(3))


def test_a_server_that_comes_back_is_waited_for(serve: Serve) -> None:
    server = serve(faults={"429": 0.5, "500": 0.5}, retry_after="0")
    out = run_map(stage(server, retries=3), rows(30))
    assert out.counts["captions_good"] == 30


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"base_url": "ftp://x/v1"}, "wanted http"),
        ({"base_url": "http://me:pw@x/v1"}, "must have no user"),
        ({"base_url": "http://x/v1?key=1"}, "must have no user"),
        ({"base_url": "http://[x/v1"}, "is not a URL"),
        ({"prompts": {"a": "b"}}, "either `prompt`, or `prompts`"),
        ({"prompt": "{0}"}, "is not a name"),
        ({"prompt": "{a!r}"}, "is not a name"),
        ({"prompt": "{a"}, "cannot be read"),
        ({"num_captions": 2}, "temperature 0 are all the same"),
        ({"more": {"model": "x"}}, "model cannot be set"),
        ({"json_schema": {"type": "object"}}, "must have `type: object`"),
        ({"json_schema": SCHEMA, "caption_field": "objects"}, "no property 'objects' of type string"),
        ({"timeout_s": 9.0, "row_timeout_s": 8.0}, "must not be smaller"),
    ],
)
def test_mistakes_are_told_before_anything_runs(more: dict[str, Any], problem: str) -> None:
    given = {"base_url": "http://x/v1", "model": "m", "prompt": "p", **more}
    assert any(problem in one for one in CaptionEndpoint(**given).preflight())


def test_a_prompt_of_a_missing_column() -> None:
    asked = CaptionEndpoint(base_url="http://x/v1", model="m", prompt="{titel}")
    with pytest.raises(VlpipeError, match=r"{titel}, which the rows lack; did you mean 'title'"):
        asked.schema(rows(1, title=["a"]).schema)
    named = CaptionEndpoint(base_url="http://x/v1", model="m", prompt="p", json_schema=SCHEMA)
    with pytest.raises(SchemaError, match="'is_photo', which is a column"):
        named.schema(rows(1, is_photo=[True]).schema)


def test_the_price() -> None:
    assert Price(input=0.5, output=2.0).of(2_000_000, 1_000_000) == 3.0
