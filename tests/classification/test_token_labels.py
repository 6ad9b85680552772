"""Token labelling: crops, mixing and losses by hand, and a model that learns eight photos."""

import json
import random
import shutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.random_erasing import RandomErasing

import rmt
import rmt_cli
from rmt.classification.datamodule import with_map
from rmt.classification.datasets import open_splits
from rmt.classification.losses import ClassificationLoss, check_recipe, teacher_of
from rmt.classification.models import new_model
from rmt.classification.recipe import Augment, ClassificationRecipe, Data, TokenLabels
from rmt.classification.samples import Samples
from rmt.classification.teacher import Teacher, label_folder, write_maps
from rmt.classification.token_labels import (
    CutTransform,
    LabelMaps,
    dense_labels,
    map_name,
    mixed_box,
    on_stem,
    refuse_shared_maps,
    smoothed,
    token_losses,
)
from rmt.data.bad_samples import TrainReader
from rmt.recipes import resolve
from rmt.training.fit import load_recipe


def corner_map(size: int = 6, classes: tuple[int, ...] = (0, 1, 2, 3)) -> torch.Tensor:
    """A map (2, 1, size, size) with one certain class in each quarter."""
    half = size // 2
    index = torch.zeros(size, size)
    index[:half, half:], index[half:, :half], index[half:, half:] = classes[1:]
    index[:half, :half] = classes[0]
    return torch.stack([torch.full((size, size), 20.0), index])[:, None]


def cut(box: list[float], mirrored: bool, size: tuple[int, int]) -> list:
    """The best class of each token of a crop of the corner map."""
    found = dense_labels(
        corner_map()[None],
        torch.tensor([box]).float(),
        torch.tensor([mirrored]),
        classes=5,
        size=size,
    )
    assert found.shape == (1, *size, 5)
    assert found.sum(-1).allclose(torch.ones(1, *size))
    return found[0].argmax(-1).tolist()


def test_the_whole_image_keeps_its_corners() -> None:
    assert cut([0, 0, 1, 1], False, (2, 2)) == [[0, 1], [2, 3]]


def test_a_mirrored_image_swaps_left_and_right() -> None:
    assert cut([0, 0, 1, 1], True, (2, 2)) == [[1, 0], [3, 2]]


@pytest.mark.parametrize(
    ("box", "only"), [([0, 0, 0.4, 0.4], 0), ([0.6, 0, 1, 0.4], 1), ([0.6, 0.6, 1, 1], 3)]
)
def test_a_corner_has_one_class(box: list[float], only: int) -> None:
    assert cut(box, False, (3, 3)) == [[only] * 3] * 3


def test_boxes_are_x_before_y() -> None:
    assert cut([0.5, 0.0, 1.0, 0.5], False, (1, 1)) == [[1]]
    assert cut([0.0, 0.5, 0.5, 1.0], False, (1, 1)) == [[2]]


def test_probabilities_of_a_map_by_hand() -> None:
    # One position, two stored logits of four classes: softmax of (ln 3, 0, ln 2, 0).
    maps = torch.tensor([[np.log(3.0), np.log(2.0)], [0.0, 2.0]]).reshape(1, 2, 2, 1, 1).float()
    box, mirrored = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False])
    found = dense_labels(maps, box, mirrored, classes=4, size=(1, 1))[0, 0, 0]
    assert found.tolist() == pytest.approx([3 / 7, 1 / 7, 2 / 7, 1 / 7], abs=1e-6)


def test_a_map_of_other_data_is_refused() -> None:
    box, mirrored = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False])
    with pytest.raises(ValueError, match="names class 3, but the data has 3"):
        dense_labels(corner_map()[None], box, mirrored, classes=3, size=(1, 1))


def test_losses_by_hand() -> None:
    # Two images, two tokens, two classes; logits (ln 3, 0) give probabilities (3/4, 1/4).
    high = torch.tensor([np.log(3.0), 0.0]).float()
    logits = torch.stack([high, torch.zeros(2)])
    dense = torch.stack([torch.stack([high, torch.zeros(2)]), torch.stack([high.flip(0), high])])
    dense = dense[:, None]  # (2, 1, 2, 2)
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tokens = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.0, 1.0]]])[:, None]
    found = token_losses(logits, dense, class_targets=classes, dense_targets=tokens, weight=0.5)
    low, sure, far = np.log(2), -np.log(0.75), -np.log(0.25)
    assert found["class"].item() == pytest.approx((sure + low) / 2, rel=1e-6)
    assert found["tokens"].item() == pytest.approx(0.5 * (sure + low + sure + far) / 4, rel=1e-6)
    # The second token comes from the other image: its target too, and half of the class target.
    mixed = torch.tensor([[False, True]])
    found = token_losses(
        logits, dense, class_targets=classes, dense_targets=tokens, weight=1.0, mixed=mixed
    )
    assert found["class"].item() == pytest.approx(((sure + far) / 2 + low) / 2, rel=1e-6)
    second = (sure + far) / 2  # the second image's second token, against (0.5, 0.5)
    assert found["tokens"].item() == pytest.approx((sure + low + sure + second) / 4, rel=1e-6)


def test_smoothed_labels_by_hand() -> None:
    found = smoothed(torch.tensor([1]), 4, 0.1)
    assert found[0].tolist() == pytest.approx([0.025, 0.925, 0.025, 0.025])


def test_mixed_boxes_cover_what_beta_says() -> None:
    fractions = []
    for _ in range(2000):
        mask = mixed_box((8, 8), 1.0)
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns  # a rectangle
        fractions.append(mask.float().mean().item())
    assert 0.15 < np.mean(fractions) < 0.4  # half the area, less what falls outside
    assert max(fractions) > 0.5
    random.seed(1)
    first = mixed_box((7, 7), 1.0)
    random.seed(1)
    assert torch.equal(first, mixed_box((7, 7), 1.0))


def test_the_mask_on_the_stem_is_eight_times_finer() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    grown = on_stem(mask, 8, (15, 12))
    assert grown.shape == (15, 12)
    assert grown[:8, :8].all()
    assert grown.sum() == 64


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_mixed_tokens_come_from_the_other_end_of_the_batch(size: tuple[int, int]) -> None:
    model = rmt.create_model("rmt_nano", 3, token_labels=True).eval()
    images = torch.randn(3, 3, *size)
    last = tuple(-(-side // 32) for side in size)
    nothing, everything = torch.zeros(last).bool(), torch.ones(last).bool()
    stem = tuple(-(-side // 4) for side in size)
    with torch.no_grad():
        plain = model(images)
        assert torch.equal(model(images, on_stem(nothing, 8, stem)), plain)
        assert model(images, on_stem(everything, 8, stem)).allclose(plain.flip(0), atol=1e-6)
        half = nothing.clone()
        half[0, 0] = True
        mixed = model.stem(images)
        mixed[:, :8, :8] = mixed.flip(0)[:, :8, :8]
        expected = mixed
        for stage in model.stages:
            expected = stage(expected)
        got = model._last_map(images, on_stem(half, 8, stem))
        assert torch.equal(got, expected)


def test_the_transform_returns_its_crop() -> None:
    # An image whose colours are its coordinates shows where each pixel came from.
    height, width = 120, 200
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, 0 * x], -1).astype(np.uint8)
    data = Data(input_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="random")
    transform = CutTransform(data, Augment(scale=(0.1, 0.6)))
    sides = set()
    for _ in range(20):
        image, (box, mirrored) = transform(Image.fromarray(pixels))
        x0, y0, x1, y1 = box.tolist()
        left, right = (x1, x0) if mirrored else (x0, x1)
        assert image[0, :, 0].mean().item() == pytest.approx(left, abs=0.03)
        assert image[0, :, -1].mean().item() == pytest.approx(right, abs=0.03)
        assert image[1, 0].mean().item() == pytest.approx(y0, abs=0.03)
        assert image[1, -1].mean().item() == pytest.approx(y1, abs=0.03)
        sides.add(bool(mirrored))
    assert sides == {True, False}


def test_the_transform_erases_and_varies_as_the_plain_one() -> None:
    augment = Augment(rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25)
    rest = CutTransform(Data(), augment).rest
    names = [type(step).__name__ for part in rest for step in part.transforms]
    assert "RandAugment" in names
    assert names[-1] == RandomErasing.__name__
    with pytest.raises(ValueError, match=r"augment\.crop is 'shift'"):
        CutTransform(Data(), Augment(crop="shift"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos, quarters of two of scikit-learn's, each its own class; two files per class."""
    root = tmp_path_factory.mktemp("photos")
    china, flower = load_sample_images().images
    for number in range(8):
        photo = (china, flower)[number // 4]
        rows = slice(0, 213) if number % 4 < 2 else slice(213, 427)
        columns = slice(0, 320) if number % 2 else slice(320, 640)
        for part in ("train", "val"):
            folder = root / part / f"photo{number}"
            folder.mkdir(parents=True)
            Image.fromarray(photo[rows, columns]).save(folder / f"n0_{number}.jpg")
    return root


@pytest.fixture(scope="module")
def maps(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of certain labels for the photos, in the TokenLabeling project's layout."""
    root = tmp_path_factory.mktemp("maps")
    for number in range(8):
        logits = torch.zeros(5, 18, 18)
        logits[0] = 12
        classes = torch.stack([torch.full((18, 18), (number + i) % 8) for i in range(5)])
        path = root / f"photo{number}" / f"n0_{number}.pt"
        path.parent.mkdir()
        torch.save(torch.stack([logits, classes.float()]).half(), path)
    return root


def test_maps_are_found_by_class_folder_and_name(photos: Path, maps: Path) -> None:
    assert map_name("a/b/n01440764/n01440764_10026.JPEG") == Path("n01440764/n01440764_10026.pt")
    samples = open_splits(Data(root=str(photos))).train
    found = LabelMaps(maps, samples)[3]
    assert found.shape == (2, 5, 18, 18)
    assert found.dtype == torch.float32
    assert found[1, :, 0, 0].tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"PK\3\4", torch.zeros(3, 4), {"a": 1}, Path("code")]
)
def test_a_damaged_map_is_named(photos: Path, tmp_path: Path, content: object) -> None:
    samples = open_splits(Data(root=str(photos))).train
    path = tmp_path / "photo0" / "n0_0.pt"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"n0_0\.pt"):
        LabelMaps(tmp_path, samples)[0]
    with pytest.raises(ValueError, match="is not a folder"):
        LabelMaps(tmp_path / "absent", samples)


def test_an_image_without_its_map_is_replaced(photos: Path, maps: Path, tmp_path: Path) -> None:
    samples = open_splits(Data(root=str(photos))).train
    for path in sorted(maps.rglob("*.pt"))[1:]:
        (tmp_path / path.parent.name).mkdir()
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    transform = CutTransform(Data(input_size=32), Augment())
    vary = partial(with_map, transform=transform)
    read = TrainReader(LabelMaps(tmp_path, samples).read, vary, count=8, max_bad_samples=1)
    image, label, found, box, mirrored = read(0)
    assert (image.shape, label, found[1, 0, 0, 0].item()) == ((3, 32, 32), 1, 1)
    assert (box.shape, mirrored.dtype) == ((4,), torch.bool)
    read.bad.most = 0
    with pytest.raises(ValueError, match=r"more than data\.max_bad_samples=0 .*n0_0\.pt"):
        read(0)


SMALL = {
    "model.name": "rmt_nano",
    "model.drop_path_rate": "0",
    "data.input_size": "64",
    "data.batch_size": "8",
    "data.num_workers": "0",
    "data.crop_pct": "1.0",
    "augment.rand_augment": "",
    "augment.erasing": "0",
    "augment.scale": "[0.6,1.0]",
    "optimizer.lr": "2e-3",
    "optimizer.reference_batch_size": "0",
    "schedule.epochs": "40",
    "schedule.warmup_epochs": "2",
    "schedule.lag": "0",
    "ema.decay": "0",
    "trainer.precision": "32-true",
    "trainer.global_batch_size": "0",
    "trainer.devices": "1",
    "trainer.accelerator": "cpu",
    "trainer.threads": "1",
    "trainer.evaluate_every": "40",
}
WORDS = [f"--{key}={value}" for key, value in SMALL.items()]


def test_eight_photos_are_learnt_with_token_labels(
    photos: Path, maps: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "run", tmp_path / "predictions.json"
    words = [*WORDS, "--data.root", str(photos), "--token_labels.root", str(maps)]
    assert rmt_cli.main(["train", "imagenet/rmt_s_tl", "--out", str(out), *words]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["top1"] == 100
    model = rmt.load(out)
    assert model.aux_head is not None
    images = str(photos / "val")
    assert rmt_cli.main(["predict", images, "--checkpoint", str(out), "--json", str(file)]) == 0
    for record in json.loads(file.read_text()):
        assert record["top"][0]["name"] == Path(record["image"]).parent.name


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small timm teacher for eight classes."""
    import timm

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("teacher") / "weights.pth"
    torch.save(timm.create_model("test_resnet", num_classes=8).state_dict(), path)
    return path


def test_a_teachers_positions_average_to_its_logits(teacher_file: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    teacher = Teacher("test_resnet", 8, weights=teacher_file, mean=mean, std=std)
    pixels = torch.rand(2, 3, *teacher.size)
    ours = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    cfg = teacher.model.pretrained_cfg
    theirs = pixels - torch.tensor(cfg["mean"])[:, None, None]
    theirs = theirs / torch.tensor(cfg["std"])[:, None, None]
    dense = teacher.logits(ours)
    # Its head is an average over positions and a linear layer, which commute.
    assert dense.mean((2, 3)).allclose(teacher.model(theirs), atol=1e-5)
    labels = teacher.labels(ours, (2, 3))
    assert labels.shape == (2, 2, 3, 8)
    assert labels.sum(-1).allclose(torch.ones(2, 2, 3))


def test_offline_maps_are_the_online_labels(
    photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    words = ["make-token-labels", "test_resnet", "--data", str(photos), "--out", str(tmp_path)]
    assert rmt_cli.main([*words, "--weights", str(teacher_file)]) == 0
    samples = open_splits(Data(root=str(photos))).train
    maps = LabelMaps(tmp_path, samples)
    teacher = Teacher("test_resnet", 8, weights=teacher_file, mean=(0.0,) * 3, std=(1.0,) * 3)
    picture = samples.image(2).resize(teacher.size[::-1], Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
    values, classes = teacher.logits(pixels[None])[0].topk(5, dim=0)
    assert torch.equal(maps[2][1], classes.float())
    assert maps[2][0].allclose(values, rtol=1e-3, atol=1e-3)
    assert label_folder("test_resnet", photos, tmp_path, weights=teacher_file) == 0  # all there


def test_packed_images_are_labelled_and_their_maps_found(
    photos: Path, teacher_file: Path, tmp_path: Path
) -> None:
    for part in ("train", "val"):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as archive:
            archive.add(photos / part, part)
    shutil.copytree(photos / "val" / "photo0", tmp_path / "photo0")  # what `auto` would take
    words = [
        "make-token-labels",
        "test_resnet",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "maps"),
    ]
    words += ["--weights", str(teacher_file), "--data.format"]
    assert rmt_cli.main([*words, "auto"]) == 2
    assert rmt_cli.main([*words, "tar"]) == 0
    maps = LabelMaps(tmp_path / "maps", open_splits(Data(root=str(tmp_path), format="tar")).train)
    assert [len(maps[index]) for index in range(8)] == [2] * 8


def test_what_has_no_names_or_no_training_part_gets_no_maps(photos: Path, tmp_path: Path) -> None:
    nameless = Samples(np.zeros((2, 8, 8), np.uint8), [0, 1], ("cat", "dog"))
    with pytest.raises(ValueError, match=r"fashion-mnist have none; use token_labels\.teacher"):
        LabelMaps(tmp_path, nameless)
    shutil.copytree(photos / "val", tmp_path / "val")
    with pytest.raises(ValueError, match="has no training images to label"):
        label_folder("test_resnet", tmp_path, tmp_path / "maps")


def test_a_batch_is_labelled_online(photos: Path, teacher_file: Path) -> None:
    words = [*WORDS, "--data.root", str(photos), "--token_labels.teacher", "test_resnet"]
    recipe = load_recipe("imagenet/rmt_s_tl", [*words, "--token_labels.weights", str(teacher_file)])
    model = new_model(recipe, tuple(map(str, range(8))))
    batch = (torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3]))
    losses, _ = ClassificationLoss(recipe, model)(model, batch)
    assert set(losses) == {"class", "tokens"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_class_target_may_be_the_map(photos: Path, maps: Path) -> None:
    words = [*WORDS, "--data.root", str(photos), "--token_labels.root", str(maps)]
    words += ["--token_labels.mix", "0", "--augment.label_smoothing", "0"]
    cuts = (torch.tensor([[0.0, 0.0, 0.4, 0.4]] * 2), torch.tensor([False, False]))
    labels, both = torch.tensor([5, 6]), torch.stack([corner_map()] * 2)
    batch = (torch.randn(2, 3, 64, 64), labels, both, *cuts)
    found = {}
    for target in ("label", "map"):
        recipe = load_recipe("imagenet/rmt_s_tl", [*words, "--token_labels.class_target", target])
        torch.manual_seed(0)
        model = new_model(recipe, tuple(map(str, range(8))))
        found[target] = ClassificationLoss(recipe, model)(model, batch)[0]["class"]
        logits = model(batch[0])[0]
        wanted = F.cross_entropy(logits, labels if target == "label" else torch.tensor([0, 0]))
        assert found[target].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("token_labels", "starred", "message"),
    [
        (TokenLabels(), True, "name label maps in token_labels.root, or a timm model"),
        (TokenLabels(root="maps"), False, "need a model with model.token_labels true"),
        (TokenLabels(teacher="test_resnex"), True, "unknown teacher 'test_resnex'.*test_resnet"),
    ],
)
def test_what_does_not_fit_together(token_labels: TokenLabels, starred: bool, message: str) -> None:
    recipe = resolve(ClassificationRecipe, {"task": "classification"})
    recipe = replace(recipe, token_labels=token_labels)
    with pytest.raises(ValueError, match=message):
        teacher_of(recipe, rmt.create_model("rmt_nano", 8, token_labels=starred))


def test_maps_and_a_teacher_cannot_both_be_set() -> None:
    with pytest.raises(ValueError, match="both set; set only one"):
        TokenLabels(root="maps", teacher="test_resnet")


def test_an_unknown_teacher_is_refused_without_data() -> None:
    content = {"task": "classification", "token_labels": {"teacher": "test_resnex"}}
    with pytest.raises(ValueError, match="unknown teacher 'test_resnex'"):
        check_recipe(resolve(ClassificationRecipe, content))


def test_weights_of_another_teacher_are_refused(teacher_file: Path) -> None:
    with pytest.raises(ValueError, match="does not fit teacher 'test_resnet'"):
        Teacher("test_resnet", 9, weights=teacher_file, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("names", [("cat/a.0.png", "cat/a.1.png"), ("cat/1/a.png", "dog/1/a.png")])
def test_each_image_has_a_map_of_its_own(names: tuple[str, str]) -> None:
    classes = tuple(sorted({name.split("/")[0] for name in names}))
    labels = [classes.index(name.split("/")[0]) for name in names]
    samples = Samples([Path(name) for name in names], labels, classes)
    refuse_shared_maps(samples)
    assert len({map_name(samples.place(i)) for i in (0, 1)}) == 2


@pytest.mark.parametrize("names", [("cat/a.png", "cat/a.jpg"), ("cat/1/a.png", "cat/2/a.png")])
def test_images_that_would_share_a_map_are_refused(names: tuple[str, str]) -> None:
    samples = Samples([Path(name) for name in names], [0, 0], ("cat",))
    with pytest.raises(ValueError, match="would share the label map"):
        refuse_shared_maps(samples)


def test_maps_of_few_classes(tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(photo)
    samples = Samples([photo], [0], ("cat", "dog"))
    weights = tmp_path / "two.pth"
    torch.save(timm.create_model("resnet10t", num_classes=2).state_dict(), weights)
    teacher = Teacher("resnet10t", 2, weights=weights, mean=(0.0,) * 3, std=(1.0,) * 3)
    (path,) = write_maps(teacher, samples, tmp_path / "maps", img_size=64)
    assert torch.load(path, weights_only=True).shape == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("image", "map_"),
    [("a/b/x.jpg", "b/x.pt"), ("a/../x.jpg", "x.pt"), ("../x.jpg", "x.pt"), ("/../x.jpg", "x.pt")],
)
def test_maps_stay_in_their_folder(image: str, map_: str) -> None:
    assert map_name(image) == Path(map_)
