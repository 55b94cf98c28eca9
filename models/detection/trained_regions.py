"""Features of given regions by a network that is trained with the model that reads them: VL-BERT's Fast R-CNN.

Su et al. 2019, https://arxiv.org/abs/1908.08530; Girshick 2015, https://arxiv.org/abs/1504.08083.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vlpipe.models.detection.roi import roi_align_images
from vlpipe.models.video.resnet import DEPTHS, Norm, ResNet, init_weights, make_stage


class RegionCnn(nn.Module):
    """Pixels (B, 3, H, W) and boxes (B, R, 4), from 0 to 1, -> features (B, R, 32 width).

    Three stages of a ResNet make maps at a stride of 16, RoIAlign cuts the regions out, the last stage and a mean make a
    feature of each. Defaults: ResNet-101 with fixed batch norms, whose last stage dilates in place of a stride.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = DEPTHS[101],
        width: int = 64,
        pool_size: int = 14,
        norm: Norm = "frozen",
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"RegionCnn: depths must be 4 numbers of at least 1, got {list(depths)}")
        self.pool_size, self.feat_dim = pool_size, 32 * width
        self.backbone = ResNet(
            depths=depths[:3], width=width, num_classes=0, stride_in_1x1=stride_in_1x1, norm=norm
        )
        self.layer4 = make_stage(
            self.backbone.width_out,
            8 * width,
            depths[3],
            stride=1,
            dilation=2,
            stride_in_1x1=stride_in_1x1,
            norm=norm,
        )
        init_weights(self.layer4)

    def forward(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        maps = self.backbone.maps(pixels)
        size = boxes.new_tensor([maps.shape[3], maps.shape[2]] * 2)
        pooled = roi_align_images(maps, boxes * size, self.pool_size, 1.0)
        return self.layer4(pooled.flatten(0, 1)).mean((2, 3)).unflatten(0, boxes.shape[:2])
