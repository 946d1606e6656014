"""What wrapping a model for several processes changes in it, as far as one process can see."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from detkit.engine.parallel import FSDP, convert_sync_batchnorm, revert_sync_batchnorm, sync_buffers, wrap_model
from detkit.engine.parallel.fsdp import _units


def small() -> nn.Module:
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(2, eps=1e-3, momentum=0.2, affine=False)
    return nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(1, 2, 1), shared), "b": shared, "c": nn.BatchNorm1d(3).eval()})


def test_batch_norms_become_synchronised_and_what_they_were():
    model = small()
    before = {name: value.data_ptr() for name, value in model.state_dict().items() if value.numel() > 1}
    synced = convert_sync_batchnorm(model)
    assert isinstance(synced["b"], nn.SyncBatchNorm)
    assert synced["b"] is synced["a"][1]
    assert (synced["b"].eps, synced["b"].momentum, synced["b"].affine) == (1e-3, 0.2, False)
    assert not synced["c"].training
    back = revert_sync_batchnorm(synced)
    assert (type(back["b"]), type(back["c"])) == (nn.BatchNorm2d, nn.BatchNorm1d)
    assert back["b"] is back["a"][1]
    after = {name: value.data_ptr() for name, value in back.state_dict().items() if value.numel() > 1}
    assert after == before


def test_a_synchronised_norm_of_a_config_becomes_a_batch_norm_that_runs():
    norm = revert_sync_batchnorm(nn.SyncBatchNorm(2))
    assert type(norm) is nn.BatchNorm2d
    assert norm(torch.ones(1, 2, 3, 3)).shape == (1, 2, 3, 3)


def test_what_a_cpu_cannot_do_is_said(caplog):
    class Wrapper(nn.Module):
        pass

    logger = logging.getLogger("wrap")
    with pytest.raises(ValueError, match="sync_bn: 'torch' or None was expected, got 'apex'"):
        wrap_model(small(), None, False, "apex", logger)
    with caplog.at_level("WARNING", "wrap"), pytest.raises((KeyError, TypeError, ValueError)):
        wrap_model(small(), {"type": "NoWrapper"}, False, "torch", logger)
    assert "SyncBatchNorm needs GPUs; 2 BatchNorm layers stay as they are" in caplog.text


def test_buffers_of_one_process_stay():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sync_buffers(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_sharded_units_are_called_and_large_enough():
    """Linear layers of 12, 12 and 6 numbers: containers are walked through, small rests are joined further out."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Linear(3, 3), nn.Linear(2, 2)

    body = nn.Module()
    body.stage = nn.Sequential(Block(), Block())
    body.out = nn.Linear(3, 3)
    names = {part: name for name, part in body.named_modules()}
    assert [names[unit] for unit in _units(body, 12)] == ["stage.0.large", "stage.1.large", "out", ""]
    assert [names[unit] for unit in _units(body, 13)] == ["stage.0", "stage.1"]
    assert list(_units(body, 100)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param_dtype": "half"}, "param_dtype 'bfloat16', 'float16' or None was expected, got 'half'"),
        ({"shard": ["backbon"]}, "shard names 'backbon', which is no part of ModuleDict; it has a, b, c"),
    ],
)
def test_wrong_sharding_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FSDP(small(), **options)
