from __future__ import annotations

from tests.models.small_system import TOWERS, WORDS, SmallSystem
from vlpipe.models.objectives.itc import Itc
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.masked_lm import DistilledMaskedLm
from vlpipe.models.systems.image_text.albef import Albef, FusionLayer

SYSTEM = SmallSystem(
    lambda: Albef(vocab_size=WORDS, fusion_layers=1, embed_dim=16, dropout=0.0, **TOWERS),
    [Itc(queue_size=8, share=False, kl=True), Itm(), DistilledMaskedLm(alpha_ramp_epochs=0)],
    ("image", "text"),
    taught=True,
    units=(FusionLayer,),
)
