"""RMT in segmentation-models-pytorch: every decoder."""

import pytest
import segmentation_models_pytorch as smp
import torch

import rmt
from forms import assert_all_learn, image

DILATED = ["DeepLabV3", "DeepLabV3Plus", "PAN"]


@pytest.mark.parametrize(
    "decoder", ["FPN", "Linknet", "MAnet", "PSPNet", "Segformer", "UPerNet", "Unet", "UnetPlusPlus"]
)
def test_decoders(decoder: str) -> None:
    model = getattr(smp, decoder)("tu-rmt_nano", encoder_weights=None, classes=5)
    assert isinstance(model.encoder.model.model, rmt.RMT)
    out = model(image())
    assert out.shape == (2, 5, 64, 96)
    assert_all_learn(model, out.square().mean())


def test_weights_of_this_package() -> None:
    model = smp.Unet("tu-rmt_nano", encoder_weights=True, classes=5)
    shipped = rmt.create_model("rmt_nano", pretrained=True).stages.state_dict()
    loaded = model.encoder.model.model.stages.state_dict()
    assert all(loaded[name].equal(value) for name, value in shipped.items())


def test_the_table_has_every_decoder() -> None:
    known = {name.lower() for name in (*DILATED, *test_decoders.pytestmark[0].args[1], "DPT")}
    assert known == set(smp.MODEL_ARCHITECTURES_MAPPING)


def test_dpt() -> None:
    """It leaves the hidden layer of the head in the encoder, which no gradient reaches."""
    model = smp.DPT("tu-rmt_nano", encoder_weights=None, classes=5, decoder_readout="ignore")
    model.encoder.model.head.requires_grad_(False)
    out = model(image())
    assert out.shape == (2, 5, 64, 96)
    assert_all_learn(model, out.square().mean())


@pytest.mark.parametrize("decoder", DILATED)
def test_decoders_on_dilated_stages(decoder: str) -> None:
    with pytest.raises(ValueError, match="no dilated version"):
        getattr(smp, decoder)("tu-rmt_nano", encoder_weights=None)


@torch.no_grad()
def test_pan_without_dilation() -> None:
    """Its pooling of the last map, to an eighth, asks for larger images."""
    model = smp.PAN("tu-rmt_nano", encoder_weights=None, encoder_output_stride=32).eval()
    assert model(image(256, 288)).shape == (2, 1, 256, 288)


@torch.no_grad()
def test_options_of_the_model() -> None:
    model = smp.FPN("tu-rmt_nano", encoder_weights=None, in_channels=1, lce=False).eval()
    assert model.encoder.out_channels[-4:] == [32, 64, 96, 128]
    assert model(image(channels=1)).shape == (2, 1, 64, 96)
    assert model.encoder.model.model.variant.lce is False
