"""Recomputed activations change nothing but memory, also where mmengine's freeze weights or move statistics twice."""

import copy

import pytest
import torch
from torch import nn

from detkit.checkpoints import load_checkpoint_file
from detkit.engine.model.activation_checkpointing import checkpoint_activations, merge_conv_and_frozen_norm
from detkit.engine.model.compilation import compile_model


class Net(nn.Module):
    def __init__(self, momentum=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Dropout(0.5))
        self.scale = Scale()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))

    def forward(self, x):
        return self.head(self.scale(self.stem(x), factor=2.0))


class Scale(nn.Module):
    """Asks for a keyword argument, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.calls = 0

    def forward(self, x, *, factor):
        self.calls += 1
        return (x * self.weight * factor).tanh()


def step(net, recomputed):
    images = torch.rand(5, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    checkpoint_activations(net, recomputed)
    torch.manual_seed(2)
    loss = net(images).square().sum()
    loss.backward()
    following = torch.rand(1)  # the random numbers go on as if nothing had been drawn twice
    return loss, [p.grad for p in net.parameters()], following, dict(net.named_buffers())


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("names", ["stem", ["stem", "scale"], ["stem.0", "stem", "head"]])
def test_values_gradients_and_buffers_are_the_same(names, momentum):
    expected, found = step(Net(momentum), []), step(Net(momentum), names)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert expected[3]["stem.1.num_batches_tracked"] == 1


def test_it_is_computed_again_only_where_gradients_are():
    net = Net()
    checkpoint_activations(net, "scale")
    once = net.scale.forward
    checkpoint_activations(net, "scale")
    assert net.scale.forward is once
    net(torch.rand(1, 3, 5, 5)).sum().backward()
    assert net.scale.calls == 2
    with torch.no_grad():
        net(torch.rand(1, 3, 5, 5))
    assert net.scale.calls == 3


def test_a_copy_of_the_model_uses_its_own_weights():
    net = Net().eval()
    checkpoint_activations(net, "head")
    other, images = copy.deepcopy(net), torch.rand(1, 3, 5, 5)
    with torch.no_grad():
        other.head[1].bias += 1
    torch.testing.assert_close(other(images), net(images) + 1)
    assert list(net.state_dict()) == list(Net().state_dict())


def test_less_is_kept_for_the_backward_pass():
    def kept(names):
        sizes = []
        net, images = Net(), torch.rand(5, 3, 5, 5)
        checkpoint_activations(net, names)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            net(images)
        return sum(sizes)

    assert kept(["stem"]) < 0.7 * kept([])


def test_it_compiles():
    torch._dynamo.reset()
    net, plain = Net(), Net()
    net.stem[3].p = plain.stem[3].p = 0.0  # compilers draw other numbers
    expected = step(plain, [])
    checkpoint_activations(net, "stem")
    compile_model(net, {"backend": "aot_eager", "fullgraph": True}, torch.device("cpu"))
    torch.testing.assert_close(step(net, []), expected)


@pytest.mark.parametrize("function", [checkpoint_activations, merge_conv_and_frozen_norm])
def test_an_unknown_module_is_refused(function):
    with pytest.raises(ValueError, match=r"(activation_checkpointing|efficient_conv_bn_eval): Net has no module 'stm'"):
        function(Net(), ["head", "stm"])
    with pytest.raises(ValueError, match="did you mean 'stem'"):
        function(Net(), "stm")


def test_a_run_trains_what_it_trains_without(make_runner, tmp_path):
    """The first module too, whose inputs need no gradient: mmengine's form leaves its weights as they are."""

    def run(name, **changes):
        make_runner(name, epochs=2, **changes).train()
        return load_checkpoint_file(tmp_path / name / "epoch_2.pth")["state_dict"]

    plain, recomputed = run("plain"), run("recomputed", activation_checkpointing=["body"])
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        assert torch.equal(recomputed[name], value), name
    with pytest.raises(ValueError, match=r"activation_checkpointing: ToyModel has no module 'boddy'; .* 'body'"):
        run("wrong", activation_checkpointing=["boddy"])


def test_frozen_norms_are_merged_into_their_convolutions(make_runner):
    net, images = Net(), torch.rand(5, 3, 5, 5)
    net.stem[1].running_mean.fill_(0.3)
    net.eval()
    expected = net(images)
    merge_conv_and_frozen_norm(net, "stem")
    torch.testing.assert_close(net(images), expected)
    assert not any(isinstance(call, nn.BatchNorm2d) for call in called(net, images))
    # In training the statistics are those of the batch, and move, as ever.
    net.train()(images)
    assert (net.stem[1].running_mean != 0.3).all()

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    net.scale = Branching()
    with pytest.raises(ValueError, match=r"torch.fx cannot trace 'scale' \(Branching\)"):
        merge_conv_and_frozen_norm(net, ["scale"])
    runner = make_runner(efficient_conv_bn_eval=["boddy"])
    with pytest.raises(ValueError, match="efficient_conv_bn_eval: ToyModel has no module 'boddy'"):
        runner.train()


def called(net, images):
    calls = []
    handles = [module.register_forward_hook(lambda module, *_: calls.append(module)) for module in net.modules()]
    net(images)
    for handle in handles:
        handle.remove()
    return calls
