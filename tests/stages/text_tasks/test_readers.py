"""Files of GLUE and SQuAD as rows, and the generated ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.engine.records.keys import key_params
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.demo.tasks.text_tasks import TextTasks
from vlpipe.stages.text_tasks.glue import EXAMPLES, TASKS, GlueTask
from vlpipe.stages.text_tasks.squad import QUESTIONS, SquadQuestions


def listed(path: Path, content: str) -> ListFile:
    path.write_text(content, encoding="utf-8")
    return ListFile(path=str(path))


def glue(path: Path, task: str, content: str) -> pa.Table:
    stage = GlueTask(file=listed(path / "dev.tsv", content), task=task)  # type: ignore[arg-type]
    table = pa.concat_tables(stage.rows())
    assert table.schema == EXAMPLES
    return table


def examples(table: pa.Table) -> list[tuple[list[str], Any, Any]]:
    rows = table.to_pylist()
    return [([t["text"] for t in row["texts"]], row["label"], row["score"]) for row in rows]


def test_files_without_a_header_and_without_quoting(tmp_path: Path) -> None:
    found = glue(tmp_path, "cola", 'gj04\t1\t\tShe said "go.\nbc1\t0\t*\tThey him saw.\n')
    assert examples(found) == [(['She said "go.'], 1, None), (["They him saw."], 0, None)]
    assert found["url"].to_pylist() == ["dev.tsv:0", "dev.tsv:1"]
    assert len(set(found["id"].to_pylist())) == 2


def test_pairs_classes_and_scores(tmp_path: Path) -> None:
    mrpc = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA ran.\tA walked.\n"
    assert examples(glue(tmp_path, "mrpc", mrpc)) == [(["A ran.", "A walked."], 1, None)]
    rte = "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tnot_entailment\n1\tC\tD\tentailment\n"
    assert examples(glue(tmp_path, "rte", rte)) == [(["A", "B"], 1, None), (["C", "D"], 0, None)]
    mnli = "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA\tB\tneutral\t-\n1\tC\tD\tneutral\tcontradiction\n"
    assert examples(glue(tmp_path, "mnli", mnli)) == [(["A", "B"], None, None), (["C", "D"], 2, None)]
    stsb = "index\tsentence1\tsentence2\tscore\n0\tA\tB\t2.500\n"
    assert examples(glue(tmp_path, "stsb", stsb)) == [(["A", "B"], None, 2.5)]


@pytest.mark.parametrize(
    ("task", "content", "words"),
    [
        (
            "sst2",
            "sentence\tlabel\nfine\t1\nbad\t2\n",
            r"dev\.tsv line 3: the class is '2', wanted one of 0, 1",
        ),
        ("sst2", "sentence\tlabel\n\t1\n", "a sentence is empty"),
        ("stsb", "sentence1\tsentence2\tscore\nA\tB\tnan\n", "the score is .*, wanted a finite number"),
        ("rte", "sentence\tlabel\nA\tentailment\n", "sentence1"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, task: str, content: str, words: str) -> None:
    with pytest.raises(VlpipeError, match=words):
        glue(tmp_path, task, content)


def test_all_nine_tasks_are_there() -> None:
    assert list(TASKS) == ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]


CONTEXT = "The caf\u00e9 in Ulm opened in 1904."


def squad(*questions: dict[str, Any]) -> str:
    data = [{"title": "Ulm", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}]
    return json.dumps({"version": "v2.0", "data": data})


def asked(name: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": "When did it open?", "answers": found, **more}


def read(path: Path, content: str) -> Out:
    stage = SquadQuestions(file=listed(path / "dev.json", content))
    with stage.open() as work:
        return work(pa.concat_tables(stage.rows()))


def test_questions_with_and_without_answers(tmp_path: Path) -> None:
    impossible = asked("c", ("Ulm", 12), is_impossible=True)
    out = read(
        tmp_path,
        squad(asked("a", ("1904", 26), ("in 1904", 23)), asked("b", ("1904", 25)), asked("d"), impossible),
    )
    assert out.table.schema == QUESTIONS
    assert out.table["url"].to_pylist() == ["a", "d", "c"]
    assert out.table["answers"].to_pylist() == [
        [{"text": "1904", "start": 26}, {"text": "in 1904", "start": 23}],
        [],
        [],
    ]
    assert [(r.kind, r.why, r.detail) for r in out.rejects] == [
        ("fault", "answer_elsewhere", "'1904' is not at character 25")
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"data": {}}', "wanted a JSON object with the key 'data'"),
        (
            squad({"id": "a", "question": " ", "answers": []}),
            r"data\[0\].paragraphs\[0\].qas\[0\]: the question is",
        ),
        (squad({"id": "a", "question": "Who?"}), r"qas\[0\]: wanted a JSON object with the key 'answers'"),
        (
            squad({"id": "a", "question": "Who?", "answers": [{"text": "Ulm"}]}),
            r"answers\[0\]: wanted a whole number as 'answer_start'",
        ),
    ],
)
def test_what_is_wrong_in_the_json_is_said(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(VlpipeError, match=words):
        read(tmp_path, content)


def test_generated_tasks_are_read_and_true(tmp_path: Path) -> None:
    """Answers stand in their contexts; a pair that does not entail names another colour; about a quarter have no answer."""
    out = run_gather(TextTasks(num_train=200, num_dev=5), [], tmp_path / "out")
    folder = Path(out.artifacts)
    stage = SquadQuestions(file=ListFile(path=str(folder / "squad/train.json")))
    with stage.open() as work:
        found = work(pa.concat_tables(stage.rows()))
    assert not found.rejects
    rows = found.table.to_pylist()
    assert len(rows) == 200
    empty = sum(not row["answers"] for row in rows)
    assert abs(empty - 50) < 4 * (200 * 0.25 * 0.75) ** 0.5
    for row in rows:
        shape = row["texts"][0]["text"].split()[-2]
        names = {"circle": "disc", "square": "box", "cross": "plus", "ring": "hoop", "triangle": "triangle"}
        same = {shape, names.get(shape, shape)} | {k for k, v in names.items() if v == shape}
        assert any(word in row["context"].split() for word in same) == bool(row["answers"])
    pairs = examples(
        pa.concat_tables(GlueTask(file=ListFile(path=str(folder / "rte/train.tsv")), task="rte").rows())
    )
    assert len(pairs) == 200
    assert abs(Counter(label for _, label, _ in pairs)[0] - 100) < 4 * 50**0.5
    again = run_gather(TextTasks(num_train=200, num_dev=5), [], tmp_path / "again")
    assert (Path(again.artifacts) / "rte/dev.tsv").read_text() == (folder / "rte/dev.tsv").read_text()


def test_a_renamed_file_is_another_list(tmp_path: Path) -> None:
    """Rows have its name, in `url` and so in their ids; its content is the same."""
    keys = []
    for name in ("train.tsv", "dev.tsv"):
        path = tmp_path / name
        path.write_text("sentence\tlabel\nGood.\t1\n")
        stage = GlueTask(file=ListFile(path=str(path), digest="of both"), task="sst2")
        (url,) = next(stage.rows())["url"].to_pylist()
        assert url.startswith(f"{name}:")
        keys.append(key_params(stage))
    assert keys[0] != keys[1]


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("Good.\t1\n")
    for path in (tmp_path / "train.txt", tmp_path, tmp_path / "none.tsv"):
        with pytest.raises(VlpipeError, match=r"is not a \.tsv file; wanted train\.tsv or dev\.tsv of sst2"):
            list(GlueTask(file=ListFile(path=str(path)), task="sst2").rows())
