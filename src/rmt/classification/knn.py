"""k-nearest-neighbour evaluation: how well features separate classes, without training a head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rmt.classification.datamodule import ClassificationData
from rmt.classification.metrics import TOP
from rmt.classification.models import Classifier
from rmt.classification.recipe import ClassificationRecipe
from rmt.classification.samples import Samples
from rmt.modeling.pretrained import in_use

#: From arXiv 1805.01978: the weight of a neighbour's vote is exp(cosine / 0.07).
TEMPERATURE = 0.07


def evaluate_knn(
    model: Classifier, recipe: ClassificationRecipe, count: int
) -> tuple[dict[str, float], Samples]:
    """Classify each test image by its nearest training images, weighted by similarity.

    Features are the input of the last linear layer, normalised to unit length. All images go
    through the evaluation transform. The model's own classes do not matter.

    Args:
        model: the network whose features are evaluated.
        recipe: its ``data`` says where training and test images are.
        count: k, the number of neighbours that vote.

    Returns:
        ``knn_top1`` and, of more than five classes, ``knn_top5`` in percent with the number of
        images, and these images.

    Raises:
        ValueError: if there are fewer training images than ``count``, or no test image.
    """
    if count < 1:
        raise ValueError(f"--knn is {count}; it must be at least 1, and 20 is usual")
    data = ClassificationData(recipe)
    if data.recipe.data.multi_label:
        raise ValueError("--knn gives each image one class, and these images have several labels")
    with in_use(model, accelerator=recipe.trainer.accelerator):
        return _accuracy(model, data, count), data.splits.evaluated


def _accuracy(model: Classifier, data: ClassificationData, count: int) -> dict[str, float]:
    train = data.splits.train
    known = [] if train is None else list(_features(model, data, train))
    if sum(len(labels) for _, labels in known) < count:
        raise ValueError(
            f"--knn is {count}, but the training split has only "
            f"{sum(len(own) for _, own in known)} readable images; lower --knn, or "
            "data.val_fraction if it is 1"
        )
    features, labels = (torch.cat(parts) for parts in zip(*known, strict=True))
    hits, images = torch.zeros(2), 0
    for queries, truth in _features(model, data, data.splits.evaluated):
        votes = vote(queries, features, labels, count=count, classes=len(data.classes))
        best = votes.topk(min(TOP, votes.shape[1])).indices == truth[:, None]
        hits += torch.stack([best[:, 0].sum(), best.any(1).sum()]).cpu()
        images += len(truth)
    if not images:
        raise ValueError("none of the images to evaluate can be read")
    top1, top5 = (100 * hits / images).tolist()
    found = {"knn_top1": top1} | ({"knn_top5": top5} if len(data.classes) > TOP else {})
    return found | {"images": float(images)}


def vote(queries: Tensor, features: Tensor, labels: Tensor, *, count: int, classes: int) -> Tensor:
    """Return each class's votes, (B, classes).

    Args:
        queries: (B, C), of unit length.
        features: (N, C) features of the training images, of unit length.
        labels: (N,) their classes.
        count: number of neighbours that vote.
        classes: number of classes.
    """
    similarity, nearest = (queries @ features.T).topk(count)
    votes = queries.new_zeros(len(queries), classes)
    return votes.scatter_add_(1, labels[nearest], (similarity / TEMPERATURE).exp())


@torch.inference_mode()
def _features(
    model: Classifier, data: ClassificationData, samples: Samples
) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for images, labels, _ in data.eval_loader(samples):
        if len(labels):
            maps = model.forward_features(images.to(device))
            found = model.forward_head(maps, pre_logits=True)
            yield F.normalize(found.float()), labels.to(device)
