"""Task: the contract that classification, detection and segmentation fulfil, and their table.

Everything above this module (weights, training, tools) works through a :class:`Task` and does not
name any. What training and prediction need is imported when it is first asked for, so that loading
weights imports neither data sets nor plotting libraries. The module is long because it is a list:
the contract, and the table of those who fulfil it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from rmt import classification, detection, segmentation
from rmt.classification.models import Classifier
from rmt.classification.recipe import ClassificationRecipe
from rmt.detection.detector import Detector
from rmt.detection.recipe import DetectionRecipe
from rmt.messages import did_you_mean
from rmt.modeling.pretrained import Pretrained
from rmt.recipes.schema import Recipe
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.segmenter import Segmenter

if TYPE_CHECKING:
    from rmt.data.loaders import DataModule
    from rmt.data.splits import Samples
    from rmt.modeling.graphs import Exports, Graph
    from rmt.modeling.saved import Description

R = TypeVar("R", bound=Recipe)
R_in = TypeVar("R_in", bound=Recipe, contravariant=True)
M = TypeVar("M", bound=Pretrained)
O = TypeVar("O")  # noqa: E741 - options of prediction

Named = dict[str, Tensor]


@runtime_checkable
class OpenData(Protocol[R_in]):
    """Opens the data set of a recipe."""

    def __call__(
        self, recipe: R_in, *, classes: Sequence[str] | None = None
    ) -> DataModule[Any, Any]:
        """Return the opened data.

        Args:
            recipe: of the task.
            classes: names of a trained model's classes; the data may then lack images of some.

        Raises:
            ValueError: if there is nothing that can be read.
        """
        ...


@runtime_checkable
class Criterion(Protocol):
    """The losses of a training batch."""

    def __call__(self, network: Callable[..., Any], batch: Any) -> tuple[Named, Named]:
        """Return the named losses, whose sum is minimised, and other values to log.

        Args:
            network: the model to train, possibly compiled.
            batch: of the task's training loader.
        """
        ...


@runtime_checkable
class Metrics(Protocol):
    """The metrics of one set of weights over a split; also an ``nn.Module``.

    After :meth:`compute`, ``notes`` has warnings about the numbers.
    """

    notes: list[str]

    def update(self, model: nn.Module, batch: Any) -> None:
        """Evaluate a batch of the task's evaluation loader, which may be empty."""
        ...

    def compute(self) -> dict[str, float]:
        """Return metric -> value over all processes, ``images`` among them, and reset.

        Raises:
            ValueError: if no image could be read.
        """
        ...


@runtime_checkable
class BatchPredictor(Protocol):
    """Predicts images in two steps: the first can run ahead, in the background."""

    def prepare(self, image: Image.Image) -> Tensor:
        """Return an RGB image as the second step takes it; runs in any thread."""
        ...

    def shape(self, pixels: Tensor) -> tuple[int, ...]:
        """Return what prepared images must have in common to be predicted at once."""
        ...

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return plain values of each prepared image; they are those of the image alone."""
        ...


@runtime_checkable
class Annotations(Protocol):
    """A data set made of predictions, for annotation tools."""

    def add(self, path: Path, stem: str, result: dict[str, Any]) -> None:
        """Take the result of an image file, whose copy will be named ``stem``."""
        ...

    def close(self) -> None:
        """Write the data set."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training(Generic[R, M]):
    """What training and evaluating need of a task.

    Attributes:
        open_data: opens a recipe's data set.
        criterion: losses of a model to train, and the training images if they are opened.
        metrics: of a model on the samples to evaluate; True adds the metrics of each class.
        check: raises ``ValueError`` for mistakes in a recipe that only a run would notice.
        knn: evaluates features by k nearest neighbours; None for tasks without it.
        any_class_order: whether the data may list the model's classes in another order.
        same_classes: whether two lists of different names mean the same classes.
    """

    open_data: OpenData[R]
    criterion: Callable[[R, M, Any], Criterion]
    metrics: Callable[[R, M, Any, bool], Metrics]
    check: Callable[[R], None]
    knn: Callable[[M, R, int], tuple[dict[str, float], Samples]] | None = None
    any_class_order: bool = False
    same_classes: Callable[[Sequence[str], Sequence[str]], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction(Generic[R, M, O]):
    """What predicting, explaining and reporting need of a task.

    Attributes:
        options: dataclass of the user's options.
        default_options: the options that the weights were evaluated with.
        predictor: from RGB images to plain values.
        embedder: from RGB images to ``{"embedding": (C,) float32}``.
        record: the JSON record of a result.
        draw: a result on its image; the sizes of images and drawings go together.
        save: draws a result on its image, writes that to a folder, and returns the JSON record.
        pixels: an image as the model sees it: (C, H, W) normalised, and the same as a PIL image.
        draw_report: writes plots of a run's evaluation to a folder; file name -> what it shows.
        draw_evaluation: predicts the test images of opened data, and writes plots and a table of
            all images to a folder; file name -> what it shows.
        annotations: writes detections as a data set in a format, for a model, to a folder; None
            for tasks without.
        batch_size: images that the command predicts at once if nothing else is asked for.
    """

    options: type[O]
    default_options: Callable[[M], O]
    predictor: Callable[[M, O], BatchPredictor]
    embedder: Callable[[M, O], BatchPredictor]
    record: Callable[[dict[str, Any]], dict[str, Any]]
    draw: Callable[[dict[str, Any], Image.Image], Image.Image]
    save: Callable[[dict[str, Any], Image.Image, Path, str], dict[str, Any]]
    pixels: Callable[[M, Image.Image], tuple[Tensor, Image.Image]]
    draw_report: Callable[[M, R, Path], dict[str, str]]
    draw_evaluation: Callable[[M, Any, Path], dict[str, str]]
    annotations: Callable[[M, Path, str], Annotations] | None = None
    batch_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Deployment(Generic[M]):
    """What exporting needs of a task.

    Attributes:
        graphs: a model and the size (h, w) of its images -> name -> part that is exported.
        size_of: the size (h, w) to export a model for if none is asked for.
        transforms: what turns an image into the network's input, as plain values.
        label_names: names of the model's classes.
        exported: the model whose networks are exported graphs.
        set_size: lets a model see images as its export for a size does.
        agreement: of a model and its export, on images -> what it is, and in percent.
        least_agreement: of an export in 8 bits.
        multiple: both sides of the images must be a multiple of it.
        any_size: whether one graph can take images of all sizes, and several at once.
        sizes_vary: whether the network is given images of many sizes, unless told otherwise.
        inputs: images (B, C, H, W) -> what a model of the task is called with.
    """

    graphs: Callable[[M, tuple[int, int]], dict[str, Graph]]
    size_of: Callable[[M], tuple[int, int]]
    transforms: Callable[[M], dict[str, Any]]
    label_names: Callable[[M], list[str]]
    exported: Callable[[Description, Exports], M]
    set_size: Callable[..., None]
    agreement: Callable[[M, M, Sequence[Image.Image]], tuple[str, float]]
    least_agreement: float = 99.0
    multiple: int = 1
    any_size: bool = True
    sizes_vary: bool = False
    inputs: Callable[[Tensor], Tensor | list[Tensor]] = lambda images: images


@dataclass(frozen=True, kw_only=True)
class Task(Generic[R, M, O]):
    """A kind of model with its data, training and prediction.

    Attributes:
        name: as in recipes and files.
        recipe: class of its recipes.
        from_config: builds the model that a ``config`` describes, randomly initialised.
        new_model: builds the model of a recipe for some classes, randomly initialised.
        default_recipe: content of a recipe to evaluate a model that has none.
        monitor: metric that decides which weights of a recipe are best; larger is better.
        charted: metrics that a run's learning curve shows.
        reference_classes: number of classes of the published data set.
        reference_images: number of its training images.
        countable: the part of a model whose cost does not depend on the image's content.
        counted_size: the size (h, w) that its cost is counted at: that of the recipe's evaluation.
        train_size: largest usual size (h, w) of a training image, which decides on the memory.
        training: what training and evaluating need.
        prediction: what predicting needs.
        deployment: what exporting needs.
    """

    name: str
    recipe: type[R]
    from_config: Callable[[dict[str, Any]], M]
    new_model: Callable[[R, Sequence[str]], M]
    default_recipe: Callable[[M], dict[str, Any]]
    monitor: Callable[[R], str]
    charted: tuple[str, ...]
    reference_classes: int
    reference_images: int
    countable: Callable[[M], nn.Module]
    counted_size: Callable[[R], tuple[int, int]]
    train_size: Callable[[R], tuple[int, int]]
    training: Callable[[], Training[R, M]]
    prediction: Callable[[], Prediction[R, M, O]]
    deployment: Callable[[], Deployment[M]]


@cache
def _classification_training() -> Training[ClassificationRecipe, Classifier]:
    from rmt.classification.datamodule import ClassificationData
    from rmt.classification.datasets.imagenet import same_imagenet
    from rmt.classification.knn import evaluate_knn
    from rmt.classification.losses import ClassificationLoss, check_recipe
    from rmt.classification.metrics import metrics_of
    from rmt.classification.multi_label import MultiLabelLoss

    return Training(
        open_data=ClassificationData,
        criterion=lambda recipe, model, train: (
            MultiLabelLoss if recipe.data.multi_label else ClassificationLoss
        )(recipe, model, train),
        metrics=lambda recipe, model, samples, per_class: metrics_of(
            model, samples, per_class=per_class
        ),
        check=check_recipe,
        knn=evaluate_knn,
        same_classes=same_imagenet,
    )


@cache
def _classification_prediction() -> Prediction:
    from rmt.classification import evaluation, plots, predict

    return Prediction(
        options=predict.Options,
        default_options=predict.default_options,
        predictor=predict.ClassPredictor,
        embedder=predict.ClassEmbedder,
        batch_size=16,
        record=lambda result: result,
        draw=predict.draw,
        save=predict.save_prediction,
        pixels=predict.pixels,
        draw_report=plots.draw,
        draw_evaluation=evaluation.draw,
    )


@cache
def _classification_deployment() -> Deployment:
    from rmt.classification import exported, graphs, predict

    return Deployment(
        graphs=graphs.graphs,
        size_of=graphs.size_of,
        transforms=graphs.transforms,
        label_names=predict.label_names,
        exported=exported.ExportedClassifier,
        set_size=lambda model, size, any_size: None,  # its transform resizes
        agreement=graphs.agreement,
        least_agreement=98.0,
    )


@cache
def _detection_training() -> Training[DetectionRecipe, Detector]:
    from rmt.detection.datamodule import DetectionData
    from rmt.detection.metrics import DetectionMetrics, check_recipe

    return Training(
        open_data=DetectionData,
        criterion=lambda recipe, model, train: _sized_by_the_pipeline,
        metrics=lambda recipe, model, samples, per_class: DetectionMetrics(
            model, samples, per_class=per_class
        ),
        check=check_recipe,
        any_class_order=True,
    )


def _sized_by_the_pipeline(network: Callable[..., Any], batch: Any) -> tuple[Named, Named]:
    images, targets = batch
    return network(images, targets, resize=False), {}


@cache
def _detection_prediction() -> Prediction:
    from rmt.detection import evaluation, plots, predict
    from rmt.detection.annotate import AnnotationWriter

    return Prediction(
        options=predict.Options,
        default_options=lambda model: predict.Options(),
        predictor=predict.ObjectPredictor,
        embedder=predict.BackboneEmbedder,
        annotations=AnnotationWriter,
        record=lambda result: result,
        draw=predict.draw,
        save=predict.save_prediction,
        pixels=predict.pixels,
        draw_report=plots.draw,
        draw_evaluation=evaluation.draw,
    )


@cache
def _detection_deployment() -> Deployment:
    from rmt.detection import exported, graphs, predict

    return Deployment(
        graphs=graphs.graphs,
        size_of=graphs.size_of,
        transforms=graphs.transforms,
        label_names=predict.label_names,
        exported=exported.exported,
        set_size=exported.set_size,
        agreement=graphs.agreement,
        multiple=32,
        any_size=False,
        inputs=list,
    )


@cache
def _segmentation_training() -> Training[SegmentationRecipe, Segmenter]:
    from rmt.segmentation.datamodule import SegmentationData
    from rmt.segmentation.metrics import SegmentationMetrics

    return Training(
        open_data=SegmentationData,
        criterion=lambda recipe, model, train: lambda network, batch: (network(*batch), {}),
        metrics=lambda recipe, model, samples, per_class: SegmentationMetrics(
            samples.classes, recipe.inference, per_class=per_class
        ),
        check=lambda recipe: None,
    )


@cache
def _segmentation_prediction() -> Prediction:
    from rmt.segmentation import evaluation, plots, predict
    from rmt.segmentation.recipe import Inference

    return Prediction(
        options=Inference,
        default_options=predict.options_of,
        predictor=predict.LabelMapPredictor,
        embedder=predict.BackboneEmbedder,
        record=predict.record,
        draw=predict.draw,
        save=predict.save_prediction,
        pixels=predict.pixels,
        draw_report=plots.draw,
        draw_evaluation=evaluation.draw,
    )


@cache
def _segmentation_deployment() -> Deployment:
    from rmt.segmentation import exported, graphs, predict

    return Deployment(
        graphs=graphs.graphs,
        size_of=graphs.size_of,
        transforms=graphs.transforms,
        label_names=predict.label_names,
        exported=exported.exported,
        set_size=exported.set_size,
        agreement=graphs.agreement,
        sizes_vary=True,
    )


#: Task name -> its contract.
TASKS: dict[str, Task[Any, Any, Any]] = {
    task.name: task
    for task in (
        Task(
            name=classification.TASK,
            recipe=ClassificationRecipe,
            from_config=classification.from_config,
            new_model=classification.new_model,
            default_recipe=classification.default_recipe,
            monitor=lambda recipe: "mAP" if recipe.data.multi_label else "top1",
            charted=("top1", "mAP"),
            reference_classes=1000,  # ImageNet-1K
            reference_images=1_281_167,
            countable=lambda model: model,
            counted_size=lambda recipe: (recipe.data.side,) * 2,
            train_size=lambda recipe: (recipe.data.side,) * 2,
            training=_classification_training,
            prediction=_classification_prediction,
            deployment=_classification_deployment,
        ),
        Task(
            name=Detector.task,
            recipe=DetectionRecipe,
            from_config=detection.from_config,
            new_model=detection.new_model,
            default_recipe=detection.default_recipe,
            monitor=lambda recipe: "box_AP",
            charted=("box_AP", "box_AP50", "mask_AP"),
            reference_classes=80,  # COCO 2017, images with a box
            reference_images=117_266,
            # The cost of the heads depends on the image.
            countable=lambda model: nn.Sequential(model.backbone, model.neck),
            counted_size=lambda recipe: recipe.model.size_of(recipe.model.min_size),
            train_size=lambda recipe: recipe.model.size_of(
                max(recipe.augment.min_sizes or (recipe.model.min_size,))
            ),
            training=_detection_training,
            prediction=_detection_prediction,
            deployment=_detection_deployment,
        ),
        Task(
            name=Segmenter.task,
            recipe=SegmentationRecipe,
            from_config=Segmenter.from_config,
            new_model=segmentation.new_model,
            default_recipe=segmentation.default_recipe,
            monitor=lambda recipe: "mIoU",
            charted=("mIoU", "aAcc"),
            reference_classes=150,  # ADE20K
            reference_images=20_210,
            countable=lambda model: model,
            counted_size=lambda recipe: (recipe.data.crop,) * 2,
            train_size=lambda recipe: (recipe.data.crop,) * 2,
            training=_segmentation_training,
            prediction=_segmentation_prediction,
            deployment=_segmentation_deployment,
        ),
    )
}


def get_task(name: str) -> Task[Any, Any, Any]:
    """Return the contract of a task.

    Raises:
        ValueError: for an unknown name; the nearest is named.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{did_you_mean(str(name), TASKS)}")
    return TASKS[name]
