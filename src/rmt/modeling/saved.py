"""The file format of this package: tensors, and a description of the model they belong to.

A ``.safetensors`` file holds the description as JSON in its metadata, under ``rmt``; a folder of
``save_pretrained`` holds such a file and the description again as ``config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmt.files import write_atomically
from rmt.version import __version__

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_METADATA_KEY = "rmt"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Which model some weights belong to, in plain JSON values.

    Attributes:
        task: name of the task.
        config: what builds the model again: ``architecture``, ``num_classes``, ``model_args``, and
            for a classifier what timm wants to know of it.
        info: what else is known: ``label_names``, ``palette``, ``source``, ``recipe``,
            ``weights`` (raw or ema) ...
    """

    task: str
    config: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what is written into files."""
        return {
            "task": self.task,
            "rmt_version": __version__,
            "config": self.config,
            "info": self.info,
        }

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Description:
        """Return the description that :meth:`as_dict` wrote."""
        return cls(task=content["task"], config=content["config"], info=content["info"])


def find_weights(source: str | Path) -> Path:
    """Return the file of weights of a local folder, or of a hub repository ``hf-hub:user/name``.

    Raises:
        FileNotFoundError: if it is neither.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / WEIGHTS_NAME).is_file():
            raise FileNotFoundError(f"{path} holds no {WEIGHTS_NAME}; save_pretrained writes one")
        return path / WEIGHTS_NAME
    if path.is_file():
        return path
    if str(source).startswith("hf-hub:"):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(str(source).removeprefix("hf-hub:"), WEIGHTS_NAME))
    raise FileNotFoundError(
        f"no file or folder {str(source)!r} (a hub repository is written hf-hub:user/name)"
    )


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write tensors with what ``describe`` of their model returned; never half a file."""
    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(description)}
    write_atomically(Path(path), lambda temporary: save_file(plain, temporary, metadata))


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], Description | None]:
    """Return the tensors of a file, and its description, None if another package wrote it.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if _METADATA_KEY not in metadata:
        return tensors, None
    return tensors, Description.read(json.loads(metadata[_METADATA_KEY]))
