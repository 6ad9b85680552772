"""What a benchmark runs: a model in one form, engine and precision, on images of one size.

Models that are named are randomly initialised, because weights do not change what a network costs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch

from rmt.classification.timm_model import TimmClassifier, takes_one_size
from rmt.deployment.engines import FILE_ENGINES, Engine, TorchExportEngine
from rmt.deployment.load import engine_for, exported_file, open_exported, through_file
from rmt.messages import printable
from rmt.modeling.bounded import build_on_meta
from rmt.modeling.flops import Flops, count
from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.registry import create_model
from rmt.task import get_task
from rmt.variants import VARIANTS
from rmt.weights.load import load

Size = tuple[int, int]
#: Name of a precision -> that of the network and its images.
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


# Of models of timm that do not say theirs.
_USUAL: Size = (224, 224)


def _with_reference(model: Pretrained) -> Pretrained:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ManhattanAttention):
            module.backend = "reference"
    return model


#: Form of a network with Manhattan attention -> what makes it: folded; as it is trained; with the
#: attention that computes what the release does, in its order.
FORMS: dict[str, Callable[[Pretrained], Pretrained]] = {
    "fused": Pretrained.fuse,
    "plain": copy.deepcopy,
    "reference": _with_reference,
}


@dataclass(frozen=True)
class Source:
    """A model that is compared, in eval mode on the CPU.

    Attributes:
        name: as the caller wrote it.
        build: size of the images -> the model.
        size: height and width of the images that the model is for.
        batch: the only number of images at once; None takes any.
        engine: the only one, of an exported file; None takes those for checkpoints.
        precision: of the numbers in an exported file.
    """

    name: str
    build: Callable[[Size], Pretrained]
    size: Size
    batch: int | None = None
    engine: str | None = None
    precision: str = "float32"

    @classmethod
    def open(cls, name: str | Path, engines: Sequence[str]) -> Source:
        """Find out what a name is: a model of ours or of timm, a checkpoint, or an exported file.

        Args:
            name: of it.
            engines: that were asked for; one of a ``.pt2`` file must be among them.

        Raises:
            FileNotFoundError: if it is none of them.
            ValueError: if a file cannot be read.
        """
        text = str(name)
        if text in VARIANTS:
            return cls.of(text, create_model(text).eval())
        if timm.is_model(text) and text.partition(".")[0] not in VARIANTS:
            return cls.of_timm(text)
        file = exported_file(name)
        return cls.of(text, load(name)) if file is None else cls.of_export(text, file, engines)

    @classmethod
    def of(cls, name: str, model: Pretrained) -> Source:
        """Return the source of a model."""
        return cls(name, lambda _: model, get_task(model.task).deployment().size_of(model))

    @classmethod
    def of_timm(cls, name: str) -> Source:
        """Return the source of a model of timm; those for one size are built for each anew."""

        @lru_cache(1)
        def build(size: Size) -> Pretrained:
            img_size = size if takes_one_size(name) else None
            return TimmClassifier(name, 1000, img_size=img_size).eval()

        config = timm.get_pretrained_cfg(name)
        height, width = config.input_size[1:] if config else _USUAL
        return cls(name, build, (height, width))

    @classmethod
    def of_export(cls, name: str, file: Path, engines: Sequence[str]) -> Source:
        """Return the source of an exported file."""
        runs_code = file.suffix.lower() == TorchExportEngine.suffix  # so it is to be named
        asked = [name for name in engines if runs_code and name in ("torch-export", "aoti")]
        kind = engine_for(file, asked[0] if asked else None)
        model = open_exported(file, kind)
        about = _engine(model).metadata
        return cls(
            name,
            lambda _: model,
            about.size,
            batch=None if about.dynamic else about.batch,
            engine=kind.name,
            precision="int8" if about.int8 else "float32",
        )

    def forms(self) -> tuple[str | None, ...]:
        """Return the forms that the model has, None for the only one."""
        if self.engine is not None:
            return ("fused",)
        modules = self.build(self.size).modules()
        ours = any(isinstance(module, ManhattanAttention) for module in modules)
        return tuple(FORMS) if ours else (None,)

    def cost(self, size: Size) -> Flops:
        """Count parameters and operations of the part whose cost is that of any image."""
        model = self.build(size)
        task = get_task(model.task)
        if self.engine is not None:
            config = _engine(model).metadata.model.config
            model = build_on_meta(task.from_config, config, {}, name=printable(self.name))
        return count(task.countable(model), size)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of a benchmark.

    Attributes:
        source: the model.
        size: height and width of the images.
        batch: number of images at once.
        engine: what runs the network.
        form: of the network; None if it has only one.
        precision: of weights, images and operations.
    """

    source: Source
    size: Size
    batch: int
    engine: str
    form: str | None
    precision: str

    @property
    def label(self) -> str:
        """Return what tells a candidate from others of its size, without what is usual."""
        parts = (self.form, self.engine, self.precision)
        unusual = [own for own in parts if own and own not in ("torch", "float32")]
        return " ".join([printable(self.source.name), *unusual])

    def prepare(self, device: torch.device) -> Callable[[], Any]:
        """Return a function that runs the network once, on images that lie on the device.

        Raises:
            ValueError: if the model cannot be had so.
        """
        if self.source.batch not in (None, self.batch):
            raise ValueError(
                f"the file takes {self.source.batch} images at once; export it for {self.batch} "
                f"(--batch {self.batch}), or for any number (--dynamic)"
            )
        dtype = PRECISIONS.get(self.precision, torch.float32)
        model = self._model().to(device=device, dtype=dtype)
        deployment = get_task(model.task).deployment()
        if self.source.engine is None:
            deployment.set_size(model, self.size, any_size=False)
        if self.engine == "compile":
            model.compile(dynamic=False)
        channels: Any = getattr(model, "in_chans", 3)
        shape = self.batch, channels, *self.size
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        inputs = deployment.inputs(images.to(device=device, dtype=dtype))
        return lambda: model(inputs)

    def _model(self) -> Pretrained:
        model = self.source.build(self.size)
        if self.source.engine is not None:
            return model
        if self.engine in FILE_ENGINES:
            return through_file(
                model, self.engine, img_size=self.size, batch_size=self.batch, dynamic=False
            )
        return FORMS[self.form or "plain"](model)


def candidates_of(
    source: Source,
    *,
    engines: Sequence[str],
    forms: Sequence[str],
    precisions: Sequence[str],
    size: Size,
    batch: int,
) -> list[Candidate]:
    """Return a model's candidates for images of one size and batch, in the order asked for.

    Exported networks are fused and in float32; the reference runs eagerly.

    Args:
        source: the model.
        engines: that run it; an exported file has its own.
        forms: of networks that have several.
        precisions: names of them.
        size: height and width of the images.
        batch: number of images at once.
    """
    images: dict[str, Any] = {"size": size, "batch": batch}
    if source.engine is not None:
        own = {"engine": source.engine, "form": "fused", "precision": source.precision}
        return [Candidate(source=source, **own, **images)]
    known = source.forms()
    found = []
    for engine in engines:
        for form in [form for form in forms if form in known] if None not in known else [None]:
            for precision in precisions:
                exported = engine in FILE_ENGINES
                if exported and (form not in ("fused", None) or precision != "float32"):
                    continue
                if form == "reference" and engine != "torch":
                    continue
                about = {"engine": engine, "form": form, "precision": precision}
                found.append(Candidate(source=source, **about, **images))
    return found


def _engine(model: Pretrained) -> Engine:
    return next(each for each in model.modules() if isinstance(each, Engine))
