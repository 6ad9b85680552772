"""What timm asks of a backbone besides logits: maps of each stage, pruning, layer groups.

timm's ``features_only``, its trainers and its layer-wise learning rates call these methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from rmt.hub import Pretrained


class NoHead(nn.Module):
    """In place of the head of a network that only gives features."""

    global_pool = ""

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, C, H, W)."""
        return x.permute(0, 3, 1, 2)


class TimmProtocol(Pretrained):
    """A network of a stem, ``stages`` on channels-last maps and a ``head``, as timm wants it."""

    stages: nn.ModuleList
    head: Any
    aux_head: nn.Module | None

    def stem_map(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the first stage's input, (B, h, w, C)."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NHWC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of chosen stages, and the last one unless only these are wanted.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages, negative ones from the end; an int for the last so many; None: all.
            norm: accepted for timm's protocol; RMT has no norm after its stages.
            stop_early: do not run stages that nobody asked for.
            output_fmt: axis order of the maps.
            intermediates_only: return the list alone.

        Raises:
            ValueError: for an ``output_fmt`` that does not exist.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; choose 'NCHW' or 'NHWC'")
        wanted, last = feature_take_indices(len(self.stages), _listed(indices))
        x = self.stem_map(x)
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in wanted:
                maps.append(x.permute(0, 3, 1, 2) if output_fmt == "NCHW" else x)
        return maps if intermediates_only else (x.permute(0, 3, 1, 2), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last wanted one, and the head; return the wanted stages."""
        wanted, last = feature_take_indices(len(self.stages), _listed(indices))
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.head = NoHead()
            self.aux_head = None
        return wanted

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's layer groups for layer-wise learning-rate decay."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            ],  # what is not named, the heads, is timm's last group
        }

    def no_weight_decay(self) -> set[str]:
        """Return names to keep from weight decay besides the 1-D parameters: none."""
        return set()


def _listed(indices: int | Sequence[int] | None) -> int | list[int] | None:
    return indices if indices is None or isinstance(indices, int) else list(indices)
