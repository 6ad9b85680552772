"""The RMT network, with timm's model protocol."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from timm.models._manipulate import named_apply
from torch import Tensor, nn

from rmt.modeling.layers import ConvStem, Head, PatchStem, Stage
from rmt.modeling.pretrained import Pretrained
from rmt.variants import Variant, get_variant, variant_overrides


class NoHead(nn.Module):
    """In place of the head of a network that only gives features."""

    global_pool = ""

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, C, H, W)."""
        return x.permute(0, 3, 1, 2)


class RMT(Pretrained):
    """The classification network and backbone, with timm's model protocol.

    Args:
        variant: the architecture.
        num_classes: 0 gives pooled features (B, ``head_hidden_size``).
        in_chans: image channels.
        global_pool: ``"avg"``, or ``""`` for an unpooled map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth at the last block; None takes the variant's.
        token_labels: add the auxiliary head of token labelling (the starred models).
        aux_width: input width of that head: the last map's channels, or ``head_hidden``, as one
            file of the release has it; None for the former.

    Raises:
        ValueError: for a variant or option that does not fit together.
    """

    task = "classification"
    #: Arguments of the constructor that are no variant fields.
    OPTIONS = (
        "in_chans",
        "global_pool",
        "drop_rate",
        "drop_path_rate",
        "token_labels",
        "aux_width",
    )

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        token_labels: bool = False,
        aux_width: int | None = None,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.info: dict[str, Any] = {}
        self.pretrained_cfg: dict[str, Any] = {}  # timm fills it with the transforms
        self.in_chans = in_chans
        self._args = {
            "in_chans": in_chans,
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
            "token_labels": token_labels,
            "aux_width": aux_width,
        }
        self.num_classes = num_classes
        self.num_features = variant.dims[-1]
        self.head_hidden_size = variant.head_hidden or self.num_features
        self.grad_checkpointing = False
        rate = variant.drop_path_rate if drop_path_rate is None else drop_path_rate
        rates = iter(torch.linspace(0, rate, sum(variant.depths), device="cpu").tolist())
        if variant.stem == "conv":
            self.stem = ConvStem(in_chans, variant.dims[0])
        else:
            self.stem = PatchStem(in_chans, variant.dims[0], variant.patch_size)
        self.stages = nn.ModuleList(
            Stage(variant, i, list(islice(rates, depth))) for i, depth in enumerate(variant.depths)
        )
        self.head: Head | NoHead = Head(
            self.num_features, variant.head_hidden, num_classes, global_pool, drop_rate
        )
        self.aux_width = (aux_width or self.num_features) if token_labels else 0
        if self.aux_width not in (0, self.num_features, self.head_hidden_size):
            raise ValueError(
                f"aux_width is {aux_width}; the auxiliary head reads the last map "
                f"({self.num_features}) or the head's tokens ({self.head_hidden_size})"
            )
        self.aux_head = self._new_aux_head()
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{i}"}
            for i, (dim, stride) in enumerate(zip(variant.dims, variant.reductions, strict=True))
        ]
        self.init_weights()

    @property
    def body(self) -> RMT:
        """Return this network: it makes the feature maps itself."""
        return self

    @property
    def config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` and timm's ``local-dir:`` need to build this model."""
        return {
            "architecture": self.variant.name,
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "model_args": self._args
            | {"global_pool": self.head.global_pool}
            | variant_overrides(self.variant),
            "pretrained_cfg": dict(self.pretrained_cfg) | {"num_classes": self.num_classes},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RMT:
        """Build the model that :attr:`config` describes, with fresh weights.

        Raises:
            ValueError: for a variant or option that this version does not know.
        """
        args = dict(config["model_args"])
        own = {key: args.pop(key) for key in tuple(args) if key in cls.OPTIONS}
        variant = get_variant(config["architecture"], **args)
        model = cls(variant, num_classes=config["num_classes"], **own)
        model.pretrained_cfg = dict(config.get("pretrained_cfg", {}))
        return model

    def init_weights(self) -> None:
        """Draw weights as the release does: truncated normal 0.02 for linear layers, zero bias."""
        named_apply(_init_module, self)

    def forward(self, x: Tensor, mixed: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Classify images.

        Args:
            x: (B, in_chans, H, W), normalised; any H, W >= 1.
            mixed: (⌈H/4⌉, ⌈W/4⌉), True where the stem's map is taken from the image at the other
                end of the batch (MixToken, arXiv 2104.10858, section 3.2).

        Returns:
            (B, num_classes). With token labels, in training: a pair of those logits and the
            dense ones (B, h, w, num_classes) of the last map; in evaluation: class logits plus
            half the maximum of the dense ones over the tokens.

        Raises:
            ValueError: if ``x`` has not four axes or not ``in_chans`` channels.
        """
        x = self._last_map(x, mixed)
        logits = self.head(x)
        if self.aux_head is None:
            return logits
        dense = self.dense_logits(x)
        if self.training:
            return logits, dense
        best = dense.amax(dim=(1, 2))
        return logits + 0.5 * (best if self.head.global_pool else best[:, :, None, None])

    def dense_logits(self, x: Tensor) -> Tensor:
        """Return the auxiliary head's logits of every token of the last map: (B, h, w, classes)."""
        assert self.aux_head is not None
        wide = self.aux_width != self.num_features
        if not wide:
            return self.aux_head(x)
        assert isinstance(self.head, Head)
        return self.aux_head(self.head.tokens(x))

    def stem_map(self, x: Tensor) -> Tensor:
        """Return the stem's map of images (B, in_chans, H, W): (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"expected images (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
        return self.stem(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, (B, C, h, w)."""
        return self._last_map(x).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or with ``pre_logits`` the features before the classifier."""
        return self.head(x.permute(0, 2, 3, 1), pre_logits)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        assert isinstance(self.head, Head), "this network was pruned to features"
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (and the auxiliary one) for ``num_classes`` classes."""
        assert isinstance(self.head, Head), "this network was pruned to features"
        self.num_classes = num_classes
        self.info.pop("label_names", None)  # of the classes that were
        self.head.reset(num_classes, self.head.global_pool if global_pool is None else global_pool)
        self.aux_head = self._new_aux_head()
        for layer in (self.head.fc, self.aux_head):
            if layer is not None:
                layer.to(next(self.stages.parameters()))
                _init_module(layer)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, equal output."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def _last_map(self, x: Tensor, mixed: Tensor | None = None) -> Tensor:
        x = self.stem_map(x)
        if mixed is not None:
            x = torch.where(mixed[..., None], x.flip(0), x)
        for stage in self.stages:
            x = stage(x)
        return x

    def _new_aux_head(self) -> nn.Linear | None:
        if not (self.aux_width and self.num_classes):
            return None
        return nn.Linear(self.aux_width, self.num_classes)

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


def _init_module(module: nn.Module, name: str = "") -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
