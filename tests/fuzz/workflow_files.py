"""Workflow files: a workflow, or all of its mistakes with their lines."""

import tempfile
from pathlib import Path

from kind import Kind, pieces

from vlpipe.pipeline.errors import WorkflowError
from vlpipe.pipeline.workflow.load import Workflow, profiles_of

FOLDER = tempfile.TemporaryDirectory(prefix="vlpipe-fuzz-")
HERE = Path(FOLDER.name)
FILE = HERE / "it.yaml"
(HERE / "list.tsv").write_text("url\ttext\nhttp://a.test/a.jpg\ta\n")
LIST = str(HERE / "list.tsv").encode()
SHORT = b"""# About it.
name: it
root: runs/it
x-rules: &rules {preset: alt_text, skip: [junk]}
steps:
  images: {use: "fetching.images:FetchImages", list: LIST, max_reject_rate: 0.9, robots: obey}
  clean: {use: "filter.clean:CleanTexts", from: images, max_chars: 100}
  judged:
    use: "filter.rules:Rules"
    from: clean
    <<: *rules
    rules:
      - {id: short, column: num_chars, op: "<=", value: 1e3, source: "a"}
  tars: {use: "export.webdataset:WriteWebdataset", from: judged}
profiles:
  small: {images: {shard_rows: 10}, judged: {drop_textless: true}}
""".replace(b"LIST", LIST)
REPEAT = b"""name: it
steps:
  images:
    use: "fetching.images:FetchImages"
    list: LIST
    opt_out: ["noai", noimageai]
    resize: {size: 128, mode: keep_ratio, format: jpg, quality: 90}
  clean: {use: "filter.clean:CleanTexts", from: {from: judged@previous, first: images}}
  judged: {use: "filter.rules:Rules", from: clean, preset: alt_text}
repeat: {rounds: 3, steps: [clean, judged]}
""".replace(b"LIST", LIST)


def read(data: bytes) -> None:
    FILE.write_bytes(data)
    try:
        workflow = Workflow.load(str(FILE))
    except WorkflowError as error:
        lines = data.count(b"\n") + data.count(b"\r") + 2
        if not error.problems or not all(0 <= line <= lines for line, _ in error.problems):
            raise AssertionError(error.problems) from error
        profiles_of(str(FILE))
        raise
    assert workflow.steps
    for profile in profiles_of(str(FILE)):
        Workflow.load(str(FILE), profile=profile)


KIND = Kind(
    name="workflows",
    read=read,
    seeds=(SHORT, REPEAT),
    pieces=pieces(
        "a: ¦- ¦{¦}¦[¦]¦{a: ¦[a, ¦, ¦a: {use: x, from: a}\n¦  a: 1\n¦  ¦\n¦\n  ¦\n    ¦&a ¦*a¦*a, ¦"
        "&a [*a, *a]¦<<: *a\n¦<<: ¦!!str ¦!!python/object:os.system ¦!!binary ¦? ¦| \n¦> ¦'¦\"¦\\¦\\x41¦"
        "#¦# a\n¦---\n¦...\n¦%YAML 1.1\n¦yes¦null¦~¦1_000¦0o7¦1:30¦.inf¦2020-01-01¦from: ¦use: ¦"
        '"filter.clean:CleanTexts"¦max_chars: ¦images¦first: ¦skip: ¦x-a: ¦profiles: ¦repeat: ¦\xc3\xa9'
    ),
    frames=(
        *(
            (b"", b""),
            (SHORT, b""),
            (b"steps:\n", b""),
            (b"steps: {", b"}"),
            (b"x-a: ", b"\n" + SHORT),
            (b"x-a: [", b"1]\n" + SHORT),
            (b"x-a: &a [1]\nx-b: [", b"1]\n" + SHORT),
        ),
        *(
            (SHORT.partition(b"skip: [")[0] + b"skip: [", b"junk]}\n"),
            (b"steps:\n  a: {use: ", b"}\n"),
            (b"name: '", b"'\n" + SHORT),
        ),
        *(
            (b"steps:\n  a: {use: filter.clean:CleanTexts, from: ", b"}\n"),
            (b"# ", b"\n" + SHORT),
            (b"profiles: {", b"}\n" + SHORT.partition(b"profiles")[0]),
        ),
    ),
    max_bytes=1 << 20,
)
