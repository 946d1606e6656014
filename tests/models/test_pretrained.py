"""``init_cfg=dict(type='Pretrained')``: every format, renaming, and what mmengine passes over in silence."""

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.model.weight_init import initialize
from torch import nn

from detkit.checkpoints import save_checkpoint_file
from detkit.models import PretrainedInit, ResNet
from detkit.registry import WEIGHT_INITIALIZERS


class Body(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = nn.Linear(2, 1, bias=False)


def start(**options):
    module = Body({"type": "Pretrained", **options})
    module.init_weights()
    return module.conv.weight.tolist()


def test_every_format_and_way_of_naming(tmp_path):
    weight = torch.tensor([[1.0, 2.0]])
    path = tmp_path / "x.pth"
    for prefix, options in {
        "": {},
        "module.": {},
        "backbone.": {"prefix": "backbone"},
        "net.": {"revise_keys": [(r"^net\.", "")]},
    }.items():
        save_checkpoint_file({"state_dict": {f"{prefix}conv.weight": weight}}, path)
        assert start(checkpoint=str(path), **options) == [[1, 2]]
    save_checkpoint_file({"state_dict": {"weight": weight}}, path)
    assert start(checkpoint=f"{path}?matching_heuristics=True") == [[1, 2]]
    assert start(checkpoint=str(path), key_matching="suffix") == [[1, 2]]


def test_what_mmengine_passes_over_is_an_error(tmp_path):
    path = tmp_path / "x.pth"
    save_checkpoint_file({"state_dict": {"neck.conv.weight": torch.ones(1, 2)}}, path)
    with pytest.raises(ValueError, match="no tensor of it fits this model"):
        start(checkpoint=str(path))
    with pytest.raises(ValueError, match=r"no weight in it starts with 'backbone\.'"):
        start(checkpoint=str(path), prefix="backbone.")


def test_it_is_found_with_and_without_a_scope():
    assert isinstance(WEIGHT_INITIALIZERS.build({"type": "Pretrained", "checkpoint": "x"}), PretrainedInit)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        initialize(nn.Linear(1, 1), {"type": "Pretrained", "checkpoint": "nowhere.pth"})


def test_a_report_says_what_was_not_in_the_file(tmp_path, caplog, capsys):
    source = ResNet(18, base_channels=4).state_dict()
    left_out = "layer4.1.bn2.weight"
    del source[left_out]
    torch.save(source, tmp_path / "r18.pth")
    network = ResNet(18, base_channels=4, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "r18.pth")})
    network.init_weights()
    said = caplog.text + "".join(capsys.readouterr())
    assert f"ResNet starts from {tmp_path / 'r18.pth'}: {len(source)} tensors loaded; 1 missing ({left_out})" in said
