"""RMT: Retentive Networks Meet Vision Transformers, as a vision backbone for today's PyTorch.

``import rmt`` registers the models with timm; nothing else happens.
"""

from rmt.model import RMT, ManhattanAttention
from rmt.ops import manhattan_attention
from rmt.registry import create_model, list_models
from rmt.version import __version__

__all__ = [
    "RMT",
    "ManhattanAttention",
    "__version__",
    "create_model",
    "list_models",
    "manhattan_attention",
]
