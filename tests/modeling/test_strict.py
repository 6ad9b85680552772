"""A file's claims are compared with its tensors before a model takes memory or time."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rmt
from limits import memory_limit, time_limit
from rmt.modeling.bounded import argument_types, build_on_meta
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.saved import write_safetensors
from rmt.weights.load import load


def classifier() -> Pretrained:
    return rmt.create_model("rmt_nano", 4)


def detector() -> Pretrained:
    return rmt.create_detector("retinanet", "rmt_nano", num_classes=4)


def segmenter() -> Pretrained:
    return rmt.create_segmenter("semantic_fpn", "rmt_nano", 4, channels=8)


def convnet() -> Pretrained:
    return rmt.create_segmenter("semantic_fpn", "resnet18", 4, channels=8)


MAKERS = (classifier, detector, segmenter, convnet)


@pytest.fixture(scope="module")
def models() -> dict[Callable, Pretrained]:
    return {make: make() for make in MAKERS}


def write(model: Pretrained, path: Path, **config: Any) -> Path:
    """Write a model with a false description: ``model_args__depths=...`` changes an argument."""
    described = copy.deepcopy(model.describe())
    for key, value in config.items():
        at, _, last = ("config__" + key).rpartition("__")
        target = described
        for part in at.split("__"):
            target = target[part]
        target[last] = value
    write_safetensors(path / "x.safetensors", model.state_dict(), described)
    return path / "x.safetensors"


MANY = 10**8


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (classifier, {"num_classes": MANY}, r"≠ head\.fc\.weight: \(4, 256\) in the file, \(1000"),
        (detector, {"num_classes": MANY}, r"≠ head\.cls\.weight"),
        (segmenter, {"num_classes": MANY}, r"num_classes is 100000000; it must be at most 255"),
        (
            classifier,
            {"model_args__depths": [10**6, 1, 1, 1]},
            r"model_args\.depths is 1000000; no tensor",
        ),
        (
            classifier,
            {"model_args__depths": [16_000] * 9},
            r"model_args\.depths is a list of 9 that adds up to 144000",
        ),
        (
            classifier,
            {"model_args__depths": [9000, 1, 2, 1]},
            r"more than \d+ modules, and the file holds \d+ tensors",
        ),
        (
            detector,
            {"model_args__backbone_options": {"depths": [16000, 1, 2, 1]}},
            r"more than \d+ modules, and the file holds \d+ tensors",
        ),
        (
            segmenter,
            {
                "model_args__backbone": "resnetv2_50",
                "model_args__backbone_options": {"layers": [9999] * 4},
            },
            r"more than \d+ modules, and the file holds \d+ tensors",
        ),
        (classifier, {"model_args__in_chans": MANY}, r"in_chans is 100000000; no tensor"),
        (segmenter, {"model_args__channels": MANY}, r"channels is 100000000; no tensor"),
        (classifier, {"model_args__head_hidden": 10**18}, r"head_hidden is 1000000000000000000"),
        (classifier, {"model_args__mlp_ratios": [1e300] * 4}, r"mlp_ratios is 1e\+300"),
        (classifier, {"model_args__dims": [16_000] * 4, "model_args__heads": [8000] * 4}, "≠ head"),
        (detector, {"model_args__max_size": MANY}, r"max_size is 100000000"),
        (convnet, {"model_args__backbone": "x" * 10**6}, r"backbone is a text of 1,000,000"),
    ],
)  # fmt: skip
def test_claims_out_of_proportion(
    make: Callable[[], Pretrained],
    config: dict[str, Any],
    message: str,
    models: dict,
    tmp_path: Path,
) -> None:
    path = write(models[make], tmp_path, **config)
    with memory_limit(400), time_limit(10), pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 8000


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (classifier, {"model_args__depths": None}, r"model_args\.depths None does not make a rmt_"),
        (classifier, {"model_args__depths": "2262"}, r"model_args\.depths '2262' does not make"),
        (classifier, {"model_args__heads": [2, 2, 3.5, 4]}, r"heads"),
        (classifier, {"model_args__lce": "no"}, r"lce is 'no'; expected true or false"),
        (classifier, {"model_args__drop_rate": "0"}, r"model_args\.drop_rate"),
        (classifier, {"model_args__drop_path_rate": []}, r"model_args\.drop_path_rate"),
        (classifier, {"model_args__token_labels": 1}, r"token_labels is 1; expected true or fal"),
        (classifier, {"model_args__stem": 5}, r"stem is 5; choose"),
        (classifier, {"model_args__nothing": 5}, r"unknown option 'nothing'"),
        (classifier, {"architecture": "rmt_nanoo"}, r"unknown model 'rmt_nanoo'.*'rmt_nano'"),
        (detector, {"model_args__min_size": "800"}, r"model_args\.min_size"),
        (detector, {"model_args__min_size": 700.5}, r"min_size is 700\.5; expected a whole number"),
        (detector, {"model_args__backbone": 5}, r"model_args\.backbone is 5; expected text"),
        (detector, {"model_args__backbone": None}, r"model_args\.backbone is None; expected text"),
        (detector, {"model_args__backbone_options": [1]}, r"model_args\.backbone_options"),
        (detector, {"model_args__nothing": 5}, r"model_args\.nothing 5 does not make a retinanet"),
        (detector, {"architecture": "retina"}, r"unknown detection head 'retina'"),
        (detector, {"model_args": {}}, r"does not fit the model it looks like"),
        (segmenter, {"architecture": "retinanet"}, r"unknown segmentation head 'retinanet'"),
        (segmenter, {"model_args__drop_path_rate": "x"}, r"drop_path_rate"),
        (convnet, {"model_args__backbone": "vit_tiny_patch16_224"}, r"x\.safetensors: "),
        (convnet, {"model_args__backbone": "hf-hub:ann/net"}, r"unknown backbone 'hf-hub:ann/net'"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_impossible_options_are_named(
    make: Callable[[], Pretrained],
    config: dict[str, Any],
    message: str,
    models: dict,
    tmp_path: Path,
) -> None:
    path = write(models[make], tmp_path, **config)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ValueError):  # noqa: PT011 - of a class that is known, in other words
        type(models[make]).from_pretrained(path)


def test_overrides_do_not_open_a_back_door(models: dict, tmp_path: Path) -> None:
    path = write(models[detector], tmp_path, model_args__backbone_options={"depths": [16000] * 4})
    with memory_limit(400), time_limit(10), pytest.raises(ValueError, match=r"\d+ modules"):
        load(path, min_size=32)


@pytest.mark.parametrize("option", ["pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir"])
def test_no_other_file_is_fetched(option: str, models: dict, tmp_path: Path) -> None:
    path = write(models[convnet], tmp_path, model_args__backbone_options={option: "/etc/hostname"})
    with pytest.raises(ValueError, match=rf"backbone_options\.{option} is '/etc/hostname'; all"):
        load(path)


def test_types_of_arguments() -> None:
    types = argument_types(rmt.RMT)
    assert types["depths"] == tuple[int, ...]
    assert types["token_labels"] is bool


def test_modules_of_other_threads_do_not_count(models: dict) -> None:
    import threading

    model = models[classifier]
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            torch.nn.Sequential(*(torch.nn.Identity() for _ in range(100)))

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        build_on_meta(type(model).from_config, model.config, model.state_dict(), name="x")
    finally:
        stop.set()
        thread.join()


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value(float("nan")), "holds NaN: .*take an earlier checkpoint"),
        (with_value(float("inf")), "holds infinity"),
        (with_value(float("-inf")), "holds infinity"),
        (lambda t: with_value(float("nan"))(t.half()), "holds NaN"),
        (lambda t: with_value(float("inf"))(t.bfloat16()), "holds infinity"),
        (lambda t: t > 0, "holds bool numbers and the model float32 ones; save it as float32"),
        (lambda t: (t * 10).to(torch.int8), "holds int8 numbers and the model float32"),
        (lambda t: t.long(), "holds int64 numbers and the model float32"),
        (lambda t: t.to(torch.complex64), "holds complex64 numbers and the model float32"),
        (lambda t: t.to("meta"), "has a shape and no numbers"),
        (lambda t: t.to_sparse(), "sparse, quantized or nested"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "sparse, quantized"),
        (lambda t: t[:1, :1].expand(t.shape), "repeats 4 bytes; save it whole"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch has something to say of sparse and quantized ones
def test_tensors_that_are_no_weights(
    change: Callable[[Tensor], Tensor], message: str, models: dict, tmp_path: Path
) -> None:
    state = dict(models[classifier].state_dict())
    key = "stages.0.blocks.0.mlp.fc1.weight"
    state[key] = change(state[key][:, :1].clone() if "repeats" in message else state[key])
    if "repeats" in message:
        state[key] = state[key][:1, :1].clone().expand(96, 32)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=rf"x\.pth: stages\.0\.blocks\.0\.mlp\.fc1\.weight.*{message}"
    ):
        load(tmp_path / "x.pth")


def test_counters_keep_their_kind(models: dict) -> None:
    state = dict(models[classifier].state_dict())
    key = next(key for key in state if key.endswith("num_batches_tracked"))
    with pytest.raises(ValueError, match=rf"{key} holds float32 numbers and the model int64 ones"):
        load(state | {key: state[key].float()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(dtype: torch.dtype, models: dict) -> None:
    state = models[classifier].state_dict()
    found = load({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    assert next(found.parameters()).dtype == torch.float32
    assert found.head.fc.weight.equal(state["head.fc.weight"].to(dtype).float())


def test_one_storage_under_many_names(tmp_path: Path) -> None:
    """The file has 4 MB; the tensors it names have 4 GB."""
    shared = torch.zeros(2**20)
    torch.save({f"t{i}": shared for i in range(1000)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"claims 4,194,304,000 bytes of tensors and holds 4,19"):
        load(tmp_path / "x.pth")


def test_too_many_tensors_and_too_long_names(tmp_path: Path) -> None:
    torch.save({f"t{i}": torch.zeros(1) for i in range(20_001)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"holds 20,001 tensors"):
        load(tmp_path / "x.pth")
    torch.save({"a." * 1000: torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"a\.a\..* is a name of 2,000 characters"):
        load(tmp_path / "x.pth")


def test_a_whole_model_takes_its_own_memory_and_no_more(models: dict, tmp_path: Path) -> None:
    path = write(models[classifier], tmp_path)
    gc.collect()
    with memory_limit(200):
        load(path)
