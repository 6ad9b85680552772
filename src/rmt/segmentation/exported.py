"""A segmenter whose network is an exported graph."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from rmt.modeling.bounded import build_on_meta
from rmt.modeling.graphs import Absent, Exported, Exports
from rmt.modeling.saved import Description
from rmt.segmentation.blocks import resize
from rmt.segmentation.segmenter import Segmenter

log = logging.getLogger(__name__)


class ExportedSegmenter(Exported, Segmenter):
    """A segmenter whose network is an exported graph; :func:`exported` puts it in."""

    backbone_type = Absent

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, full_size: bool = True
    ) -> Tensor:
        """Images (B, C, H, W), normalised -> logits (B, K, H, W), or at the stride of the head.

        Raises:
            ValueError: if labels are given, since an exported network is not trained; for images of
                another size than the graph's, or another number of classes.
        """
        if labels is not None:
            raise ValueError("an exported segmenter has no losses: train the checkpoint instead")
        logits = self.head(images)[0]
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the export returns {tuple(logits.shape)} for its {self.num_classes} classes"
            )
        return resize(logits, images.shape[2:]) if full_size else logits


def exported(described: Description, exports: Exports) -> Segmenter:
    """Return the segmenter whose network is the graph ``model``.

    A network of one square size sees images of other sizes through windows of that size.

    Raises:
        ValueError: if the description is impossible.
    """
    model = build_on_meta(
        ExportedSegmenter.from_config, described.config, {}, name="the exported file"
    )
    model.backbone, model.neck, model.aux_head = Absent(), nn.Identity(), None
    model.head = exports["model"]
    model.info = dict(described.info)
    set_size(model, exports.size, any_size=exports.any_size)
    if model.window:
        side = model.window
        log.warning("images of other sizes than %d×%d are seen through windows of it", side, side)
    return model.eval()


def set_size(model: Segmenter, size: tuple[int, int], *, any_size: bool) -> None:
    """Let a segmenter see images as its export for some size does."""
    height, width = size
    model.window = height if height == width and not any_size else 0
