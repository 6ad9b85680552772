"""Training and judging a classifier."""

from __future__ import annotations

from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from rmt.classification.recipe import ClassificationRecipe
from rmt.engine import Engine
from rmt.model import RMT
from rmt.registry import create_model


class ClassificationTask(Engine):
    """A classifier with its loss (soft cross-entropy of mixed images) and top-1 / top-5.

    Args:
        recipe: of the run.
        classes: class names of the data.
        model: to judge; None makes a fresh one to train.

    Raises:
        ValueError: if the model has another number of classes than the data.
    """

    key = "top1"

    def __init__(
        self, recipe: ClassificationRecipe, classes: tuple[str, ...], *, model: RMT | None = None
    ) -> None:
        super().__init__(model or new_model(recipe, classes), recipe)
        if self.model.num_classes != len(classes):
            raise ValueError(
                f"the model has {self.model.num_classes} classes and the data {len(classes)}"
            )
        augment = recipe.augment
        self.mixup = None
        if augment.mixup or augment.cutmix:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                switch_prob=augment.switch,
                label_smoothing=augment.smoothing,
                num_classes=len(classes),
            )
        count, top = len(classes), min(5, len(classes))
        self.judges = nn.ModuleDict(
            {
                weights: MetricCollection(
                    {
                        "top1": MulticlassAccuracy(count, average="micro"),
                        "top5": MulticlassAccuracy(count, average="micro", top_k=top),
                        "confusion": MulticlassConfusionMatrix(count),
                    }
                )
                for weights in self.kept_weights()
            }
        )
        self.confusion: dict[str, list[list[int]]] = {}
        self._smooth = LabelSmoothingCrossEntropy(augment.smoothing)
        self._soft = SoftTargetCrossEntropy()

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch of images (B, 3, S, S) and labels (B,)."""
        images, labels = batch
        if self.mixup is not None and len(images) % 2 == 0:
            images, targets = self.mixup(images, labels)
            logits = self.network(images)
            return {"class": self._soft(logits, targets)}
        logits = self.network(images)
        hit = (logits.detach().argmax(1) == labels).float().mean()
        self.log("accuracy", hit, prog_bar=True)
        return {"class": self._smooth(logits, labels)}

    def score(self, weights: str, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """Count hits of a batch of images, labels and indices; an empty batch counts nothing."""
        images, labels, _ = batch
        if len(labels):
            self.judges[weights].update(model(images).float(), labels)

    def metrics(self, weights: str) -> dict[str, float]:
        """Return top-1 and top-5 in percent, and the number of images judged."""
        found = self.judges[weights].compute()
        self.judges[weights].reset()
        confusion = found.pop("confusion")
        self.confusion[weights] = confusion.tolist()
        percent = {name: 100 * value.item() for name, value in found.items()}
        return percent | {"images": float(confusion.sum())}


def new_model(recipe: ClassificationRecipe, classes: tuple[str, ...]) -> RMT:
    """Return the recipe's network with fresh weights."""
    wanted = recipe.model
    if wanted.num_classes not in (None, len(classes)):
        raise ValueError(f"model.num_classes is {wanted.num_classes}; the data has {len(classes)}")
    model = create_model(
        wanted.name,
        len(classes),
        drop_path_rate=wanted.drop_path_rate,
        drop_rate=wanted.drop_rate,
        token_labels=wanted.token_labels,
    )
    model.info["label_names"] = list(classes)
    model.pretrained_cfg |= transforms_of(recipe)
    for name, parameter in model.named_parameters():
        if name.startswith(wanted.freeze):
            parameter.requires_grad_(False)
    return model


def transforms_of(recipe: ClassificationRecipe) -> dict[str, object]:
    """Return what the weights need to know of the pictures they were trained on."""
    data = recipe.data
    return {
        "input_size": (3, data.input_size, data.input_size),
        "crop_pct": data.crop_pct,
        "interpolation": "bicubic" if data.interpolation == "random" else data.interpolation,
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "license": "other",
    }
