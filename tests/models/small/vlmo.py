from __future__ import annotations

from tests.models.small_system import VIT, WORDS, SmallSystem
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.pairs.expert_itc import ExpertItc
from vlpipe.models.systems.image_text.vlmo import Vlmo
from vlpipe.models.systems.image_text.vlmo.layers import MomeLayer

SYSTEM = SmallSystem(
    lambda: Vlmo(
        vocab_size=WORDS,
        max_text_length=12,
        vl_layers=1,
        position="relative",
        layer_scale=0.1,
        drop_path=0.0,
        dropout=0.0,
        num_codes=9,
        **VIT,
    ),
    [ExpertItc(), Itm(all_ranks=True), MaskedLm()],
    ("image", "text"),
    units=(MomeLayer,),
)
