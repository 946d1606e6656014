"""DetInferencer: a checkpoint turned into a function from images to detections."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from detkit import config as configs
from detkit.checkpoints import class_names, load_weights, open_checkpoint
from detkit.engine.data.labels import check_heads
from detkit.engine.environment import select_device
from detkit.registry import MODELS, TRANSFORMS, building
from detkit.structures import DetDataSample
from detkit.structures.masks.run_lengths import decode_run_lengths
from detkit.transforms import LoadImageFromNDArray
from detkit.visualization import draw_instances

__all__ = ["IMAGE_SUFFIXES", "DetInferencer", "Detections"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

Path_ = str | os.PathLike[str]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the most certain first.

    Attributes:
        image: Path of the image, or None for one given as an array.
        boxes: (D, 4) float32 xyxy in pixels of the upright image.
        scores: (D,) float32 in [0, 1].
        labels: (D,) int64, index into the classes of the checkpoint.
        names: Class name of each.
        masks: (D, H, W) bool, or None where the model predicts none.
    """

    image: str | None
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: list[str]
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; masks are left out."""
        boxes, scores, labels = self.boxes.tolist(), self.scores.tolist(), self.labels.tolist()
        return {"image": self.image, "boxes": boxes, "scores": scores, "labels": labels, "names": self.names}


class DetInferencer:
    """Finds objects in images with a trained detector; its numbers are those of the evaluation.

    Model, test pipeline and class names come from the checkpoint. Of what it carries nothing is run; its config can
    only name registered classes and, as ``custom_imports``, modules that are installed here.

    Args:
        checkpoint: A checkpoint of a training run.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``; CUDA where there is one if None.
        config: A config file, or a loaded one, instead of the one that the checkpoint carries.
        classes: Class names in label order, for a checkpoint that carries none.
        score_thr: Detections of lower score are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint is unreadable, lacks config or class names and they are not given, or its weights
            or classes do not fit the model.
    """

    def __init__(
        self,
        checkpoint: Path_,
        device: str | None = None,
        config: Path_ | Mapping[str, Any] | Config | None = None,
        classes: Sequence[str] | None = None,
        score_thr: float = 0.3,
    ) -> None:
        content = open_checkpoint(checkpoint)
        self.config = _config_of(content, config, checkpoint)
        self.classes = _classes_of(content, classes, checkpoint)
        self.score_thr = score_thr
        self.device = select_device(device)
        # Names inside mmcv's own modules are looked up in the scope of the moment; in ours, ours come first.
        with DefaultScope.overwrite_default_scope("detkit"):
            self.model: Any = _build_model(self.config)
            self._load_image, self._transforms = _build_pipeline(self.config)
        check_heads(self.model, SimpleNamespace(metainfo={"classes": self.classes}), str(checkpoint))
        load_weights(self.model, content, strict=True, name=str(checkpoint))
        self.model.to(self.device).eval()

    def __call__(
        self,
        images: Path_ | Pixels | Sequence[Path_ | Pixels],
        batch_size: int = 8,
        out_dir: Path_ | None = None,
        score_thr: float | None = None,
    ) -> list[Detections]:
        """Find objects.

        Args:
            images: Image files, folders of them, (H, W, 3) uint8 BGR arrays, or a sequence of these.
            batch_size: Images that go through the model at once.
            out_dir: Folder for pictures of the detections, ``<image>_detections.jpg``; none are drawn if None.
            score_thr: Instead of the inferencer's.

        Returns:
            One per image, in the order given; a folder's in the order of their names.

        Raises:
            FileNotFoundError: There is no such file or folder.
            ValueError: A folder without images, a file or array that is no image, or a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: at least 1 was expected, got {batch_size}")
        score_thr = self.score_thr if score_thr is None else score_thr
        sources = list(_expand(images))
        pictures = _Pictures(out_dir, self.classes) if out_dir is not None else None
        found: list[Detections] = []
        for start in range(0, len(sources), batch_size):
            batch = sources[start : start + batch_size]
            loaded = [self._load(source) for source in batch]
            originals = [results["img"] for results in loaded]
            for source, original, sample in zip(batch, originals, self._predict(loaded), strict=True):
                path = source if isinstance(source, str) else None
                found.append(self._detections(path, sample, score_thr))
                if pictures is not None:
                    pictures.write(original, found[-1])
        return found

    def _load(self, source: str | Pixels) -> dict[str, Any]:
        if isinstance(source, str):
            return self._load_image({"img_path": source, "img_id": source})
        to_float32 = getattr(self._load_image, "to_float32", False)
        return LoadImageFromNDArray(to_float32).transform({"img": source, "img_id": None})

    @torch.no_grad()
    def _predict(self, loaded: Sequence[dict[str, Any]]) -> list[DetDataSample]:
        """Predictions in the order given.

        Images of one shape go through the model together. With others in its batch an image would be padded
        further, and its numbers would depend on its company.
        """
        by_shape: dict[torch.Size, list[tuple[int, dict[str, Any]]]] = {}
        for number, results in enumerate(loaded):
            for transform in self._transforms:
                results = transform(results)
            by_shape.setdefault(results["inputs"].shape, []).append((number, results))
        predicted: dict[int, DetDataSample] = {}
        for group in by_shape.values():
            numbers = [number for number, _ in group]
            batch = {key: [results[key] for _, results in group] for key in ("inputs", "data_samples")}
            predicted.update(zip(numbers, self.model.test_step(batch), strict=True))
        return [predicted[number] for number in range(len(loaded))]

    def _detections(self, path: str | None, sample: DetDataSample, score_thr: float) -> Detections:
        predicted: InstanceData = sample.pred_instances.cpu()
        predicted = predicted[predicted.scores >= score_thr]
        predicted = predicted[predicted.scores.argsort(descending=True, stable=True)]
        labels = predicted.labels.numpy()
        return Detections(
            image=path,
            boxes=predicted.bboxes.float().numpy(),
            scores=predicted.scores.float().numpy(),
            labels=labels,
            names=[self.classes[label] for label in labels],
            masks=_bitmaps(predicted.masks) if "masks" in predicted else None,
        )


def _bitmaps(masks: Any) -> NDArray[np.bool_]:
    """(D, H, W) of masks as a model predicts them: a tensor, or run lengths."""
    return decode_run_lengths(masks) if isinstance(masks, (list, tuple)) else np.asarray(masks).astype(bool)


class _Pictures:
    """Writes one picture per image, never over another of this call."""

    def __init__(self, folder: Path_, classes: Sequence[str]) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._classes = classes
        self._names: set[str] = set()

    def write(self, image: NDArray[Any], found: Detections) -> None:
        """Draw ``found`` on ``image`` (H, W, 3) BGR."""
        stem = Path(found.image).stem if found.image else "image"
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        picture = draw_instances(
            np.ascontiguousarray(image[..., ::-1]).astype(np.uint8),
            found.boxes,
            found.labels.tolist(),
            self._classes,
            scores=found.scores.tolist(),
            masks=found.masks,
        )
        Image.fromarray(picture).save(self._folder / f"{name}_detections.jpg", quality=92)


def _config_of(content: Mapping[str, Any], config: Any, checkpoint: Path_) -> Mapping[str, Any]:
    if isinstance(config, (Mapping, Config)):
        return config
    if config is not None:
        return configs.load(os.fspath(config))
    text = (content.get("meta") or {}).get("cfg")
    if not text:
        raise ValueError(f"{checkpoint}: carries no config; give the one it was trained with (config)")
    return configs.loads(text)


def _classes_of(content: Mapping[str, Any], classes: Sequence[str] | None, checkpoint: Path_) -> tuple[str, ...]:
    names = class_names(content) if classes is None else classes
    if not names:
        raise ValueError(f"{checkpoint}: carries no class names; give them in label order (classes)")
    return tuple(names)


def _build_model(config: Mapping[str, Any]) -> nn.Module:
    model = config["model"]
    with building("model", model):
        return MODELS.build(model)


def _build_pipeline(config: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The transform that loads an image, and those after it, without the ones that load annotations."""
    place = next((name for name in ("test_dataloader", "val_dataloader") if config.get(name)), None)
    if place is None:
        raise ValueError("the config has neither test_dataloader nor val_dataloader: no pipeline for inference")
    dataset = config[place]["dataset"]
    while "pipeline" not in dataset and "dataset" in dataset:  # a wrapper around the data set
        dataset = dataset["dataset"]
    with building(place, config[place]):
        steps = [step for step in dataset["pipeline"] if not _type_name(step).endswith("Annotations")]
        if not steps or not _type_name(steps[0]).startswith("LoadImage"):
            raise ValueError(f"{place}.dataset.pipeline: must begin with LoadImageFromFile, got {steps[:1]}")
        first, *others = (TRANSFORMS.build(step) for step in steps)
    return first, others


def _type_name(step: Mapping[str, Any]) -> str:
    kind = step["type"]
    return kind if isinstance(kind, str) else kind.__name__


def _expand(images: Any) -> Iterable[str | Pixels]:
    """Every image of files, folders, arrays and sequences of these."""
    if isinstance(images, np.ndarray):
        if images.ndim != 3 or images.shape[2] != 3 or images.dtype != np.uint8 or not images.size:
            raise ValueError(f"an image (H, W, 3) uint8 BGR was expected, got {images.shape} {images.dtype}")
        yield images
    elif isinstance(images, (str, os.PathLike)):
        path = Path(images)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such image or folder")
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)})")
        yield from map(str, files)
    elif isinstance(images, Sequence):
        for image in images:
            yield from _expand(image)
    else:
        raise TypeError(f"images: paths, arrays or a list of these were expected, got {type(images).__name__}")
