"""Laws that every batched assigner keeps, over random images; and its reference cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mmengine.structures import InstanceData
from no_sync import NoSync
from reference import arguments, assert_same
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners import AssignResult, BatchAssignResult, chunks


def boxes(count: int, seed: int, size: float = 100.0) -> Tensor:
    """Random boxes (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * size / 2], dim=1)


def instances(count: int, seed: int) -> InstanceData:
    """Random objects, each of a class of its own."""
    return InstanceData(bboxes=boxes(count, seed), labels=torch.arange(count))


@dataclass(frozen=True)
class Scene:
    """What the assigner of a test is given for N images.

    Attributes:
        priors: (A, K).
        objects: Of each image.
        regions: Ignored regions of each image.
        inputs: Further inputs (N, A, ...) by name.
        settings: Further arguments that are the same for all images.
    """

    priors: Tensor
    objects: list[InstanceData]
    regions: list[InstanceData | None]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def random(cls, priors: Tensor, counts: list[int], seed: int, **changes: Any) -> Scene:
        """Images with so many objects; every other image has two ignored regions."""
        objects = [instances(count, seed + 10 * index) for index, count in enumerate(counts)]
        regions = [instances(2, seed + 7 + index) if index % 2 == 0 else None for index in range(len(counts))]
        return cls(priors, objects, regions, **changes)

    def image(self, index: int) -> Scene:
        """One image alone."""
        inputs = {name: value[index : index + 1] for name, value in self.inputs.items()}
        settings = dict(self.settings)
        if "img_metas" in settings:
            settings["img_metas"] = settings["img_metas"][index : index + 1]
        return replace(
            self, objects=self.objects[index : index + 1], regions=self.regions[index : index + 1], inputs=inputs,
            settings=settings,
        )  # fmt: skip

    def assign(self, assigner: Any, prior_valid: Tensor | None = None) -> BatchAssignResult:
        """Assign all images at once."""
        truth = GroundTruth.from_instances(self.objects, self.regions)
        return assigner.assign_batch(self.priors, truth, prior_valid, **self.inputs, **self.settings)


def assert_reference(case: Mapping[str, Any]) -> AssignResult:
    """The case's outputs, extra properties among them."""
    result = TASK_UTILS.build(case["config"]).assign(**arguments(case["inputs"]))
    own = {name: value for name, value in case["outputs"].items() if hasattr(result, name)}
    assert_same(result, own, rtol=1e-4, atol=1e-5)
    for name in case["outputs"].keys() - own.keys():
        assert_same(result.get_extra_property(name), case["outputs"][name], rtol=1e-4, atol=1e-5)
    return result


def assert_same_result(first: BatchAssignResult, second: BatchAssignResult) -> None:
    """Equal bit for bit, as far as both have a field."""
    for name, one, other in zip(first._fields[:4], first[:4], second[:4], strict=True):
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name
    for name, value in (first.extra or {}).items():
        assert torch.equal(value, second.extra[name]), name


def assert_batch_is_its_images(assigner: Any, scene: Scene) -> None:
    """Neither padding nor other images, with or without objects, change anything."""
    batch = scene.assign(assigner)
    for index in range(len(scene.objects)):
        alone = scene.image(index).assign(assigner)
        for name in ("gt_inds", "labels", "max_overlaps"):
            one, other = getattr(batch, name), getattr(alone, name)
            assert one is None or torch.equal(one[index], other[0]), name
        if batch.metrics is not None:  # powers, whose last bit depends on the place in a vector
            torch.testing.assert_close(batch.metrics[index], alone.metrics[0])


def assert_chunks_change_nothing(assigner: Any, scene: Scene, size: int, monkeypatch: Any) -> None:
    """Pieces of ``size`` priors or objects give the same bits as one piece."""
    dense = scene.assign(assigner)
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "CPU_CHUNK", 1)
        patch.setattr(chunks, "LEAST_PRIORS", size)
        assert_same_result(dense, scene.assign(assigner))


def assert_order_of_objects_is_free(assigner: Any, scene: Scene, seed: int) -> None:
    """Permuted objects give permuted assignments: the labels, one for each object, are the same."""
    order = torch.randperm(len(scene.objects[0]), generator=torch.Generator().manual_seed(seed))
    permuted = replace(scene, objects=[scene.objects[0][order], *scene.objects[1:]])
    assert torch.equal(scene.assign(assigner).labels, permuted.assign(assigner).labels)


def assert_regions_add_no_positive(assigner: Any, scene: Scene) -> None:
    """No prior learns an object because there is an ignored region."""
    without = replace(scene, regions=[None] * len(scene.objects)).assign(assigner)
    assert not ((scene.assign(assigner).gt_inds > 0) & (without.gt_inds <= 0)).any()


def assert_no_sync_and_traceable(assigner: Any, scene: Scene) -> None:
    """No value is read on the host, and torch.compile finds one graph."""
    truth = GroundTruth.from_instances(scene.objects, scene.regions)
    with NoSync():
        eager = assigner.assign_batch(scene.priors, truth, None, **scene.inputs, **scene.settings)
    torch.compiler.reset()
    compiled = torch.compile(assigner.assign_batch, fullgraph=True, backend="eager")
    assert_same_result(eager, compiled(scene.priors, truth, None, **scene.inputs, **scene.settings))


def assert_absent_priors_change_nothing(assigner: Any, scene: Scene, seed: int) -> None:
    """Priors that take no part are ignored, and the others fare as if those were not there."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(1, len(scene.priors), generator=generator) > 0.3
    alone = scene.image(0)
    result = alone.assign(assigner, valid)
    keep = valid[0]
    assert (result.gt_inds[0][~keep] == -1).all()
    kept = replace(
        alone, priors=scene.priors[keep], inputs={name: value[:, keep] for name, value in alone.inputs.items()}
    )
    assert torch.equal(result.gt_inds[0][keep], kept.assign(assigner).gt_inds[0])
