"""Two processes with two images each give the gradients of one process with four."""

import pytest
import torch
from models.two_ranks import MODELS, gradients, work


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Gradients of two gloo processes, all cases in one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "images"), [("even", [0, 1, 2, 3]), ("no objects", [2, 3, 3, 2])])
def test_gradients_are_those_of_one_process(found, name, kind, images):
    expected = gradients(MODELS[name](1), images)
    for parameter, value in found[f"{name}, {kind}"].items():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-5, atol=1e-7)


def test_a_compiled_loss_takes_the_mean_of_all_processes_too(found):
    expected = gradients(MODELS["retina"](1), [0, 1, 2, 3])
    for parameter, value in found["retina, compiled"].items():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-5, atol=1e-7)
