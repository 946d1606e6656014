"""Channels last: from before the model is wrapped, as DDP's buckets keep the layout that they saw."""

import pytest
import torch

from detkit.engine import ChannelsLastHook
from detkit.engine.hooks.memory_format import wants_channels_last

CONV = {"type": "ToyConvModel", "bbox_head": {"type": "ToyHead"}}


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        ([{"type": "ChannelsLastHook"}], True),
        ([{"type": "EMAHook"}, {"type": "detkit.engine.ChannelsLastHook", "priority": "LOW"}], True),
        ([{"type": ChannelsLastHook}], True),
        ([ChannelsLastHook()], True),
        ([{"type": "EMAHook"}], False),
        ([], False),
        (None, False),
    ],
)
def test_the_hook_is_seen(hooks, expected):
    assert wants_channels_last(hooks) is expected


@pytest.mark.parametrize("hooks", [[], [{"type": "ChannelsLastHook"}]])
def test_weights_are_in_order_when_the_model_is_wrapped(make_runner, monkeypatch, hooks):
    seen = []

    def wrap(model):
        seen.append(model.body[2].weight.is_contiguous(memory_format=torch.channels_last))
        return model

    monkeypatch.setattr("detkit.engine.run.builder.revert_sync_batchnorm", wrap)  # what comes after, in one process
    runner = make_runner(model=CONV, custom_hooks=hooks, epochs=1)
    assert seen == [bool(hooks)]
    runner.train()
    assert runner.model.body[2].weight.is_contiguous(memory_format=torch.channels_last) is bool(hooks)
