"""No verb connects to anything unless it is asked to."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rmt
from limits import REFUSED
from tasks import CASES

TESTS = Path(__file__).parents[1]
# All verbs in one process, which imports torch once. It is not told to be offline.
SCRIPT = """
import json, sys
from limits import REFUSED, forbid_network
forbid_network()
import rmt_cli
for words in json.loads(sys.argv[1]):
    try:
        status = rmt_cli.main(words)
    except SystemExit as stop:
        status = stop.code
    print("verb", words[0], status, REFUSED, file=sys.stderr)
"""


def run(verbs: list[list[str]], folder: Path) -> list[str]:
    """Run verbs where no connection is possible; return what each ended with and had tried."""
    online = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    paths = os.pathsep.join([str(TESTS), str(Path(rmt.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(verbs)],
        env=online | {"PYTHONPATH": paths, "HF_HOME": str(folder / "cache")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("verb ")]


def test_no_verb_connects(tmp_path: Path) -> None:
    root = CASES["classification"].data(tmp_path / "photos")
    image = str(next(root.rglob("*.png")))
    boxes = CASES["detection"].data(tmp_path / "boxes")
    teacher = rmt.create_model("rmt_nano", num_classes=2)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    own = ["--data.root", str(root), "--model.name", "rmt_nano", "--data.input_size", "32"]
    own += ["--data.batch_size", "2", "--data.num_workers", "0", "--schedule.epochs", "1"]
    own += ["--trainer.accelerator", "cpu"]
    verbs = [
        ["models"],
        ["train", "--list"],
        ["train", "small/folder", *own, "--dry-run"],
        ["train", "small/folder", *own, "--out", "run"],
        ["eval", "--checkpoint", "run"],
        ["predict", image, "--checkpoint", "run", "--out", "drawn", "--json", "found.json"],
        ["explain", image, "--checkpoint", "run"],
        ["convert", "run/checkpoints/best.ckpt", "run.safetensors"],
        ["convert-dataset", str(boxes), "converted", "--to", "voc"],
        ["predict", image, "--checkpoint", "nobody/nothing"],
    ]
    ended = [f"verb {words[0]} 0 []" for words in verbs]
    ended[-1] = "verb predict 2 []"  # a name of the hub has to begin with hf-hub:
    assert run(verbs, tmp_path) == ended


def test_a_connection_is_noticed() -> None:
    """Even if its error is swallowed; so the test above means something."""
    with socket.socket() as own:
        for connect in (
            lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
            lambda: own.connect_ex(("192.0.2.1", 80)),
            lambda: socket.getaddrinfo("example.com", 80),
        ):
            with pytest.raises(OSError, match="no network in tests"):
                connect()
    assert REFUSED == ["192.0.2.1", "192.0.2.1", "example.com"]
    REFUSED.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


@pytest.mark.parametrize("address", ["http://example.com/a.png", "https://example.com/a.png"])
def test_an_address_is_not_fetched(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is on the network; download it"):
        rmt.Predictor(rmt.create_model("rmt_nano"))(address)
