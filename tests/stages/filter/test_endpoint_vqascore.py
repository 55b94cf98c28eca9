"""VQAScore by a server's log-probabilities: what is asked, that it is asked once, and what a server without them costs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endpoint_toys import rows
from typer.testing import CliRunner

from vlpipe.pipeline.cli.app import app
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.chat_server.server import Running, any_judge
from vlpipe.stages.chat_server.settings import Settings
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import encoder_of
from vlpipe.stages.filter.vqascore import QUESTION, EndpointVqaScore

WORKFLOW = """
name: judged
steps:
  pictures: {{use: "picture_toys:Pictures", num: 30, shard_rows: 10}}
  judged: {{use: "filter.vqascore:EndpointVqaScore", from: pictures, base_url: {url}, model: demo, {more}}}
  decided:
    use: "selection.decide:Decide"
    from: judged
    rules: [{{column: vqa_score, op: ">=", value: {value}, encoder: demo}}]
"""


def serve(judge: Any = any_judge, **settings: Any) -> Running:
    return Running(Settings(**{"latency_s": 0.005, **settings}), judge=judge)


def stage(server: Running, **more: Any) -> EndpointVqaScore:
    return EndpointVqaScore(base_url=server.url, model="demo", **more)


def some_rows() -> pa.Table:
    """Three rows: two equal texts and another; one that is dropped; none."""
    texts = [
        [text("a dog", "web"), text("a cat", "synth"), text("a dog", "synth")],
        [text("junk", "web", kept=False, why="x")],
        [],
    ]
    return rows(3, texts=pa.array(texts, TEXTS))


def test_each_text_gets_the_probability_of_yes_and_equal_ones_are_asked_about_once() -> None:
    asked = []

    def judge(sha256: str, question: str) -> dict[str, float]:
        asked.append(question)
        return {" yes": 0.5, "Yes": 0.2, "No": 0.1} if "dog" in question else {"No": 0.9, "Maybe": 0.1}

    with serve(judge) as server:
        out = run_map(stage(server, revision="r1"), some_rows())
        of_synth = run_map(stage(server, sources=("synth",)), some_rows()).table
        share = run_map(stage(server, against="No"), some_rows()).table
    found = out.table["vqa_score"].to_pylist()
    assert found == [pytest.approx([0.7, 0.0, 0.7]), [None], []]
    assert sorted(set(asked)) == [QUESTION.replace("{text}", one) for one in ("a cat", "a dog")]
    assert len(asked) == 6  # twice, three times
    assert out.counts["scores_good"] == 3
    assert encoder_of(out.table.schema, "vqa_score") == "demo@r1"
    assert of_synth["vqa_score"].to_pylist()[0] == [None, pytest.approx(0.0), pytest.approx(0.7)]
    assert share["vqa_score"].to_pylist()[0] == pytest.approx([7 / 8, 0.0, 7 / 8])


def test_a_score_is_asked_once_whatever_is_decided_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlpipe.pipeline.cli.commands  # noqa: F401  # defines the commands

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "endpoint"))
    root, file = tmp_path / "root", tmp_path / "w.yaml"

    def run(more: str, value: float, server: Running) -> list[float]:
        file.write_text(WORKFLOW.format(url=server.url, more=more, value=value))
        done = CliRunner().invoke(app, ["run", str(file), "--root", str(root), "--local"])
        assert done.exit_code == 0, done.output
        step = max(root.glob("judged-*"), key=lambda path: path.stat().st_mtime)
        return [
            s for p in sorted(step.glob("0*.parquet")) for (s,) in pq.read_table(p)["vqa_score"].to_pylist()
        ]

    with serve() as server:
        first = run("answer: 'Yes'", 0.5, server)
        assert server.server.asked.total() == 30
        assert run("answer: 'Yes'", 0.9, server) == first  # another threshold
        against = run("answer: 'No'", 0.5, server)  # another reading of the same answers
        assert server.server.asked.total() == 30
        run("question: 'Is it {text}?'", 0.5, server)
        assert server.server.asked.total() == 60
    assert against == pytest.approx([1 - one for one in first], abs=1e-6)
    (receipt, *_) = [json.loads(p.read_text()) for p in root.glob("judged-*/_receipts/*.json")]
    assert receipt["counts"]["scores_good"] == 10
    assert receipt["counts"]["tokens_in"] == 3000


def test_a_full_run_uses_what_a_sample_captioned_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three shards are the sample: the full run asks about the third alone, and makes no row of the others again."""
    import vlpipe.pipeline.cli.commands  # noqa: F401  # defines the commands

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "endpoint"))
    root, file = tmp_path / "root", tmp_path / "w.yaml"
    with serve() as server:
        caption = f'{{use: "caption.endpoint:CaptionEndpoint", from: pictures, base_url: {server.url}, model: m, prompt: p}}'
        workflow = WORKFLOW.format(url=server.url, more="answer: 'Yes'", value=0.5)
        head, judged = workflow.split("  judged:")
        file.write_text(
            f"{head}  captions: {caption}\n  judged:{judged.replace('from: pictures', 'from: captions')}"
        )

        def run(*more: str) -> dict[str, int]:
            """Returns how often the server was asked in all, and the times at which shards of the sample were made."""
            done = CliRunner().invoke(app, ["run", str(file), "--root", str(root), "--local", *more])
            assert done.exit_code == 0, done.output
            files = [
                path for step in ("captions", "judged") for path in root.glob(f"{step}-*/00000[01].parquet")
            ]
            return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}

        first = run("--sample", "2")
        assert server.server.asked.total() == 20 + 40  # captions; their judge, and that of the alt-texts
        assert len(first) == 4
        assert first.items() <= run().items()
        assert server.server.asked.total() == 30 + 60
        assert set(server.server.asked.values()) == {1}


def test_a_server_without_log_probabilities() -> None:
    with (
        serve(faults={"no_logprobs": 1.0}) as server,
        pytest.raises(VlpipeError, match="must know `logprobs` and `top_logprobs` of chat completions"),
    ):
        run_map(stage(server), rows(3))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("no_logprobs", "no_logprobs"),
        ("bad_request", "http_400"),
        ("hang", "timeout"),
        ("html", "bad_answer"),
        ("huge", "too_large"),
        ("endless", "too_large"),
        ("redirect", "redirect"),
        ("500", "http_500"),
    ],
)
def test_a_text_without_an_answer_has_no_score(fault: str, why: str) -> None:
    table = rows(24)
    with serve(faults={fault: 0.4}, always=True) as server:
        judged = stage(server, retries=0, timeout_s=0.3)
        with judged.open() as work:
            good = work(rows(1, id=["good7"]))  # an answer: the server gives log-probabilities
            out = work(table)
    assert good.counts["scores_good"] == 1
    scores = [one for (one,) in out.table["vqa_score"].to_pylist()]
    assert out.counts[f"scores_{why}"] == scores.count(None) > 0
    assert out.counts["scores_good"] == 24 - scores.count(None) > 0
    assert out.table.num_rows == 24
    assert all(one is None or (0 <= one <= 1 and math.isfinite(one)) for one in scores)


def test_an_image_at_fault_is_a_rejected_row_and_so_is_one_without_an_answer_if_that_is_wanted() -> None:
    with serve() as server:
        out = run_map(stage(server), rows(2, image=pa.array([b"no picture", b""], pa.binary())))
        assert [one.kind for one in out.rejects] == ["fault"] * 2
    with serve(faults={"500": 1.0}, always=True) as server:
        out = run_map(stage(server, retries=0, unanswered="reject"), some_rows())
        assert [(one.id, one.why) for one in out.rejects] == [("row0", "http_500")]
        assert out.table["vqa_score"].to_pylist() == [[None], []]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"question": "Is it?"}, "must have the field {text} once"),
        ({"answer": ""}, "answer is empty"),
        ({"more": {"max_tokens": 2}}, "max_tokens cannot be set"),
        ({"base_url": ""}, "give `base_url`, or `server`"),
    ],
)
def test_mistakes_are_told_before_anything_runs(more: dict[str, Any], problem: str) -> None:
    given = {"base_url": "http://x/v1", "model": "m", **more}
    assert any(problem in one for one in EndpointVqaScore(**given).preflight())
