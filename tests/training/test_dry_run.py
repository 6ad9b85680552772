"""`rmt train RECIPE --dry-run` and `--print_config`: every shipped recipe, and the numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import rmt.detection.toy
import rmt.segmentation.toy
import rmt_cli
from rmt.recipes import list_recipes
from rmt.training import dry_run as planning
from rmt.training.dry_run import dry_run, show

LOGS = json.loads((Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())


QUICK = ("imagenet/rmt_t", "small/", "ade20k/semantic_fpn_rmt_t", "coco/retinanet_rmt_t")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith(QUICK) else pytest.mark.slow)
        for name in list_recipes()
    ],
)
def test_every_recipe_is_described_without_its_data(name: str) -> None:
    described = dry_run(name, ["--data.root", "/nowhere"])
    assert described["recipe"]["data"]["root"] == "/nowhere"
    assert described["params"] > 1e5
    assert described["macs"] > 1e6
    assert described["memory_gib"]["total"] > 0
    assert yaml.safe_load(show(described, only_recipe=True)) == described["recipe"]
    text = show(described)
    assert f"{described['params']:,}" in text
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(
    ("row", "params"),
    [("rmt_t", 14_334_216), ("rmt_s_tl", 27_480_240)],
)
def test_rows_as_the_command_writes_them(row: str, params: int, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert rmt_cli.main(["train", f"imagenet/{row}", "--dry-run", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["params"] == params
    assert found["batch"] == 2048
    assert found["epochs"] == len(found["lr_per_epoch"])
    for epoch, logged in enumerate(LOGS[row]):
        if logged is not None:
            assert found["lr_per_epoch"][str(epoch)] == pytest.approx(logged, rel=1e-9, abs=0)


def test_devices_and_machines_multiply() -> None:
    words = "--trainer.devices 8 --trainer.num_nodes 2 --data.batch_size 32"
    words += " --trainer.global_batch_size 0"
    found = dry_run("imagenet/rmt_t", words.split())
    assert (found["devices"], found["batch"]) == (16, 512)
    assert found["peak_lr"] == 5e-4
    assert "one device" not in " ".join(found["assumed"])


def test_macs_are_those_of_the_models_table() -> None:
    assert dry_run("imagenet/rmt_t")["macs"] / 1024**3 == pytest.approx(2.469, abs=5e-4)


def test_checkpointing_and_half_precision_need_less() -> None:
    words = ["--model.name", "rmt_nano", "--trainer.precision"]
    whole, half = (dry_run("imagenet/rmt_t", [*words, p]) for p in ("32-true", "bf16-mixed"))
    ahead = dry_run("imagenet/rmt_t", [*words, "32-true", "--trainer.grad_checkpointing", "true"])
    kept = [found["memory_gib"]["activations"] for found in (whole, half, ahead)]
    assert kept[1] == pytest.approx(kept[0] / 2, abs=2e-3)
    assert kept[2] < 0.5 * kept[0]
    assert whole["memory_gib"]["ema"] == whole["memory_gib"]["weights"]


@pytest.mark.parametrize(
    ("words", "size", "train_size"),
    [
        ((), [320, 512], [384, 614]),
        (("--augment.min_sizes=[]", "--model.min_size=300"), [300, 480], [300, 480]),
    ],
)
def test_a_detector_is_measured_at_the_sizes_of_its_recipe(
    words: tuple[str, ...], size: list[int], train_size: list[int]
) -> None:
    found = dry_run("small/detection", ["--model.backbone=rmt_nano", *words])
    assert (found["input"], found["train_size"]) == (size, train_size)


def test_a_run_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.epochs is 300 and schedule\.steps is 7"):
        dry_run("imagenet/rmt_t", ["--schedule.steps", "7"])


def test_the_picture_has_the_curve() -> None:
    lines = planning.text_curve([0.0, 1.0, 2.0], "title", height=2).splitlines()
    assert lines == ["title", "  2.00e+00 |  █", "  1.00e+00 | ██", "           +---"]


class TestData:
    """With `data.root` the first samples are loaded as in a run."""

    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
            (tmp_path / name).mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(tmp_path / name / "1.png")
        return tmp_path

    @pytest.fixture
    def masks(self, tmp_path: Path) -> Path:
        return rmt.segmentation.toy.toy(tmp_path, images=2)

    @pytest.fixture
    def boxes(self, tmp_path: Path) -> Path:
        return rmt.detection.toy.toy(tmp_path, images=2)

    def tried(self, recipe: str, root: Path, *words: str) -> dict:
        key = "name" if recipe == "folder" else "backbone"
        words = (f"--model.{key}=rmt_nano", "--data.batch_size=1", "--data.root", str(root), *words)
        return dry_run(f"small/{recipe}", words, try_data=True)

    def test_classification(self, photos: Path) -> None:
        found = self.tried("folder", photos)
        text = show(found)
        assert "2 classes (cat, dog), 2 train / 2 val images" in text
        assert found["data"].pop("description").startswith("class folders, 2 classes (cat, dog)")
        assert found["data"] == {
            "classes": ["cat", "dog"],
            "train": 2,
            "per_epoch": 2,
            "val": 2,
            "test": 0,
            "held_out": False,
        }
        assert "evaluated   val, because there is no test split" in text
        assert text.count("cat, dog") == 1
        assert not any("classes" in own or "images" in own for own in found["assumed"])
        (photos / "train" / "cat" / "1.png").write_bytes(b"none")  # a run leaves it out
        assert "1 left out: 1 unreadable sample" in show(self.tried("folder", photos))
        (photos / "train" / "dog" / "1.png").write_bytes(b"none")
        with pytest.raises(ValueError, match=r"first sample of the 'train' split .*cat/1\.png"):
            self.tried("folder", photos)

    def test_a_folder_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert rmt_cli.main(["train", "small/folder", "--dry-run", "--data.root", "/nowhere"]) == 2
        assert (
            "data.root '/nowhere' does not exist; name the folder of the data set (--data.root"
            in (capsys.readouterr().err)
        )

    def test_the_time_is_measured(self, photos: Path) -> None:
        """Of the whole run: 4 steps of 2 batches each, evaluated 2 times."""
        words = ["--schedule.epochs=4", "--trainer.evaluate_every=2"]
        words += ["--trainer.accumulate_grad_batches=2", "--data.num_workers=0"]
        found = self.tried("folder", photos, *words)
        time = found["time"]
        assert time["step"] > 0
        assert time["run"] == pytest.approx(4 * time["step"] + 2 * time["evaluation"], rel=0.02)
        assert re.search(
            r"^time +\S+ \w+ for the run: .+ a step, .+ an evaluation", show(found), re.M
        )

    def test_without_data_nothing_is_measured(self) -> None:
        found = dry_run("small/folder", ["--model.name=rmt_nano"], try_data=True)
        assert found["data"] is found["time"] is None
        assert "time        not measured: that needs the data (--data.root DIR)" in show(found)

    def test_label_maps(self, photos: Path) -> None:
        words = ["--model.token_labels=true", "--token_labels.root", str(photos)]
        with pytest.raises(ValueError, match=r"first sample of the 'train' split .*cat/1\.pt"):
            self.tried("folder", photos, *words, "--augment.crop=random")

    def test_segmentation(self, masks: Path) -> None:
        found = self.tried("segmentation", masks, "--data.repeats=3")
        assert (found["data"]["train"], found["data"]["per_epoch"]) == (2, 6)
        for split in ("val", "train"):
            wrong = np.full((48, 64), 7, dtype=np.uint8)
            for i in range(2):
                Image.fromarray(wrong).save(masks / "masks" / split / f"{split}_{i}.png")
            message = rf"first sample of the '{split}' split .*{split}_0.png has the value 7"
            with pytest.raises(ValueError, match=message):
                self.tried("segmentation", masks)

    def test_detection(self, boxes: Path) -> None:
        assert self.tried("detection", boxes)["data"]["classes"] == ["disc", "square"]
        with pytest.raises(ValueError, match=r"augment\.crop_size is 600, 384"):
            self.tried("detection", boxes, "--augment.crop_size=[600,384]")
        for listing in boxes.rglob("*.json"):
            listing.unlink()
        with pytest.raises(ValueError, match="none of the known layouts: COCO has annotations"):
            self.tried("detection", boxes)

    def test_the_command(self, masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["train", "small/segmentation", "--data.root", str(masks)]
        (masks / "masks" / "train" / "train_0.png").unlink()
        assert rmt_cli.main([*words, "--dry-run"]) == 0
        found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data ")]
        assert "1 train / 2 val images, 1 left out: 1 image without mask" in found[0]
        (masks / "masks" / "train" / "train_1.png").unlink()
        assert rmt_cli.main([*words, "--dry-run"]) == 2
        assert "none of the 2 images" in capsys.readouterr().err
        assert rmt_cli.main([*words, "--print_config"]) == 0  # asks for no data
