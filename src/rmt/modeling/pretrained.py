"""Pretrained: what every model of this package can do with files, whatever its task."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import yaml
from torch import Tensor, nn

from rmt.files import write_atomically
from rmt.messages import printable
from rmt.modeling.fuse import fuse
from rmt.modeling.saved import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Description,
    find_weights,
    read_safetensors,
    without_paths,
    write_safetensors,
)
from rmt.modeling.strict import build_with

#: Task -> the hub's word for it.
_PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}


def uses_gpu(accelerator: str) -> bool:
    """Return whether ``trainer.accelerator`` means an NVIDIA or AMD GPU on this machine."""
    return accelerator != "cpu" and torch.cuda.is_available()


@contextmanager
def in_use(model: nn.Module, *, accelerator: str) -> Iterator[None]:
    """Move a model to a GPU, if there is one and ``accelerator`` is not ``cpu``, and to eval mode.

    Afterwards its device and mode are as before.
    """
    home, was_training = next(model.parameters()).device, model.training
    try:
        model.to("cuda" if uses_gpu(accelerator) else "cpu").eval()
        yield
    finally:
        model.to(home).train(was_training)


class Pretrained(nn.Module):
    """Saving and loading for a module that can be rebuilt from its ``config``.

    A subclass has ``task``, a ``config`` property (``{"architecture", "num_classes",
    "model_args"}``, plain JSON values) and ``from_config``. ``info`` travels with the weights:
    ``label_names``, ``source``, ``recipe``, ``weights`` ...
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
    def layers_by_depth(self) -> nn.Module | None:
        """Return the module whose ``group_matcher`` orders all of the parameters by depth.

        None for a model that has none, such as a dense one.
        """
        return None

    @property
    def config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to build this model again."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the model that ``config`` describes, randomly initialised."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, equal output."""
        raise NotImplementedError

    def describe(self, extra_info: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return ``{"task", "rmt_version", "config", "info"}``: all but the weights.

        Args:
            extra_info: further entries of ``info``, such as the recipe of the run.
        """
        info = self.info | dict(extra_info or {})
        return Description(task=self.task, config=self.config, info=info).as_dict()

    def fuse(self) -> Self:
        """Return the exact inference form of this model, see :func:`rmt.modeling.fuse.fuse`."""
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
            wanted = type(self).from_config(self.config).state_dict()
        if strange := sorted(tensors.keys() ^ wanted.keys()):
            raise ValueError(
                f"this model does not have the parameters that its configuration says "
                f"({strange[0]} and {len(strange) - 1} others differ): save it as it was before "
                "fuse() or pruning, and fuse or prune what is loaded"
            )
        return tensors

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, made if absent.

        The folder of a classifier is also what timm and transformers read
        (``timm.create_model("local-dir:DIR")``).

        Raises:
            ValueError: if the model was fused or pruned.
        """
        tensors, description = self.tensors_to_save(), without_paths(self.describe())
        folder = Path(folder)
        write_safetensors(folder / WEIGHTS_NAME, tensors, description)
        if self.body is self:  # timm and transformers look for these at the top
            names = self.info.get("label_names")
            for_others = {"label_names": names} if names else {}
            description = description["config"] | for_others | description
        text = json.dumps(description, indent=2, allow_nan=False)
        write_atomically(
            folder / CONFIG_NAME, lambda path: path.write_text(text + "\n", encoding="utf-8")
        )
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """Read a folder of ``save_pretrained``, its file, or a hub repository, in eval mode.

        Raises:
            FileNotFoundError: if there is no such folder or repository file.
            ValueError: if it holds another task's model, or its keys do not fit.
        """
        path = find_weights(source)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is not a .safetensors file; rmt.load reads others")
        tensors, description = read_safetensors(path)
        if description is None:
            raise ValueError(
                f"{path} carries no description of a model of this package in its metadata; "
                "rmt.load recognises files of others"
            )
        if description.task != cls.task:
            raise ValueError(
                f"{path} holds a model for {printable(description.task)!r}, not {cls.task!r}; "
                "rmt.load recognises any of them"
            )
        model = build_with(cls.from_config, description.config, tensors, name=str(path))
        ours, theirs = (about["architecture"] for about in (model.config, description.config))
        if ours != theirs:
            raise ValueError(f"{path} holds a {printable(theirs)!r}, not a {ours!r}")
        model.info = dict(description.info)
        return model

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
            card = model_card(self, repo_id)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        return str(commit)


def model_card(model: Pretrained, repo_id: str) -> str:
    """Return a README for a hub repository, with the metadata that the hub knows."""
    about = without_paths(model.describe())
    config, info = about["config"], about["info"]
    cfg = config.get("pretrained_cfg") or info.get("pretrained_cfg") or {}
    licence = printable(cfg.get("license", "unknown"))
    head: dict[str, str] = {"library_name": "rmt-vision", "license": licence}
    if licence != "apache-2.0":
        head |= {"license": "other", "license_name": licence}
    head["pipeline_tag"] = _PIPELINES[model.task]
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---
# {_markdown(config["architecture"])}

{model.task.capitalize()} with RMT, "RMT: Retentive Networks Meet Vision Transformers"
(arXiv 2309.11523). Source of the weights: {_markdown(info.get("source", "not stated"))}.

```python
import rmt
model = rmt.load({json.dumps(f"hf-hub:{repo_id}")})
```
"""


def _markdown(text: str) -> str:
    """Return text as Markdown that shows just this text, in one line."""
    return re.sub(r"([\\`*_{}\[\]()<>|~&!])", r"\\\1", printable(text))
