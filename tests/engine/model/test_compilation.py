"""``compile`` by config: what is compiled, that results and checkpoints stay, and what is refused."""

import copy
import os

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from detkit.checkpoints import load_checkpoint_file
from detkit.engine.model.compilation import check_compiler, compile_model
from detkit.registry import MODELS
from detkit.structures import DetDataSample

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.data_preprocessor = nn.Linear(2, 2)
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        self.bbox_head = nn.Linear(3, 1)
        self.nothing = nn.Identity()
        self.parts = nn.ModuleList([nn.Linear(1, 1)])

    def loss(self, x):
        return {"loss": self.bbox_head(self.backbone(x)).sum()}


@pytest.fixture
def graphs():
    """A backend that counts the graphs it is given."""
    torch._dynamo.reset()
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    yield found, backend
    torch._dynamo.reset()


def test_children_are_compiled_in_place(graphs):
    found, backend = graphs
    net, x = Net(), torch.rand(4, 2)
    names, expected = list(net.state_dict()), net.loss(x)["loss"]
    assert compile_model(net, {"backend": backend, "fullgraph": True}, CPU) == ["backbone", "bbox_head"]
    assert torch.equal(net.loss(x)["loss"], expected)
    assert len(found) == 2
    assert list(net.state_dict()) == names


def test_a_method_is_compiled_and_a_copy_of_the_model_has_its_own(graphs):
    found, backend = graphs
    net, x = Net(), torch.rand(4, 2)
    compile_model(net, {"backend": backend, "fullgraph": True, "target": "loss"}, CPU)
    net.loss(x)["loss"].backward()
    assert len(found) == 1
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.bbox_head.bias += 1
    torch.testing.assert_close(other.loss(x)["loss"] - net.loss(x)["loss"], torch.tensor(4.0))


def test_a_model_without_children_is_compiled_itself(graphs):
    found, backend = graphs
    net, x = nn.Linear(2, 3), torch.rand(4, 2)
    expected = net(x)
    assert compile_model(net, {"backend": backend}, CPU) == ["forward"]
    assert torch.equal(net(x), expected)
    assert len(found) == 1


@pytest.mark.parametrize("cfg", [None, False, {"disable": True}])
def test_nothing_is_compiled(cfg):
    net = Net()
    assert compile_model(net, cfg, CPU) == []
    assert net.backbone._compiled_call_impl is None


@pytest.mark.parametrize(
    ("cfg", "error", "message"),
    [
        ({"backend": "eagr"}, ValueError, r"compile\.backend: unknown backend 'eagr'; did you mean 'eager'"),
        ({"fulgraph": True}, KeyError, r"compile\.fulgraph: unknown key; did you mean 'fullgraph'"),
        ({"backend": "eager", "target": "backbnoe"}, ValueError, r"no module or method 'backbnoe'; .*'backbone'"),
        ({"backend": "eager", "target": ["backbone", "los"]}, ValueError, r"no module or method 'los'; .* 'loss'"),
        ({"backend": "eager", "target": "backbone.0.weight"}, ValueError, r"no module or method 'backbone.0.weight'"),
        ("max-autotune", TypeError, r"compile: True, False or a dict .* got 'max-autotune'"),
    ],
)
def test_what_is_wrong_is_refused(cfg, error, message):
    net = Net()
    with pytest.raises(error, match=message):
        compile_model(net, cfg, CPU)
    assert net.backbone._compiled_call_impl is None


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"'inductor' needs a C\+\+ compiler, and '.*' is not on PATH"):
        check_compiler("inductor", CPU)
    monkeypatch.setenv("CXX", "my-compiler -O2")
    with pytest.raises(ValueError, match="'my-compiler -O2' is not on PATH"):
        compile_model(Net(), True, CPU)
    check_compiler("eager", CPU)
    (tmp_path / "my-compiler").write_text("")
    os.chmod(tmp_path / "my-compiler", 0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"headers of Python, and .*Python\.h does not exist"):
        check_compiler("inductor", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is about its absence")
def test_a_missing_triton_is_named():
    with pytest.raises(ValueError, match=r"needs Triton, and a GPU of compute capability 7\.0 or higher"):
        check_compiler("inductor", torch.device("cuda"))


CONV = {"type": "ToyConvModel", "bbox_head": {"type": "ToyHead"}}


def test_a_run_is_what_it_is_without(make_runner, tmp_path, graphs):
    """To the bit, with channels last and averaged weights too; and either goes on with the other's checkpoint."""
    found, backend = graphs
    compiled = {"backend": "eager", "fullgraph": True}
    hooks = [{"type": "ChannelsLastHook"}, {"type": "EMAHook", "momentum": 0.1}]

    def run(name, epochs, resume=False, **changes):
        torch._dynamo.reset()
        runner = make_runner(name, epochs=epochs, model=CONV, custom_hooks=hooks, resume=resume, **changes)
        if "compile" in changes:
            runner.cfg.compile = {**compiled, "backend": backend}  # a function is no value for a config file
        runner.train()
        return load_checkpoint_file(tmp_path / name / f"epoch_{epochs}.pth")

    plain = run("plain", 2)
    before = run("compiled", 1, compile=compiled)
    assert found
    resumed = run("compiled", 2, resume=True)
    run("plain_first", 1)
    after = run("plain_first", 2, resume=True, compile=compiled)
    assert not any("_orig_mod" in name for name in before["state_dict"])
    for one in (resumed, after):
        assert one["state_dict"].keys() == plain["state_dict"].keys()
        for name, value in plain["state_dict"].items():
            assert torch.equal(one["state_dict"][name], value), name


def test_a_wrong_key_is_refused_before_the_first_step(make_runner):
    with pytest.raises(KeyError, match=r"compile\.bakend: unknown key; did you mean 'backend'"):
        make_runner(compile={"bakend": "eager"}).train()


RETINANET = {
    "type": "RetinaNet",
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 4, "num_stages": 2, "out_indices": (1,)}
    | {"strides": (1, 2), "dilations": (1, 1), "norm_eval": False},
    "neck": {"type": "FPN", "in_channels": [8], "out_channels": 4, "num_outs": 2},
    "bbox_head": {
        "type": "RetinaHead",
        "num_classes": 2,
        "in_channels": 4,
        "feat_channels": 4,
        "stacked_convs": 1,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 2,
            "scales_per_octave": 1,
            "ratios": [1.0],
            "strides": [8, 16],
        },
        "loss_normalizer": {"type": "EMA"},
    },
    "train_cfg": {"assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}},
}


def retinanet():
    torch.manual_seed(0)
    model = MODELS.build(RETINANET)
    return model, images(32, 32)


def images(height, width):
    """An image with an object, and its sample."""
    shape = (height, width)
    sample = DetDataSample(metainfo={"img_shape": shape, "pad_shape": shape, "batch_input_shape": shape})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4, 20, 20]]), labels=torch.tensor([1]))
    return torch.rand(1, 3, *shape), [sample]


def gradients(model, batch):
    losses = model.loss(*batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def test_the_loss_of_retinanet_is_one_graph(graphs):
    """From images to losses, anchors, assignment and all; focal loss is summed in another order there."""
    found, backend = graphs
    model, batch = retinanet()
    expected = gradients(model, batch)
    normalizer = model.bbox_head.loss_normalizer.value.clone()
    model, batch = retinanet()
    compile_model(model, {"backend": backend, "fullgraph": True, "target": "loss"}, CPU)
    torch.testing.assert_close(gradients(model, batch), expected)
    assert len(found) == 1
    assert model.bbox_head.loss_normalizer.value == normalizer


@pytest.mark.slow
@pytest.mark.parametrize("target", [None, "loss"])
def test_the_default_backend_gives_the_same_losses_and_gradients(target):
    model, batch = retinanet()
    expected = gradients(model, batch)
    model, batch = retinanet()
    torch._dynamo.reset()
    compile_model(model, {"fullgraph": True} | ({"target": target} if target else {}), CPU)
    torch.testing.assert_close(gradients(model, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sizes_of_images_are_compiled_once(graphs):
    """By default each of the three parts has at most five graphs, however many sizes there are."""
    found, backend = graphs
    model, _ = retinanet()
    compile_model(model, {"backend": backend}, CPU)
    generator = torch.Generator().manual_seed(0)
    for height, width in (torch.randint(1, 7, (200, 2), generator=generator) * 32).tolist():
        gradients(model, images(height, width))
    assert len(found) <= 3 * 5
