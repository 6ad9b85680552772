"""Files that are damaged or made to do harm: a sentence, never a traceback, never much memory."""

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import rmt
from limits import memory_limit, time_limit
from rmt.modeling.pretrained import Pretrained
from rmt.weights.load import load
from rmt.weights.read import read_pickle
from rmt_cli import main

MEGABYTE = 2**20


def zipped(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file of torch's that holds this pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def bytearray_of(length: int) -> bytes:
    """Return a pickle of {"a": bytearray(length)}, in which the bytes are not."""
    number = length.to_bytes(8, "little")
    return b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n\x8a\x08" + number + b"\x85Rs."


@pytest.mark.parametrize("form", [zipped, lambda content: content])
def test_a_number_that_asks_for_memory(form: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(form(bytearray_of(10)))
    assert len(pickle.loads(bytearray_of(10))["a"]) == 10
    with pytest.raises(ValueError, match=r"x\.pth was not read: it holds a bytearray"):
        read_pickle(path)
    path.write_bytes(form(bytearray_of(10**11)))
    with memory_limit(200), pytest.raises(ValueError, match="bytearray"):
        load(path)


def test_a_word_at_the_border_of_what_is_read_at_once(tmp_path: Path) -> None:
    path, word = tmp_path / "x.pth", b"\nbytearray\n"
    for before in (0, 4 * MEGABYTE - 5, 4 * MEGABYTE, 9 * MEGABYTE):
        path.write_bytes(b"." * before + word + b"." * 100)
        with pytest.raises(ValueError, match="bytearray"):
            read_pickle(path)


def test_a_file_that_unpacks_to_a_thousand_times_its_size(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(100 * MEGABYTE // 4)}, plain)
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out, zipfile.ZipFile(plain) as whole:
        for part in whole.infolist():
            out.writestr(part.filename, whole.read(part.filename))
    del plain
    assert path.stat().st_size < MEGABYTE
    with memory_limit(50), pytest.raises(ValueError, match=r"x\.pth would unpack from .* to 104,8"):
        load(path)


@pytest.fixture(scope="module")
def nano() -> Pretrained:
    torch.manual_seed(0)
    model = rmt.create_model("rmt_nano", 3, depths=(1, 1, 1, 1))
    model.info = {"label_names": ["a", "b", "c"], "recipe": {"seed": 1, "data": {"root": ""}}}
    return model


@pytest.fixture(scope="module")
def dense() -> Pretrained:
    """Return a dense model on a body of timm's, whose factory takes any options."""
    model = rmt.create_segmenter("semantic_fpn", "resnet18", 3, channels=4)
    model.info = {"label_names": ["a", "b", "c"], "palette": [[0, 0, 0]] * 3}
    return model


def training_checkpoint(model: Pretrained) -> dict[str, Any]:
    """Return what a run of ours writes, as far as loading reads it."""
    return {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "rmt": {
            "description": model.describe({"recipe": {"seed": 1}}),
            "best": {"score": 50.0, "weights": "raw", "at": 0},
            "history": [],
        },
    }


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return nested values with another one at a place."""
    if not path:
        return value
    out = copy.copy(content)
    out[path[0]] = replaced(content[path[0]], path[1:], value)
    return out


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rmt",), 5, r"x\.ckpt: 'rmt' is 5; expected a mapping"),
        (("rmt",), {}, r"x\.ckpt: 'rmt' has no entry 'description'"),
        (("rmt", "description"), None, r"x\.ckpt: rmt\.description is None; expected a mapping"),
        (("rmt", "description"), {1: 2}, r"rmt\.description has a key of type int"),
        (("rmt", "description", "config"), 1, r"rmt\.description: config is 1; expected a mapp"),
        (("rmt", "best"), [], r"'rmt': best is a list of 0; expected a mapping"),
        (("rmt", "best", "weights"), "best", r"best\.weights is 'best'; expected 'raw' or 'ema'"),
        (("rmt", "best", "weights"), "ema", r"holds no 'ema' weights: its run kept no weight aver"),
        (("state_dict",), 5, r"x\.ckpt holds no weights.* there is int"),
        (("state_dict",), {3: torch.zeros(1)}, r"holds no weights.* there is \['3'\]"),
        (("state_dict",), {"a": torch.zeros(1)}, r"holds no 'raw' weights"),
    ],
)
def test_training_checkpoints(
    path: tuple, value: Any, message: str, nano: Pretrained, tmp_path: Path
) -> None:
    file = tmp_path / "x.ckpt"
    torch.save(training_checkpoint(nano), file)
    assert load(file).info["weights"] == "raw"
    torch.save(replaced(training_checkpoint(nano), path, value), file)
    with pytest.raises(ValueError, match=message):
        load(file)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"CLASSES": 5}, r"meta\['CLASSES'\] is of type int; expected a list"),
        ({"CLASSES": "x" * 80}, r"meta\['CLASSES'\] is of type str"),
        ({"CLASSES": [["a"]] * 80}, r"meta\['CLASSES'\] holds the type list; expected names"),
        ({"PALETTE": [None] * 80}, r"meta\['PALETTE'\] holds None"),
        ({"PALETTE": [("\x1b[2J", 0, 0)] * 80}, r"holds \('\\x1b"),
    ],
)
def test_meta_of_the_release(meta: dict, message: str) -> None:
    from golden_rule import release_keys

    with torch.device("meta"):
        state = {k: torch.empty(shape) for k, shape in release_keys("retinanet_t").items()}
    with pytest.raises(ValueError, match=message):
        load({"state_dict": state, "meta": meta})


@pytest.mark.parametrize("where", ["safetensors", "pth"])
def test_names_do_not_move_the_terminal_s_cursor(
    where: str, nano: Pretrained, tmp_path: Path
) -> None:
    evil = "stages.0.blocks.0.\x1b[2J\x1b]0;owned\x07\r"
    path = tmp_path / f"x.{where}"
    if where == "pth":
        torch.save(rmt.create_model("rmt_nano").state_dict() | {evil: torch.zeros(1)}, path)
    else:
        state = nano.state_dict() | {evil: torch.zeros(1)}
        save_file(state, path, {"rmt": json.dumps(nano.describe())})
    with pytest.raises(ValueError, match=r"\+ stages\.0\.blocks\.0\.\\x1b\[2J"):
        load(path)
    torch.save({evil: torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "y.pth")
    torch.save({evil: 1}, tmp_path / "z.pth")
    for name in ("y.pth", "z.pth"):
        with pytest.raises(ValueError, match=r"\\x1b") as error:
            load(tmp_path / name)
        assert str(error.value).isprintable()


def test_the_command_says_so_and_exits_with_2(
    nano: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    torch.save({"rmt": 5, "\x1b[2J": 1}, tmp_path / "x.ckpt")
    words = ["predict", str(tmp_path / "x.png"), "--checkpoint", str(tmp_path / "x.ckpt")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rmt: {tmp_path}/x.ckpt: 'rmt' is 5; expected a mapping")
    assert said.count("\n") == 1
    model = rmt.create_model("rmt_nano", 2)
    model.info["label_names"] = ["\x1b]0;owned\x07", "\x1b[2Jb"]
    rmt.save(model, tmp_path / "x.safetensors")
    assert main([*words[:-1], str(tmp_path / "x.safetensors")]) == 0
    assert capsys.readouterr().out.strip("\n").isprintable()
    torch.save({"\x1b[2J": torch.zeros(1)}, tmp_path / "x.ckpt")
    assert main(words) == 2
    assert r"first ['\x1b[2J']" in capsys.readouterr().err


def places(content: Any, before: tuple = ()) -> Iterator[tuple]:
    """Yield the path to every value in nested ones."""
    yield before
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*before, key))
    elif isinstance(content, list):
        for at, value in enumerate(content):
            yield from places(value, (*before, at))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.sampled_from([-1, 0, 1, 2, 3, 16, 255, 10**4, 10**8])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["rmt_nano", "conv", "detection", "ema", "avg", "\x1b[31m", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read_or_refuse(path: Path) -> None:
    """Load a file; what is raised must be a sentence that names it."""
    refusal = str(path)
    with memory_limit(700), time_limit(20):
        try:
            load(path)
        except ValueError as error:
            refusal = str(error)
    assert str(path) in refusal
    assert all(line.isprintable() for line in refusal.splitlines())


@FUZZ
@given(data=st.data())
@pytest.mark.usefixtures("unchecked_annotations")
def test_any_metadata(
    nano: Pretrained, dense: Pretrained, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever stands in the place of one or two values of the description."""
    model = data.draw(st.sampled_from([nano, dense]))
    about = json.loads(json.dumps(model.describe()))
    if model is dense and data.draw(st.booleans()):
        option = data.draw(st.sampled_from(["layers", "block", "stem_width", "output_stride", "x"]))
        about["config"]["model_args"]["backbone_options"] = {option: data.draw(JSON)}
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places(about))))
        about = replaced(about, place, data.draw(JSON))
        if not isinstance(about, dict):
            break
    path = tmp_path / "x.safetensors"
    save_file(model.state_dict(), path, {"rmt": json.dumps(about)})
    read_or_refuse(path)


TENSORS = st.sampled_from(
    [
        torch.zeros(0),
        torch.zeros(()),
        torch.zeros(3, 4),
        torch.full((2,), torch.nan),
        torch.ones(4, dtype=torch.bool),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.zeros(1, device="meta"),
    ]
)


@FUZZ
@given(data=st.data())
@pytest.mark.usefixtures("unchecked_annotations")
def test_any_checkpoint(nano: Pretrained, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever stands in the place of a value of a training checkpoint or of a bare state dict."""
    whole = data.draw(st.booleans())
    content: Any = training_checkpoint(nano) if whole else dict(nano.state_dict())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([p for p in places(content) if p]))
        content = replaced(content, place, data.draw(JSON | TENSORS))
        if data.draw(st.booleans()):
            content[data.draw(JSON.filter(lambda key: not isinstance(key, list | dict)))] = (
                data.draw(JSON)
            )
    path = tmp_path / "x.ckpt"
    torch.save(content, path)
    read_or_refuse(path)


@FUZZ
@given(data=st.data())
@pytest.mark.usefixtures("unchecked_annotations")
def test_any_configuration_beside(nano: Pretrained, tmp_path: Path, data: st.DataObject) -> None:
    about = json.loads(json.dumps(nano.describe()["config"])) | {"label_names": ["a", "b", "c"]}
    about = replaced(about, data.draw(st.sampled_from(list(places(about)))), data.draw(JSON))
    save_file(nano.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(about))
    read_or_refuse(tmp_path)
