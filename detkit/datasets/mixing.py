"""A dataset whose pipeline mixes several images of another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from detkit.datasets.partners import Partners
from detkit.registry import DATASETS, TRANSFORMS, find, nearest

__all__ = ["MultiImageMixDataset", "step_names"]


@DATASETS.register_module()
class MultiImageMixDataset(Dataset):
    """Images of ``dataset`` taken through a pipeline whose steps may mix in others of it, such as Mosaic and MixUp.

    ``dataset``'s own pipeline loads an image and its annotations. An image that is mixed in has been through that
    pipeline only. Which ones they are is drawn by the sample's own generators, so that a sample does not depend on
    the number of workers, and is the same after resuming.

    Args:
        dataset: The dataset, or its config.
        pipeline: Steps, as configs.
        skip_type_keys: Types of steps to leave out where there are any; hooks change it, such as YOLOXModeSwitchHook.
        max_refetch: How many other random images are tried when a step returns None.
        lazy_init: Read nothing until ``full_init`` or the first access.

    Raises:
        TypeError: A step that is no config, or a dataset that is none.
        ValueError: ``skip_type_keys`` names a type that no step has.
    """

    def __init__(
        self,
        dataset: Dataset | Mapping[str, Any],
        pipeline: Sequence[Mapping[str, Any]],
        skip_type_keys: Sequence[str] | None = None,
        max_refetch: int = 15,
        lazy_init: bool = False,
    ) -> None:
        steps = []
        for step in pipeline:
            if not isinstance(step, Mapping):
                raise TypeError(f"pipeline: steps as dicts with a 'type' were expected, got {step!r}")
            steps.append(TRANSFORMS.build(step))
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        if not isinstance(self.dataset, Dataset):
            raise TypeError(f"dataset: a dataset or its config was expected, got {dataset!r}")
        self.pipeline = Compose(steps)
        self.max_refetch = max_refetch
        self._skipped: frozenset[str] = frozenset()
        if skip_type_keys is not None:
            self.update_skip_type_keys(skip_type_keys)
        self._partners = Partners(self.dataset, self._load, through_steps=False)
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        """The wrapped dataset's."""
        return copy.deepcopy(self.dataset.metainfo)

    @property
    def image_sizes(self) -> np.ndarray:
        """(N, 2) int64, width and height of each image before the pipeline."""
        return self.dataset.image_sizes

    @property
    def test_mode(self) -> bool:
        """The wrapped dataset's."""
        return getattr(self.dataset, "test_mode", False)

    def full_init(self) -> None:
        """Read the wrapped dataset."""
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()

    def get_data_info(self, idx: int) -> dict:
        """The record of image ``idx``."""
        return self.dataset.get_data_info(idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects in image ``idx``, one per object."""
        return self.dataset.get_cat_ids(idx)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        """The sample of image ``idx``, or of a random other one while the pipeline returns None.

        Raises:
            RuntimeError: The pipeline returned None for ``max_refetch`` more images.
        """
        steps = self._steps()
        start = idx
        for _ in range(self.max_refetch + 1):
            sample = self._prepare(steps, idx)
            if sample is not None:
                return sample
            idx = int(np.random.randint(len(self.dataset)))
        raise RuntimeError(
            f"{type(self).__name__}: the pipeline returned None for image {start} and for {self.max_refetch} other "
            "images (max_refetch)"
        )

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Leave out the steps of these types from now on, and no others.

        Raises:
            ValueError: A type that no step has, neither one of the pipeline nor one that is registered.
        """
        self._skipped = step_names(skip_type_keys, self.pipeline.transforms)

    def _steps(self) -> list[Callable]:
        return [step for step in self.pipeline.transforms if type(step).__name__ not in self._skipped]

    def _prepare(self, steps: Sequence[Callable], index: int) -> Any:
        results = self._load(index)
        path = (results or {}).get("img_path")
        try:
            return self._partners.run(steps, results)
        except Exception as error:
            if path is None or str(path) in str(error):
                raise
            raise RuntimeError(
                f"{path} (index {index}): the pipeline failed: {type(error).__name__}: {error}"
            ) from error

    def _load(self, index: int) -> dict | None:
        results = self.dataset[index]
        return None if results is None else dict(results)  # a dataset may give the same dict again


def step_names(types: Sequence[str], steps: Sequence[Callable] = ()) -> frozenset[str]:
    """Names of the classes that types of steps stand for; a pipeline need not have a step of each.

    Args:
        types: Registered names, with a scope or without.
        steps: Whose types are known though they may not be registered.

    Raises:
        ValueError: A type that no step has.
    """
    own = [type(step).__name__ for step in steps]
    names = []
    for kind in types:
        found = find(str(kind), TRANSFORMS)
        if found is None and kind not in own:
            close = nearest(str(kind), [*own, *TRANSFORMS.module_dict])[0]
            raise ValueError(f"skip_type_keys: there is no step {kind!r}; did you mean {close!r}?")
        names.append(kind if found is None else found.__name__)
    return frozenset(names)
