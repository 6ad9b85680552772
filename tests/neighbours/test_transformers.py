"""RMT in transformers: backbone of its heads, classifier, pipeline and Trainer; offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

import rmt
from forms import assert_all_learn, image

if TYPE_CHECKING:
    import transformers

CHANNELS = [32, 64, 96, 128]


def backbone_config(*stages: int) -> transformers.TimmBackboneConfig:
    import transformers

    return transformers.TimmBackboneConfig(
        backbone="rmt_nano", out_indices=stages, use_pretrained_backbone=False
    )


@torch.no_grad()
def test_backbone() -> None:
    from transformers import AutoBackbone, TimmBackbone

    config = backbone_config(0, 1, 2, 3)
    backbone = AutoBackbone.from_config(config).eval()
    assert backbone.channels == CHANNELS
    x = image()
    maps = backbone(x).feature_maps
    assert [tuple(m.shape) for m in maps] == [
        (2, dim, 16 // 2**i, 24 // 2**i) for i, dim in enumerate(CHANNELS)
    ]
    again = TimmBackbone(config).eval()
    again.load_state_dict(backbone.state_dict())
    assert all(a.equal(b) for a, b in zip(again(x).feature_maps, maps, strict=True))


def test_upernet() -> None:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=backbone_config(0, 1, 2, 3),
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


def test_mask2former() -> None:
    import transformers

    config = transformers.Mask2FormerConfig(
        backbone_config=backbone_config(0, 1, 2, 3),
        num_labels=5,
        num_queries=6,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        num_attention_heads=2,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        decoder_layers=2,
        dim_feedforward=32,
        train_num_points=64,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    masks = [torch.randint(0, 2, (2, 64, 96)).float() for _ in range(2)]
    out = model(image(), mask_labels=masks, class_labels=[torch.tensor([1, 2])] * 2)
    assert out.masks_queries_logits.shape == (2, 6, 16, 24)
    assert_all_learn(model, out.loss)


@pytest.mark.parametrize("name", ["Detr", "RTDetr"])
def test_detectors(name: str) -> None:
    import transformers

    sizes = {"num_labels": 5, "num_queries": 6, "d_model": 32, "decoder_layers": 1}
    sizes |= {"encoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    stages = (3,)
    if name == "RTDetr":
        stages = (1, 2, 3)
        sizes |= {"encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3}
        sizes |= {"encoder_in_channels": [CHANNELS[i] for i in stages]}
    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone_config(*stages), **sizes
    )
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.2, 0.2, 0.1, 0.1]])  # centre and size, of 1
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": boxes}] * 2
    assert_all_learn(model, model(image(), labels=labels).loss)
    with torch.no_grad():
        assert model.eval()(image()).pred_boxes.shape == (2, 6, 4)


def test_classifier(tmp_path: Path) -> None:
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
def test_it_reads_what_we_save(tmp_path: Path) -> None:
    """A folder of `save_pretrained` is a classifier for transformers' Auto classes."""
    import transformers

    ours = rmt.create_model("rmt_nano", num_classes=3).eval()
    ours.save_pretrained(tmp_path)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = image()
    assert model(x).logits.equal(ours(x))


def test_pipeline(tmp_path: Path) -> None:
    """It names the classes, and transforms an image as our predictor does."""
    import transformers

    ours = rmt.create_model("rmt_nano", num_classes=3).eval()
    ours.info["label_names"] = ["daisy", "rose", "tulip"]
    ours.save_pretrained(tmp_path)
    photo = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    theirs = transformers.pipeline("image-classification", model=str(tmp_path))(photo)
    top = rmt.Predictor(ours, top=3)(photo)["top"]
    assert [t["label"] for t in theirs] == [t["name"] for t in top]
    scores = [t["score"] for t in top]
    assert [t["score"] for t in theirs] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("starred", [False, True])
def test_trainer(starred: bool, tmp_path: Path) -> None:
    """A starred model trains as any other, on one loss; what it wrote is ours again."""
    import transformers

    config = transformers.TimmWrapperConfig(
        architecture="rmt_nano", num_labels=3, model_args={"token_labels": starred}
    )
    model = transformers.TimmWrapperForImageClassification(config)
    data = [{"pixel_values": image(32, 32, batch=1)[0], "labels": i % 3} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=3,
        learning_rate=1e-3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    losses = [trainer.evaluate()["eval_loss"], trainer.train().training_loss]
    assert all(0 < loss < 5 for loss in losses)
    trainer.save_model(str(tmp_path))
    ours = rmt.load(tmp_path)
    assert (ours.aux_head is not None) == starred
    x = image(32, 32)
    with torch.no_grad():
        assert ours(x).equal(model.eval()(x).logits)
