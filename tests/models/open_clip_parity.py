"""`python tests/models/open_clip_parity.py`: CLIP exported for open_clip has the same features there.

Needs `pip install open_clip_torch`, which needs torchvision. Prints the largest differences; fails above 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.models.parity import outputs
from tests.models.systems.image_text.test_clip_towers import RESNET, TEXT, VIT, clip
from vlpipe.models.interface.batch import Stream
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.tokenizer import Tokenizer


def compare(at: Path, **changes: Any) -> None:
    """Features of five random rows, and the temperature."""
    model = clip(**changes)
    model.export(at, "open_clip")
    theirs = open_clip.create_model(f"local-dir:{at}").eval()
    pixels = torch.randn(5, 3, model.config.image_size, model.config.image_size)
    ids = torch.randint(10, 90, (5, 16))
    ids[:, 9], ids[:, 10:] = model.config.end, 0
    out = outputs(model, image=Stream(pixels), text=Stream(ids, ids > 0))
    with torch.no_grad():
        found = theirs.encode_image(pixels, normalize=True), theirs.encode_text(ids, normalize=True)
    for mine, other in zip(
        (out.image_feat, out.text_feat, model.logit_scale), (*found, theirs.logit_scale), strict=True
    ):
        print(f"{changes}: {float((mine - other).abs().max()):.1e}")
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def main() -> None:
    print("open_clip", open_clip.__version__)
    with tempfile.TemporaryDirectory() as here:
        for k, towers in enumerate((VIT, RESNET)):
            compare(Path(here, f"{k}a"), **towers)
            compare(Path(here, f"{k}b"), end=3, activation="gelu", **towers)
        tokenizer = Tokenizer.train_bpe(["a red circle above a blue square"] * 9, 520, "clip")
        Clip(vocab_size=tokenizer.vocab_size, end=tokenizer.end, **TEXT, **VIT).export(
            here, "open_clip", tokenizer
        )
        texts = ["a red circle", "A  blue Square!"]
        ids, _ = tokenizer.encode(texts, 16)
        assert torch.equal(open_clip.get_tokenizer(f"local-dir:{here}")(texts), torch.as_tensor(ids))
        print("tokens equal")


if __name__ == "__main__":
    main()
