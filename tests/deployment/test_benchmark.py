"""`rmt benchmark` from the command to its files, and what it measures."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import rmt
import rmt_cli
from exports import NAME, EagerEngine, writer
from rmt.deployment import engines, formats, timing
from rmt.deployment.benchmark import BenchmarkReport, benchmark, torch_threads
from rmt.deployment.benchmark_plots import PUBLISHED, published_top1
from rmt.deployment.timing import clock_of, peak_memory, take_turns
from rmt.modeling.flops import count
from tasks import CASES, Case

CPU = torch.device("cpu")
#: The columns that timm's benchmark writes.
TIMM = [
    *("model", "infer_samples_per_sec", "infer_step_time", "infer_batch_size", "infer_img_size"),
    *("infer_gmacs", "param_count"),
]
PEER = "resnet10t"


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    """Have an engine of exported files that takes no time; be quick with warming up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.FILE_ENGINES, NAME, EagerEngine)
        patch.setitem(formats.FORMATS, NAME, writer())
        patch.setattr(timing, "WARM_UP", 1)
        yield


def quick(models: Any, **options: Any) -> BenchmarkReport:
    return benchmark(models, **{"img_size": 32, "rounds": 2, "device": "cpu"} | options)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the command once, with its files."""
    folder = tmp_path_factory.mktemp("benchmark")
    words = f"benchmark rmt_nano {PEER} --img-size 32x64 --batch-size 2 --form reference fused"
    words += f" --precision float32 bf16 --engine torch {NAME} --rounds 2 --threads 1 --device cpu"
    for name in ("json", "csv"):
        words += f" --{name} {folder / name}"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(sys.stdout, "write", lines.append)
        assert rmt_cli.main(words.split()) == 0
    (folder / "table").write_text("".join(lines))
    return folder


def test_the_record(written: Path) -> None:
    record = json.loads((written / "json").read_text())
    assert record["command"].startswith(f"rmt benchmark rmt_nano {PEER} --img-size 32x64")
    assert record["clock"] == "cpu"
    assert "network alone" in record["note"]
    assert {"rmt", "torch", "timm"} <= record["versions"].keys()
    rows = record["rows"]
    assert [(row["model"], row["engine"], row["form"], row["precision"]) for row in rows] == [
        ("rmt_nano", "torch", "reference", "float32"),
        ("rmt_nano", "torch", "reference", "bf16"),
        ("rmt_nano", "torch", "fused", "float32"),
        ("rmt_nano", "torch", "fused", "bf16"),
        ("rmt_nano", NAME, "fused", "float32"),
        (PEER, "torch", None, "float32"),
        (PEER, "torch", None, "bf16"),
        (PEER, NAME, None, "float32"),
    ]
    for row in rows:
        assert row["infer_img_size"] == "32x64"
        assert row["error"] is None
        assert row["step_time_q1"] <= row["infer_step_time"] <= row["step_time_q3"]
        rate = 2e3 / row["infer_step_time"]
        assert row["infer_samples_per_sec"] == pytest.approx(rate, rel=1e-4)
        assert row["infer_step_time"] == row["cpu_time"] > 0 < row["wall_time"]
        assert (row["peak_memory_mb"] is None) == (row["engine"] == NAME)
    assert rows[0]["speed"] == 1
    counted = count(rmt.create_model("rmt_nano"), (32, 64))
    assert rows[4]["param_count"] == pytest.approx(counted.params / 1e6, rel=1e-5)
    assert rows[4]["infer_gmacs"] == pytest.approx(counted.products / 1e9, rel=1e-5)


def test_the_csv_begins_as_that_of_timm(written: Path) -> None:
    with (written / "csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(TIMM)] == TIMM
    assert rows[-1]["model"] == PEER
    assert len(rows) == 8


def test_the_table(written: Path) -> None:
    lines = (written / "table").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 8
    assert {line.count("|") for line in table} == {13}
    assert "| 32×64 | 2 |" in table[-1]


def plot(words: str, path: Path) -> None:
    words = f"benchmark {words} --rounds 1 --device cpu --plot {path}"
    assert rmt_cli.main(words.split()) == 0
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_time_and_memory_against_pixels(tmp_path: Path) -> None:
    plot("rmt_nano --img-size 32 32x64", tmp_path / "x")


def test_accuracy_against_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "rmt_nano", 28.3)
    monkeypatch.setattr("rmt.deployment.benchmark_plots.VARIANTS", {})
    monkeypatch.setattr("rmt.deployment.benchmark_plots.PUBLISHED_SIZE", (32, 32))
    monkeypatch.setitem(PUBLISHED, PEER, 70.0)
    plot(f"rmt_nano {PEER} --img-size 32", tmp_path / "x")


def test_published_accuracy() -> None:
    assert published_top1("rmt_s") == 84.1
    assert published_top1("rmt_nano") is None
    assert all(timm.is_model(name) for name in PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_checkpoints_and_exports_of_every_task(case: Case, tmp_path: Path) -> None:
    recipe = case.recipe_for(case.data(tmp_path / "data"))
    task = rmt.task.get_task(case.task)
    folder = task.new_model(recipe, case.classes).save_pretrained(tmp_path / "model")
    size = (64, 96)
    exported = rmt.export(folder, tmp_path / "exported", format=NAME, img_size=size).path
    report = quick([folder, exported], img_size=[size], form=["plain", "fused"], rounds=1)
    assert [row.error for row in report.rows] == [None] * 3
    assert [row.candidate.engine for row in report.rows] == ["torch", "torch", NAME]
    assert report.rows[2].cost == report.rows[0].cost is not None


def test_a_file_for_one_size_and_batch(tmp_path: Path) -> None:
    path = rmt.export("rmt_nano.tiny_imagenet", tmp_path / "x", format=NAME, img_size=32).path
    (fits,) = quick(path, img_size=None, rounds=1).rows
    assert fits.error is None
    assert fits.candidate.size == (32, 32)
    report = quick(path, img_size=48, batch_size=[1, 2], rounds=1)
    assert "was exported for images of 32×32" in (report.rows[0].error or "")
    assert "takes 1 images at once" in (report.rows[1].error or "")


def test_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def out_of_memory(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate | 1 PiB\nand more")

    monkeypatch.setitem(formats.FORMATS, NAME, out_of_memory)
    words = f"benchmark rmt_nano --engine {NAME} torch --img-size 32 --rounds 1 --device cpu --json"
    assert rmt_cli.main([*words.split(), str(tmp_path / "json")]) == 1
    shown = capsys.readouterr().out
    assert f"* rmt_nano fused {NAME}, 32, batch 1 failed: OutOfMemoryError: tried to" in shown
    broken, whole = json.loads((tmp_path / "json").read_text())["rows"]
    assert broken["error"] == "OutOfMemoryError: tried to allocate | 1 PiB"
    assert broken["infer_step_time"] is broken["speed"] is broken["peak_memory_mb"] is None
    assert whole["infer_step_time"] > 0
    assert whole["speed"] is None  # the first of the call is what it would be relative to


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Any = None
    monkeypatch.setitem(sys.modules, "onnxscript", absent)
    monkeypatch.setitem(sys.modules, "onnxruntime", absent)
    (row,) = quick("rmt_nano", engine="onnx").rows
    assert row.error is not None
    assert "pip install 'rmt-vision[onnx]'" in row.error


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("rmt_q", "'rmt_q' is not a model of this package or of timm, nor a file"),
        ("rmt_nano --engine onx", "unknown engine 'onx'; did you mean 'onnx'?"),
        ("rmt_nano --form fusd", "unknown form 'fusd'; did you mean 'fused'?"),
        ("rmt_nano --precision fp16", "unknown precision 'fp16'"),
        ("rmt_nano --rounds 0", "rounds is 0; it must be at least 1"),
        ("rmt_nano --threads 0", "threads is 0; it must be at least 1"),
        ("rmt_nano --batch-size 0", "batch_size is 0"),
        ("rmt_nano --img-size 32x0", "img_size is 0"),
        ("rmt_nano --device nowhere", "device 'nowhere' cannot be used"),
        ("rmt_nano --device cuda:99", "device 'cuda:99' cannot be used"),
        ("rmt_nano --device meta --engine onnx", "onnx runs on the CPU here"),
        ("rmt_nano --engine onnx --form plain", "nothing to measure"),
        ("rmt_nano --engine onnx --precision bf16", "nothing to measure"),
        ("rmt_nano --img-size 32 --plot x.png", "a plot needs two sizes of images"),
    ],
)
def test_mistakes(words: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rmt_cli.main(["benchmark", *words.split()]) == 2
    assert reason in capsys.readouterr().err


def test_a_wrong_size_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rmt_cli.main(["benchmark", "rmt_nano", "--img-size", "axb"])
    assert "'axb' is not a size" in capsys.readouterr().err


def test_peers_for_one_size_are_built_for_each() -> None:
    report = quick("levit_128s", img_size=[64, 96], rounds=1)
    assert [row.error for row in report.rows] == [None, None]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_compiled_for_each_size() -> None:
    report = quick("rmt_nano", img_size=[32, 64], engine=["torch", "compile"])
    assert [row.error for row in report.rows] == [None] * 4


# Time and memory


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs once per round, in order; one that fails is told and left out."""
    ran: list[str] = []

    def call(name: str, fails_at: int = 99) -> Callable[[], None]:
        def run() -> None:
            ran.append(name)
            if ran.count(name) == fails_at:
                raise KeyError(name)

        return run

    failed: list[tuple[str, Exception]] = []
    calls = {"a": call("a"), "b": call("b", fails_at=2), "c": call("c")}
    laps = take_turns(calls, rounds=2, device=CPU, failed=lambda *about: failed.append(about))
    assert "".join(ran) == "abcabcac"
    assert {name: len(own) for name, own in laps.items()} == {"a": 2, "c": 2}
    assert [(name, type(error)) for name, error in failed] == [("b", KeyError)]


def test_cpu_time_leaves_out_waiting() -> None:
    laps = take_turns({0: lambda: time.sleep(0.02)}, rounds=1, device=CPU, failed=print)
    assert laps[0][0].wall >= 0.02 > laps[0][0].cpu
    assert clock_of(CPU, 1) == "cpu"
    assert clock_of(CPU, 2) == "wall"
    assert clock_of(torch.device("cuda"), 1) == "cuda"


def test_memory_is_the_peak_of_what_lives_together() -> None:
    kept = torch.ones(250_000)  # 1 MB, there before

    def call() -> torch.Tensor:
        both = kept + 1, kept + 2
        return both[0] + both[1]

    assert peak_memory(call, CPU) == pytest.approx(3e6, rel=1e-3)
    assert peak_memory(lambda: (kept + 1) is None, CPU) == pytest.approx(1e6, rel=1e-3)
    assert peak_memory(call, torch.device("meta")) is None
