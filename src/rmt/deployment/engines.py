"""Engines: what runs a network. An exported file, opened, is called as the network was.

Each engine maps tensors to a tuple of tensors, on the CPU.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmt.deployment.libraries import import_openvino, needs
from rmt.deployment.metadata import KEY, Metadata
from rmt.deployment.signal_stack import keep_signal_stack
from rmt.messages import did_you_mean, printable
from rmt.modeling.graphs import Outputs
from rmt.untrusted import Field, read_json

#: A graph for all sizes takes images from this side on.
LEAST_SIDE = 64
# Far above what the metadata of a model needs.
_MOST_METADATA = 2**24


class Engine(nn.Module):
    """An exported graph in the runtime of its format.

    Args:
        path: of the file.

    Attributes:
        metadata: what the file says of itself.
        regions: the graph takes regions instead of images, any number of them.

    Raises:
        ValueError: if the library is missing, or the file was not exported by this package.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]

    def __init__(self, path: Path, *, regions: bool = False) -> None:
        super().__init__()
        self.path, self.regions = path, regions
        self.metadata = Metadata.read(self.open(path), printable(path, limit=1000))

    @abstractmethod
    def open(self, path: Path) -> str | None:
        """Open the file; return its metadata, None if it has none."""

    @abstractmethod
    def run(self, inputs: Sequence[Tensor]) -> Outputs:
        """Run the graph on contiguous tensors on the CPU, of the shapes that it takes."""

    def forward(self, *inputs: Tensor) -> Outputs:
        """Run the graph; a batch of another size than the graph's is cut and filled up.

        Raises:
            ValueError: for images of a size that the graph does not take.
        """
        device = inputs[0].device
        plain = [each.detach().cpu().float().contiguous() for each in inputs]
        if not self.regions:
            self._check(plain[0])
        batch = self.metadata.batch
        if self.regions or self.metadata.dynamic or len(plain[0]) == batch:
            outputs = self.run(plain)
        else:
            (images,) = plain
            parts = [self._padded(own, batch) for own in images.split(batch)]
            outputs = tuple(torch.cat(own) for own in zip(*parts, strict=True))
        return tuple(each.to(device) for each in outputs)

    def _padded(self, images: Tensor, batch: int) -> Outputs:
        full = F.pad(images, (0, 0) * 3 + (0, batch - len(images)))
        return tuple(each[: len(images)] for each in self.run([full]))

    def _check(self, images: Tensor) -> None:
        size, (height, width) = self.metadata.size, images.shape[2:]
        if self.metadata.dynamic:
            if min(height, width) < LEAST_SIDE:
                raise ValueError(
                    f"{printable(self.path)} takes images from {LEAST_SIDE} pixels on; these are "
                    f"{height}×{width}"
                )
        elif (height, width) != size:
            raise ValueError(
                f"{printable(self.path)} was exported for images of {size[0]}×{size[1]}, and these "
                f"are {height}×{width}: export it for that size (--img-size {height} {width}), or "
                "for all sizes (--dynamic)"
            )


class OnnxEngine(Engine):
    """An ``.onnx`` file in ONNX Runtime, on the CPU."""

    name, suffix = "onnx", ".onnx"

    def open(self, path: Path) -> str | None:
        """Open a session; return the entry of ``metadata_props``."""
        with needs("onnx"):
            import onnxruntime as ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors: it warns of every constant that it removes
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever the file makes the parser say
            raise _damaged(path, error) from error
        return self.session.get_modelmeta().custom_metadata_map.get(KEY)

    def run(self, inputs: Sequence[Tensor]) -> Outputs:
        """Run the session."""
        names = (each.name for each in self.session.get_inputs())
        feed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return tuple(map(torch.from_numpy, self.session.run(None, feed)))


class OpenVinoEngine(Engine):
    """An ``.xml`` file of OpenVINO, with its ``.bin``, on the CPU in float32."""

    name, suffix = "openvino", ".xml"

    def open(self, path: Path) -> str | None:
        """Compile the model; return the entry of ``rt_info``."""
        openvino = import_openvino()
        if not path.with_suffix(".bin").is_file():
            raise ValueError(f"{printable(path.with_suffix('.bin'))} is missing: the weights")
        # Else processors with bfloat16 compute in it, and the results differ in the third digit.
        wanted = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            model = openvino.Core().read_model(path)
            with keep_signal_stack():
                self.compiled = openvino.compile_model(model, "CPU", wanted)
        except RuntimeError as error:
            raise _damaged(path, error) from error
        return str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None

    def run(self, inputs: Sequence[Tensor]) -> Outputs:
        """Run the model."""
        found = self.compiled([each.numpy() for each in inputs])
        return tuple(torch.from_numpy(found[i].copy()) for i in range(len(found)))


class TorchExportEngine(Engine):
    """A ``.pt2`` file of ``torch.export``."""

    name, suffix = "torch-export", ".pt2"
    program: tuple[Callable[..., Any]]

    def open(self, path: Path) -> str | None:
        """Load the program; return the extra file."""
        text = _in_archive(path, f"/extra/{KEY}.json")
        if text is None:
            return None
        try:
            program = torch.export.load(path).module()
        except Exception as error:  # whatever the file makes the parser say
            raise _damaged(path, error) from error
        # In a tuple: as a submodule it would be moved and switched with the model around it.
        self.program = (program,)
        return text

    def run(self, inputs: Sequence[Tensor]) -> Outputs:
        """Run the program."""
        with torch.no_grad():
            found = self.program[0](*inputs)
        return tuple(found) if isinstance(found, tuple | list) else (found,)


class AotiEngine(TorchExportEngine):
    """A ``.pt2`` package of AOTInductor: machine code for the processor that compiled it."""

    name = "aoti"

    def open(self, path: Path) -> str | None:
        """Load the package; return the entry of its metadata."""
        text = _in_archive(path, ".wrapper_metadata.json")
        text = text and Field.of(read_json(text, str(path)), str(path)).get(KEY, "").text()
        if not text:
            return None
        try:
            self.program = (torch._inductor.aoti_load_package(str(path)),)
        except Exception as error:  # of another machine, say
            raise _damaged(path, error) from error
        return text


#: Name of an engine of exported files -> its class.
FILE_ENGINES: dict[str, type[Engine]] = {
    kind.name: kind for kind in (OnnxEngine, OpenVinoEngine, TorchExportEngine, AotiEngine)
}
# Those that run a checkpoint as it is.
_OF_CHECKPOINTS = ("torch", "compile")


def check_engine(name: str | None) -> None:
    """Raise ``ValueError`` for an unknown engine; the nearest is named."""
    known = (*_OF_CHECKPOINTS, *FILE_ENGINES)
    if name is not None and name not in known:
        raise ValueError(f"unknown engine {name!r}{did_you_mean(name, known)}")


def engine_of_archive(path: Path) -> str:
    """Return which of the engines wrote a ``.pt2`` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/data/aotinductor/" in name for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from error
    return "aoti" if compiled else "torch-export"


def _in_archive(path: Path, end: str) -> str | None:
    """Return the text of the only part of a zip file whose name ends so, without running it."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [part for part in archive.infolist() if part.filename.endswith(end)]
            if len(found) != 1 or found[0].file_size > _MOST_METADATA:
                return None
            return archive.read(found[0]).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = printable(error, limit=300)
    return ValueError(f"{printable(path)} cannot be opened ({type(error).__name__}: {reason})")
