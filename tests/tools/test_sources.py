"""Prediction of anything but image files: standard input, lists of files, and videos."""

import io
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rmt
import rmt_cli
from rmt.tools.video import VideoWriter, frames

av = pytest.importorskip("av")


@pytest.fixture(scope="module", params=["classification", "detection", "segmentation"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = {
        "classification": lambda: rmt.create_model("rmt_nano", 3),
        "detection": lambda: rmt.create_detector(
            "retinanet", "rmt_nano", num_classes=2, min_size=64, max_size=96
        ),
        "segmentation": lambda: rmt.create_segmenter(
            "semantic_fpn", "rmt_nano", num_classes=3, channels=8
        ),
    }[request.param]()
    return made.save_pretrained(tmp_path_factory.mktemp("model"))


def predict(*words: object, model: Path, out: Path) -> tuple[int, list[dict[str, Any]]]:
    file = out / "records.json"
    words = ("predict", *words, "--checkpoint", model, "--device", "cpu", "--json", file)
    status = rmt_cli.main([str(word) for word in words])
    return status, json.loads(file.read_text()) if file.exists() else []


def write_photo(path: Path, level: int = 90) -> Path:
    noise = np.random.default_rng(level).integers(0, level, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_video(path: Path, size: tuple[int, int] = (51, 40)) -> list[float]:
    """Write five frames, ever brighter, at uneven times."""
    seconds = [0.0, 0.1, 0.2, 0.5, 0.6]
    with VideoWriter(path, Fraction(10)) as writer:
        for i, at in enumerate(seconds):
            writer.write(Image.new("RGB", size, (40 * i, 40 * i, 40 * i)), at)
    return seconds


class Stdin:
    """Standard input of some bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def read(self) -> str:
        return self.buffer.read().decode()


def test_an_image_on_standard_input(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = write_photo(tmp_path / "a.png")
    monkeypatch.setattr(sys, "stdin", Stdin(photo.read_bytes()))
    status, (piped, named) = predict(
        "-", photo, "--out", tmp_path / "drawn", model=model, out=tmp_path
    )
    assert status == 0
    assert piped.pop("image") == "-"
    assert named.pop("image") == str(photo)
    assert str(piped).replace("stdin", "a") == str(named)
    assert {"stdin.png", "a.png"} <= {path.name for path in (tmp_path / "drawn").iterdir()}


@pytest.mark.parametrize(("content", "what"), [(b"", "empty"), (b"text", "not an image")])
def test_standard_input_without_an_image(
    content: bytes, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rmt.create_model("rmt_nano", 3).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    status, (record,) = predict("-", model=model, out=tmp_path)
    assert status == 1
    assert f"standard input is {what}" in record["error"]


def test_a_list_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = rmt.create_model("rmt_nano", 3).save_pretrained(tmp_path / "model")
    photos = [write_photo(tmp_path / f"{name}.png") for name in ("b b", "a", "c")]
    (tmp_path / "list.txt").write_text(f"{photos[0]}\n\n{photos[1]}\n")
    _, records = predict("--from-file", tmp_path / "list.txt", model=model, out=tmp_path)
    assert [record["image"] for record in records] == [str(photo) for photo in photos[:2]]
    monkeypatch.setattr(sys, "stdin", Stdin(f"{photos[1]}\n".encode()))
    _, records = predict(photos[2], "--from-file", "-", model=model, out=tmp_path)
    assert [record["image"] for record in records] == [str(photos[2]), str(photos[1])]
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", Stdin(b"\n"))
    assert predict("--from-file", "-", model=model, out=tmp_path)[0] == 2
    assert "standard input lists no file" in capsys.readouterr().err
    assert predict(model=model, out=tmp_path)[0] == 2
    assert "there is nothing to predict" in capsys.readouterr().err


def test_videos(model: Path, tmp_path: Path) -> None:
    seconds = write_video(tmp_path / "clip.mp4")
    photo = write_photo(tmp_path / "clip.png")
    words = [tmp_path / "clip.mp4", photo, tmp_path / "clip.mp4", "--batch-size", 2]
    status, records = predict(*words, "--out", tmp_path / "drawn", model=model, out=tmp_path)
    assert status == 0
    assert [record.get("frame") for record in records] == [*range(5), None, *range(5)]
    assert [record["seconds"] for record in records[:5]] == pytest.approx(seconds, abs=1e-3)
    assert records[:5] == records[6:]
    assert len({str(record) for record in records[:5]}) == 5
    for name in ("clip.mp4", "clip_2.mp4"):
        drawn = list(frames(tmp_path / "drawn" / name))
        assert [frame.seconds for frame in drawn] == pytest.approx(seconds, abs=1e-3)
        images = [frame.image() for frame in drawn]
        assert images[0].height >= 40
        levels = [np.asarray(image).mean() for image in images]
        if "detections" not in records[0]:  # many boxes may cover the frame
            assert levels == sorted(levels)


def test_damaged_videos(tmp_path: Path) -> None:
    model = rmt.create_model("rmt_nano", 3).save_pretrained(tmp_path / "model")
    write_video(tmp_path / "good.mp4")
    (tmp_path / "text.mp4").write_bytes(b"no video")
    # A playlist that leads elsewhere.
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    names = ["text.mp4", "list.mp4", "gone.mp4", "good.mp4"]
    status, records = predict(*[tmp_path / name for name in names], model=model, out=tmp_path)
    assert status == 1
    assert ["error" in record for record in records] == [True] * 3 + [False] * 5
    assert "text.mp4 is damaged, or no video" in records[0]["error"]
    assert "no file" in records[2]["error"]


def test_videos_need_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "good.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert predict(tmp_path / "good.mp4", model=tmp_path / "none", out=tmp_path)[0] == 2
    assert "pip install 'rmt-vision[video]'" in capsys.readouterr().err


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    """As phones write them: the frames lie on their side, and the file says so."""
    write_video(tmp_path / "flat.mp4", (64, 32))
    with (
        av.open(str(tmp_path / "flat.mp4")) as source,
        av.open(str(tmp_path / "turned.mp4"), "w") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    content = bytearray((tmp_path / "turned.mp4").read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # the matrix of the track's header
    one, minus = (1 << 16).to_bytes(4, "big"), ((-1) << 16).to_bytes(4, "big", signed=True)
    zero, last = bytes(4), (1 << 30).to_bytes(4, "big")
    content[at : at + 36] = b"".join([zero, one, zero, minus, zero, zero, zero, zero, last])
    (tmp_path / "turned.mp4").write_bytes(content)
    assert {frame.image().size for frame in frames(tmp_path / "turned.mp4")} == {(32, 64)}
