"""RMT in segmentation-models-pytorch and transformers, with the real libraries, offline."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import rmt

CHANNELS = [32, 64, 96, 128]


def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96)


def assert_all_learn(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@pytest.mark.parametrize("architecture", ["Unet", "FPN"])
def test_segmentation_models_pytorch(architecture: str) -> None:
    import segmentation_models_pytorch as smp

    model = getattr(smp, architecture)("tu-rmt_nano", encoder_weights=None, classes=5)
    assert isinstance(model.encoder.model.model, rmt.RMT)
    assert model.encoder.out_channels[-4:] == CHANNELS
    out = model(image())
    assert out.shape == (2, 5, 64, 96)
    assert_all_learn(model, out.square().mean())


def test_segmentation_models_pytorch_takes_the_models_options() -> None:
    import segmentation_models_pytorch as smp

    model = smp.FPN("tu-rmt_nano", encoder_weights=None, in_channels=1, lce=False)
    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 1, 64, 64)
    assert model.encoder.model.model.variant.lce is False


@pytest.fixture
def backbone_config():
    import transformers

    return transformers.TimmBackboneConfig(
        backbone="rmt_nano", out_indices=(0, 1, 2, 3), use_pretrained_backbone=False
    )


@torch.no_grad()
def test_transformers_backbone(backbone_config) -> None:
    from transformers import AutoBackbone, TimmBackbone

    backbone = AutoBackbone.from_config(backbone_config).eval()
    assert backbone.channels == CHANNELS
    x = image()
    maps = backbone(x).feature_maps
    assert [tuple(m.shape) for m in maps] == [
        (2, dim, 16 // 2**i, 24 // 2**i) for i, dim in enumerate(CHANNELS)
    ]
    again = TimmBackbone(backbone_config).eval()
    again.load_state_dict(backbone.state_dict())
    assert all(a.equal(b) for a, b in zip(again(x).feature_maps, maps, strict=True))


def test_transformers_upernet(backbone_config) -> None:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=backbone_config,
        num_labels=5,
        hidden_size=32,
        auxiliary_in_channels=CHANNELS[2],
        auxiliary_channels=16,
    )
    model = UperNetForSemanticSegmentation(config)
    labels = torch.randint(0, 5, (2, 64, 96))
    out = model(image(), labels=labels)
    assert out.logits.shape == (2, 5, 64, 96)
    assert_all_learn(model, out.loss)


def test_transformers_classifier(tmp_path: Path) -> None:
    import transformers

    config = transformers.TimmWrapperConfig(architecture="rmt_nano", num_labels=7)
    model = transformers.TimmWrapperForImageClassification(config)
    out = model(image(), labels=torch.tensor([1, 6]))
    assert out.logits.shape == (2, 7)
    assert_all_learn(model, out.loss)
    model.save_pretrained(tmp_path)
    again = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path)
    x = image()
    with torch.no_grad():
        assert again.eval()(x).logits.equal(model.eval()(x).logits)


@torch.no_grad()
def test_transformers_reads_what_we_save(tmp_path: Path) -> None:
    """A folder of `save_pretrained` is a classifier for transformers' Auto classes."""
    import transformers

    ours = rmt.create_model("rmt_nano", num_classes=3).eval()
    ours.save_pretrained(tmp_path)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = image()
    assert model(x).logits.equal(ours(x))


@pytest.mark.usefixtures("unchecked_annotations")  # a trace passes proxies
def test_torchvision_extracts_features() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = rmt.create_model("rmt_nano", num_classes=3).eval()
    x = image()
    with torch.no_grad():
        out = create_feature_extractor(model, ["stages.1", "head"], suppress_diff_warning=True)(x)
        assert out["stages.1"].equal(model.forward_intermediates(x)[1][1].permute(0, 2, 3, 1))
        assert out["head"].equal(model(x))


@pytest.mark.usefixtures("unchecked_annotations")  # sizes are tensors in a trace
@pytest.mark.parametrize("size", [(64, 64), (33, 65), (96, 48)])
@torch.no_grad()
def test_openvino_converts_directly(size: tuple[int, int]) -> None:
    import openvino

    model = rmt.create_model("rmt_nano", num_classes=7).eval()
    x = torch.randn(1, 3, *size)
    for network in (model, model.fuse()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.jit.trace, which is deprecated
            converted = openvino.convert_model(network, example_input=x)
        compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = torch.from_numpy(compiled(x.numpy())[0])
        assert torch.allclose(found, model(x), atol=1e-5)
