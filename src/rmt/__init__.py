"""RMT: Retentive Networks Meet Vision Transformers, as a vision backbone for today's PyTorch.

``import rmt`` registers the models with timm; nothing else happens. What needs more than a model
does is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.registry import create_model, list_models
from rmt.modeling.rmt import RMT
from rmt.ops import manhattan_attention
from rmt.version import __version__

if TYPE_CHECKING:
    from rmt.allocator import keep_memory
    from rmt.detection import create_detector
    from rmt.segmentation import create_segmenter
    from rmt.tools.predict import Predictor
    from rmt.weights.load import convert, load, save
    from rmt.weights.load import load as from_pretrained

__all__ = [
    "RMT",
    "ManhattanAttention",
    "Predictor",
    "__version__",
    "convert",
    "create_detector",
    "create_model",
    "create_segmenter",
    "from_pretrained",
    "keep_memory",
    "list_models",
    "load",
    "manhattan_attention",
    "save",
]

# Public name -> where it is, and its name there.
_ON_DEMAND = {
    "Predictor": ("rmt.tools.predict", "Predictor"),
    "convert": ("rmt.weights.load", "convert"),
    "create_detector": ("rmt.detection", "create_detector"),
    "create_segmenter": ("rmt.segmentation", "create_segmenter"),
    "from_pretrained": ("rmt.weights.load", "load"),
    "keep_memory": ("rmt.allocator", "keep_memory"),
    "load": ("rmt.weights.load", "load"),
    "save": ("rmt.weights.load", "save"),
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module 'rmt' has no attribute {name!r}")
    module, original = _ON_DEMAND[name]
    value = getattr(import_module(module), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
