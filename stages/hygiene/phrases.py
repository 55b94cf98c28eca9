"""Phrases that say nothing about an image: how captioners begin, and what they write where they saw none. English."""

from __future__ import annotations

import re

_THING = r"(?:image|photo(?:graph)?|picture|illustration|screenshot|scene)"
_SHOWS = (
    r"(?:shows?|depicts?|features?|displays?|presents?|captures?|contains?|portrays?|illustrates?|showcases?|is showing"
    r"|is of|is a (?:photo(?:graph)?|picture|image) of|appears to (?:be|show|depict)|seems to (?:be|show|depict))"
)
# Each matches at the start of a caption, whatever its case, and is followed by what the caption says.
BOILERPLATE = (
    rf"(?:the|this|that|an?) (?:\w+ )?{_THING} (?:above |below |here )?(?:clearly |prominently |mainly )?{_SHOWS}\b",
    rf"in (?:the|this) {_THING},?(?: (?:we|you|one) can see\b| (?:we|you) see\b| there (?:is|are)\b)?",
    rf"(?:we|you) can see(?: in (?:the|this) {_THING})?\b",
    rf"(?:an?|the) {_THING} (?:of|showing|depicting|featuring)\b",
    r"(?:sure|certainly|of course|okay|absolutely)[,!.]* (?:here(?: is|'s)|i (?:can|will))[^:.]{0,80}[:.]",
    r"here(?: is|'s)(?: an?| the)? [^:.]{0,80}:",
    r"(?:caption|description|alt[- ]?text|answer|assistant|output)\s*:",
)
MISSING_IMAGE = (
    rf"\b(?:can(?:no|')t|cannot|could ?n[o']t|unable to|not able to) (?:see|view|access|open|load|display|process|find)"
    rf" (?:the|this|that|any|an?|your) (?:\w+ )?{_THING}",
    rf"\bno {_THING} (?:was |is |has been )?(?:available|provided|attached|uploaded|found|here|yet)\b",
    rf"\b{_THING} (?:is |was |has )?(?:not|no longer) (?:available|visible|found|provided|loaded|displayed|been)\b",
    rf"\b{_THING} (?:could|can)(?:not| not|n't) be (?:loaded|displayed|found|opened|viewed|shown)\b",
    rf"\b(?:the|this|your) {_THING} (?:is|appears to be|seems to be) (?:blank|missing|empty|broken|corrupted)\b",
    rf"\b{_THING} coming soon\b|\b(?:missing|placeholder|broken|blank) {_THING}\b",
    r"\bplease (?:upload|provide|share|attach|send)\b",
)
REFUSAL = (
    r"^\W*(?:i(?:'m| am) (?:sorry|unable|not able)|sorry,|i apologi[sz]e|i (?:can(?:no|')t|can not|won't|cannot) )",
    r"^\W*(?:as an ai\b|unfortunately,? i\b|i must decline\b|it is not possible for me\b)",
    r"\bas an ai (?:language )?model\b",
)
_QUOTES = {0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"'}
_STARTS = [re.compile(rf"\W*{one}[\s,:;-]*", re.IGNORECASE) for one in BOILERPLATE]
MAX_CHARS = 4_000  # of a caption that are looked at
MAX_ROUNDS = 4


def plain(text: str) -> str:
    """Returns the part of a text that is looked at, with straight quotes, which are as long as others."""
    return text[:MAX_CHARS].translate(_QUOTES)


def start_length(text: str) -> int:
    """Returns how many characters of boilerplate a caption begins with; 0 if it begins with none."""
    looked, at = plain(text), 0
    for _ in range(MAX_ROUNDS):
        ends = [found.end() for one in _STARTS if (found := one.match(looked, at))]
        if not ends or max(ends) == at:
            break
        at = max(ends)
    return at


def without_start(text: str) -> str:
    """Returns a caption without the boilerplate that it begins with, and its first letter as before; it may be empty."""
    at = start_length(text)
    if not at:
        return text
    rest = text[at:].lstrip(" ,:;-\u2013\u2014\n\"'")
    was_upper = next((c for c in text if c.isalpha()), "a").isupper()
    return rest[:1].upper() + rest[1:] if was_upper else rest
