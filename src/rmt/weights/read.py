"""Files of weights to plain content, whoever wrote them; nothing in them is run or believed."""

from __future__ import annotations

import argparse
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from rmt.messages import printable
from rmt.modeling.saved import CONFIG_NAME, WEIGHTS_NAMES, Description, read_safetensors
from rmt.untrusted import Field, read_json
from rmt.variants import VARIANTS

# torch lets a pickle make a bytearray of any length, of which the file needs to name the length.
_BYTEARRAY = b"\nbytearray\n"


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
    return Content(read_pickle(path), path=path)


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth``, ``.bin`` or ``.ckpt`` without running any code from it.

    ``argparse.Namespace`` is let in: the release's files keep their command line in one.

    Raises:
        ValueError: if the file is damaged, or would need more than tensors and plain values.
    """
    path = Path(path)
    _check_size(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise  # the machine's fault, not the file's
    except Exception as error:  # random bytes can raise anything in the unpickler
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and wanted:
            raise ValueError(
                f"{path} was not read: it asks to run {printable(wanted[1])!r} on loading, and "
                "only tensors and plain values are accepted. If you trust its author, read it with "
                "torch.load(..., weights_only=False) and save its state dict alone"
            ) from error
        raise ValueError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): fetch or write it "
            "again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return content


def _check_size(path: Path) -> None:
    """Raise ``ValueError`` for a file that would unpack to far more than its own size."""
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is damaged or not a checkpoint: it is empty")
    try:
        parts = _parts_of_zip(path)
    except (zipfile.BadZipFile, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint (its directory)") from error
    unpacked = sum(part.file_size for part in parts)
    if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError(
            f"{path} would unpack from {size:,} to {unpacked:,} bytes, which torch.save does not "
            "do. Unpack and save it again if you trust its author"
        )
    if _contains(path, _BYTEARRAY):
        raise ValueError(
            f"{path} was not read: it holds a bytearray, and only tensors and plain values are "
            "accepted"
        )


def _parts_of_zip(path: Path) -> list[zipfile.ZipInfo]:
    """Return the directory of a zip file, nothing for another."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def _contains(path: Path, word: bytes) -> bool:
    """Return whether a file holds some bytes."""
    before = b""
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            if word in before + chunk:
                return True
            before = chunk[-len(word) :]
    return False


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
    name = printable(beside)
    content = Field.of(read_json(beside.read_bytes(), name), name)
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
