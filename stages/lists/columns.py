"""Finds the columns of a list by name: as written, or without regard to case if only one column is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from vlpipe.pipeline.errors import VlpipeError, cut, printable, shown

# What published lists call the columns of a parameter, for the error text.
USUAL = {
    "url": ("url", "image_url", "img_url", "image", "link", "src", "uri", "video_url", "video"),
    "text": ("text", "caption", "captions", "alt", "alt_text", "alttext", "title", "sentence", "description"),
    "hash": ("hash", "sha256", "md5"),
}
MAX_LISTED = 12  # column names in an error
Wanted = Mapping[str, str]  # parameter of the stage -> name of the column


def find_columns(where: str, wanted: Wanted, there: Sequence[str], hint: str = "") -> dict[str, int]:
    """Returns name in `wanted` -> its number in `there`, the names of all columns.

    where, hint: begin and end of error texts. Raises VlpipeError, with the `--set` options that would help, if a column is
    missing, there twice, or ambiguous.
    """
    found: dict[str, int] = {}
    missing: dict[str, str] = {}
    for parameter, name in wanted.items():
        if name in found or name in missing.values():
            continue
        exact = [n for n, one in enumerate(there) if one == name]
        meant = exact or [n for n, one in enumerate(there) if _folded(one) == _folded(name)]
        if not meant:
            missing[parameter] = name
        elif len({there[n] for n in meant}) > 1:
            listed = " and ".join(shown(there[n]) for n in meant[:MAX_LISTED])
            raise VlpipeError(
                f"{where} has the columns {listed}, which differ only in case; set {parameter!r} to the one to read"
            ).with_settings((parameter, there[meant[0]]))
        elif len(meant) > 1:
            raise VlpipeError(
                f"{where} has the column {shown(there[meant[0]])} {len(meant)} times; wanted one"
            )
        else:
            found[name] = meant[0]
    if missing:
        names = [shown(name) for name in missing.values()]
        what = f"column {names[0]}" if len(names) == 1 else f"columns {', '.join(names)}"
        error = VlpipeError(f"{where} has no {what}; {_listed(there)}{hint}")
        raise error.with_settings(*((key, _guess(key, name, there)) for key, name in missing.items()))
    return found


def _folded(name: str) -> str:
    return name.strip().casefold()


def _listed(there: Sequence[str]) -> str:
    if not there:
        return "it has no columns"
    more = f" and {len(there) - MAX_LISTED} more" if len(there) > MAX_LISTED else ""
    return f"there are: {', '.join(cut(printable(name[:60]), 40) for name in there[:MAX_LISTED])}{more}"


def _guess(parameter: str, name: str, there: Sequence[str]) -> str:
    """Returns the column that is probably meant: one usual for the parameter, else the most similar, else `COLUMN`."""
    short = [one for one in there if len(one) <= 60]
    usual = {_folded(one): one for one in reversed(short)}
    named = next((usual[one] for one in USUAL.get(parameter, ()) if one in usual), "")
    return named or next(iter(get_close_matches(name, short, n=1)), "COLUMN")
