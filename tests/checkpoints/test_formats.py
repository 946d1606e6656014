"""Reading checkpoint files of every kind, damaged ones and hostile ones."""

from __future__ import annotations

import datetime
import json
import pickle
import re
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from checkpoints.foreign_files import PYTHON2_PICKLE, Evil, write
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import CheckpointLoader

from detkit.checkpoints import load_checkpoint_file, load_weights, peek, save_checkpoint_file

KINDS = ("zip", "legacy", "pickle0", "pickle2", "pickle5")


def same(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    return type(one) is type(two) and one == two


# ---- damaged files


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_named_with_its_size(tmp_path, legacy, share):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"x\.pth \({int(len(data) * share)} bytes\)") as caught:
        load_checkpoint_file(path)
    if not legacy:
        assert "truncated" in str(caught.value)


def test_a_tensor_that_is_too_short_is_truncated(tmp_path):
    """Where the table of contents and all checksums are as they should be."""
    torch.save({"state_dict": {"w": torch.ones(100)}}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as whole, zipfile.ZipFile(tmp_path / "y.pth", "w") as cut:
        for entry in whole.infolist():
            data = whole.read(entry)
            cut.writestr(entry.filename, data[:100] if entry.filename.endswith("data/0") else data)
    pickled = pickle.dumps({"model": {"w": np.ones(1000, "f4")}}, protocol=2)
    (tmp_path / "short.pkl").write_bytes(pickled[:-500])
    (tmp_path / "wide.pkl").write_bytes(pickled.replace(b"M\xe8\x03", b"M\xe9\x03"))  # one more than there are
    for name in ("y.pth", "short.pkl", "wide.pkl"):
        with pytest.raises(ValueError, match=rf"{name} .*: the checkpoint is truncated \(.*\); copy it again"):
            load_checkpoint_file(tmp_path / name)


def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path):
    """torch by itself loads other weights without a word."""
    path = tmp_path / "x.pth"
    saved = {"state_dict": {"w": torch.randn(500), "n": torch.arange(3)}, "meta": {"iter": 7, "names": ["a", "b"]}}
    save_checkpoint_file(saved, path)
    data = bytearray(path.read_bytes())
    noticed = 0
    for place in range(0, len(data), 11):
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        data[place] ^= 1 << place % 8
        try:
            loaded = load_checkpoint_file(path)
        except ValueError:
            noticed += 1
        else:  # in padding, or a time stamp
            assert same(loaded, saved), place
    assert noticed > 2000 / 11  # the weights alone
    with zipfile.ZipFile(path, "w") as file:  # a mark that torch takes for an empty folder
        entry = zipfile.ZipInfo("x/data/0")
        entry.external_attr = 0x10
        file.writestr(entry, b"abcd")
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint_file(path)
    place = data.index(saved["state_dict"]["w"].numpy().tobytes()) + 1000
    data[place] ^= 16
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["w"], saved["state_dict"]["w"])
    with pytest.raises(ValueError, match=r"x\.pth \(\d+ bytes\): the checkpoint is damaged \(checksum of archive/"):
        load_checkpoint_file(path)


def test_a_file_without_checksums_is_read(tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"n": 1, "w": torch.ones(2)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint_file(tmp_path / "x.pth")["n"] == 1


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"not a checkpoint at all", b"\x80"])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_foreign_file_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.p.* (not a checkpoint that torch can open|truncated)"):
        load_checkpoint_file(path)


def test_missing_file_and_wrong_content(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such checkpoint"):
        load_checkpoint_file(tmp_path / "none.pth")
    for kind in KINDS:
        write(kind, tmp_path / "list.pkl", [1, 2])
        with pytest.raises(ValueError, match="a dict was expected in the checkpoint, got list"):
            load_checkpoint_file(tmp_path / "list.pkl")


# ---- hostile files


SUFFIXES = (".pth", ".pkl", ".pyth")
# Protocol 0 is text: it counts as a pickle by its suffix only.
CASES = [(kind, suffix) for kind in KINDS for suffix in SUFFIXES if kind != "pickle0" or suffix == ".pkl"]


@pytest.mark.parametrize(("kind", "suffix"), CASES)
@pytest.mark.parametrize("open_", [load_checkpoint_file, lambda path: CheckpointLoader.load_checkpoint(str(path))])
def test_code_in_a_file_is_not_run(tmp_path, kind, suffix, open_):
    """The same refusal for each format and by each way in; afterwards the reader works as before."""
    trace = tmp_path / "was_here"
    good = write(
        kind, tmp_path / f"good{suffix}", {"model_state": {"w": torch.ones(2) if kind in KINDS[:2] else np.ones(2)}}
    )
    for content in (
        {"model_state": Evil(trace)},
        {"model": {"w": 1}, "__author__": Evil(trace)},
        {"blobs": [Evil(trace)]},
    ):
        path = write(kind, tmp_path / f"x{suffix}", content)
        with pytest.raises(ValueError, match=r"opening this file would run code \((posix|nt)\.system\)"):
            open_(path)
        assert not trace.exists()
        assert open_(good)["state_dict"]["w"].sum() == 2


def test_code_behind_an_allowed_name_is_not_run(tmp_path):
    """A history whose functions are looked up by getattr, as mmengine's are, reaches no function."""
    path = tmp_path / "x.pkl"
    for stream in (
        b"cbuiltins\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\nX\x0a\x00\x00\x00__import__tR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zlitR.",
    ):
        path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00a" + stream[:-1] + b"s.")
        value = load_checkpoint_file(path)["state_dict"]
        assert value == {}  # nothing of it is a tensor
    for name in ("builtins\neval", "torch.hub\nload", "numpy\nload", "numpy.core.multiarray\nfromfile", "os\nsystem"):
        path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00ac" + name.encode() + b"\nX\x01\x00\x00\x00b\x85Rs.")
        with pytest.raises(ValueError, match=rf"would run code \({name}\)".replace("\n", r"\.")):
            load_checkpoint_file(path)


def test_an_array_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    stream = pickle.dumps({"blobs": {"a": np.ones(2)}}, protocol=2)
    assert stream.count(b"K\x02\x85") == 1  # its shape (2,)
    (tmp_path / "x.pkl").write_bytes(stream.replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"))
    with pytest.raises(ValueError, match="buffer is too small"):
        load_checkpoint_file(tmp_path / "x.pkl")


class Reduced:
    """Pickled as a call and a state, whatever they are."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple:
        return self.reduced


def disguised_pointers(way: str) -> Reduced:
    """An array of numpy with a field of objects, which its flags (the last 0) deny: its bytes would be pointers."""
    dtype = Reduced(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
    if way == "scalar":
        return Reduced(type(np.int64(1)).__reduce__(np.int64(1))[0], (dtype, b"A" * 8))
    reconstruct = np.ones(1).__reduce__()[0]
    if way == "buffer":
        return Reduced(np.ones(1).__reduce_ex__(5)[0], (b"A" * 8, dtype, (1,), "C"))
    return Reduced(reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, b"A" * 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["scalar", "buffer", "array"])
def test_bytes_of_a_file_never_become_pointers(tmp_path, kind, way):
    path = write(kind, tmp_path / "x.pkl", {"model": {}, "a": disguised_pointers(way)})
    with pytest.raises(ValueError, match=r"dtype 'V8' is not plain data|not written by torch\.save"):
        load_checkpoint_file(path)
    if kind == "zip":
        assert peek(path) is None


@pytest.mark.parametrize("code", ["O", "i4,O", "(2,)O", "V8", "M8[s]", "T"])
def test_a_scalar_of_numpy_is_a_number_or_a_string(tmp_path, code):
    scalar, dtype = np.int64(1).__reduce__()[0], Reduced(np.dtype, (code, False, True))
    with pytest.raises(ValueError, match=r"is not plain data|written in an unknown way"):
        load_checkpoint_file(
            write("pickle2", tmp_path / "x.pkl", {"model": {}, "a": Reduced(scalar, (dtype, b"A" * 8))})
        )


def test_arrays_of_every_plain_kind_are_read(tmp_path):
    arrays = [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
        np.zeros((0, 3), "f2"),
        np.array(["ab", "c"]),
        np.array([{"a": np.float32(0.5)}, [1]], dtype=object),
    ]
    for kind in KINDS:
        loaded = load_checkpoint_file(write(kind, tmp_path / "x.pkl", {"state_dict": {}, "arrays": arrays}))["arrays"]
        assert [one.tolist() for one in loaded[:4]] == [one.tolist() for one in arrays[:4]]
        assert loaded[0].dtype == torch.int32
        assert loaded[3].shape == (0, 3)
        assert loaded[4:] == [["ab", "c"], [{"a": 0.5}, [1]]]


def test_a_file_cannot_change_a_class_of_python(tmp_path):
    before = Counter.update
    # the state (None, {'update': 7}) is applied by setattr
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}U\5modelccollections\nCounter\nN}U\6updateK\7s\x86bs.")
    load_checkpoint_file(tmp_path / "x.pkl")
    assert Counter.update is before
    assert load_checkpoint_file(write("pickle2", tmp_path / "y.pkl", {"model": {}, "n": Counter("aab")}))["n"] == {
        "a": 2,
        "b": 1,
    }


def test_formats_that_run_code_in_older_torch_do_not_reach_it(tmp_path, monkeypatch):
    """Tar files (CVE-2025-32434) and programs of TorchScript."""
    monkeypatch.setattr(torch, "load", lambda *_args, **_named: pytest.fail("torch.load was called"))
    with tarfile.open(tmp_path / "x.pth", "w") as tar:
        (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
        tar.add(tmp_path / "pickle", "pickle")
    with pytest.raises(ValueError, match=r"not written by torch\.save"):
        load_checkpoint_file(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as file:
        file.writestr("y/constants.pkl", b"x")
    with pytest.raises(ValueError, match=r"a program of TorchScript"):
        load_checkpoint_file(tmp_path / "y.pth")


def test_a_file_that_tampers_with_stand_ins_reaches_no_other(tmp_path):
    bad, good = tmp_path / "bad.pkl", write("zip", tmp_path / "good.pth", {"meta": ConfigDict(a=1)})
    # sets attributes of what stands for ConfigDict: a state of (None, {'__name__': 'x'}) is applied by setattr
    names = b"".join(
        b"X" + bytes([len(text)]) + b"\0\0\0" + text + b"X\1\0\0\0xs" for text in (b"__name__", b"__qualname__")
    )
    bad.write_bytes(b"\x80\x02cmmengine.config.config\nConfigDict\nN}" + names + b"\x86b.")
    with pytest.raises(ValueError, match="a dict was expected in the checkpoint, got function"):
        load_checkpoint_file(bad)
    assert load_checkpoint_file(good) == {"meta": {"a": 1}}


def test_torchs_own_list_of_safe_names_is_left_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint_file(write("zip", tmp_path / "x.pth", {"n": np.float64(1)}))
    assert set(torch.serialization.get_safe_globals()) == before


# ---- formats


def test_mmengines_file_is_read_as_plain_data(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 3])
    content = {
        "meta": {"cfg": ConfigDict(a=ConfigDict(b=[1])), "best": np.float64(0.5), "dataset_meta": {"CLASSES": ("a",)}},
        "state_dict": torch.nn.Linear(2, 1).state_dict(),
        "message_hub": {"log_scalars": {"loss": history}, "runtime_info": {"n": np.int64(3), "a": np.arange(2)}},
        "args": Namespace(lr=0.1, folder=PurePosixPath("a/b"), names={"a"}),
    }
    for kind in ("zip", "legacy"):
        loaded = load_checkpoint_file(write(kind, tmp_path / "x.pth", content))
        assert loaded["meta"] == {"cfg": {"a": {"b": [1]}}, "best": 0.5, "dataset_meta": {"CLASSES": ("a",)}}
        assert type(loaded["meta"]["best"]) is float
        assert torch.equal(
            loaded["message_hub"]["log_scalars"]["loss"]["_log_history"], torch.tensor([1.0, 2.0]).double()
        )
        assert torch.equal(loaded["message_hub"]["runtime_info"]["a"], torch.arange(2))
        assert loaded["args"] == {"lr": 0.1, "folder": "a/b", "names": {"a"}}
        assert loaded["state_dict"].keys() == {"weight", "bias"}
        del loaded["args"]  # a checkpoint of detkit has no sets
        save_checkpoint_file(loaded, tmp_path / "again.pth")  # nothing foreign is left


def test_dates_and_whole_objects_of_mmengine_are_read(tmp_path):
    zone = datetime.timezone(datetime.timedelta(hours=8))
    hub = MessageHub("a name of its own")
    hub.update_info("iter", 3)
    content = {
        "model": {},
        "when": datetime.datetime(2023, 1, 2, 3, 4, 5, 6, tzinfo=zone),
        "local": datetime.datetime(2023, 1, 2),
        "day": datetime.date(2023, 1, 2),
        "took": datetime.timedelta(minutes=2),
        "zone": zone,
        "cfg": Config({"model": {"type": "FCOS"}}),
        "hub": hub,
    }
    for kind in ("zip", "legacy", "pickle2", "pickle5"):  # torch saves by protocol 2
        loaded = load_checkpoint_file(write(kind, tmp_path / "x.pkl", content))
        assert loaded["when"] == "2023-01-02T03:04:05.000006+08:00"
        assert (loaded["local"], loaded["day"]) == ("2023-01-02T00:00:00", "2023-01-02")
        assert (loaded["took"], loaded["zone"]) == (120.0, "UTC+08:00")
        assert loaded["cfg"] == {"model": {"type": "FCOS"}}
        assert loaded["hub"]["_runtime_info"] == {"iter": 3}
        save_checkpoint_file(loaded, tmp_path / "again.pth")  # nothing foreign is left


@pytest.mark.parametrize(("core", "other"), [(b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")])
def test_files_of_either_numpy_are_read(tmp_path, core, other):
    stream = pickle.dumps({"model": {"w": np.arange(3.0)}, "n": np.int64(2)}, protocol=2).replace(core, other)
    (tmp_path / "x.pkl").write_bytes(stream)
    loaded = load_checkpoint_file(tmp_path / "x.pkl")
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(3.0).double())
    assert loaded["n"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_under_state_dict_whatever_the_file_calls_them(tmp_path, kind):
    value = torch.ones(2) if kind in ("zip", "legacy") else np.ones(2, "f4")
    weights = {"a.w": value}
    forms = [{"state_dict": weights, "iter": 1}, {"model": weights, "__author__": "x"}]
    if kind in ("zip", "legacy"):  # a bare pickle of arrays is Caffe2's
        forms.append(weights)
    for content in forms:
        loaded = load_checkpoint_file(write(kind, tmp_path / "x.pkl", content))
        assert same(loaded["state_dict"], {"a.w": torch.ones(2)})
        assert "matching_heuristics" not in loaded
        assert {key: value for key, value in loaded.items() if key != "state_dict"} == {
            key: value for key, value in content.items() if value is not weights and key != "a.w"
        }


def test_caffe2s_blobs_lose_momentum_background_and_their_names(tmp_path):
    """Numbers of Detectron2's reader: a class's row moves, four rows of boxes and one of masks go."""
    blobs = {
        "cls_score_b": np.arange(3.0),
        "bbox_pred_w": np.arange(24.0).reshape(12, 2),
        "mask_fcn_logits_b": np.arange(3.0),
        "conv1_w": np.zeros(1),
        "conv1_w_momentum": np.zeros(1),
    }
    for content in ({"blobs": blobs, "cfg": "MODEL: x"}, {**blobs, "weight_order": "none"}):
        loaded = load_checkpoint_file(write("pickle2", tmp_path / "x.pkl", content))
        state = loaded["state_dict"]
        assert list(state) == [
            "cls_score.bias",
            "bbox_pred.weight",
            "mask_head.predictor.bias",
            "stem.conv1.weight",
        ]
        assert state["cls_score.bias"].tolist() == [1, 2, 0]
        assert state["bbox_pred.weight"].tolist() == [[i, i + 1] for i in range(8, 24, 2)]
        assert state["mask_head.predictor.bias"].tolist() == [1, 2]
        assert loaded["matching_heuristics"]


def test_a_pickle_of_python_2_is_read(tmp_path):
    (tmp_path / "x.pkl").write_bytes(PYTHON2_PICKLE)
    loaded = load_checkpoint_file(tmp_path / "x.pkl")["state_dict"]
    assert same(loaded, {"box_head.fc1.weight": torch.tensor([1.0, 2.0])})


def test_pycls_files_lose_batch_counters(tmp_path):
    state = {"s1.bn.num_batches_tracked": torch.tensor(3), "s1.bn.weight": torch.ones(2)}
    loaded = load_checkpoint_file(write("zip", tmp_path / "x.pyth", {"epoch": 1, "model_state": state}))
    assert same(loaded["state_dict"], {"s1.bn.weight": torch.ones(2)})
    assert loaded["matching_heuristics"]
    with pytest.raises(ValueError, match=r"x\.pyth: a \.pyth file .*'model_state', this one has none"):
        load_checkpoint_file(write("zip", tmp_path / "x.pyth", {"state": state}))


def safetensors(table: dict, data: bytes) -> bytes:
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_safetensors_are_read(tmp_path):
    table = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
        "c": {"dtype": "I64", "shape": [0], "data_offsets": [10, 10]},
    }
    data = struct.pack("<2f", 1.5, -2) + torch.tensor([3.0], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(table, data))
    expected = {
        "a": torch.tensor([[1.5], [-2.0]]),
        "b": torch.tensor(3.0, dtype=torch.bfloat16),
        "c": torch.empty(0, dtype=torch.int64),
    }
    assert same(load_checkpoint_file(path), {"state_dict": expected})
    path.write_bytes(safetensors(table, data[:-1]))
    with pytest.raises(ValueError, match="b is cut off"):
        load_checkpoint_file(path)
    path.write_bytes(safetensors({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, data))
    with pytest.raises(ValueError, match="dtype F4, which torch does not know"):
        load_checkpoint_file(path)


# ---- without the tensors


def test_peek_at_a_dict_that_holds_itself(tmp_path):
    content: dict = {}
    content["again"] = content
    assert peek(write("zip", tmp_path / "x.pth", content)) is None


def test_peek_reads_all_but_the_tensors(tmp_path):
    saved = {"meta": {"iter": 3}, "state_dict": {"w": torch.ones(5)}, "optimizer": {"state": {}}, "p": (1, "a")}
    save_checkpoint_file(saved, tmp_path / "x.pth")
    seen = peek(tmp_path / "x.pth")
    assert (seen["meta"], seen["optimizer"], seen["p"]) == ({"iter": 3}, {"state": {}}, (1, "a"))
    assert list(seen["state_dict"]) == ["w"]
    trace = tmp_path / "was_here"
    assert peek(write("zip", tmp_path / "evil.pth", {"meta": Evil(trace)})) is None
    assert not trace.exists()
    (tmp_path / "cut.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:500])
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as file:
        file.writestr("a", "b")
    assert peek(tmp_path / "cut.pth") is peek(tmp_path / "other.pth") is peek(tmp_path / "none.pth") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": 3}, "a dict was expected as 'state_dict' of the checkpoint, got int"),
        ({"state_dict": {}, "meta": [1]}, "a dict was expected as 'meta' of the checkpoint, got list"),
        (
            {"state_dict": {}, "meta": {"dataset_meta": "car"}},
            "a dict was expected as 'meta.dataset_meta' of the checkpoint, got str",
        ),
        ({"state_dict": {1: torch.ones(1)}}, "names of weights were expected in 'state_dict', got 1"),
    ],
)
def test_parts_of_another_form(tmp_path, content, message):
    torch.save(content, path := tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=re.escape(f"odd.pth: {message}")):
        load_checkpoint_file(path)
    with pytest.raises(ValueError, match=re.escape(f"checkpoint: {message}")):
        load_weights(torch.nn.Linear(1, 1), content, classes=["car"])
