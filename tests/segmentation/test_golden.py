"""Segmenters equal the authors' code in float64: maps, logits, labels, losses and gradients."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

from golden_rule import GOLDEN, every_name_is_found_without_its_key, golden_state, release_keys
from rmt.modeling.registry import IMAGENET_MEAN, IMAGENET_STD
from rmt.segmentation import Segmenter, create_segmenter
from rmt.segmentation.inference import label_map, normalise, probabilities
from rmt.segmentation.recipe import Inference
from rmt.weights.release import SEGMENTATION, rename

TOLERANCE = 1e-9
LAYOUTS = {
    "semfpn_t": ("semantic_fpn", "rmt_t"),
    "semfpn_s": ("semantic_fpn", "rmt_s"),
    "semfpn_m": ("semantic_fpn", "rmt_b"),
    "semfpn_l": ("semantic_fpn", "rmt_l"),
    "upernet_s": ("upernet", "rmt_s"),
    "upernet_m": ("upernet", "rmt_b"),
    "upernet_l": ("upernet", "rmt_l"),
}


class Case(NamedTuple):
    name: str
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: Segmenter
    sources: dict[str, str]

    def assert_equal(self, name: str, ours: Tensor) -> None:
        """Compare with the golden tensor: stored samples, and sums over all of it."""
        about = self.facts["tensors"][name]
        assert list(ours.shape) == about["shape"]
        assert_close(ours.norm(), about["l2"])
        assert_close(ours.abs().sum(), about["abssum"])
        flat = ours if about["full"] else ours.reshape(-1)[:: about["stride"]]
        expected = torch.from_numpy(self.arrays[name])
        assert flat.shape == expected.shape
        assert (flat - expected).abs().max() <= TOLERANCE * expected.abs().max()


def assert_close(ours: Tensor, theirs: float) -> None:
    assert abs(ours.item() - theirs) <= TOLERANCE * abs(theirs)


@pytest.fixture(scope="module", params=["semfpn_t", "upernet_s"])
def case(request: pytest.FixtureRequest) -> Case:
    folder = GOLDEN / "segmentation"
    facts = json.loads((folder / f"{request.param}.json").read_text())
    with np.load(folder / f"{request.param}.npz") as file:
        arrays = dict(file)
    state = golden_state(release_keys(request.param), facts["overrides"])
    renamed = rename(state, SEGMENTATION)
    model = create_segmenter(*LAYOUTS[request.param])
    model.load_state_dict(renamed.tensors, strict=True)
    model.double().eval()
    return Case(request.param, facts, arrays, model, renamed.sources)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Return the resized photo, (3, 250, 376) uint8."""
    return torch.from_numpy(np.array(Image.open(GOLDEN / "image.png"))).permute(2, 0, 1)


@pytest.fixture(scope="module")
def image(photo: Tensor) -> Tensor:
    return normalise(photo, IMAGENET_MEAN, IMAGENET_STD)[None].double()


@torch.no_grad()
def test_maps_and_logits(case: Case, image: Tensor) -> None:
    model = case.model
    maps = model.backbone(image)
    for i, ours in enumerate(maps):
        case.assert_equal(f"backbone.{i}", ours)
    necked = model.neck(maps)
    if model.architecture == "semantic_fpn":
        for i, ours in enumerate(necked):
            case.assert_equal(f"fpn.{i}", ours)
    else:
        case.assert_equal("aux_logits", model.aux_head(maps[2]))
    logits = model.head(necked)
    case.assert_equal("logits", logits)
    case.assert_equal("logits_first_row", logits[0, :, 0, :8])
    labels = torch.from_numpy(case.arrays["argmax_quarter"])
    assert torch.equal(logits.argmax(dim=1)[0].byte(), labels)
    case.assert_equal("logits_input_size", model(image))


def test_label_map_from_the_photo(case: Case) -> None:
    """The whole way: resize as OpenCV, normalise, segment, two bilinear steps back."""
    photo = torch.from_numpy(data.chelsea()).permute(2, 0, 1)
    options = Inference(min_size=250, max_size=1024)
    case.assert_equal("prob_ori", probabilities(case.model, photo, options)[None])
    labels = torch.from_numpy(case.arrays["pred_ori"])
    assert torch.equal(label_map(case.model, photo, options), labels)


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ("semfpn_t", "norm_eval"),
        ("semfpn_t", "norm_train"),
        ("upernet_s", "norm_eval"),
        pytest.param("upernet_s", "norm_train", marks=pytest.mark.slow),
    ],
    indirect=["case"],
)
def test_losses_and_gradients(case: Case, image: Tensor, mode: str) -> None:
    model, expected = case.model, case.facts["train"][mode]
    y, x = torch.meshgrid(torch.arange(250), torch.arange(376), indexing="ij")
    labels = ((y // 16 * 7 + x // 24 * 13) % 150).masked_fill((y + x) % 11 == 0, 255)
    images, labels = image, labels[None]
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    if mode == "norm_train":  # the pyramid pooling's 1×1 map needs two images
        images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels.flip(2)])
        for module in model.modules():
            module.training = isinstance(module, nn.BatchNorm2d)
    model.zero_grad()
    losses = model(images, labels)
    total = sum(losses.values())
    total.backward()
    model.eval().load_state_dict(statistics)

    assert_close(losses["loss_seg"], expected["losses"]["decode.loss_seg"])
    if "loss_aux" in losses:
        assert_close(losses["loss_aux"], expected["losses"]["aux.loss_seg"])
    assert_close(total, expected["total"])
    norms = {case.sources[k]: p.grad.norm() for k, p in model.named_parameters()}
    assert norms.keys() == expected["grad_norm"].keys()
    assert_close(torch.stack(list(norms.values())).norm(), expected["grad_norm_total"])
    for key, theirs in expected["grad_norm"].items():
        if theirs > 1e-12:  # a bias before a batch norm has no gradient but rounding
            assert_close(norms[key], theirs)
        else:
            assert norms[key] <= 1e-12
    ours = {case.sources[k]: p.grad for k, p in model.named_parameters()}
    samples = [k for k in case.arrays if k.startswith(f"{mode}.grad.")]
    assert samples
    for name in samples:
        theirs = torch.from_numpy(case.arrays[name])
        grad = ours[name.removeprefix(f"{mode}.grad.")].flatten()
        flat = grad if grad.numel() == len(theirs) else grad[:: grad.numel() // 512 | 1]
        assert (flat - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize(("layout", "kind"), LAYOUTS.items())
def test_names_and_shapes(layout: str, kind: tuple[str, str]) -> None:
    """Every name of the release's seven models has one counterpart here, of the same size."""
    with torch.device("meta"):
        model = create_segmenter(*kind)
        state = {key: torch.empty(shape) for key, shape in release_keys(layout).items()}
    ours = {key: value.numel() for key, value in model.state_dict().items()}
    renamed = rename(state, SEGMENTATION)
    assert not renamed.unknown
    every_name_is_found_without_its_key(renamed)
    assert {key: value.numel() for key, value in renamed.tensors.items()} == ours
    published = json.loads((GOLDEN / "keys" / f"{layout}.json").read_text())["params"]
    assert sum(p.numel() for p in model.parameters()) == published
