"""Bad images and weights end in a message: no traceback, no waiting, no file elsewhere."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rmt
import rmt_cli
from faults_mutations import (
    MEMORY,
    damaged,
    few_and_many,
    handled,
    many,
    of_safetensors,
    spoiled,
    untouched,
)
from limits import memory_limit, time_limit
from rmt.modeling.pretrained import Pretrained
from tasks import CASES


def create(task: str) -> Pretrained:
    if task == "classification":
        return rmt.create_model("rmt_nano", num_classes=3)
    if task == "detection":
        return rmt.create_detector("retinanet", "rmt_nano", num_classes=2, min_size=64, max_size=96)
    return rmt.create_segmenter("semantic_fpn", "rmt_nano", num_classes=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of a small model of each task."""
    folders = {task: tmp_path_factory.mktemp("models") / task for task in CASES}
    for task, folder in folders.items():
        create(task).save_pretrained(folder)
    return folders


# Images


def bomb() -> bytes:
    """Return a PNG of few bytes that says that it has 3.6 billion pixels."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


def write_bad_images(folder: Path) -> set[str]:
    """Write images of which none can be read; return their names."""
    folder.mkdir()
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    whole = file.getvalue()
    contents = {
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "head.png": whole[:20],
        "text.jpg": b"not an image",
        "bomb.png": bomb(),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "\x1b[2Jescape.png": b"x",
        os.fsdecode(b"latin-\xe9.png"): b"x",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.new("L", (1, 5000)).save(folder / "line.png")
    (folder / "dangling.png").symlink_to("gone.png")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("task", CASES)
def test_bad_images_are_named_one_by_one(
    task: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_bad_images(tmp_path / "in")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "in" / "good.png")
    checkpoint, out = models[task], tmp_path / "out"
    words = ["predict", str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--out", str(out)]
    with untouched(tmp_path / "in", checkpoint), memory_limit(MEMORY), time_limit(60):
        status = rmt_cli.main([*words, "--json", str(out / "found.json")])
    assert status == 1
    records = json.loads((out / "found.json").read_text())
    errors = {Path(record["image"]).name: record.get("error") for record in records}
    assert errors.pop("good.png") is None
    assert errors.keys() == bad
    assert all(errors.values())
    assert {path.stem.removesuffix("_labels") for path in out.iterdir()} <= {"good", "found"}
    assert "\x1b" not in capsys.readouterr().out


# Checkpoints


def parts_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors of a safetensors file."""
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@few_and_many
@pytest.mark.parametrize("task", CASES)
def test_checkpoints_whose_description_is_changed(
    task: str, factor: int, models: dict[str, Path], tmp_path: Path
) -> None:
    header, data = parts_of(models[task])
    said = json.loads(header["__metadata__"]["rmt"])
    path = tmp_path / "x.safetensors"
    outcomes: list[bool] = []

    def check(draw: random.Random) -> None:
        text = json.dumps(spoiled(said, draw))
        changed = header | {"__metadata__": {"rmt": text}}
        path.write_bytes(of_safetensors(changed, data))
        outcomes.append(handled(lambda: rmt.load(path)))

    with memory_limit(MEMORY):
        many(12 * factor, check)
    assert not all(outcomes)


@few_and_many
def test_checkpoints_whose_bytes_are_changed(
    factor: int, models: dict[str, Path], tmp_path: Path
) -> None:
    model = create("classification")
    torch.save(model.state_dict(), tmp_path / "x.pth")
    written = {
        ".safetensors": (models["classification"] / "model.safetensors").read_bytes(),
        ".pth": (tmp_path / "x.pth").read_bytes(),
    }

    def check(draw: random.Random) -> None:
        suffix = draw.choice(list(written))
        whole = written[suffix]
        # Most bytes are weights, of which any value is good: the heads and tails are of interest.
        head = draw.random() < 0.7
        part = whole[:8000] if head else whole[-8000:]
        changed = damaged(part, draw)
        path = tmp_path / f"x{suffix}"
        path.write_bytes(changed + whole[8000:] if head else whole[:-8000] + changed)
        handled(lambda: rmt.load(path))

    with memory_limit(MEMORY):
        many(30 * factor, check)


@few_and_many
def test_pickles_that_hold_something_else(factor: int, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(create("classification").state_dict())
    whole = {
        "state_dict": state,
        "meta": {"CLASSES": ["a", "b", "c"], "PALETTE": [[0, 0, 0]]},
        "epoch": 3,
        "args": {"lr": 0.1},
    }
    odd = [torch.zeros(0), torch.zeros(3), torch.full((2, 2), torch.nan), torch.ones(2).bool()]

    def check(draw: random.Random) -> None:
        content = spoiled({key: whole[key] for key in whole if draw.random() < 0.7}, draw)
        if isinstance(content, dict) and draw.random() < 0.5:
            own = content.get("state_dict", content)
            if isinstance(own, dict) and own:
                own[draw.choice(list(own))] = draw.choice(odd)
        torch.save(content, tmp_path / "x.pth")
        assert not handled(lambda: rmt.load(tmp_path / "x.pth")) or "state_dict" in content

    with memory_limit(MEMORY):
        many(20 * factor, check)


def test_the_command_says_what_is_wrong(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    header, data = parts_of(models["segmentation"])
    contents = {
        "empty.safetensors": b"",
        "cut.safetensors": of_safetensors(header, data[:100]),
        "deep.safetensors": of_safetensors(header | {"__metadata__": {"rmt": "[" * 10**5}}, data),
        "text.pth": b"nonsense",
        "\x1b[2J.pth": b"nonsense",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for verb in (
            ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--checkpoint"],
            ["eval", "--data.root", str(tmp_path), "--checkpoint"],
            ["explain", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--checkpoint"],
            ["convert"],
        ):
            more = [str(tmp_path / "out.safetensors")] if verb == ["convert"] else []
            assert rmt_cli.main([*verb, str(tmp_path / name), *more]) == 2, name
            said = capsys.readouterr().err
            assert said.startswith("rmt: ")
            assert said.count("\n") <= 3
            assert "\x1b" not in said
    assert not (tmp_path / "out.safetensors").exists()
    assert not list((tmp_path / "out").rglob("*.*"))
