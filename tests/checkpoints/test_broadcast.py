"""One process reads and all get it, though the others see no file. In Detectron2 this code is never reached."""

from __future__ import annotations

import torch
from checkpoints import broadcast_workers as workers

from detkit.checkpoints import from_rank0, save_checkpoint_file
from detkit.engine import launch


def test_a_file_that_only_the_first_process_sees_reaches_all(tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    state = {
        "half": torch.randn(7).half(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "turned": torch.arange(6).view(2, 3).t(),
        "large": torch.randn(30).double(),
    }
    weights = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}
    rest = {"meta": {"iter": 3, "names": ["a"]}, "none": None, "pair": (1, "x"), "optimizer": {}}
    content = {"state_dict": weights, "state": state, **rest}
    save_checkpoint_file(content, tmp_path / "0" / "epoch_1.pth")
    (tmp_path / "0" / "broken.pth").write_bytes(b"PK\x03\x04")
    one, two = launch(
        workers.read_where_only_one_sees_it, 2, args=(str(tmp_path),), device_type="cpu", start_method="forkserver"
    )
    assert one == two | {"failed": "ZeroDivisionError: integer division or modulo by zero"}
    assert one["complete"]
    assert one["same"]
    assert one["weight"] == weights["weight"].tolist()
    assert one["path"] == str(tmp_path / "0" / "epoch_1.pth")
    assert one["dtypes"] == [str(value.dtype) for value in state.values()]
    assert one["rest"] == ({"iter": 3, "names": ["a"]}, None, (1, "x"))
    assert one["missing"].startswith("FileNotFoundError: ")
    assert one["missing"].endswith("0/none.pth: no such checkpoint file")
    assert "the checkpoint is truncated" in one["broken"]
    assert two["failed"] == "RuntimeError: integer division or modulo by zero"


def test_one_process_just_reads():
    value = {"a": torch.ones(1)}
    assert from_rank0(lambda: value) is value
