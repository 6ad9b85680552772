"""Prediction of files: names of outputs, records one by one, and the images stay untouched."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rmt
import rmt_cli
from rmt.tools.predict import predict_files
from rmt.tools.records import RecordWriter
from rmt.tools.sources import output_names

STEMS = st.sampled_from(["a", "A", "a_0", "a_1", "a_labels", "a_1_labels", "a_labels_1", "b"])


@given(st.lists(st.tuples(STEMS, st.sampled_from([".jpg", ".png"])), max_size=12))
def test_no_two_files_written_have_one_name(names: list[tuple[str, str]]) -> None:
    """Drawn images and label maps, also on file systems that ignore case."""
    found = output_names(Path(stem + suffix) for stem, suffix in names)
    files = [f"{name}{end}".casefold() for name in found for end in ("", "_labels")]
    assert len(set(files)) == len(files) == 2 * len(names)
    if names:
        assert found[0] == names[0][0]  # its own name if that is free


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rmt.create_model("rmt_nano", 3).save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


def test_outputs_never_overwrite_the_images(model: Path, photos: Path) -> None:
    before = {path: path.read_bytes() for path in photos.iterdir()}
    for out in (photos, photos / ".." / "photos"):
        words = ["predict", str(photos), "--checkpoint", str(model), "--out", str(out)]
        assert rmt_cli.main(words) == 2
    with pytest.raises(ValueError, match=r"is the folder of 0\.png"):
        list(predict_files([photos], model, out=photos))
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


def test_an_error_while_saving_spares_the_others(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "1.png").mkdir(parents=True)  # in the way
    records = list(predict_files([photos], model, out=out))
    assert ["error" in record for record in records] == [False, True, False]


def test_names_of_any_bytes(model: Path, photos: Path, tmp_path: Path) -> None:
    name = photos / b"caf\xe9.png".decode("utf-8", "surrogateescape")  # Latin-1
    (photos / "0.png").rename(name)
    file = tmp_path / "records.json"
    words = ["predict", str(photos), "--checkpoint", str(model), "--json", str(file)]
    assert rmt_cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert len(json.loads(file.read_text())) == 3


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
def test_records_are_whole_after_each_of_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / name
    rng = np.random.default_rng(0)
    written = [{"image": f"é{i}", "score": float(rng.random())} for i in range(3)]

    def read() -> list:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        return json.loads(path.read_text())

    with RecordWriter(path) as writer:
        assert read() == []
        for i, record in enumerate(written):
            writer.write(record)
            assert read() == written[: i + 1]
    with RecordWriter(None) as writer:
        writer.write(written[0])


def test_without_a_checkpoint_the_weights_of_this_package_predict(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "found.json"
    assert rmt_cli.main(["predict", str(photos / "1.png"), "--json", str(file)]) == 0
    assert caplog.messages == [
        "no --checkpoint is given: using rmt_nano.tiny_imagenet, which comes with this package"
    ]
    expected = rmt.Predictor.from_checkpoint("rmt_nano.tiny_imagenet")(photos / "1.png")
    (record,) = json.loads(file.read_text())
    assert record["top"] == expected["top"]
