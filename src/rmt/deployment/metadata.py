"""What an exported file says of itself, so that it is enough by itself.

It is JSON under the name ``rmt``, wherever a format keeps such things. No path is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rmt.modeling.pretrained import Pretrained
from rmt.modeling.saved import Description, without_paths
from rmt.task import get_task
from rmt.untrusted import Field, read_json

#: The name of the metadata in each format.
KEY = "rmt"
_HINT = "Export the checkpoint again, with `rmt export`"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The description of an exported model.

    Attributes:
        model: which model it is.
        parts: names of its graphs.
        size: height and width of the images that it was exported for.
        batch: number of images that a graph takes at once.
        dynamic: whether it takes other sizes and numbers too.
        int8: whether weights and activations have 8 bits.
        transforms: what turns an image into the network's input.
        classes: names of the classes.
        digest: SHA-256 of the weights before they were fused.
    """

    model: Description
    parts: tuple[str, ...]
    size: tuple[int, int]
    batch: int
    dynamic: bool
    int8: bool
    transforms: Mapping[str, Any]
    classes: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, model: Pretrained, **about: Any) -> Self:
        """Return the metadata of a model; ``about`` has what the export decides."""
        deployment = get_task(model.task).deployment()
        described = without_paths(model.describe())
        return cls(
            model=Description(task=model.task, config=described["config"], info=described["info"]),
            transforms=deployment.transforms(model),
            classes=tuple(deployment.label_names(model)),
            **about,
        )

    def text(self) -> str:
        """Return the JSON that :meth:`read` reads."""
        return json.dumps(
            self.model.as_dict()
            | {
                "transforms": {
                    **self.transforms,
                    "size": list(self.size),
                    "batch": self.batch,
                    "dynamic": self.dynamic,
                },
                "classes": list(self.classes),
                "parts": list(self.parts),
                "int8": self.int8,
                "sha256_of_weights": self.digest,
            },
            allow_nan=False,
        )

    @classmethod
    def read(cls, text: str | None, name: str) -> Metadata:
        """Return what :meth:`text` wrote, every entry checked.

        Args:
            text: from a file; None if it has no such entry.
            name: of the file, for messages.

        Raises:
            ValueError: if this package did not export the file, or an entry is impossible.
        """
        if text is None:
            raise ValueError(
                f"{name} does not say which model it is: it was not exported by `rmt export`"
            )
        content = read_json(text, f"{name}: {KEY!r} in the metadata")
        top = Field.of(content, f"{name}: {KEY!r} in the metadata", hint=_HINT)
        model = Description.read(content, top.file)
        get_task(model.task)
        transforms = top["transforms"]
        sides = [side.whole(least=1, most=16384) for side in transforms["size"].items()]
        if len(sides) != 2:
            raise transforms["size"].error("is not a height and a width")
        parts = tuple(each.text() for each in top["parts"].items())
        if not parts or any(
            not part.replace("_", "").isalnum() for part in parts
        ):  # they are names of files
            raise top["parts"].error("is not a list of names of graphs")
        own = ("size", "batch", "dynamic")
        return cls(
            model=model,
            parts=parts,
            size=(sides[0], sides[1]),
            batch=transforms["batch"].whole(least=1, most=65536),
            dynamic=transforms["dynamic"].flag(),
            int8=top["int8"].flag(),
            transforms={k: v for k, v in transforms.mapping().items() if k not in own},
            classes=tuple(each.text() for each in top["classes"].items()),
            digest=top["sha256_of_weights"].text(),
        )
