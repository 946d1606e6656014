"""The mode that looks for waiting finds what waits, and lets through what does not."""

import pytest
import torch
from no_sync import NoSync
from torch._subclasses.fake_tensor import FakeTensorMode

INDEX = torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "waits",
    [
        lambda: INDEX.max().item(),
        lambda: bool(INDEX.any()),
        lambda: INDEX.nonzero(),
        lambda: INDEX.unique(),
        lambda: INDEX[INDEX > 0],
        lambda: INDEX.bincount(),
        lambda: INDEX.repeat_interleave(INDEX),
        lambda: torch.equal(INDEX, INDEX),
    ],
)
def test_what_waits_is_found(waits):
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        waits()


def test_what_does_not_wait_passes():
    with NoSync():
        INDEX[INDEX].repeat_interleave(2)
        INDEX.repeat_interleave(INDEX, output_size=3)
        torch.where(INDEX > 0, INDEX, 0).to(torch.float32)


def test_copies_between_host_and_device():
    with FakeTensorMode():
        host, device = torch.zeros(2), torch.zeros(2).to("cuda")
        with pytest.raises(AssertionError, match="copies to the host"), NoSync():
            device.cpu()
        with pytest.raises(AssertionError, match="copies from the host and waits"), NoSync():
            host.to("cuda")
        with NoSync():
            host.to("cuda", non_blocking=True)
