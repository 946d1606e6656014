"""Several views of one image, for test-time augmentation."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmcv.transforms import BaseTransform, Compose

from detkit.registry import TRANSFORMS
from detkit.transforms.formatting import PackDetInputs
from detkit.transforms.geometric import Pad, RandomFlip

__all__ = ["TestTimeAug"]

Step = Mapping[str, Any] | Callable[[dict], Any]


@TRANSFORMS.register_module()
class TestTimeAug(BaseTransform):
    """Views of an image: one for each way through the steps, as ``inputs`` and ``data_samples`` in lists.

    With two sizes and two flips there are four::

        [[Resize(...), Resize(...)], [RandomFlip(prob=0.0), RandomFlip(prob=1.0)], [PackDetInputs()]]

    Args:
        transforms: Of each step its variants, configs or callables. The first variants make the first view.

    Raises:
        ValueError: A step without variants, or flips whose boxes could not be mapped back: behind a Pad, or with a
            PackDetInputs that does not keep ``flip``, ``flip_direction`` and ``ori_shape``.
    """

    __test__ = False  # no test class, whatever its name looks like

    def __init__(self, transforms: Sequence[Sequence[Step]]) -> None:
        for index, variants in enumerate(transforms):
            if isinstance(variants, Mapping) or callable(variants) or len(variants) == 0:
                raise ValueError(f"TestTimeAug: transforms[{index}] must be a list of variants, got {variants!r}")
        built = [
            [TRANSFORMS.build(step) if isinstance(step, Mapping) else step for step in variants]
            for variants in transforms
        ]
        self.views = [Compose(list(steps)) for steps in itertools.product(*built)]
        for view in self.views:
            _check(view.transforms)

    def transform(self, results: dict) -> dict:
        """The packed views, key by key."""
        views = [view(copy.deepcopy(results)) for view in self.views]
        if any(view is None for view in views):
            raise ValueError(f"TestTimeAug: a step dropped the image {results.get('img_path', '')}")
        return {key: [view[key] for view in views] for key in views[0]}


def _check(steps: Sequence[Any]) -> None:
    """Refuse flips whose boxes could not be mapped back."""
    padded = flipped = False
    for step in steps:
        padded = padded or isinstance(step, Pad)
        flips = isinstance(step, RandomFlip) and step.prob not in (0, [0])
        if flips and padded:
            raise ValueError("TestTimeAug: RandomFlip comes after Pad; boxes of a padded view cannot be flipped back")
        flipped = flipped or flips
        if flipped and isinstance(step, PackDetInputs):
            missing = [key for key in ("flip", "flip_direction", "ori_shape") if key not in step.meta_keys]
            if missing:
                raise ValueError(
                    f"TestTimeAug: PackDetInputs.meta_keys lacks {missing}, which flips are mapped back by"
                )
