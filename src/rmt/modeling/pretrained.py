"""Models written to a folder or a hub repository and read back: config.json + safetensors.

The folder of a classifier is also what timm reads (``timm.create_model("local-dir:DIR")``).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rmt.files import write_atomically
from rmt.modeling.fuse import fuse
from rmt.version import __version__

WEIGHTS_NAME = "model.safetensors"


CONFIG_NAME = "config.json"


_METADATA_KEY = "rmt"


#: Task -> the hub's word for it.
_PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}


class Pretrained(nn.Module):
    """Saving and loading for a module that can be rebuilt from its ``config``.

    A subclass has ``task``, a ``config`` property (``{"architecture", "model_args"}``, plain JSON
    values) and ``from_config``. ``info`` travels with the weights: ``label_names``,
    ``pretrained_cfg`` (transforms), ``source``, ``recipe``, ``weights``.
    """

    task: ClassVar[str]
    num_classes: int
    info: dict[str, Any]
    #: Of a dense model: what makes its feature maps.
    backbone: Any

    @property
    def body(self) -> nn.Module:
        """Return the network that makes the feature maps: this one, or a dense model's backbone."""
        return self.backbone.body

    @property
    def config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to build this model again."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the model that ``config`` describes, with fresh weights."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, equal output."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return task, config, info and package version: everything but the weights."""
        from_us = {"task": self.task, "rmt_version": __version__}
        return from_us | self.config | getattr(self, "info", {})

    def fuse(self) -> Self:
        """Return the exact inference form of this model, folded by :func:`rmt.modeling.fuse.fuse`."""
        return fuse(self)

    def compiled(self) -> Callable[..., Any]:
        """Return this model through ``torch.compile``, to be called in its place."""
        return torch.compile(self)

    def tensors_to_save(self) -> dict[str, Tensor]:
        """Return the state dict, made sure that ``config`` builds a model that takes it.

        Raises:
            ValueError: if it does not: the model was fused or pruned.
        """
        tensors = self.state_dict()
        with torch.device("meta"):
            wanted = type(self).from_config(self.describe()).state_dict()
        if strange := sorted(tensors.keys() ^ wanted.keys()):
            raise ValueError(
                f"this model has not the parameters that its configuration says ({strange[0]} and "
                f"{len(strange) - 1} others differ): save it as it was before fuse() or pruning, "
                "and fuse or prune what is loaded"
            )
        return tensors

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, made if absent.

        Raises:
            ValueError: if the model was fused or pruned.
        """
        tensors = self.tensors_to_save()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / WEIGHTS_NAME, tensors, self.describe())
        text = json.dumps(self.describe(), indent=2)
        write_atomically(folder / CONFIG_NAME, lambda path: path.write_text(text + "\n"))
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Read a folder of ``save_pretrained`` or a hub repository, in eval mode.

        Raises:
            FileNotFoundError: if there is no such folder or repository file.
            ValueError: if it holds another task's model, or its keys do not fit.
        """
        tensors, description = read_safetensors(find_weights(source))
        if description.get("task") != cls.task:
            raise ValueError(
                f"{source} holds a model for {description.get('task')!r}, not {cls.task!r}; "
                "rmt.load recognises any of them"
            )
        model = cls.from_config(description)
        model.load_state_dict(tensors, strict=True)
        model.info = info_of(description)
        return model.eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload an RMT model",
    ) -> str:
        """Upload the folder of ``save_pretrained`` and a model card; return the commit's URL."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / "README.md").write_text(model_card(self.describe(), repo_id))
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        return str(commit)


def info_of(description: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a description that is not the architecture."""
    own = ("task", "rmt_version", "architecture", "model_args", "num_classes", "num_features")
    return {k: v for k, v in description.items() if k not in own}


def find_weights(source: str | Path) -> Path:
    """Return the safetensors file of a local folder, or of a hub repository ``hf-hub:user/name``.

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
    path: str | Path, tensors: dict[str, Tensor], description: dict[str, Any]
) -> None:
    """Write tensors with their description as metadata; a half-written file never stays."""
    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(description)}
    write_atomically(Path(path), lambda temporary: save_file(plain, temporary, metadata))


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description of a file of :func:`write_safetensors`.

    Raises:
        ValueError: if the file is damaged or holds no description of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = file.keys()
            tensors = {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if _METADATA_KEY not in metadata:
        raise ValueError(
            f"{path} carries no description of an RMT model in its metadata; "
            "files of `rmt convert` and save_pretrained do"
        )
    return tensors, json.loads(metadata[_METADATA_KEY])


def model_card(description: dict[str, Any], repo_id: str) -> str:
    """Return a README for a hub repository, with the metadata that the hub knows."""
    licence = description.get("pretrained_cfg", {}).get("license", "unknown")
    stated = licence if licence == "apache-2.0" else f"other\nlicense_name: {licence}"
    return f"""---
library_name: rmt-vision
license: {stated}
pipeline_tag: {_PIPELINES[description["task"]]}
---
# {description["architecture"]}

{description["task"].capitalize()} with RMT, "RMT: Retentive Networks Meet Vision Transformers"
(arXiv 2309.11523). Source of the weights: {description.get("source", "not stated")}.

```python
import rmt
model = rmt.load("hf-hub:{repo_id}")
```
"""
