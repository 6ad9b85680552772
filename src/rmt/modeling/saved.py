"""The file format of this package: tensors, and a description of the model they belong to.

A ``.safetensors`` file holds the description as JSON in its metadata, under ``rmt``; a folder of
``save_pretrained`` holds such a file and the description again as ``config.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmt.files import write_atomically
from rmt.messages import printable
from rmt.untrusted import Field, read_json
from rmt.version import __version__

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
#: Folder of the weights in this package: NAME.safetensors, and a model card NAME.md.
SHIPPED = Path(__file__).parent / "shipped"
#: Names of files of weights in a folder, in the order in which they are looked for.
WEIGHTS_NAMES = (WEIGHTS_NAME, "pytorch_model.bin")
_METADATA_KEY = "rmt"
_HINT = "Write it again from its source, with save_pretrained or `rmt convert`"
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
# Entries of a recipe that hold paths of the machine that the model was trained on.
_PATHS = ("root", "checkpoint", "weights")


_CONFIG_KEYS = ("architecture", "num_classes", "num_features", "model_args", "pretrained_cfg")


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
    def read(cls, content: object, name: str) -> Description:
        """Return the description that :meth:`as_dict` wrote, every entry checked.

        Args:
            content: from a file.
            name: of the file and the place in it, for messages.

        Raises:
            ValueError: naming the entry that is missing, of another type or impossible.
        """
        top = Field.of(_in_parts(content), name, hint=_HINT)
        config, info = top["config"], top.get("info", {})
        config["architecture"].text()
        classes = config["num_classes"].whole(least=0)
        if "backbone" in config["model_args"].mapping():
            config["model_args"]["backbone"].text()
        _check_transforms(config.get("pretrained_cfg", {}))
        _check_transforms(info.get("pretrained_cfg", {}))
        _check_info(info, classes)
        return cls(task=top["task"].text(), config=config.mapping(), info=info.mapping())


def _in_parts(content: object) -> object:
    """Return a description of the first form, which had everything on one level, in its parts."""
    if not isinstance(content, Mapping) or "config" in content or "architecture" not in content:
        return content
    config = {key: content[key] for key in _CONFIG_KEYS if key in content}
    if content.get("task") != "classification":
        config.pop("pretrained_cfg", None)
    top = {"task": content.get("task"), "config": config}
    rest = {key: value for key, value in content.items() if key not in (*config, "task")}
    return top | {"info": {k: v for k, v in rest.items() if k != "rmt_version"}}


def _check_info(info: Field, classes: int) -> None:
    for name in ("source", "published_recipe"):
        info.get(name, "").text()
    info.get("recipe", {}).mapping()
    info.get("weights", "raw").one_of("raw", "ema")
    info.get("multi_label", False).flag()
    names = info.get("label_names", []).items()
    for each in names:
        each.text()
    # A classifier may have lost its head and kept the names.
    if names and classes and len(names) != classes:
        raise info["label_names"].error(f"has {len(names)} names for {classes} classes")
    shades = info.get("palette", []).items()
    if shades and classes and len(shades) != classes:
        raise info["palette"].error(f"has {len(shades)} colours for {classes} classes")
    for colour in shades:
        levels = colour.items()
        if len(levels) != 3:
            raise colour.error("is not a colour: expected red, green and blue, each 0 to 255")
        for level in levels:
            level.whole(least=0, most=255)


def _check_transforms(cfg: Field) -> None:
    """Check what turns an image into the network's input, as far as it is there."""
    mean, std = (cfg.get(name, [0.5] * 3).items() for name in ("mean", "std"))
    for each in mean:
        each.number()
    for each in std:
        if not each.number() > 0:
            raise each.error("must be greater than 0: pixels are divided by it")
    if len(mean) != len(std) or not mean:
        raise cfg.error(f"has {len(mean)} channels in mean and {len(std)} in std")
    size = cfg.get("input_size", [3, 224, 224]).items()
    for each in size:
        each.whole(least=1, most=8192)
    if len(size) != 3:
        raise cfg["input_size"].error(f"has {len(size)} entries; expected channels, height, width")
    if not 0.1 <= cfg.get("crop_pct", 1.0).number() <= 1:
        raise cfg["crop_pct"].error(f"is {cfg['crop_pct'].value}; expected 0.1 to 1")
    cfg.get("interpolation", "bicubic").one_of(*_INTERPOLATIONS)
    cfg.get("crop_mode", "center").one_of("center", "squash", "border")
    for name in ("license", "tag", "origin_url"):
        cfg.get(name, "").text()


def find_weights(source: str | Path) -> Path:
    """Return the file of weights that a user names.

    Args:
        source: a file or folder, the name of weights in this package, or a hub repository,
            ``hf-hub:user/name``.

    Raises:
        FileNotFoundError: if it is none of them, or a folder without weights.
        ValueError: if it is something else than a file or folder, such as a pipe.
    """
    path = Path(source)
    shown = printable(path)
    if path.is_dir():
        for name in WEIGHTS_NAMES:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(
            f"{shown} holds no {' or '.join(WEIGHTS_NAMES)}; save_pretrained writes the former"
        )
    if path.is_file():
        return path
    if str(source).startswith("hf-hub:"):
        return _download(str(source).removeprefix("hf-hub:"))
    if path.exists():
        raise ValueError(f"{shown} is neither a regular file nor a folder")
    shipped = {each.stem: each for each in SHIPPED.glob("*.safetensors")}
    if str(source) in shipped:
        return shipped[str(source)]
    raise FileNotFoundError(
        f"no file or folder {printable(source)!r} (a hub repository is written hf-hub:user/name; "
        f"weights in this package: {', '.join(sorted(shipped))})"
    )


def _download(repo_id: str) -> Path:
    """Return the downloaded weights of a hub repository, with its configuration beside them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with suppress(EntryNotFoundError):  # our weights describe themselves
        hf_hub_download(repo_id, CONFIG_NAME)
    try:
        return Path(hf_hub_download(repo_id, WEIGHTS_NAMES[0]))
    except EntryNotFoundError:
        return Path(hf_hub_download(repo_id, WEIGHTS_NAMES[1]))


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write tensors with what ``describe`` of their model returned; never half a file.

    Raises:
        OSError: if the disk does not take it.
    """
    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(without_paths(description))}
    write_atomically(Path(path), lambda temporary: save_file(plain, temporary, metadata))


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], Description | None]:
    """Return the tensors of a file, and its description, None if another package wrote it.

    Raises:
        ValueError: if the file is damaged, or its description is not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # a file is not a mapping
            tensors = {key: file.get_tensor(key) for key in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({printable(error)}): fetch or write it again"
        ) from error
    if _METADATA_KEY not in metadata:
        return tensors, None
    name = f"{path}: {_METADATA_KEY!r} in the metadata"
    return tensors, Description.read(read_json(metadata[_METADATA_KEY], name), name)


def without_paths(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description that says nothing of the machine it was made on.

    Paths of the recipe (data, starting weights) and of timm's configuration are cut to their last
    part.
    """
    config, info = dict(description["config"]), dict(description["info"])
    for part, key in ((info, "recipe"), (info, "pretrained_cfg"), (config, "pretrained_cfg")):
        if key in part:
            part[key] = _names_only(part[key])
    return dict(description) | {"config": config, "info": info}


def _names_only(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _names_only(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_names_only(item, key) for item in value]
    if not isinstance(value, str) or ("://" in value and not value.startswith("file:")):
        return value
    absolute = re.match(r"(file:|local-dir:)?([/\\~]|[A-Za-z]:[/\\])", value)
    if absolute or (key in _PATHS and not value.startswith("hf-hub:")):
        last = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        return "" if last in (".", "..") else last
    return value
