"""Detections as a data set, for annotation tools to correct: in the formats that training reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rmt.detection.convert import new_folder, writer_of
from rmt.detection.detector import Detector
from rmt.detection.predict import label_names
from rmt.detection.rle import run_lengths


class AnnotationWriter:
    """Collects detections and writes them, with copies of the images, as a data set.

    COCO's form keeps boxes, masks and scores; YOLO's and VOC's keep boxes.

    Args:
        model: whose classes become the categories.
        folder: to write into; must not hold a data set.
        to: name of the format: ``coco``, ``yolo`` or ``voc``.

    Raises:
        ValueError: for an unknown format, or a folder that is not empty.
    """

    def __init__(self, model: Detector, folder: Path, to: str) -> None:
        self._write, self.folder = writer_of(to), new_folder(folder)
        self._files: list[tuple[Path, str]] = []
        self._images: list[dict[str, Any]] = []
        self._objects: list[dict[str, Any]] = []
        self._categories = [
            {"id": i, "name": name} for i, name in enumerate(label_names(model), start=1)
        ]

    def add(self, path: Path, stem: str, result: dict[str, Any]) -> None:
        """Take the detections of an image, whose copy will be named ``stem``."""
        (height, width), number = result["size"], len(self._images) + 1
        name = f"{stem}{path.suffix}"
        self._files.append((path, name))
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})
        for found in result["detections"]:
            x0, y0, x1, y1 = found["box"]
            if x1 <= x0 or y1 <= y0:
                continue  # nothing to see or to correct
            entry = {
                "id": len(self._objects) + 1,
                "image_id": number,
                "category_id": found["label"] + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": found["score"],
            }
            if "mask" in found:
                entry["segmentation"] = found["mask"]
                entry["area"] = sum(run_lengths(found["mask"]["counts"])[1::2])
            self._objects.append(entry)

    def close(self) -> None:
        """Write the data set, as a single split ``train``.

        Raises:
            OSError: if that fails.
        """
        content = {
            "images": self._images,
            "annotations": self._objects,
            "categories": self._categories,
        }
        images = self._write(self.folder, "train", content)
        for path, name in self._files:
            shutil.copy2(path, images / name)
