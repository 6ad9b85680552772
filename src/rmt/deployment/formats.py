"""Graphs to files: ONNX, OpenVINO, torch.export and AOTInductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmt.deployment.engines import LEAST_SIDE
from rmt.deployment.libraries import import_openvino, needs
from rmt.deployment.metadata import KEY
from rmt.deployment.quantize import quantize_onnx, quantize_openvino
from rmt.modeling.graphs import Graph, Outputs

#: Inputs of a graph on images that show what its activations are like; for 8 bits.
Calibration = Sequence[Outputs]


def write_onnx(
    graph: Graph, path: Path, text: str, *, images: Tensor, dynamic: bool, calibration: Calibration
) -> None:
    """Write a graph as ONNX; ``text`` goes into ``metadata_props``.

    Args:
        graph: to write.
        path: of the file.
        text: the metadata.
        images: normalised images (B, C, H, W) of the size and number to export for.
        dynamic: take other sizes and numbers too.
        calibration: nothing for float32.
    """
    with needs("onnx"):
        import onnxscript  # noqa: F401 - torch's exporter asks for it
    program, axes = _exported(graph, images, dynamic=dynamic)
    with _quiet():
        converted = _to_onnx(graph, program, dynamic=dynamic)
    converted.rename_axes(axes)
    converted.model.metadata_props[KEY] = text
    if calibration:
        whole = path.with_name(f"float_{path.name}")
        converted.save(whole)
        quantize_onnx(whole, path, graph.inputs, calibration)
        whole.unlink()
    else:
        converted.save(path)


def _to_onnx(graph: Graph, program: Any, *, dynamic: bool) -> Any:
    """Return the ONNX program.

    Raises:
        ValueError: if an operation of the graph cannot be exported for all sizes.
    """
    try:
        return torch.onnx.export(
            program,
            dynamo=True,
            input_names=graph.inputs,
            output_names=graph.outputs,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        if not dynamic:
            raise
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"this model cannot be exported to ONNX for all sizes ({reason}): leave out --dynamic, "
            "and name a size (--img-size)"
        ) from error


def write_openvino(
    graph: Graph, path: Path, text: str, *, images: Tensor, dynamic: bool, calibration: Calibration
) -> None:
    """Write a graph for OpenVINO, ``.xml`` and ``.bin``; ``text`` goes into ``rt_info``.

    It is read from ONNX: its own reader of torch's programs does not know suppression.
    """
    openvino = import_openvino()
    onnx = path.with_suffix(".onnx")
    write_onnx(graph, onnx, text, images=images, dynamic=dynamic, calibration=())
    model = openvino.Core().read_model(onnx)
    if calibration:
        model = quantize_openvino(model, graph.inputs, calibration)
    model.set_rt_info(text, [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)
    onnx.unlink()


def write_torch_export(
    graph: Graph, path: Path, text: str, *, images: Tensor, dynamic: bool, calibration: Calibration
) -> None:
    """Write a graph by ``torch.export``; ``text`` is an extra file in the archive."""
    assert not calibration
    program, _ = _exported(graph, images, dynamic=dynamic)
    torch.export.save(program, path, extra_files={f"{KEY}.json": text})


def write_aoti(
    graph: Graph, path: Path, text: str, *, images: Tensor, dynamic: bool, calibration: Calibration
) -> None:
    """Compile a graph by AOTInductor; ``text`` goes into the package's metadata."""
    assert not calibration
    program, _ = _exported(graph, images, dynamic=dynamic)
    with _quiet():
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {KEY: text}},
        )


#: Format, which is also the engine that reads it -> what writes it.
FORMATS: dict[str, Callable[..., None]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "torch-export": write_torch_export,
    "aoti": write_aoti,
}
#: Formats that can have 8 bits.
INT8 = ("openvino", "onnx")


def _exported(graph: Graph, images: Tensor, *, dynamic: bool) -> tuple[Any, dict[str, str]]:
    """Return torch's program of a graph, and names for its free axes."""
    inputs = graph.examples(images)
    free: dict[int, Any] = {}
    if graph.regions:
        free = {0: torch.export.Dim("regions", min=1, max=100_000)}
    elif dynamic:
        sides = {axis: torch.export.Dim(name, min=LEAST_SIDE) for axis, name in _SIDES.items()}
        free = {0: torch.export.Dim("batch", min=1), **sides}
    shapes = (free, *(None for _ in inputs[1:])) if free else None
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph.module, inputs, dynamic_shapes=shapes)
    own: Any = program.graph_signature.user_inputs
    first: Any = next(node for node in program.graph.nodes if node.name == own[0])
    shape = first.meta["val"].shape
    return program, {str(shape[axis]): dim.__name__ for axis, dim in free.items()}


_SIDES = {2: "height", 3: "width"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch warns of itself while it exports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
