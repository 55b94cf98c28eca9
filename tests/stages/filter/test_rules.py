from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.stages.filter.sized_rows import sized
from vlpipe.pipeline.errors import SchemaError, VlpipeError, WorkflowError
from vlpipe.pipeline.shard import Reject, heavy
from vlpipe.pipeline.testing import run_map
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import Rule, scored
from vlpipe.stages.filter.rules import Rules

Rows = Callable[..., pa.Table]


def random_rows(num_rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    words = ["dog", "IMG_1", "a", "the", "http://x", "naïve"]

    def entry() -> dict[str, Any]:
        more = {"kept": False, "why": "old"} if rng.random() < 0.1 else {}
        value = " ".join(rng.choice(words, int(rng.integers(0, 6))))
        return text(value, str(rng.choice(["web", "synth"])), **more)

    texts = [[entry() for _ in range(int(rng.integers(0, 4)))] for _ in range(num_rows)]
    sides = rng.integers(50, 400, (num_rows, 2)).tolist()
    return sized(texts, [(w, h) for w, h in sides])


RULES = (
    Rule(column="num_words", op=">=", value=2, id="few"),
    Rule(column="min_side", op=">=", value=100),
    Rule(column="texts.text", op="not_matches", value=r"(?i)\bimg", id="junk"),
    Rule(column="aspect_ratio", op="<=", value=2),
)


def reference(table: pa.Table) -> tuple[list[dict[str, Any]], list[tuple[str, str]], Counter[str]]:
    """RULES by a plain loop."""
    counts: Counter[str] = Counter()
    kept, rejects = [], []
    for row in table.to_pylist():
        low, high = sorted((row["width"], row["height"]))
        broken = [c for c, bad in (("min_side", low < 100), ("aspect_ratio", high / low > 2)) if bad]
        counts.update(f"fails:{c}" for c in broken)
        if broken:
            counts[f"drops:{broken[0]}"] += 1
            rejects.append((row["id"], broken[0]))
            continue
        for entry in row["texts"]:
            if entry["source"] == "web" and entry["kept"] is not False:
                junk = "img" in entry["text"].lower()
                broken = [c for c, bad in (("few", len(entry["text"].split()) < 2), ("junk", junk)) if bad]
                counts.update(f"fails:{c}" for c in broken)
                if broken:
                    counts[f"drops:{broken[0]}"] += 1
                    entry.update(kept=False, why=broken[0])
        kept.append(row)
    return kept, rejects, counts


def test_rules_do_what_a_plain_loop_does() -> None:
    table = random_rows(400)
    kept, rejects, counts = reference(table)
    out = run_map(Rules(rules=RULES), table)
    assert out.table.to_pylist() == kept
    assert [(r.id, r.why) for r in out.rejects] == rejects
    assert {k: n for k, n in out.counts.items() if n} == dict(counts)
    assert counts["fails:junk"] > counts["drops:junk"] > 0
    assert counts["fails:aspect_ratio"] > counts["drops:aspect_ratio"] > 0


def test_a_slice_of_a_larger_table_is_judged_alike() -> None:
    table = random_rows(60)
    whole = run_map(Rules(rules=RULES), table)
    parts = [run_map(Rules(rules=RULES), table.slice(start, 7)) for start in range(0, 60, 7)]
    assert pa.concat_tables([p.table for p in parts]).to_pylist() == whole.table.to_pylist()
    assert [r for p in parts for r in p.rejects] == whole.rejects
    assert sum((Counter(p.counts) for p in parts), Counter()) == +Counter(whole.counts)


@pytest.mark.parametrize(
    ("op", "value", "kept"),
    [
        ("<", 3, [0, 1, 2]),
        ("<=", 3, [0, 1, 2, 3]),
        (">", 3, [4]),
        (">=", 3, [3, 4]),
        ("==", 3, [3]),
        ("!=", 3, [0, 1, 2, 4]),
        ("in", (1, 3), [1, 3]),
        ("not_in", (1, 3), [0, 2, 4]),
    ],
)
def test_operators(op: Any, value: Any, kept: list[int]) -> None:
    table = pa.table({"id": [f"r{i}" for i in range(5)], "n": pa.array(range(5), pa.int32())})
    out = run_map(Rules(rules=(Rule(column="n", op=op, value=value),)), table)
    assert out.table["n"].to_pylist() == kept
    assert all(r.kind == "filtered" and r.why == "n" for r in out.rejects)


def test_a_missing_value_is_what_the_rule_says() -> None:
    table = sized([[]] * 3, [(100, 100), (None, 100), (10, 10)])

    def keeps(on_missing: Any) -> list[str]:
        rule = Rule(column="min_side", op=">=", value=64, on_missing=on_missing)
        return list(run_map(Rules(rules=(rule,)), table).table["id"].to_pylist())

    assert keeps("reject") == ["r0"]
    assert keeps("keep") == ["r0", "r1"]
    with pytest.raises(VlpipeError, match=r"rule min_side \(min_side >= 64\): a value of 'min_side' is null"):
        keeps("error")


def test_a_reject_says_the_value_and_what_was_wanted() -> None:
    table = sized([[]] * 4, [(180, 320), (400, 100), (None, 300), (300, 300)])
    table = table.append_column("url", pa.array([f"http://x.test/{n}.gif?key=secret" for n in range(4)]))
    table = table.append_column("format", pa.array(["JPEG", "JPEG", "JPEG", "GIF"]))
    rules = (
        Rule(column="min_side", op=">=", value=200, id="small"),
        Rule(column="aspect_ratio", op="<=", value=3.0),
        Rule(column="format", op="in", value=("JPEG", "PNG")),
        Rule(column="url", op="not_matches", value="gif"),
    )
    told = {r.id: (r.why, r.detail) for r in run_map(Rules(rules=rules), table).rejects}
    assert told == {
        "r0": ("small", "min_side 180, wanted >= 200"),
        "r1": ("small", "min_side 100, wanted >= 200"),
        "r2": ("small", "min_side missing, wanted >= 200"),
        "r3": ("format", 'format GIF, wanted in ["JPEG", "PNG"]'),
    }
    told = {r.id: (r.why, r.detail) for r in run_map(Rules(rules=rules[1:2] + rules[3:]), table).rejects}
    assert told["r1"] == ("aspect_ratio", "aspect_ratio 4, wanted <= 3.0")
    assert told["r0"] == ("url", ""), "an address is not repeated"


def test_a_reject_tells_of_each_text_what_its_rule_saw() -> None:
    texts = [
        [text("one two three", "web")],
        [text("fine", "human", kept=False, why="junk"), text("one two", "web"), text("one", "web")],
    ]
    table = sized(texts, [(9, 9)] * 2)
    rules = (Rule(column="num_words", op=">=", value=3, id="few"), Rule(column="num_chars", op=">", value=99))
    out = run_map(Rules(rules=rules[:1], drop_textless=True), table)
    assert [(r.id, r.detail) for r in out.rejects] == [
        ("r1", "human: junk; web: few (num_words 2, wanted >= 3); web: few (num_words 1, wanted >= 3)")
    ]
    out = run_map(Rules(rules=rules, drop_textless=True), table)
    assert out.rejects[0].detail == "web: num_chars (num_chars 13, wanted > 99)"


def test_textless_rows_go_when_asked() -> None:
    texts = [[text("one", "web")], [text("one", "web"), text("one two", "web")], []]
    table = sized(texts, [(9, 9)] * 3)
    rules = (Rule(column="num_words", op=">=", value=2),)
    assert run_map(Rules(rules=rules), table).table.num_rows == 3
    out = run_map(Rules(rules=rules, drop_textless=True), table)
    assert out.table["id"].to_pylist() == ["r1"]
    assert out.rejects == [
        Reject("r0", "filtered", "no_text_kept", "web: num_words (num_words 1, wanted >= 2)"),
        Reject("r2", "filtered", "no_text_kept", "it has no text"),
    ]


CASES = [
    ("a dog on the beach", None),
    ("dog beach", "too_few_words"),
    ("", "too_few_words"),
    ("   a   b  ", "too_few_words"),
    (" ".join("abcdefghijklm" * 5), "too_many_words"),
    ("IMG_0123 best price", "junk"),
    ("photo DSC00042 of us", "junk"),
    ("sunset over sea.JPG", "junk"),
    ("see https://example.org for more", "junk"),
    ("an image of dogs", None),  # `img` inside a word is not a file name
    ("the picture is untitled", "junk"),
]


@pytest.mark.parametrize(("words", "why"), CASES)
def test_our_own_rules_for_alt_text(words: str, why: str | None) -> None:
    out = run_map(Rules(preset="alt_text"), sized([[text(words, "web")]], [(9, 9)]))
    entry = out.table["texts"].to_pylist()[0][0]
    assert entry == text(words, "web", **({} if why is None else {"kept": False, "why": why}))


def test_other_sources_and_earlier_verdicts_are_left_alone() -> None:
    texts = [[text("dog", "human"), text("dog", "synth"), text("dog", "web", kept=False, why="not_matched")]]
    table = sized(texts, [(9, 9)])
    assert run_map(Rules(preset="alt_text"), table).table["texts"].to_pylist() == texts
    both = run_map(Rules(preset="alt_text", sources=("web", "synth")), table).table["texts"].to_pylist()[0]
    assert [t["why"] for t in both] == [None, "too_few_words", "not_matched"]


def test_scores_of_each_text_are_judged_beside_it() -> None:
    rows = sized([[text("a", "web"), text("b", "web")], [], [text("c", "web")]], [(9, 9)] * 3)
    field = scored("clip_score", pa.list_(pa.float32()), "B/32")
    rows = rows.append_column(field, pa.array([[0.1, 0.5], [], [None]], field.type))
    stage = Rules(rules=(Rule(column="clip_score", op=">=", value=0.28, encoder="B/32"),))
    texts = run_map(stage, rows).table["texts"].to_pylist()
    assert [[t["why"] for t in ts] for ts in texts] == [["clip_score", None], [], ["clip_score"]]
    stale = rows.set_column(
        rows.schema.get_field_index("clip_score"), field, pa.array([[0.1], [], [1.0]], field.type)
    )
    with pytest.raises(VlpipeError, match=r"'clip_score' has 1 value\(s\) for 2 text\(s\)"):
        run_map(stage, stale)


def schema_error(stage: Rules, *fields: pa.Field) -> str:
    with pytest.raises(SchemaError) as caught:
        stage.schema(pa.schema([("id", pa.string()), ("texts", TEXTS), *fields]))
    return str(caught.value)


def clip_rule(**more: Any) -> Rules:
    return Rules(rules=(Rule(column="clip_score", op=">=", value=0.28, **more),))


def test_a_threshold_of_another_encoder_is_refused() -> None:
    of = scored("clip_score", pa.list_(pa.float32()), "laion/L-14")
    unbound = pa.field("clip_score", pa.list_(pa.float32()))
    assert schema_error(clip_rule(encoder="openai/B-32"), of) == (
        "rule clip_score: clip_score >= 0.28 is for scores of openai/B-32, but 'clip_score' has scores of laion/L-14"
    )
    assert schema_error(clip_rule(), of) == (
        "rule clip_score: 'clip_score' has scores of laion/L-14; add `encoder: laion/L-14` if the "
        "threshold of `clip_score >= 0.28` "
        "is for them"
    )
    assert schema_error(clip_rule(encoder="openai/B-32", needs="filter.clip:ClipScore"), unbound) == (
        "rule clip_score: clip_score >= 0.28 is for scores of openai/B-32, but no step above declares the encoder of "
        "'clip_score'; it needs filter.clip:ClipScore, or skip: [clip_score]"
    )
    clip_rule(encoder="laion/L-14").schema(pa.schema([("id", pa.string()), ("texts", TEXTS), of]))


def test_a_rule_for_another_identifier_says_how_to_leave_it_out() -> None:
    found = scored("language", pa.list_(pa.string()), "py3langid")
    rule = Rule(
        column="language", op="==", value="en", encoder="lid.176", needs="filter.language with lid.176"
    )
    assert schema_error(Rules(rules=(rule,)), found).endswith(
        "but 'language' has scores of py3langid; it needs filter.language with lid.176, or skip: [language]"
    )


def test_every_rule_that_cannot_be_judged_is_named_at_once() -> None:
    said = schema_error(
        Rules(preset="laion", rules=(Rule(column="widht", op=">", value=1),)), pa.field("width", pa.int32())
    )
    for part in (
        "rule url_kind: there is no column or measure 'url'",
        "rule num_bytes (num_bytes) reads column 'image', which its input does not have",
        "rule num_pixels (num_pixels) reads column 'height', which its input does not have",
        "rule language (language == \"en\"): no step above writes 'language'; it needs a language per text by cld3",
        "rule clip_score (clip_score >= 0.28): no step above writes 'clip_score'; it needs filter.clip:ClipScore, "
        "or skip: [clip_score]",
        "rule widht: there is no column or measure 'widht'; did you mean 'width'?",
    ):
        assert part in said


def test_rules_that_make_no_sense_are_said() -> None:
    with pytest.raises(VlpipeError, match="there is no preset 'laoin'; did you mean 'laion'"):
        Rules(preset="laoin")
    with pytest.raises(VlpipeError, match=r"skip: there is no rule 'clip_scor'; did you mean 'clip_score'\?"):
        Rules(preset="laion", skip=("clip_scor",))
    with pytest.raises(
        VlpipeError, match="two rules have the reject code 'num_words'; give one of them another `id`"
    ):
        Rules(rules=(Rule(column="num_words", op=">", value=1), Rule(column="num_words", op="<", value=9)))
    bad = (
        Rule(column="num_words", op="in", value=3, id="a"),
        Rule(column="texts.text", op="matches", value="(", id="b"),
        Rule(column="num_words", op=">", value="3", id="c"),
    )
    first, second, third = Rules(rules=bad).preflight()
    assert first == "rule a: 'in' needs a list, but the rule is `num_words in 3`"
    assert second.startswith("rule b: '(' is not a valid regular expression")
    assert third == "rule c: '>' compares numbers, but the rule is `num_words > \"3\"`"
    assert Rules().preflight() == ["there is no rule; set `preset` or `rules`"]
    number_of_text = Rules(rules=(Rule(column="texts.text", op="==", value=3),))
    assert "column 'texts.text' is string, but `texts.text == 3` needs a column of numbers" in schema_error(
        number_of_text
    )


def test_images_are_read_only_when_a_rule_is_about_bytes() -> None:
    assert Rules(preset="alt_text").READS_HEAVY == ()
    stage = Rules(rules=(Rule(column="num_bytes", op=">=", value=5),))
    assert stage.READS_HEAVY == ("image",)
    schema = pa.schema([("id", pa.string()), heavy("image", pa.binary())])
    out = run_map(stage, pa.table([["a", "b"], pa.array([b"1234", b"12345"], pa.binary())], schema=schema))
    assert out.table["id"].to_pylist() == ["b"]


PLAN = """
name: plan
root: {root}
steps:
  images: {{use: "lists.captions:CaptionsJsonl", captions: {list}, images: {root}}}
  scored: {{use: "filter.clip:ClipScore", from: images, model: {model}}}
  clean: {{use: "filter.clean:CleanTexts", from: scored}}
  other: {{use: "filter.clip:ClipScore", from: images, model: a/b}}
  top: {{use: "filter.top:TopCut", from: clean, column: clip_score, fraction: 0.3}}
  judged: {{use: "filter.rules:Rules", from: {above}, rules: [{rule}]}}
"""
RULE = '{column: clip_score, op: ">=", value: 0.28, encoder: openai/clip-vit-base-patch32}'


def load(tmp_path: Path, model: str, above: str = "clean") -> Workflow:
    (tmp_path / "list.jsonl").write_text("")
    where = {"root": tmp_path, "list": tmp_path / "list.jsonl"}
    (tmp_path / "w.yaml").write_text(PLAN.format(model=model, above=above, rule=RULE, **where))
    return Workflow.load(str(tmp_path / "w.yaml"))


def test_the_plan_knows_the_encoder_through_other_steps(tmp_path: Path) -> None:
    load(tmp_path, "openai/clip-vit-base-patch32")
    with pytest.raises(WorkflowError) as caught:
        load(tmp_path, "openai/clip-vit-large-patch14")
    assert (
        "judged: rule clip_score: clip_score >= 0.28 is for scores of openai/clip-vit-base-patch32, but 'clip_score' "
        "has scores of openai/clip-vit-large-patch14"
    ) in str(caught.value)


def test_rows_scored_by_different_encoders_have_none(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="no step above declares the encoder of 'clip_score'"):
        load(tmp_path, "openai/clip-vit-base-patch32", above="[scored, other]")
