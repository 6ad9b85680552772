"""A segmenter as a module: any head on any backbone, sizes, losses, saving, bad arguments."""

import copy
import inspect
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rmt.segmentation import Segmenter, create_segmenter
from rmt.segmentation.segmenter import HEADS, SegmenterOptions, pixel_loss
from rmt.segmentation.upernet import UperNetHead, average_pool


@pytest.fixture(scope="module", params=list(HEADS))
def model(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    return create_segmenter(request.param, "rmt_nano", 5, channels=32).eval()


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (1, 1), (1, 40), (224, 31)])
def test_logits_have_the_images_size(model: Segmenter, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_losses_reach_every_parameter(model: Segmenter, training: bool) -> None:
    model.train(training).zero_grad()
    labels = torch.randint(0, 5, (2, 40, 56))
    losses = model(torch.randn(2, 3, 40, 56), labels)
    model.eval()
    assert set(losses) == {"loss_seg"} | ({"loss_aux"} if model.aux_head else set())
    sum(losses.values()).backward()
    missing = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias right before a batch norm has no gradient but rounding errors.
    assert not missing


def test_loss_divides_by_all_pixels() -> None:
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 3, 5))
    labels[0, 0] = 255
    mean_of_labelled = F.cross_entropy(logits, labels, ignore_index=255)
    expected = mean_of_labelled * (labels != 255).double().mean()
    torch.testing.assert_close(pixel_loss(logits, labels), expected)


def test_loss_without_any_label_is_zero(model: Segmenter) -> None:
    losses = model(torch.randn(2, 3, 32, 32), torch.full((2, 32, 32), 255))
    assert [value.item() for value in losses.values()] == [0.0] * len(losses)


def test_losses_are_float32_under_autocast(model: Segmenter) -> None:
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        losses = model(images, labels)
    with torch.no_grad():
        exact = model(images, labels)
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[key], rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "backbone", ["resnet18", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_timm_backbones(backbone: str) -> None:
    options = {"img_size": 64} if backbone.startswith("swin") else {}
    model = create_segmenter(
        "semantic_fpn", backbone, 3, channels=16, backbone_options=options
    ).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_published_parameters() -> None:
    """The paper's tables round to millions: 17, 30 for Semantic FPN, 56 for UperNet."""
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in create_segmenter(head, name).parameters())
            for head, name in (
                ("semantic_fpn", "rmt_t"),
                ("semantic_fpn", "rmt_s"),
                ("upernet", "rmt_s"),
            )
        ]
    assert [round(size / 1e6) for size in sizes] == [17, 30, 56]


def test_upernet_equals_transformers() -> None:
    from transformers import ResNetConfig, UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead
    from transformers.models.upernet.modeling_upernet import UperNetHead as TheirHead

    dims = [8, 12, 16, 24]
    config = UperNetConfig(
        backbone_config=ResNetConfig(), hidden_size=32, auxiliary_channels=16, num_labels=7
    )
    theirs, ours = TheirHead(config, dims).eval(), UperNetHead(dims, 7, channels=32).eval()
    names = {
        "psp_modules.0.1": "pyramid.pooled.0",
        "psp_modules.1.1": "pyramid.pooled.1",
        "psp_modules.2.1": "pyramid.pooled.2",
        "psp_modules.3.1": "pyramid.pooled.3",
        "bottleneck": "pyramid.join",
        "lateral_convs": "lateral",
        "fpn_convs": "output",
        "fpn_bottleneck": "join",
        "classifier": "classifier.conv",
    }
    load_from(ours, theirs, names)
    maps = [torch.randn(2, dim, 23 >> i, 31 >> i) for i, dim in enumerate(dims)]
    with torch.no_grad():
        assert torch.equal(ours(maps), theirs(maps))

    from rmt.segmentation.upernet import AuxiliaryHead

    theirs, ours = UperNetFCNHead(config, dims).eval(), AuxiliaryHead(16, 7, channels=16).eval()
    load_from(ours, theirs, {"convs.0": "conv", "classifier": "classifier.conv"})
    with torch.no_grad():
        assert torch.equal(ours(maps[2]), theirs(maps))


def load_from(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Copy weights strictly, after drawing batch-norm statistics that are not 0 and 1."""
    renamed = {}
    for key, value in theirs.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
        prefix = next(name for name in names if key.startswith(f"{name}."))
        tail = key.removeprefix(prefix).replace("batch_norm", "bn")
        renamed[names[prefix] + tail] = value
    ours.load_state_dict(renamed, strict=True)


def test_save_and_read_back(model: Segmenter, tmp_path) -> None:
    model.info = {"label_names": list("abcde")}
    model.save_pretrained(tmp_path)
    again = Segmenter.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert again.config == model.config
    assert again.info["label_names"] == list("abcde")


def test_gradient_checkpointing_changes_nothing(model: Segmenter) -> None:
    images, labels = torch.randn(2, 3, 32, 48), torch.randint(0, 5, (2, 32, 48))
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        sum(model(images, labels).values()).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    model.set_grad_checkpointing(False)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_exports_with_dynamic_sizes(model: Segmenter) -> None:
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        model,
        (torch.randn(2, 3, 64, 96),),
        dynamic_shapes={"images": {0: auto, 2: auto, 3: auto}},
    )
    images = torch.randn(1, 3, 98, 130)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"head": "semantic_fp"}, "did you mean 'semantic_fpn'"),
        ({"backbone": "rmt_nan"}, "rmt_nan"),
        ({"backbone": "vit_tiny_patch16_224"}, "stride"),
        ({"num_classes": 1}, "at least 2"),
        ({"num_classes": 256}, "num_classes is 256; it must be at most 255"),
        ({"backbone_options": {"lec": False}}, "did you mean 'lce'"),
    ],
)
def test_mistakes_in_construction(arguments: dict, words: str) -> None:
    correct = {"head": "semantic_fpn", "backbone": "rmt_nano", "num_classes": 4}
    with pytest.raises(ValueError, match=words):
        create_segmenter(**(correct | arguments))


def test_the_function_and_the_record_have_the_same_defaults() -> None:
    of_function = inspect.signature(create_segmenter).parameters
    for field in fields(SegmenterOptions):
        default = {} if field.name == "backbone_options" else field.default
        assert (of_function[field.name].default or {}) == (default or {}), field.name


def test_labels_of_another_size(model: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"labels have shape \(1, 8, 9\); expected \(1, 8, 8\)"):
        model(torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 9).long())


@pytest.mark.parametrize(
    ("value", "kind"),
    [(5, torch.uint8), (-1, torch.int8), (-100, torch.long), (300, torch.int16)],
)
def test_labels_that_are_not_classes(model: Segmenter, value: int, kind: torch.dtype) -> None:
    labels = torch.zeros(1, 8, 8, dtype=kind)
    labels[0, 3, 4] = value
    with pytest.raises(ValueError, match=f"contain {value}; expected a class, 0 to 4"):
        model(torch.randn(1, 3, 8, 8), labels)


def test_labels_that_are_not_integers(model: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"labels are torch\.float32; expected integers"):
        model(torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 8))


def test_upernet_needs_two_images_in_training() -> None:
    model = create_segmenter("upernet", "rmt_nano", 3, channels=8)
    with pytest.raises(ValueError, match="at least 2 images"):
        model(torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64).long())


def test_fused_form_is_exact(model: Segmenter) -> None:
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.75, 1.25)
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    fused = model.fuse()
    with torch.no_grad():
        ours, expected = fused(images), model(images)
    assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert len(list(fused.modules())) < len(list(model.modules()))


@pytest.mark.parametrize("size", [(7, 7), (3, 5), (13, 2), (1, 1), (6, 12)])
def test_averages_of_an_exported_graph(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 4, *size)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for cells in (1, 2, 3, 6):
        assert torch.allclose(average_pool(x, cells), F.adaptive_avg_pool2d(x, cells), atol=1e-6)
