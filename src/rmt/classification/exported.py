"""A classifier whose network is an exported graph."""

from __future__ import annotations

from typing import Any, Never

from torch import Tensor, nn

from rmt.modeling.graphs import Absent, Exported, Exports
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.rmt import RMT
from rmt.modeling.saved import Description
from rmt.untrusted import Field


class ExportedClassifier(Exported, Pretrained):
    """A classifier whose network is an exported graph.

    Args:
        described: the model that was exported.
        exports: its graph, ``model``.
    """

    task = RMT.task
    aux_head: nn.Module | None = None

    def __init__(self, described: Description, exports: Exports) -> None:
        super().__init__()
        self._config = config = described.config | {"pretrained_cfg": {}}
        self.num_classes = config["num_classes"]
        self.info = dict(described.info)
        self.network = exports["model"]
        self.absent = Absent()
        cfg = dict(described.config.get("pretrained_cfg") or {})
        args = Field.of(config["model_args"], "config.model_args of the exported file")
        self.in_chans = args.get("in_chans", 3).whole(least=1, most=16384)
        self.pretrained_cfg = cfg | {"input_size": [self.in_chans, *exports.size]}
        if "data" in self.info.get("recipe", {}):
            recipe = self.info["recipe"]
            data = recipe["data"] | {"input_size": exports.size[1]}
            self.info["recipe"] = recipe | {"data": data}

    @property
    def config(self) -> dict[str, Any]:
        """Return the configuration of the model that was exported."""
        return self._config | {"pretrained_cfg": dict(self.pretrained_cfg)}

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised -> logits (B, ``num_classes``).

        Raises:
            ValueError: for images of another size than the graph's, or another number of classes.
        """
        logits = self.network(images)[0]
        if logits.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"the export returns {tuple(logits.shape)} for its {self.num_classes} classes"
            )
        return logits

    def forward_features(self, images: Tensor) -> Never:
        """Raise: features are inside the exported graph.

        Raises:
            ValueError: always.
        """
        raise self.absent.error()

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Never:
        """Raise, as :meth:`forward_features`."""
        raise self.absent.error()
