"""Any other classifier of timm, as a model of this package: a baseline in the same recipe."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from rmt.messages import did_you_mean
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.registry import list_models

#: What a file says of the transforms that the weights were trained with.
_TRANSFORMS = ("input_size", "crop_pct", "interpolation", "mean", "std", "license")


def takes_one_size(name: str) -> bool:
    """Return whether a model of timm is built for images of one size, ``img_size``."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return config is not None and config.fixed_input_size


class TimmClassifier(Pretrained):
    """A classifier of timm, randomly initialised.

    Args:
        name: of the model in timm.
        num_classes: number of classes.
        drop_rate: dropout before the classifier; 0 leaves the model's own.
        drop_path_rate: stochastic depth; None takes the model's own.
        img_size: side (or height and width) of the images, for models that are built for one size;
            None for others.

    Attributes:
        network: timm's model; its parameters are ``network.NAME`` here.
        pretrained_cfg: the transforms of its weights.

    Raises:
        ValueError: for a name that timm does not know (the nearest variant of ours is named), or an
            argument that the model does not take.
    """

    task = "classification"
    in_chans = 3
    aux_head: nn.Module | None = None

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        img_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(
                f"unknown model {name!r}: neither an RMT variant nor a model of timm"
                f"{did_you_mean(name, list_models())}"
            )
        self.name, self.num_classes = name, num_classes
        self.info: dict[str, Any] = {}
        given = {
            "drop_rate": drop_rate or None,
            "drop_path_rate": drop_path_rate,
            "img_size": img_size,
        }
        self._args: dict[str, Any] = {
            key: value for key, value in given.items() if value is not None
        }
        try:
            self.network = timm.create_model(name, num_classes=num_classes, **self._args)
        except TypeError as error:
            raise ValueError(
                f"timm's {name} does not take these options: {self._args} ({error}); leave them out"
            ) from error
        cfg: Any = self.network.pretrained_cfg
        self.pretrained_cfg = {key: cfg[key] for key in _TRANSFORMS if cfg.get(key) is not None}

    @property
    def body(self) -> nn.Module:
        """Return timm's model."""
        return self.network

    @property
    def config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to build this model again."""
        return {
            "architecture": self.name,
            "num_classes": self.num_classes,
            "model_args": dict(self._args),
            "pretrained_cfg": dict(self.pretrained_cfg),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TimmClassifier:
        """Build the model that ``config`` describes, randomly initialised.

        Raises:
            ValueError: if timm does not know it.
        """
        model = cls(config["architecture"], config["num_classes"], **config["model_args"])
        model.pretrained_cfg |= config.get("pretrained_cfg") or {}
        return model

    @property
    def layers_by_depth(self) -> nn.Module | None:
        """Return timm's model if it orders its layers by depth, see :class:`Pretrained`."""
        return self.network if hasattr(self.network, "group_matcher") else None

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised -> logits (B, ``num_classes``).

        Raises:
            ValueError: if the model does not take images of this size.
        """
        try:
            return self.network(x)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
                raise
            raise ValueError(
                f"{self.name} failed on images of {tuple(x.shape[1:])}: {error}; set "
                "data.input_size to a size that it takes"
            ) from error

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the model's last map or tokens."""
        features: Any = self.network.forward_features
        return features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` returns -> logits, or (B, C) features before the classifier."""
        head: Any = self.network.forward_head
        return head(x, pre_logits=pre_logits)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass.

        Raises:
            ValueError: if the model has no blocks that can be recomputed.
        """
        switch: Any = getattr(self.network, "set_grad_checkpointing", None)
        try:
            if switch is None:
                raise NotImplementedError
            switch(enable)
        except (AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"timm's {self.name} cannot recompute its blocks; set trainer.grad_checkpointing "
                "to false"
            ) from error
