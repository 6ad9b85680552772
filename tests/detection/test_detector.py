"""All detectors, whatever their head: shapes, batches, empty targets, bad input."""

import copy
import inspect
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from rmt.detection import HEADS, Detector, create_detector, from_config
from rmt.detection.detector import DetectorOptions
from rmt.weights.load import load

CLASSES = 3


@pytest.fixture(scope="module", params=list(HEADS))
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    model = create_detector(
        request.param,
        "rmt_nano",
        num_classes=CLASSES,
        min_size=64,
        max_size=128,
        roi_samples_per_image=64,  # faster, and enough here
    )
    if hasattr(model, "rpn"):
        model.rpn.limits = (40, 20)
    model.max_detections = 15
    return model.eval()


def target(boxes: list[list[float]], labels: list[int], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return a target whose masks fill their boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "masks": masks,
    }


def assert_trains(detector: Detector, images: list[Tensor], targets: list[dict]) -> None:
    """Assert finite losses and gradients."""
    losses = detector(images, targets)
    total = sum(losses.values())
    assert all(value.ndim == 0 for value in losses.values())
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    detector.zero_grad()


@torch.no_grad()
def test_detections_lie_in_each_image(detector: Detector) -> None:
    images = [torch.rand(3, 50, 70), torch.rand(3, 90, 40)]
    for image, found in zip(images, detector(images, score_threshold=0.0), strict=True):
        height, width = image.shape[1:]
        count = len(found["scores"])
        assert 0 < count <= 15
        assert found["boxes"].shape == (count, 4)
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 0::2].max() <= width + 1e-3
        assert found["boxes"][:, 1::2].max() <= height + 1e-3
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert set(found["labels"].tolist()) <= set(range(CLASSES))
        if detector.has_masks:
            assert found["masks"].shape == (count, height, width)
            assert found["masks"].dtype == torch.bool
        else:
            assert "masks" not in found


@torch.no_grad()
def test_a_list_gives_what_its_images_give(detector: Detector) -> None:
    images = [torch.rand(3, 50, 70), torch.rand(3, 90, 40), torch.rand(3, 50, 70)]
    for together, image in zip(detector(images, score_threshold=0.0), images, strict=True):
        (alone,) = detector([image], score_threshold=0.0)
        torch.testing.assert_close(together["boxes"], alone["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together["scores"], alone["scores"], rtol=1e-4, atol=1e-5)


def test_losses_are_the_same_in_both_modes(detector: Detector) -> None:
    # Up to drop path and batch statistics, which training mode is for; so only the names.
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 96)]
    targets = [target([[4, 4, 40, 40]], [2], (64, 64)), target([], [], (64, 96))]
    names = detector(images, targets).keys()
    detector.train()
    assert detector(images, targets).keys() == names
    detector.eval()


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[10.0, 10, 11, 11]],
        [[0.0, 0, 64, 64], [63.0, 63, 64, 64], [0.0, 0, 1, 1]],
        [[float(x), y, x + 8, y + 8] for x in range(0, 50, 2) for y in range(0, 40, 2)],
    ],
    ids=["none", "one pixel", "on the border", "five hundred"],
)
def test_targets_train(detector: Detector, boxes: list) -> None:
    labels = [i % CLASSES for i in range(len(boxes))]
    assert_trains(detector, [torch.rand(3, 64, 64)], [target(boxes, labels, (64, 64))])


@torch.no_grad()
def test_a_tensor_is_a_list_of_equal_sizes(detector: Detector) -> None:
    images = torch.rand(2, 3, 40, 40)
    as_tensor = detector(images, score_threshold=0.0)
    as_list = detector(list(images), score_threshold=0.0)
    for one, two in zip(as_tensor, as_list, strict=True):
        assert len(one["boxes"])
        assert torch.equal(one["boxes"], two["boxes"])


@torch.no_grad()
def test_nothing_found(detector: Detector) -> None:
    (found,) = detector([torch.rand(3, 30, 40)], score_threshold=1.0)
    assert found["boxes"].shape == (0, 4)
    if detector.has_masks:
        assert found["masks"].shape == (0, 30, 40)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (200, 3)])
def test_images_of_any_size(detector: Detector, size: tuple[int, int]) -> None:
    (found,) = detector([torch.rand(3, *size)], score_threshold=0.0)
    assert torch.isfinite(found["boxes"]).all()


def test_saved_and_read_back(detector: Detector, tmp_path) -> None:
    detector.info = {"label_names": ["a", "b", "c"]}
    detector.save_pretrained(tmp_path)
    again = type(detector).from_pretrained(tmp_path)
    assert again.info["label_names"] == ["a", "b", "c"]
    assert again.config == detector.config
    for key, value in detector.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert type(from_config(detector.config)) is type(detector)
    assert type(load(tmp_path)) is type(detector)


def test_target_masks_and_boxes_are_scaled_together(detector: Detector) -> None:
    given = target([[10, 10, 30, 20]], [1], (32, 50))
    batch = detector.batch([torch.rand(3, 32, 50)])
    (scaled,) = detector.transform.targets([given], batch)
    assert batch.sizes.tolist() == [[64, 100]]
    assert scaled["boxes"].tolist() == [[20, 20, 60, 40]]
    assert scaled["masks"].shape == (1, 64, 128)
    y, x = scaled["masks"][0].nonzero().unbind(1)
    assert (x.min(), y.min(), x.max(), y.max()) == (20, 20, 61, 41)


GOOD = torch.rand(3, 32, 32)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "at least one image"),
        (GOOD, r"pass a single one as \[image\]"),
        ([GOOD, torch.rand(1, 32, 32)], r"image 1 has shape \(1, 32, 32\)"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], "divide by 255"),
        ([torch.rand(3, 8, 8) * 255], "expected 0..1"),
        ([torch.full((3, 8, 8), torch.nan)], "expected 0..1"),
    ],
)
def test_bad_images(detector: Detector, images: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        detector(images)


def test_bad_targets(detector: Detector) -> None:
    good = target([[1, 1, 9, 9]], [0], (32, 32))
    wrong = [
        ([good, good], "1 images but 2 targets"),
        ([{"boxes": good["boxes"]}], "target 0 has no 'labels'"),
        ([good | {"boxes": torch.zeros(1, 5)}], r"expected \(N, 4\)"),
        ([good | {"boxes": torch.tensor([[5.0, 5, 5, 9]])}], "without area"),
        ([good | {"boxes": torch.tensor([[40.0, 5, 50, 9]])}], r"target 0: box 0, \[40.* no area"),
        ([good | {"labels": torch.tensor([CLASSES])}], "integers from 0 to 2"),
    ]
    if detector.has_masks:
        wrong += [
            ([good | {"masks": torch.zeros(1, 8, 8)}], r"expected \(N, h, w\)"),
            ([target([], [], (8, 8))], r"masks \(0, 8, 8\) for 0 boxes"),
        ]
    for targets, words in wrong:
        with pytest.raises(ValueError, match=words):
            detector([GOOD], targets)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="did you mean 'mask_rcnn'"):
        create_detector("mask-rcnn", "rmt_nano")
    with pytest.raises(ValueError, match="num_classes is 0"):
        create_detector("retinanet", "rmt_nano", num_classes=0)
    with pytest.raises(ValueError, match="roi_samples_per_image is 0"):
        create_detector("mask_rcnn", "rmt_nano", roi_samples_per_image=0)
    with pytest.raises(ValueError, match="min_size is 900 and max_size 100"):
        create_detector("retinanet", "rmt_nano", min_size=900, max_size=100)


def test_the_function_and_the_record_have_the_same_defaults() -> None:
    of_function = inspect.signature(create_detector).parameters
    for field in fields(DetectorOptions):
        default = {} if field.name == "backbone_options" else field.default
        assert (of_function[field.name].default or {}) == (default or {}), field.name


def test_the_number_of_samples_is_not_written_to_files(detector: Detector) -> None:
    args = detector.config["model_args"]
    assert set(args) == {"backbone", "min_size", "max_size", "drop_path_rate", "backbone_options"}
    if detector.has_masks:
        assert detector.sampler.number == 64
        assert from_config(detector.config).sampler.number == 512


def test_a_download_is_not_repeated_from_files() -> None:
    options = {"pretrained": False, "lce": False}
    model = create_detector("retinanet", "rmt_nano", backbone_options=options)
    assert model.config["model_args"]["backbone_options"] == {"lce": False}


def test_another_backbone() -> None:
    model = create_detector("retinanet", "resnet18", num_classes=2, min_size=64, max_size=64)
    (found,) = model.eval()([torch.rand(3, 64, 64)])
    assert found["boxes"].shape[1] == 4


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_dense_part_compiles(detector: Detector, backend: str) -> None:
    """Backbone, pyramid and dense head are one graph."""
    head = detector.head if detector.architecture == "retinanet" else detector.rpn
    dense = nn.Sequential(detector.backbone, detector.neck, head)
    compiled = torch.compile(dense, fullgraph=True, backend=backend)
    pixels = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(compiled(pixels), dense(pixels), rtol=1e-4, atol=1e-5)


def assert_same_losses(compiled: Detector, eager: Detector, size: tuple[int, int]) -> None:
    images, targets = [torch.rand(3, *size)], [target([[4, 4, 40, 40]], [2], size)]
    torch.manual_seed(0)
    expected = eager(images, targets)
    torch.manual_seed(0)
    for name, value in compiled(images, targets).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    sum(compiled(images, targets).values()).backward()


def test_training_with_a_compiled_backbone(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph of the backbone serves all image sizes; here without the code generator."""
    compile_module = nn.Module.compile

    def compile_eagerly(module: nn.Module, *, dynamic: bool, options: dict) -> None:
        assert options == {"strict_output_strides": True}
        compile_module(module, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    torch.compiler.reset()
    compiled = copy.deepcopy(detector)
    assert compiled.compiled() is compiled
    assert_same_losses(compiled, detector, (64, 96))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same_losses(compiled, detector, (48, 64))


@pytest.mark.slow
def test_training_with_the_real_code_generator() -> None:
    torch.compiler.reset()
    small = {"depths": (1, 1, 1, 1), "full_attention": (True,) * 4, "lce": False, "mlp_conv": False}
    eager = create_detector(
        "retinanet",
        "rmt_nano",
        num_classes=CLASSES,
        min_size=64,
        max_size=128,
        drop_path_rate=0.0,
        backbone_options=small,
    )
    compiled = copy.deepcopy(eager).compiled()
    assert_same_losses(compiled, eager, (64, 96))


def test_half_precision_under_autocast(detector: Detector) -> None:
    images, targets = [torch.rand(3, 64, 64)], [target([[4, 4, 40, 40]], [2], (64, 64))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector(images, targets)
        with torch.no_grad():
            (found,) = detector(images, score_threshold=0.0)
    assert all(torch.isfinite(value) for value in losses.values())
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
