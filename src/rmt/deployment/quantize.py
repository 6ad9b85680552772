"""Networks in 8 bits: weights and activations, after a look at images of the user's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from rmt.deployment.libraries import import_openvino, needs
from rmt.deployment.signal_stack import keep_signal_stack
from rmt.modeling.graphs import Outputs


def quantize_openvino(model: Any, names: Sequence[str], calibration: Sequence[Outputs]) -> Any:
    """Return a model of OpenVINO in 8 bits, by NNCF's post-training quantisation.

    Args:
        model: in float32.
        names: of its inputs.
        calibration: inputs of images.
    """
    import_openvino()  # before NNCF, which has the same telemetry
    with needs("openvino"):
        import nncf
    logging.getLogger("nncf").setLevel(logging.ERROR)
    data = nncf.Dataset([*map(_arrays, calibration)])
    # On rmt_nano.tiny_imagenet, NNCF's smoothing of the inputs of products took the error from 11
    # to 106 % of the logits, and the agreement from 83 to 52 % (60 crops of photos, NNCF 3.4).
    smooth = nncf.quantization.advanced_parameters.AdvancedSmoothQuantParameters(matmul=-1)
    # It shows its progress, and compiles.
    with redirect_stdout(sys.stderr), keep_signal_stack():
        return nncf.quantize(
            model,
            data,
            # Without it, the attention loses its accuracy (anomalib 2298).
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth),
        )


def quantize_onnx(
    source: Path, path: Path, names: Sequence[str], calibration: Sequence[Outputs]
) -> None:
    """Write an ONNX file in 8 bits, by ONNX Runtime's static quantisation.

    Args:
        source: in float32.
        path: of the file to write.
        names: of the graph's inputs.
        calibration: inputs of images.
    """
    with needs("onnx"):
        import onnx
        from onnxruntime import quantization
    model = onnx.load(source)
    reader: Any = _Reader(names, calibration)  # it has what is asked of it
    # The exporter's own shapes contradict those of the quantised graph.
    del model.graph.value_info[:]
    quantization.quantize_static(
        model,
        path,
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
    )
    written = onnx.load(path)
    del written.metadata_props[:]
    written.metadata_props.extend(model.metadata_props)
    onnx.save(written, path)


class _Reader:
    """Inputs one after another, as ONNX Runtime asks for them."""

    def __init__(self, names: Sequence[str], calibration: Sequence[Outputs]) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter(
            [dict(zip(names, _arrays(own), strict=True)) for own in calibration]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next inputs, None at the end."""
        return next(self.feeds, None)


def _arrays(inputs: Outputs) -> list[np.ndarray]:
    return [each.numpy() for each in inputs]
