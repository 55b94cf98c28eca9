"""Each file of the cases is named by a test here; scripts that cannot run any more are named by the tests of their kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

Case = Callable[[str], Path]
TESTS = Path(__file__).parents[2]
# Script -> tests of its kind. They import modules by old names, attack an old form of the lock, or need gigabytes.
KINDS = {
    "data/serve_speed.py": ["test_an_answer_is_sent_at_once"],
    "http/go.py": [
        "test_good_pictures_are_kept_however_they_are_sent",
        "test_refused",
    ],
    "rowgroup/join_2gib.py": ["test_a_row_group_of_more_than_2_gib_is_read_by_a_step_below"],
    "scale/listing_memory.py": ["test_batches_are_bounded_in_bytes"],
    "scale/same_bytes_34m_rows.py": ["test_a_digest_takes_32_bytes_and_nothing_has_offsets_of_32_bits"],
    "security/faults/beat.py": ["test_a_sign_of_life_that_fails_is_tried_again_and_a_run_without_any_stops"],
    "security/faults/lockrace.py": ["test_of_many_who_wait_for_a_dead_run_one_goes_on"],
    "security/fuzz/text_slow.py": ["test_a_megabyte_of_marks", "test_a_megabyte_of_markup_takes_no_minutes"],
    "security/net/amplify.py": ["test_each_odd_answer_is_an_image_or_has_its_code"],
    "security/net/bigbodies.py": ["test_memory_has_a_limit_and_the_file_uses_its_blocks_again"],
    "security/net/gzip_tail.py": ["test_a_compressed_body_that_never_ends_holds_nobody_up"],
    "security/net/hostile.py": [
        "test_answers_of_random_lines_are_their_rows_alone",
        "test_a_compressed_body_that_never_ends_holds_nobody_up",
    ],
    "security/tdm/w.yaml": ["test_no_tdmrep_takes_long"],
    "security/vid/freeze.py": ["test_a_small_file_of_99_hours_is_not_a_day_of_work"],
    "weights/ld.py": ["test_a_folder_in_half_precision_is_read_as_float32"],
    "weights/make_tiny_model.py": ["test_exported_captioner_in_transformers"],
}
# Files of a folder that a test reads as a whole.
FOLDERS = {"mpo/list.tsv": "mpo/w.yaml", "placeholder/list.tsv": "placeholder/w.yaml"}


def test_each_file_of_the_cases_has_a_test(case: Case) -> None:
    root = case("README.md").parent
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } - {"README.md"}
    unnamed = {name for name in names - FOLDERS.keys() if name not in here}
    assert {name for name in unnamed if not name.startswith("sidecars/")} == set()


def test_the_tests_of_the_scripts_are_there() -> None:
    defined = {name for p in TESTS.rglob("*.py") for name in re.findall(r"def (test_\w+)", p.read_text())}
    assert {name for names in KINDS.values() for name in names} - defined == set()
