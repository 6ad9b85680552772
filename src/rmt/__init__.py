"""RMT: Retentive Networks Meet Vision Transformers, as a vision backbone for today's PyTorch.

``import rmt`` registers the models with timm and does nothing else. Anything beyond models is
imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.registry import create_model, list_models
from rmt.modeling.rmt import RMT
from rmt.ops import manhattan_attention
from rmt.version import __version__

if TYPE_CHECKING:
    from rmt.allocator import keep_memory
    from rmt.deployment.benchmark import benchmark
    from rmt.deployment.export import export
    from rmt.detection import create_detector
    from rmt.segmentation import create_segmenter
    from rmt.tools import explain
    from rmt.tools.predict import Predictor
    from rmt.weights.load import convert, load, save
    from rmt.weights.load import load as from_pretrained

__all__ = [
    "RMT",
    "ManhattanAttention",
    "Predictor",
    "__version__",
    "benchmark",
    "convert",
    "create_detector",
    "create_model",
    "create_segmenter",
    "explain",
    "export",
    "from_pretrained",
    "keep_memory",
    "list_models",
    "load",
    "manhattan_attention",
    "save",
]


def __getattr__(name: str) -> Any:
    value: Any
    match name:
        case "Predictor":
            from rmt.tools.predict import Predictor

            value = Predictor
        case "benchmark":
            from rmt.deployment.benchmark import benchmark as value
        case "create_detector":
            from rmt.detection import create_detector as value
        case "create_segmenter":
            from rmt.segmentation import create_segmenter as value
        case "explain":
            from rmt.tools import explain as value
        case "export":
            from rmt.deployment.export import export as value
        case "keep_memory":
            from rmt.allocator import keep_memory as value
        case "load" | "from_pretrained":
            from rmt.weights.load import load as value
        case "convert":
            from rmt.weights.load import convert as value
        case "save":
            from rmt.weights.load import save as value
        case _:
            raise AttributeError(f"module 'rmt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
