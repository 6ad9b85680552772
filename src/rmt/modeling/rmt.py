"""The RMT network: stem, stages and head of :mod:`rmt.modeling.layers`, with timm's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any, Literal

import torch
from timm.models._features import feature_take_indices
from timm.models._manipulate import named_apply
from torch import Tensor, nn

from rmt.modeling.layers import ConvStem, Head, PatchStem, Stage, init_linear
from rmt.modeling.pretrained import Pretrained
from rmt.variants import Variant, get_variant, variant_overrides


@dataclass(frozen=True, kw_only=True)
class RMTOptions:
    """Options of an RMT besides its architecture and the number of classes.

    Attributes:
        in_chans: image channels.
        global_pool: ``"avg"``, or ``""`` for an unpooled map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth at the last block; None takes the variant's.
        token_labels: with the auxiliary head of token labelling (the starred models).
        aux_width: input width of that head: the channels of the last map, or ``head_hidden``, as in
            one file of the release; None for the former.
    """

    in_chans: int = 3
    global_pool: str = "avg"
    drop_rate: float = 0.0
    drop_path_rate: float | None = None
    token_labels: bool = False
    aux_width: int | None = None


# Leaves of a torch.fx graph: what they do depends on sizes or on an argument that may be None.
torch.fx.wrap("check_images")
torch.fx.wrap("mix_tokens")


def check_images(x: Tensor, channels: int) -> Tensor:
    """Return ``x`` if it is (B, ``channels``, H, W); otherwise raise ``ValueError``."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"expected images (B, {channels}, H, W), got {tuple(x.shape)}")
    return x


def mix_tokens(x: Tensor, mixed: Tensor | None) -> Tensor:
    """Take the ``mixed`` (H, W) tokens of a map (B, H, W, C) from the mirrored place in the batch.

    MixToken, arXiv 2104.10858, sec. 3.2; None takes none.
    """
    return x if mixed is None else torch.where(mixed[..., None], x.flip(0), x)


#: Names of the options; with the fields of a variant, all that ``model_args`` may hold.
OPTION_NAMES = tuple(field.name for field in fields(RMTOptions))


class PrunedHead(Head):
    """The head of a pruned network: returns the map until :meth:`reset` makes it a classifier.

    Args:
        dim: C, the channels of the network's last map.
        drop_rate: dropout before the linear layer, once there is one.
    """

    def __init__(self, dim: int, drop_rate: float) -> None:
        super().__init__(dim, 0, 0, "", drop_rate)
        self.norm = nn.Identity()

    def tokens(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), unchanged."""
        return x


class RMT(Pretrained):
    """The classification network and backbone, with timm's model protocol.

    Args:
        variant: the architecture.
        num_classes: 0 gives pooled features (B, ``head_hidden_size``).
        options: all other options; None takes the defaults.

    Raises:
        ValueError: for options that do not fit the architecture.
    """

    task = "classification"

    def __init__(
        self, variant: Variant, num_classes: int = 1000, *, options: RMTOptions | None = None
    ) -> None:
        super().__init__()
        options = options or RMTOptions()
        self.variant, self.options = variant, options
        self.info: dict[str, Any] = {}
        self.pretrained_cfg: dict[str, Any] = {}  # timm fills it with the transforms
        self.in_chans = options.in_chans
        self.num_classes = num_classes
        self.num_features = variant.dims[-1]
        self.head_hidden_size = variant.head_hidden or self.num_features
        self.grad_checkpointing = False
        self.token_label_training = False
        rate = options.drop_path_rate
        if rate is None:
            rate = variant.drop_path_rate
        rates = iter(torch.linspace(0, rate, sum(variant.depths), device="cpu").tolist())
        if variant.stem == "conv":
            self.stem = ConvStem(options.in_chans, variant.dims[0])
        else:
            self.stem = PatchStem(options.in_chans, variant.dims[0], variant.patch_size)
        self.stages = nn.ModuleList(
            Stage(variant, i, list(islice(rates, depth))) for i, depth in enumerate(variant.depths)
        )
        self.head = Head(
            self.num_features,
            variant.head_hidden,
            num_classes,
            options.global_pool,
            options.drop_rate,
        )
        self.aux_width = (options.aux_width or self.num_features) if options.token_labels else 0
        if self.aux_width not in (0, self.num_features, self.head_hidden_size):
            raise ValueError(
                f"aux_width is {options.aux_width}; the auxiliary head reads the last map "
                f"({self.num_features} channels) or the head's features of each token "
                f"({self.head_hidden_size})"
            )
        self.aux_head = self._new_aux_head()
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{i}"}
            for i, (dim, stride) in enumerate(zip(variant.dims, variant.reductions, strict=True))
        ]
        self.init_weights()

    @property
    def body(self) -> RMT:
        """Return this network: it computes the feature maps itself."""
        return self

    @property
    def layers_by_depth(self) -> RMT:
        """Return this network, see :meth:`group_matcher`."""
        return self

    @property
    def config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` and timm's ``local-dir:`` need to build this model."""
        return {
            "architecture": self.variant.name,
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            # reset_classifier may have changed it.
            "model_args": asdict(self.options)
            | {"global_pool": self.head.global_pool}
            | variant_overrides(self.variant),
            "pretrained_cfg": dict(self.pretrained_cfg) | {"num_classes": self.num_classes},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RMT:
        """Build the model that :attr:`config` describes, randomly initialised.

        Raises:
            ValueError: for a variant or option that this version does not know.
        """
        args = dict(config["model_args"])
        options = RMTOptions(**{key: args.pop(key) for key in OPTION_NAMES if key in args})
        variant = get_variant(config["architecture"], **args)
        model = cls(variant, config["num_classes"], options=options)
        model.pretrained_cfg = dict(config.get("pretrained_cfg", {}))
        return model

    def init_weights(self) -> None:
        """Initialise all linear layers: see :func:`rmt.modeling.layers.init_linear`."""
        named_apply(init_linear, self)

    def forward(self, x: Tensor, mixed: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Classify images.

        Args:
            x: (B, in_chans, H, W), normalised; any H, W >= 1, in pixels.
            mixed: (⌈H/4⌉, ⌈W/4⌉), True where a token of the stem's map is replaced by that of the
                image at the mirrored position in the batch (MixToken, arXiv 2104.10858, sec. 3.2).

        Returns:
            Logits (B, num_classes). A starred model adds to them half the maximum over the tokens
            of the logits of each token of the last map, (B, h, w, num_classes). In training, after
            :meth:`set_token_label_training`, it returns both as a pair instead.

        Raises:
            ValueError: if ``x`` does not have four axes and ``in_chans`` channels.
        """
        x = self._last_map(x, mixed)
        logits = self.head(x)
        if self.aux_head is None:
            return logits
        dense = self.dense_logits(x)
        if self.training and self.token_label_training:
            return logits, dense
        best = dense.amax(dim=(1, 2))
        return logits + 0.5 * (best if self.head.global_pool else best[:, :, None, None])

    def dense_logits(self, x: Tensor) -> Tensor:
        """Return the auxiliary head's logits for each token of the last map.

        Args:
            x: the last map, (B, h, w, C).

        Returns:
            (B, h, w, num_classes).
        """
        assert self.aux_head is not None
        if self.aux_width == self.num_features:
            return self.aux_head(x)
        return self.aux_head(self.head.tokens(x))

    def stem_map(self, x: Tensor) -> Tensor:
        """Return the stem's map of images (B, in_chans, H, W): (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        return self.stem(check_images(x, self.in_chans))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, (B, C, h, w)."""
        return self._last_map(x).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of the last map (B, C, h, w); with ``pre_logits`` the hidden features."""
        return self.head(x.permute(0, 2, 3, 1), pre_logits)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, or an ``nn.Identity`` if there are 0 classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the auxiliary one, for ``num_classes`` classes."""
        self.num_classes = num_classes
        self.info.pop("label_names", None)  # they name the previous classes
        self.head.reset(num_classes, self.head.global_pool if global_pool is None else global_pool)
        self.aux_head = self._new_aux_head()
        for layer in (self.head.fc, self.aux_head):
            if layer is not None:
                layer.to(next(self.stages.parameters())).train(self.training)
                init_linear(layer)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, the same results."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def set_token_label_training(self, enable: bool = True) -> None:
        """Return the logits of both heads of a starred model in training, for their two losses.

        As with timm's ``set_distilled_training``, a model returns one tensor until it is told to,
        so that any trainer can fine-tune it.
        """
        self.token_label_training = enable

    def _last_map(self, x: Tensor, mixed: Tensor | None = None) -> Tensor:
        x = mix_tokens(self.stem_map(x), mixed)
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
        """Return the maps of the chosen stages, and the last map.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages, negative ones counted from the end; an int n for the last n stages;
                None for all.
            norm: for timm's protocol; RMT has no norm after its stages.
            stop_early: do not run the stages after the last chosen one.
            output_fmt: axis order of the maps.
            intermediates_only: return the list of maps alone.

        Raises:
            ValueError: for an unknown ``output_fmt``.
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
        """Remove the stages after the last of ``indices``, and the head; return the indices.

        The network then returns the last map; :meth:`reset_classifier` gives it a classifier on
        the pooled map.
        """
        wanted, last = feature_take_indices(len(self.stages), _listed(indices))
        del self.stages[last + 1 :]
        if prune_head:
            self.num_classes = 0
            self.num_features = self.head_hidden_size = self.variant.dims[last]
            self.head = PrunedHead(self.num_features, self.head.drop_rate).train(self.training)
            self.aux_head, self.aux_width = None, 0
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
            ],  # the heads are not named: timm puts what is left into the last group
        }

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay, besides those of one dimension: none."""
        return set()


def _listed(indices: int | Sequence[int] | None) -> int | list[int] | None:
    return indices if indices is None or isinstance(indices, int) else list(indices)
