"""The closed classes of English words by which `grammar` parses captions. A word of no class counts as a noun."""

from __future__ import annotations

from typing import Literal

Kind = Literal["determiner", "and", "stop", "relation", "copula", "verb", "word"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    """
    a an the this that these those some any each every another its his her their my your our no
    """
)
AND = frozenset(["and", "or", ",", "&"])
ENDS = frozenset([".", ";", "!", "?"])
COPULAS = _words(
    """
    is are was were be been being looks appears seems
    """
)
# Words that are neither part of a noun phrase nor join two
STOPS = _words(
    """
    there here who which it he she they them him while as so very too also just then when where that's it's not
    but both together outside inside outdoors indoors up down away out off back that
    """
)
RELATIONS = _words(
    """
    on in at of with without under below beneath above over behind beside besides near by between among around
    across against along through into onto from to for toward towards past beyond within inside outside upon off
    down up like about
    """
)
# Phrases of several words, by their first word, longest first
PHRASES = (
    ("in", "front", "of"),
    ("on", "top", "of"),
    ("next", "to"),
    ("close", "to"),
    ("out", "of"),
    ("away", "from"),
    ("up", "to"),
    ("such", "as"),
)
# Nouns that say where: "on the left" is an attribute of the thing that is there, "on the left of a tree" joins two things
PLACES = _words(
    """
    top upper bottom lower left right middle centre center side corner front back background foreground distance
    edge hand
    """
)
# Nouns that name no thing before "of": "a picture of a dog", "a group of people"
CONTAINERS = _words(
    """
    picture image photo photograph drawing painting view shot close-up closeup scene group bunch pair couple lot
    lots set row number piece variety kind type collection
    """
)
COLOURS = _words(
    """
    red green blue yellow purple violet orange pink cyan turquoise white grey gray black brown beige tan gold
    golden silver maroon navy teal blond blonde
    """
)
SIZES = _words(
    """
    small little tiny large big huge giant tall short long wide narrow thick thin medium
    """
)
NUMBERS = _words(
    """
    one two three four five six seven eight nine ten several many few multiple various numerous
    """
)
OTHERS = _words(
    """
    old young new open closed empty full wooden striped plaid round wet dry dirty clean bright dark colorful
    colourful beautiful pretty cute busy happy sad sunny cloudy snowy grassy sandy rocky furry fluffy fresh hot
    cold high low different same other electric white-haired male female asian elderly
    """
)
ADJECTIVES = COLOURS | SIZES | NUMBERS | OTHERS
# Words in -ing and -ed that are no verbs
NO_VERBS = _words(
    """
    building ceiling clothing string ring king wing morning evening wedding painting drawing railing awning
    lighting swing spring thing something anything nothing everything sibling pudding sling stocking earring
    dressing icing topping frosting crossing parking bed shed sled red seed weed feed reed breed bird hundred
    """
)
_BASES = (
    "sit stand ride hold wear play walk eat have show look run lie lay carry jump drive fly pull push throw catch hit "
    "cook cut drink read surf ski skate hang lean swim sleep watch feed pet chase cross follow face contain cover"
)
_IRREGULAR = {"have": "has", "fly": "flies", "carry": "carries", "push": "pushes", "catch": "catches"}
_IRREGULAR |= {"watch": "watches", "cross": "crosses"}
FINITE = frozenset(_IRREGULAR.get(word, f"{word}s") for word in _BASES.split()) | {"have", "has"}


def kind_of(word: str) -> Kind:
    """Returns the class of a word in lower case, or of a punctuation mark, without regard to its neighbours."""
    if word in ENDS or word in (":", "(", ")"):
        return "stop"
    if word in AND:
        return "and"
    if word in DETERMINERS:
        return "determiner"
    if word in COPULAS:
        return "copula"
    if word in RELATIONS:
        return "relation"
    if word in STOPS or (word.endswith("ly") and len(word) > 4):
        return "stop"
    if word in FINITE or is_participle(word):
        return "verb"
    return "word"


def alike(one: str, other: str) -> bool:
    """Returns whether two words are adjectives of one class, as in "black and white"."""
    return any(one in words and other in words for words in (COLOURS, SIZES, OTHERS))


def is_participle(word: str) -> bool:
    """Returns whether a word has the form of a participle, such as `riding` or `covered`."""
    return word.endswith(("ing", "ed")) and len(word) > 4 and word not in NO_VERBS
