"""Several labels per image: the CSV, the loss, mAP, and a run from the data to its predictions."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn.functional import binary_cross_entropy_with_logits

import rmt
import rmt_cli
from rmt.classification.datasets import open_splits
from rmt.classification.multi_label import MultiLabelLoss, average_precision, positive_weights
from rmt.classification.recipe import ClassificationRecipe, Data
from rmt.classification.samples import MultiLabelSamples, balanced
from rmt.classification.teacher import label_folder
from rmt.tools import report
from rmt.training.dry_run import dry_run, show
from rmt.training.evaluate import evaluate
from rmt.training.fit import fit, load_recipe
from rmt.training.run_folder import read_recipe

COLOURS = ("red", "green", "blue")


def table(folder: Path, rows: str, head: str = "path,labels") -> Data:
    """Write a CSV file, and say how it is opened: all of it, to evaluate."""
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_text(f"{head}\n{rows}")
    return Data(root=str(folder / "list.csv"), val_fraction=1.0)


def labels(data: Data) -> list[Any]:
    samples = open_splits(data).val
    return [samples.label(i) for i in range(len(samples))]


class TestTable:
    @pytest.mark.parametrize(
        ("cell", "found"),
        [
            ("b a", ["a", "b"]),
            ("b|a|b", ["a", "b"]),
            ('"b, a"', ["a", "b"]),
            ("b; a;", ["a", "b"]),
            ("hot dog|a", ["a", "hot dog"]),
            ('"hot dog, grilled|a"', ["a", "hot dog, grilled"]),
            ("\"['hot dog', 'a']\"", ["a", "hot dog"]),
            ("1.0 2", ["1", "2"]),
            ("", []),
        ],
    )
    def test_cells(self, cell: str, found: list[str], tmp_path: Path) -> None:
        """The first of | ; , in the column divides all of it; else blanks."""
        one = "1" if "1.0" in cell else "a" + "|" * ("|" in cell) + ";" * (";" in cell)
        data = table(tmp_path, f"x.png,{cell}\ny.png,{one}\n")
        assert [sorted(own) for own in labels(data)] == [found, ["1" if one == "1" else "a"]]

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        data = table(tmp_path, "1.png,a|b\n2.png,a;b\n,a\n4.png,\n5.png,a,b\n")
        assert labels(data) == [["a", "b"], []]
        told = open_splits(data).describe()
        assert "2 labels (divided by '|'), 1 image without a label, 3 left out: 1 row " in told
        assert "with a semicolon between labels (list.csv line 3: 'a;b')" in told
        assert "1 row of too many cells (list.csv line 6)" in told
        with pytest.raises(ValueError, match="no training image has a label: is the column"):
            open_splits(Data(root=table(tmp_path, "1.png,\n2.png,\n").root))

    @pytest.mark.parametrize(
        ("head", "asked", "found"),
        [
            ("path,labels", None, [["a", "b"], ["b"]]),
            ("path,labels", False, ["a|b", "b"]),
            ("path,label", None, ["a|b", "b"]),
            ("path,label", True, [["a", "b"], ["b"]]),
            ("path;labels", None, [["a", "b"], ["b"]]),
        ],
    )
    def test_which_column(self, head: str, asked: bool, found: list[Any], tmp_path: Path) -> None:
        mark = head[4]
        data = table(tmp_path, f"1.png{mark}a|b\n2.png{mark}b\n", head)
        assert labels(Data(root=data.root, val_fraction=1.0, multi_label=asked)) == found

    def test_other_formats_have_one_label(self, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / name).mkdir()
            Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
        with pytest.raises(ValueError, match="multi_label is true, but class folders hold one"):
            open_splits(Data(root=str(tmp_path), multi_label=True, val_fraction=1.0))

    def test_rare_classes_are_divided_too(self, tmp_path: Path) -> None:
        """Each fold gets a share of the rarest class; what is alone does not stop it."""
        rows = [f"{i}.png,common{' rare' * (i % 5 == 0)}\n" for i in range(20)]
        root = table(tmp_path, "".join([*rows, "20.png,\n", "21.png,single common\n"])).root
        held = []
        for fold in range(4):
            splits = open_splits(Data(root=root, folds=4, fold=fold))
            own = [splits.val.label(i) for i in range(len(splits.val))]
            assert sum("rare" in each for each in own) == 1
            held += own
        assert len(held) == 22
        splits = open_splits(Data(root=root, val_fraction=0.25))
        assert sum("rare" in splits.val.label(i) for i in range(len(splits.val))) == 1


class TestLoss:
    samples = MultiLabelSamples([Path("x")] * 4, [(0,), (0, 1), (), (0,)], ("a", "b", "c"))

    def loss(self, **keys: Any) -> MultiLabelLoss:
        words = [f"--{key.replace('__', '.')}={value}" for key, value in keys.items()]
        recipe = load_recipe("small/folder", ["--data.multi_label=true", *words])
        assert isinstance(recipe, ClassificationRecipe)
        return MultiLabelLoss(recipe, rmt.create_model("rmt_nano", 3), self.samples)

    def test_weights(self) -> None:
        assert positive_weights(self.samples).tolist() == pytest.approx([1 / 3, 3, 1])
        found = balanced(self.samples)
        assert found.mean() == pytest.approx(1)
        assert (found / found[0]).tolist() == pytest.approx([1, 2, 3, 1])

    @pytest.mark.parametrize("balance", ["none", "loss"])
    def test_of_a_batch(self, balance: str) -> None:
        targets, logits = self.samples.targets(), torch.randn(4, 3)
        loss = self.loss(data__balance=balance, augment__label_smoothing=0.2)
        (found,) = loss(lambda images: logits, (torch.zeros(4, 3, 8, 8), targets))[0].values()
        weights = positive_weights(self.samples) if balance == "loss" else None
        expected = binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, pos_weight=weights)
        assert found == pytest.approx(expected)

    @pytest.mark.parametrize("key", ["augment__mixup", "augment__cutmix"])
    def test_targets_are_mixed_as_images_are(self, key: str) -> None:
        """An image of one colour per label shows what it was mixed of."""
        targets = self.samples.targets([0, 1, 2, 3, 1])
        images = targets[:, :, None, None].expand(-1, -1, 32, 32).clone()
        loss = self.loss(**{key: 1.0})
        mixed, found = loss.mixed(images, targets)
        torch.testing.assert_close(mixed.mean((2, 3)), found)
        assert not found[:4].equal(targets[:4])
        assert found[4].equal(targets[4])

    def test_token_labels_are_refused(self) -> None:
        for key in ("model.token_labels=true", "token_labels.teacher=resnet18"):
            with pytest.raises(ValueError, match=r"several labels each .*model\.token_labels to f"):
                load_recipe("small/folder", ["--data.multi_label=true", f"--{key}"])


def test_average_precision_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    for count, ties in ((2, 2), (50, 5), (300, 10_000)):
        scores = (draw.integers(0, ties, count) / ties).astype(np.float32)
        positive = draw.random(count) < 0.3
        positive[0] = True
        expected = average_precision_score(positive, scores)
        assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of coloured corners; each of three colours may be there, or none."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = ["path,labels,split"]
    for i in range(48):
        pixels = draw.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        has = [bool(i >> bit & 1) for bit in range(3)]
        for at, there in enumerate(has):
            if there:
                pixels[10 * at : 10 * at + 10, :, at] = 255
        Image.fromarray(pixels).save(root / f"{i}.png")
        own = "|".join(name for name, there in zip(COLOURS, has, strict=True) if there)
        rows.append(f"{i}.png,{own},{'train' if i < 32 else 'val'}")
    (root / "images.csv").write_text("\n".join(rows))
    return root / "images.csv"


WORDS = ["--model.name=rmt_nano", "--data.input_size=32", "--data.batch_size=8"]
WORDS += [
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--ema.decay=0",
    "--augment.erasing=0",
]
WORDS += ["--augment.crop=none", "--augment.rand_augment=", "--optimizer.lr=4e-3"]
WORDS += ["--schedule.warmup_epochs=0", "--augment.label_smoothing=0"]


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("multi") / "run"
    words = [*WORDS, f"--data.root={photos}", "--schedule.epochs=10", "--trainer.evaluate_every=5"]
    return out, fit(load_recipe("small/folder", words), out)


def test_a_run(run: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = run
    assert metrics["val_mAP"] == metrics["test"]["mAP"] > 80
    assert {*metrics["test"]} == {"mAP", "images", "AP/red", "AP/green", "AP/blue"}
    assert metrics["test"]["images"] == 16
    assert read_recipe(out / "recipe.yaml")["data"]["multi_label"] is True
    assert rmt.load(out).info["multi_label"] is True
    shown = report.write(out)
    assert {"average_precision.png", "predictions.png", "classes.json"} <= set(shown)
    numbers = json.loads((out / "report" / "classes.json").read_text())
    assert numbers["red"]["AP"] == metrics["test"]["AP/red"]
    mean = np.mean([own["AP"] for own in numbers.values()])
    assert mean == pytest.approx(metrics["test"]["mAP"], rel=1e-5)


def test_resuming(photos: Path, tmp_path: Path) -> None:
    """By the recipe as it was given, which leaves it to the data; balanced and mixed."""
    words = [*WORDS, f"--data.root={photos}", "--data.balance=sampling", "--augment.mixup=0.2"]
    for epochs in (1, 2):
        recipe = load_recipe("small/folder", [*words, f"--schedule.epochs={epochs}"])
        assert len(fit(recipe, tmp_path, resume="auto")["history"]) == epochs


def test_the_commands(
    run: tuple[Path, dict[str, Any]],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, metrics = run
    words = ["--checkpoint", str(out), "--json", str(tmp_path / "eval.json")]
    assert rmt_cli.main(["eval", *words, "--report", str(tmp_path / "report")]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())["metrics"]
    assert found == pytest.approx(metrics["test"], rel=1e-5)
    with (tmp_path / "report" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["image"]).stem for row in rows) == sorted(map(str, range(32, 48)))
    for row in rows:
        parts = [set(filter(None, row[k].split("|"))) for k in ("labels", "predicted", "missed")]
        assert parts[2] == parts[0] - parts[1]
    assert (tmp_path / "report" / "index.html").is_file()
    images = [str(photos.with_name(f"{i}.png")) for i in (32, 47)]  # of no colour, of all
    file = tmp_path / "predicted.json"
    records: list[list[dict[str, Any]]] = []
    for options in ([], ["--top", "2", "--score", "0"], ["--score", "0"]):
        words = ["--checkpoint", str(out), "--json", str(file), "--device", "cpu", *options]
        assert rmt_cli.main(["predict", *images, *words, "--out", str(tmp_path / "drawn")]) == 0
        records.append([own["top"] for own in json.loads(file.read_text())])
    likely, two, every = records
    for own, three, few in zip(likely, every, two, strict=True):
        assert [{*each} for each in three] == [{"label", "name", "score"}] * 3
        assert three == sorted(three, key=lambda each: -each["score"])
        assert own == [each for each in three if each["score"] >= 0.5]
        assert few == three[:2]
    assert len(likely[0]) < len(likely[1])
    assert sum(each["score"] for each in every[1]) > 1  # each by itself
    assert re.search(r"predicted|none", capsys.readouterr().out)
    assert rmt.Predictor.from_checkpoint(out, device="cpu")(images[1])["top"] == likely[1]


@pytest.mark.slow
def test_two_processes_evaluate_like_one(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    words = ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    words += ["--checkpoint", str(run[0]), "--json", str(tmp_path / "eval.json")]
    subprocess.run([sys.executable, "-m", "rmt_cli", "eval", *words], check=True, timeout=240)
    found = json.loads((tmp_path / "eval.json").read_text())["metrics"]
    assert found == pytest.approx(run[1]["test"], rel=1e-6)


def test_fused_it_predicts_the_same(run: tuple[Path, dict[str, Any]], photos: Path) -> None:
    model, image = rmt.load(run[0]), photos.with_name("47.png")
    options = {"device": "cpu", "score": 0.0}
    plain, fused = (rmt.Predictor(each, **options)(image) for each in (model, model.fuse()))
    for one, other in zip(plain["top"], fused["top"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_a_dry_run(photos: Path) -> None:
    described = dry_run("small/folder", [*WORDS, f"--data.root={photos}"], try_data=True)
    assert described["data"]["classes"] == sorted(COLOURS)
    assert "labels (divided by '|'), 6 images without a label" in show(described)


def test_other_labels_are_refused(
    run: tuple[Path, dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    words = ["--data.multi_label=false", "--data.val_fraction=1"]
    one = photos.with_name("one.csv")
    one.write_text("path,label\n" + "".join(f"1.png,{name}\n" for name in COLOURS))
    with pytest.raises(ValueError, match=r"trained on images with several labels each, and these"):
        evaluate(run[0], overrides=[f"--data.root={one}", "--data.format=csv", *words])
    single = rmt.load(run[0])
    del single.info["multi_label"]
    with pytest.raises(ValueError, match=r"trained on images with one label each, and these have"):
        evaluate(single, overrides=[f"--data.root={photos}"])
    with pytest.raises(ValueError, match="--knn gives each image one class"):
        evaluate(run[0], knn=3)
    with pytest.raises(ValueError, match="several labels each; token labels are for one"):
        label_folder("resnet18", photos, tmp_path / "maps")


def test_a_description_says_true_or_false(run: tuple[Path, dict[str, Any]]) -> None:
    from rmt.modeling.saved import Description

    content = rmt.load(run[0]).describe()
    content["info"]["multi_label"] = "yes"
    with pytest.raises(ValueError, match=r"info\.multi_label is 'yes'; expected true or false"):
        Description.read(content, "file")
