"""The authors' detectors on deterministic weights: models, inputs and what came out of them."""

import json
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from golden_rule import GOLDEN, golden_state, release_keys
from rmt.detection import Detector, from_config
from rmt.detection.matcher import Sampler
from rmt.detection.transform import Batch, normalise
from rmt.weights.identify import identify
from rmt.weights.read import Content

TOLERANCE = 1e-9
# Box deltas to learn are float32 logarithms, whose last bit depends on the processor's library.
TOLERANCE_OF_TARGETS = 2e-8


class Case(NamedTuple):
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: Detector
    sources: dict[str, str]

    def assert_equal(self, name: str, ours: Tensor) -> None:
        """Compare with the golden tensor: stored samples, and sums over all of it."""
        about = self.facts["tensors"][name]
        assert list(ours.shape) == about["shape"], name
        assert_close(ours.double().norm(), about["l2"])
        assert_close(ours.double().abs().sum(), about["abssum"])
        flat = ours if about["full"] else ours.reshape(-1)[:: about["stride"]]
        assert_tensor(flat, self.arrays[name])


def assert_tensor(ours: Tensor, theirs: np.ndarray, tolerance: float = TOLERANCE) -> None:
    expected = torch.from_numpy(theirs)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def assert_close(ours: Tensor | float, theirs: float, tolerance: float = TOLERANCE) -> None:
    ours = ours.item() if isinstance(ours, Tensor) else ours
    assert abs(ours - theirs) <= tolerance * abs(theirs)


def load_case(name: str) -> Case:
    """Return the model in float64 with every sampler taking all boxes, as in the golden losses."""
    facts = json.loads((GOLDEN / "detection" / f"{name}.json").read_text())
    with np.load(GOLDEN / "detection" / f"{name}.npz") as file:
        arrays = dict(file)
    state = golden_state(release_keys(name), facts["overrides"])
    found = identify(Content(state), name)
    assert found.renamed is not None
    model = from_config(found.description.config)
    model.load_state_dict(dict(found.tensors), strict=True)
    if hasattr(model, "rpn"):
        model.rpn.sampler = Sampler(None, 0.5)
        model.sampler = Sampler(None, 0.25)
    return Case(facts, arrays, model.double().eval(), found.renamed.sources)


def golden_batch() -> Batch:
    """Return the resized photo on its canvas, in float64."""
    return _on_canvas([_photo()], originals=[(300, 451)])


def golden_pair() -> Batch:
    """Return the photo and its top left corner, which counts as an unscaled image."""
    photo = _photo()
    return _on_canvas([photo, photo[:, :244, :366]], originals=[(300, 451), (244, 366)])


def golden_target(*, corner: bool = False) -> dict[str, Tensor]:
    """Return three objects, or the corner image's one, with ellipses as masks."""
    boxes = torch.tensor(
        [[20.5, 30.25, 120, 180.5]]
        if corner
        else [[30.5, 40.25, 180, 200.75], [150, 20, 330.5, 150], [200.25, 120.5, 350, 235.75]]
    )
    y, x = torch.arange(256)[:, None] + 0.5, torch.arange(384) + 0.5
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    masks = [
        ((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 <= 1
        for (cx, cy), (w, h) in zip(centre, half, strict=True)
    ]
    return {
        "boxes": boxes,
        "labels": torch.tensor([7] if corner else [15, 0, 57]),
        "masks": torch.stack(masks).byte(),
    }


def _photo() -> Tensor:
    image = torch.from_numpy(np.array(Image.open(GOLDEN / "image.png"))).permute(2, 0, 1)
    return normalise(image / 255, tuple(image.shape[1:])).double()


def _on_canvas(images: list[Tensor], originals: list[tuple[int, int]]) -> Batch:
    height, width = 256, 384
    sizes = [tuple(x.shape[1:]) for x in images]
    pixels = [
        F.pad(x, (0, width - w, 0, height - h)) for x, (h, w) in zip(images, sizes, strict=True)
    ]
    scales = [
        [w / original[1], h / original[0]] * 2
        for (h, w), original in zip(sizes, originals, strict=True)
    ]
    return Batch(
        torch.stack(pixels),
        torch.tensor(sizes),
        torch.tensor([(height, width)] * len(images)),
        torch.tensor(originals),
        torch.tensor(scales),
    )
