"""ImageNet's test sets in their authors' layouts, tiny; fewer classes, several right labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn

import rmt
from rmt.classification.datasets import open_splits
from rmt.classification.datasets.imagenet import AcceptedClasses, same_imagenet, wordnet_ids
from rmt.classification.datasets.imagenet_c import ALEXNET_ERRORS, mean_corruption_error
from rmt.classification.metrics import ClassificationMetrics, TopOneByGroup
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.splits import Splits
from rmt.training.evaluate import evaluate


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)


class Same(nn.Module):
    """Predicts the same order of classes for every image: 7, 5, 3, then the rest."""

    def __init__(self, model: rmt.RMT) -> None:
        super().__init__()
        self.fc = model.head.fc
        with torch.no_grad():
            self.fc.bias.zero_()
            self.fc.bias[[7, 5, 3]] = torch.tensor([30.0, 20.0, 10.0])

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.fc.bias.expand(len(x), -1)


@pytest.fixture(scope="module")
def model() -> rmt.RMT:
    model = rmt.create_model("rmt_nano", 1000).eval()
    model.head.forward = Same(model).forward
    return model


def opened(root: Path, kind: str) -> Splits:
    splits = open_splits(Data(root=str(root), format=kind))
    assert splits.train is None
    return splits


def evaluated(model: rmt.RMT, root: Path, kind: str) -> dict[str, float]:
    words = {"data.root": root, "data.format": kind, "data.num_workers": 0, "data.input_size": 32}
    words |= {"trainer.devices": 1, "trainer.accelerator": "cpu"}
    return evaluate(model, overrides=[f"--{key}={value}" for key, value in words.items()])


def test_the_classes_are_imagenets() -> None:
    names = wordnet_ids()
    assert (len(names), names[0], names[1], names[999]) == (
        1000, "n01440764", "n01443537", "n15075141",
    )  # fmt: skip


def test_numbered_folders_are_classes(tmp_path: Path, model: rmt.RMT) -> None:
    for number in (0, 7, 10, 999):  # as -V2 does; sorted as text, 10 comes before 7
        picture(tmp_path / str(number) / "a.jpeg")
    samples = opened(tmp_path, "imagenet").val
    assert list(samples.labels) == [0, 10, 7, 999]
    assert samples.rule.allowed == (0, 7, 10, 999)
    assert evaluated(model, tmp_path, "imagenet")["images"] == 4


def test_only_the_classes_of_a_smaller_set_are_predicted(tmp_path: Path, model: rmt.RMT) -> None:
    names = wordnet_ids()
    for label in (3, 5, 9):  # as in -A and -R: 7, the best prediction, is not a class here
        picture(tmp_path / names[label] / "a.jpg")
    found = evaluated(model, tmp_path, "imagenet")
    assert found["top1"] == pytest.approx(100 / 3)
    assert found["images"] == 3


def test_any_right_class_is_a_hit(tmp_path: Path, model: rmt.RMT) -> None:
    right = [[1, 7], [2], [], [7], [5, 3]]
    (tmp_path / "real.json").write_text(json.dumps(right))
    for number in range(1, 6):
        picture(tmp_path / "n0" / f"ILSVRC2012_val_{number:08}.JPEG")
    assert len(opened(tmp_path, "imagenet-real").val) == 4
    found = evaluated(model, tmp_path, "imagenet-real")
    assert (found["top1"], found["images"]) == (50, 4)


def test_what_is_no_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match=r"not classes of ImageNet.*cats"):
        opened(tmp_path, "imagenet")
    with pytest.raises(ValueError, match=r"no .*real\.json"):
        opened(tmp_path, "imagenet-real")
    for faulty in ("{", "{}", "[1]", '[["1"]]', "[[1000]]", "[[-1]]", "[" * 10**5):
        (tmp_path / "real.json").write_text(faulty)
        with pytest.raises(ValueError, match=r"real\.json"):
            opened(tmp_path, "imagenet-real")
    (tmp_path / "real.json").write_text("[[1]]")
    with pytest.raises(ValueError, match="no validation image"):
        opened(tmp_path, "imagenet-real")
    (tmp_path / "cats").rmdir()
    with pytest.raises(ValueError, match="no class folder"):
        opened(tmp_path, "imagenet")


def test_mean_corruption_error_by_hand() -> None:
    """As bad as AlexNet on all corruptions but snow, where it is half as bad."""
    errors = ALEXNET_ERRORS | {"snow": ALEXNET_ERRORS["snow"] / 2}
    top1 = {name: 100 - error for name, error in errors.items()}
    assert mean_corruption_error(top1) == pytest.approx((14 * 100 + 50) / 15)


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """Write two images of each of the classes 5 and 7 for each corruption and severity."""
    names = wordnet_ids()
    for i, name in enumerate(ALEXNET_ERRORS):
        group = tmp_path / "noise" if i % 2 else tmp_path  # unpacked either way
        for severity in range(1, 6):
            for label in (5, 7):
                for file in ("a", "b"):
                    picture(group / name / str(severity) / names[label] / f"{file}.JPEG")
    return tmp_path


def test_corruptions_in_one_pass(corrupted: Path, model: rmt.RMT) -> None:
    """The model always predicts 7: half right, and more where some 5s are unreadable."""
    samples = opened(corrupted, "imagenet-c").val
    assert len(samples) == 15 * 5 * 4
    assert samples.name(4 * 5 * 7 + 3) == str(  # the eighth corruption, its first severity
        corrupted / "noise" / "snow" / "1" / wordnet_ids()[7] / "b.JPEG"
    )
    for severity in range(1, 6):
        for path in corrupted.glob(f"**/fog/{severity}/{wordnet_ids()[5]}/a.JPEG"):
            path.write_bytes(b"x")
    (corrupted / "speckle_noise").mkdir()  # one of the four extra ones
    words = [f"--data.root={corrupted}", "--data.format=imagenet-c", "--data.num_workers=0"]
    words += ["--data.input_size=32", "--trainer.devices=1", "--trainer.accelerator=cpu"]
    found = evaluate(model, overrides=words)
    assert found["images"] == 15 * 5 * 4 - 5
    assert {name for name in found if name.startswith("top1/")} == {
        f"top1/{name}" for name in ALEXNET_ERRORS
    }
    assert found["top1/snow"] == pytest.approx(50)
    assert found["top1/fog"] == pytest.approx(100 * 2 / 3)
    ratios = [100 * 50 / error for error in ALEXNET_ERRORS.values()]
    fog = (100 / 3 - 50) * 100 / ALEXNET_ERRORS["fog"]
    assert found["mCE"] == pytest.approx((sum(ratios) + fog) / 15)


def test_corruptions_must_be_whole(corrupted: Path) -> None:
    lost = corrupted / "noise" / "snow" / "3" / wordnet_ids()[5] / "a.JPEG"
    lost.unlink()
    with pytest.raises(ValueError, match=r"snow/3 and .*hold different images: 1 .*a\.JPEG"):
        opened(corrupted, "imagenet-c")
    shutil.rmtree(corrupted / "noise" / "snow" / "3")
    with pytest.raises(ValueError, match=r"has no snow/3; mCE needs 15 corruptions"):
        opened(corrupted, "imagenet-c")


def test_groups_are_counted_apart() -> None:
    metric = TopOneByGroup(3)
    metric.update(torch.tensor([True, False, True]), torch.tensor([0, 0, 2]))
    metric.update(torch.tensor([True]), torch.tensor([1]))
    assert metric.compute().tolist() == [0.5, 1.0, 1.0]


def test_the_best_placed_right_class_counts() -> None:
    """Right are 5 and 7; predictions in order are 0, 1, 2, 3, 7: a hit in the top 5 only."""
    rule = AcceptedClasses(accepted=((5, 7),))
    samples = Samples([Path("x")], [5], tuple(map(str, range(10))), rule=rule)
    metrics = ClassificationMetrics(rmt.create_model("rmt_nano", 10), samples)
    order = torch.tensor([[9.0, 8, 7, 6, 0, 0, 0, 5, 0, 0]])
    metrics.update(nn.Identity(), (order, torch.tensor([5]), torch.tensor([0])))
    found = metrics.compute()
    assert (found["top1"], found["top5"]) == (0, 100)


@pytest.mark.parametrize("kind", ["numbers", "descriptions", "others"])
def test_imagenet_by_another_name(kind: str) -> None:
    info = ImageNetInfo()
    names = {
        "numbers": [str(i) for i in range(1000)],
        "descriptions": [info.index_to_description(i).upper() for i in range(1000)],
        "others": [f"thing {i}" for i in range(1000)],
    }[kind]
    assert same_imagenet(names, wordnet_ids()) == (kind != "others")
    assert not same_imagenet(names, names)
