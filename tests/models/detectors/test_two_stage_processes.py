"""A two-stage detector in two processes, an image each, learns what it learns of both images in one."""

import pytest
from reference import arguments, case_named, load_weights
from two_processes import assert_mean_of_both, losses_of_two_processes

from detkit.registry import MODELS


# Their samplers take more than there is, so that nothing is drawn.
@pytest.mark.parametrize("name", ["FasterRCNN", "SABLFasterRCNN"])
@pytest.mark.parametrize("which", ["loss", "loss_one_without_gt"])
def test_two_processes_have_the_losses_of_one_with_all_images(name, which, monkeypatch):
    case = case_named(f"detectors/{name}", which)
    model = MODELS.build(case["config"])
    load_weights(model, case)
    model.train()
    data = model.data_preprocessor(arguments(case["inputs"]), training=True)
    images, samples = data["inputs"], data["data_samples"]
    together = model.loss(images, samples)

    def losses_of(rank):
        one = slice(rank, rank + 1)
        return model.loss(images[one], samples[one])

    alone = losses_of_two_processes(monkeypatch, losses_of)
    assert_mean_of_both(alone, together, rtol=1e-4, atol=1e-5)
    assert alone[0]["loss_cls"] != alone[1]["loss_cls"]
