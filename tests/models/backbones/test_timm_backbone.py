"""The adapter for timm: with timm where it is installed, else with a module of the same few functions.

Both are asked the same. The stand-in has one small convolutional network and one with channels last, under the names
of timm's.
"""

import importlib
import sys
import types

import pytest
import torch
from torch import nn

from detkit.config import check
from detkit.models import TIMMBackbone
from detkit.registry import MODELS

CHANNELS = {"resnet18": [64, 64, 128, 256, 512], "swin_tiny_patch4_window7_224": [96, 192, 384, 768]}


class FeatureInfo:
    def __init__(self, channels, strides):
        self._channels, self._strides = channels, strides

    def channels(self):
        return self._channels

    def reduction(self):
        return self._strides


class Network(nn.Module):
    def __init__(self, name, in_chans, out_indices):
        super().__init__()
        self.output_fmt = "NHWC" if "swin" in name else "NCHW"
        channels = CHANNELS[name]
        strides = [2 ** (i + 6 - len(channels)) for i in range(len(channels))]
        self.out_indices = tuple(range(len(channels))) if out_indices is None else out_indices
        self.feature_info = FeatureInfo(*([values[i] for i in self.out_indices] for values in (channels, strides)))
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.sizes = list(zip(channels, strides, strict=True))

    def forward(self, x):
        x = self.bn1(self.conv1(x)).mean()
        maps = [x.expand(2, c, 64 // s, 96 // s) for c, s in self.sizes]
        maps = [m.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else m for m in maps]
        return [maps[i] for i in self.out_indices]


def create_model(
    model_name, pretrained=False, features_only=False, in_chans=3, out_indices=None, pretrained_cfg_overlay=None, **rest
):
    assert features_only
    name, _, tag = model_name.partition(".")
    if tag == "nobody":
        raise RuntimeError(f"Invalid pretrained tag ({tag}) for {name}.")
    if set(rest) - {"output_stride", "drop_path_rate", "img_size"}:
        raise TypeError(f"unexpected keyword argument {next(iter(rest))!r}")
    network = Network(name, in_chans, out_indices)
    if pretrained:
        network.load_state_dict(pretrained_cfg_overlay["state_dict"], strict=False)
    return network


STAND_IN = types.SimpleNamespace(
    __version__="1.0.0",
    create_model=create_model,
    is_model=lambda name: name.partition(".")[0] in CHANNELS,
    list_models=lambda: [*CHANNELS, "vgg16"],
)


@pytest.fixture(autouse=True)
def timm(monkeypatch):
    try:
        return importlib.import_module("timm")
    except ImportError:
        monkeypatch.setitem(sys.modules, "timm", STAND_IN)
        return STAND_IN


def test_maps_of_a_convolutional_network():
    backbone = MODELS.build({"type": "TIMMBackbone", "model_name": "resnet18", "out_indices": (1, 2, 4)})
    features = backbone(torch.zeros(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(2, 64, 16, 24), (2, 128, 8, 12), (2, 512, 2, 3)]
    assert backbone.out_channels == [64, 128, 512]
    assert backbone.strides == [4, 8, 32]
    assert all(name.startswith("timm_model.") for name in backbone.state_dict())


def test_all_maps_unless_said_otherwise():
    assert TIMMBackbone("resnet18").out_channels == CHANNELS["resnet18"]


def test_channels_last_are_put_first():
    backbone = TIMMBackbone("swin_tiny_patch4_window7_224", img_size=(64, 96), in_channels=4)
    features = backbone.eval()(torch.zeros(2, 4, 64, 96))
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip([96, 192, 384, 768], [4, 8, 16, 32], strict=True)]
    assert [tuple(f.shape) for f in features] == expected


def test_weights_of_a_file_stay(tmp_path, timm, monkeypatch):
    state = timm.create_model("resnet18", features_only=True).state_dict()
    state = {name: torch.full_like(value, 2) for name, value in state.items()}
    torch.save({"state_dict": state}, tmp_path / "classifier.pth")
    backbone = TIMMBackbone("resnet18", checkpoint_path=str(tmp_path / "classifier.pth"))
    # Some of timm's networks have an initialisation that mmengine would call.
    start_again = backbone.timm_model.conv1.reset_parameters
    monkeypatch.setattr(backbone.timm_model, "init_weights", start_again, raising=False)
    backbone.init_weights()
    assert (backbone.timm_model.conv1.weight == 2).all()


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_file_that_would_run_code_is_not_opened(tmp_path, capsys):
    torch.save({"state_dict": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth .*would run code"):
        TIMMBackbone("resnet18", checkpoint_path=str(tmp_path / "bad.pth"))
    assert "must not run" not in capsys.readouterr().out


def test_init_cfg_starts_the_weights():
    backbone = TIMMBackbone("resnet18", init_cfg={"type": "Constant", "layer": "Conv2d", "val": 0.25})
    backbone.init_weights()
    assert (backbone.timm_model.conv1.weight == 0.25).all()


@pytest.mark.parametrize("norm_eval", [True, False])
def test_batch_statistics(norm_eval):
    backbone = TIMMBackbone("resnet18", norm_eval=norm_eval).train()
    assert backbone.training
    assert backbone.timm_model.bn1.training is not norm_eval


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"TIMMBackbone 'resnet18' needs timm, which is not here: pip install timm"):
        TIMMBackbone("resnet18")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": "resnet18x"}, r"timm \d+\S* has no 'resnet18x'; the nearest names are .*resnet18"),
        ({"model_name": "resnet18.nobody"}, r"timm cannot build 'resnet18\.nobody': Invalid pretrained tag"),
        ({"model_name": "resnet18", "model_args": {"depht": 3}}, "unexpected keyword argument 'depht'"),
        ({"model_name": "resnet18", "features_only": False}, "features_only must be True"),
        ({"model_name": "resnet18", "pretrained": True, "init_cfg": {"type": "Kaiming"}}, "not both"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        TIMMBackbone(**arguments)


def test_a_config_may_name_arguments_of_the_network():
    backbone = {"type": "TIMMBackbone", "model_name": "resnet18", "model_args": {"block_args": {"attn_layer": "se"}}}
    check({"model": {"type": "RetinaNet", "backbone": backbone}})
    with pytest.raises(TypeError, match=r"model\.backbone.*model_nam.*model_name"):
        check({"model": {"type": "RetinaNet", "backbone": {**backbone, "model_nam": "resnet18"}}})
