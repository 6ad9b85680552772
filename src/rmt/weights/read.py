"""Files of weights to plain content, whoever wrote them; nothing in them is run or believed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmt import untrusted
from rmt.messages import printable
from rmt.modeling.saved import CONFIG_NAME, WEIGHTS_NAMES, Description, read_safetensors
from rmt.variants import VARIANTS


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        entries: tensors under their names, or a dict that has them in one of its entries.
        description: what a file of ours says of its tensors; None for others.
        path: of the file; None for what was in memory.
    """

    entries: Mapping[str, Any]
    description: Description | None = None
    path: Path | None = None


def read_file(path: Path) -> Content:
    """Read a file of weights.

    Raises:
        ValueError: if it is damaged, or not such a file.
    """
    if path.suffix == ".safetensors":
        entries, description = read_safetensors(path)
        return Content(entries, description, path)
    if path.suffix in (".onnx", ".xml", ".pt2"):
        raise ValueError(
            f"{path} is an exported network, not weights: rmt.Predictor.from_checkpoint, "
            "`rmt predict` and `rmt eval` take it; anything else needs the checkpoint behind it"
        )
    return Content(read_pickle(path), path=path)


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth``, ``.bin`` or ``.ckpt`` without running any code from it.

    ``argparse.Namespace`` is let in: the release's files keep their command line in one.

    Raises:
        ValueError: if the file is damaged, or would need more than tensors and plain values.
    """
    content = untrusted.read_pickle(Path(path), allow=(argparse.Namespace,))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return content


def described_beside(path: Path) -> tuple[Description | None, dict[str, Any]]:
    """Return what the ``config.json`` of us, or of timm or transformers, says of the model.

    The file of another model may lie there by chance; it is ignored then.

    Returns:
        A description, or ``architecture``, ``model_args``, ``pretrained_cfg`` and
        ``label_names`` as far as they are known.

    Raises:
        ValueError: if an entry is of a wrong type.
    """
    beside = path.with_name(CONFIG_NAME)
    if not beside.is_file():
        return None, {}
    name = printable(beside, limit=1000)
    content = untrusted.Field.of(untrusted.read_json_file(beside), name)
    entries = content.mapping()
    if path.name in WEIGHTS_NAMES and {"task", "config", "info"} <= entries.keys():
        return Description.read(content.value, name), {}
    architecture = entries.get("architecture")
    if not isinstance(architecture, str) or architecture not in VARIANTS:
        return None, {}
    names = content.get("label_names", [])
    hint = {
        "architecture": architecture,
        "model_args": content.get("model_args", {}).mapping(),
        "pretrained_cfg": content.get("pretrained_cfg", {}).mapping(),
        # A list, or a mapping from number to name.
        "label_names": (
            list(names.value.values())
            if isinstance(names.value, Mapping)
            else [each.value for each in names.items()]
        ),
    }
    return None, hint
