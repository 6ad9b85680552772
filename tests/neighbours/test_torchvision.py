"""RMT in torchvision: backbone of its detectors, and source of its extracted features."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

import rmt
from forms import assert_all_learn, image


class Pyramid(nn.Module):
    """As in docs/neighbours.md, but narrow."""

    out_channels = 32

    def __init__(self, stages: tuple[int, ...], coarser: nn.Module) -> None:
        super().__init__()
        self.body = rmt.create_model("rmt_nano", features_only=True, out_indices=stages)
        channels = self.body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(channels, self.out_channels, coarser)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): x for i, x in enumerate(self.body(images))})


@pytest.mark.parametrize("detector", [FasterRCNN, RetinaNet, FCOS])
def test_detectors(detector: type[nn.Module]) -> None:
    """A step of training, then boxes."""
    two_stages = detector is FasterRCNN
    stages = (0, 1, 2, 3) if two_stages else (1, 2, 3)
    coarser = LastLevelMaxPool() if two_stages else LastLevelP6P7(32, 32)
    options = {"box_detections_per_img": 5} if two_stages else {"detections_per_img": 5}
    model = detector(Pyramid(stages, coarser), num_classes=3, min_size=64, max_size=96, **options)
    images = [torch.rand(3, 64, 96), torch.rand(3, 70, 50)]
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1])}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    assert_all_learn(model, sum(model(images, [target] * 2).values()))
    optimizer.step()
    if not two_stages:
        model.score_thresh = 0.0
    with torch.no_grad():
        found = model.eval()(images)
    assert [len(f["boxes"]) for f in found] == [5, 5]
    assert all(f["boxes"].isfinite().all() for f in found)


@pytest.mark.usefixtures("unchecked_annotations")  # a trace passes proxies
@torch.no_grad()
def test_feature_extractor() -> None:
    model, x = rmt.create_model("rmt_nano", num_classes=3).eval(), image()
    out = create_feature_extractor(model, ["stages.1", "head"], suppress_diff_warning=True)(x)
    assert out["stages.1"].equal(model.forward_intermediates(x)[1][1].permute(0, 2, 3, 1))
    assert out["head"].equal(model(x))
