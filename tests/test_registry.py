"""The strict registry: what each refusal says, and that mmengine's own builds are held to it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from mmengine import registry as mmengine_registry
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope, Registry
from torch import nn

from detkit import registry
from detkit.registry import (
    HOOKS,
    MODELS,
    PARAM_SCHEDULERS,
    TASK_UTILS,
    TRANSFORMS,
    build,
    building,
    check_arguments,
    check_keys,
    find,
    nearest,
    where,
)


class Loss(nn.Module):
    def __init__(self, gamma: float = 2.0, *, weight: float = 1.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma, self.weight = gamma, weight


class Head(nn.Module):
    """Builds its parts: one as it is given, one with an addition, one from a changed copy."""

    def __init__(self, num_classes: int, loss_cls: dict, loss_box: dict | None = None, how: str = "as is") -> None:
        super().__init__()
        self.place = where()
        if how == "with an addition":
            loss_cls = {**loss_cls, "weight": 3.0}
        elif how == "changed":
            loss_cls = {"type": loss_cls["type"], "gama": 2.0}
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_box = MODELS.build(loss_box) if loss_box else None


class Detector(nn.Module):
    def __init__(self, head: dict, train_cfg: dict | None = None) -> None:
        super().__init__()
        check_keys(train_cfg, ("assigner", "pos_weight"), "train_cfg")
        self.head = MODELS.build(head)


class Wide(Loss):
    """Hands what it does not know to its base."""

    def __init__(self, depth: int, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]


class Open:
    def __init__(self, must: int, **anything: object) -> None:
        self.anything = anything


@pytest.fixture(autouse=True)
def _registered():
    """Classes of a user, registered for one test."""
    names = []
    for cls in (Loss, Head, Detector):
        name = f"Tested{cls.__name__}"
        MODELS.register_module(name, module=cls)
        names.append(name)
    yield
    for name in names:
        del MODELS._module_dict[name]


@pytest.fixture
def scope():
    """Makes a default scope, as a runner does, and takes it back."""
    before = dict(DefaultScope._instance_dict)
    yield lambda name: DefaultScope.get_instance(f"test of {name}", scope_name=name)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def detector(**loss) -> dict:
    return {
        "type": "TestedDetector",
        "head": {"type": "TestedHead", "num_classes": 3, "loss_cls": dict(type="TestedLoss", **loss)},
    }


def test_build_by_name_and_by_class():
    by_name = MODELS.build({"type": "TestedLoss", "gamma": 3.0})
    by_class = MODELS.build({"type": Loss, "gamma": 3.0})
    assert type(by_name) is type(by_class) is Loss
    assert by_name.gamma == by_class.gamma == 3.0


def test_config_beats_default_argument_and_is_not_changed():
    cfg = {"type": "TestedLoss", "gamma": 3.0}
    loss = MODELS.build(cfg, default_args={"gamma": 1.0, "weight": 5.0})
    assert (loss.gamma, loss.weight) == (3.0, 5.0)
    assert cfg == {"type": "TestedLoss", "gamma": 3.0}


def test_list_of_models_is_a_sequence():
    assert [type(part) for part in MODELS.build([{"type": Loss}, {"type": Wide, "depth": 1}])] == [Loss, Wide]


def test_decorator_registers_a_users_class():
    @TASK_UTILS.register_module()
    class TestedAssigner:
        def __init__(self, thr: float) -> None:
            self.thr = thr

    try:
        assert TASK_UTILS.build({"type": "TestedAssigner", "thr": 0.5}).thr == 0.5
        assert mmengine_registry.TASK_UTILS.get("detkit.TestedAssigner") is TestedAssigner
    finally:
        del TASK_UTILS._module_dict["TestedAssigner"]


def test_unknown_type_names_registry_place_and_three_names():
    with building("model", {}), pytest.raises(KeyError) as error:
        MODELS.build({"type": "TestedLos"})
    message = error.value.args[0]
    assert message.startswith("model.<TestedLos>.type: 'TestedLos' is not in the registry MODELS; did you mean ")
    assert re.search(r"did you mean 'TestedLoss' or '\w+' or '\w+'\?", message)


def test_unknown_type_names_the_registry_that_has_it():
    with pytest.raises(KeyError, match="is not in the registry TRANSFORMS; it is registered in MODELS; did you mean"):
        TRANSFORMS.build({"type": "TestedLoss"})


@pytest.mark.parametrize("how", ["as is", "with an addition", "changed"])
def test_unknown_argument_names_full_path_nearest_and_line(how):
    line = inspect.getsourcelines(Loss.__init__)[1]
    cfg = detector(gama=1.0)
    cfg["head"]["how"] = how
    expected = (
        rf"^model\.head\.loss_cls\.gama: Loss has no argument 'gama'; did you mean 'gamma'\? "
        rf"\(Loss at .*test_registry\.py:{line}\)$"
    )
    with building("", {"model": cfg}), pytest.raises(TypeError, match=expected):
        MODELS.build(cfg)


def test_path_of_a_part_is_found_in_a_list():
    whole = {"steps": [{"type": Loss}, {"type": Wide, "depht": 1}]}
    with building("train", whole), pytest.raises(TypeError, match=r"^train\.steps\.1\.depht: "):
        MODELS.build({"type": Wide, "depht": 1})


def test_two_equal_types_are_told_apart_by_their_arguments():
    cfg = detector()
    cfg["head"]["loss_box"] = {"type": "TestedLoss", "weihgt": 1.0}
    with building("", {"model": cfg}), pytest.raises(TypeError, match=r"^model\.head\.loss_box\.weihgt"):
        MODELS.build(cfg)


def test_two_equal_types_with_an_addition_are_told_apart():
    cfg = detector(gamma=1.0)
    cfg["head"]["how"] = "with an addition"
    cfg["head"]["loss_box"] = {"type": "TestedLoss", "gamma": 2.0}
    cfg["head"]["loss_cls"]["gama"] = 1.0
    with building("", {"model": cfg}), pytest.raises(TypeError, match=r"^model\.head\.loss_cls\.gama"):
        MODELS.build(cfg)


def test_missing_argument():
    with pytest.raises(TypeError, match=r"^Head needs the arguments 'num_classes', 'loss_cls' \(Head at .*:\d+\)$"):
        MODELS.build({"type": "TestedHead"})


def test_missing_argument_of_an_open_constructor_names_what_was_given_instead():
    with pytest.raises(TypeError, match=r"Open needs the argument 'must' \('mst' was given\)"):
        MODELS.build({"type": Open, "mst": 1})
    assert MODELS.build({"type": Open, "must": 1, "other": 2}).anything == {"other": 2}


def test_keyword_arguments_of_the_base_count():
    assert MODELS.build({"type": Wide, "depth": 1, "gamma": 4.0}).gamma == 4.0
    with pytest.raises(TypeError, match="Wide has no argument 'gama'; did you mean 'gamma'"):
        MODELS.build({"type": Wide, "depth": 1, "gama": 4.0})


def test_missing_and_misspelt_type():
    with building("model", {}), pytest.raises(KeyError, match="the key 'type' is missing; 'tpye' is given"):
        MODELS.build({"tpye": "TestedLoss"})


@pytest.mark.parametrize("cfg", [3, "TestedLoss", None])
def test_no_dict(cfg):
    with pytest.raises(TypeError, match="MODELS: a config dict with a 'type' was expected"):
        MODELS.build(cfg)


def test_type_of_another_kind():
    with pytest.raises(TypeError, match=r"^type: a registered name or a class was expected, got 3"):
        MODELS.build({"type": 3})


def test_where_is_the_path_inside_a_constructor_only():
    assert MODELS.build(detector()).head.place == "head"
    assert where() == ""


def test_a_failed_build_leaves_no_path():
    with pytest.raises(TypeError):
        MODELS.build(detector(gama=1))
    assert where() == ""


def test_a_complaint_of_a_constructor_gets_its_place_once():
    cfg = detector(gamma=-1)
    expected = r"^model\.head\.loss_cls: gamma must not be negative, got -1$"
    with building("", {"model": cfg}), pytest.raises(ValueError, match=expected):
        MODELS.build(cfg)
    with pytest.raises(ValueError, match=r"^gamma must not be negative"):
        MODELS.build({"type": "TestedLoss", "gamma": -1})


def test_check_keys_names_the_place():
    cfg = {**detector(), "train_cfg": {"asigner": 1}}
    expected = r"model\.train_cfg\.asigner: unknown key; did you mean 'assigner'\?"
    with building("", {"model": cfg}), pytest.raises(KeyError, match=expected):
        MODELS.build(cfg)
    check_keys(None, (), "train_cfg")
    check_keys({"pos_weight": 1}, ("pos_weight",), "train_cfg")


def test_nearest_ignores_case_and_orders_by_likeness():
    assert nearest("resnet", ["FPN", "ResNet", "ResNeXt"], count=2) == ["ResNet", "ResNeXt"]
    assert nearest("x", []) == []


def test_check_arguments_of_what_is_only_checked():
    check_arguments(Head, {"num_classes"}, "model.head", required=False)
    with pytest.raises(TypeError, match=r"^model\.head: Head needs the argument 'loss_cls'"):
        check_arguments(Head, {"num_classes"}, "model.head")


def test_scopes_name_the_same_classes():
    assert find("mmdet.TestedLoss", MODELS) is find("detkit.TestedLoss", MODELS) is Loss
    assert find("mmengine.BaseDataPreprocessor", MODELS) is find("BaseDataPreprocessor", MODELS) is not None


def test_importable_path_of_a_component(monkeypatch):
    module = ModuleType("users_module")
    module.Net = type("Net", (BaseModule,), {"__module__": "users_module"})
    module.Plain = type("Plain", (), {"__module__": "users_module"})
    monkeypatch.setitem(sys.modules, "users_module", module)
    assert type(MODELS.build({"type": "users_module.Net"})) is module.Net
    with pytest.raises(KeyError, match=r"'users_module\.Plain' is not in the registry MODELS"):
        MODELS.build({"type": "users_module.Plain"})


def test_importable_path_of_a_registered_class():
    cls = find("detkit.task_modules.samplers.PseudoSampler", TASK_UTILS)
    assert cls is find("PseudoSampler", TASK_UTILS) is not None


@pytest.mark.parametrize(
    "gadget",
    [
        {"type": "os.system", "command": "touch {}"},
        {"type": "subprocess.Popen", "args": ["touch", "{}"]},
        {"type": "builtins.eval", "source": "open('{}', 'w')"},
        {
            "type": "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
            "entrypoint": "touch",
        },
    ],
)
def test_a_config_cannot_call_what_is_no_component(gadget, tmp_path):
    mark = tmp_path / "called"
    cfg = eval(repr(gadget).replace("{}", str(mark)))
    with pytest.raises(KeyError, match="is not in the registry MODELS"):
        MODELS.build(cfg)
    assert not mark.exists()


def test_root_build_is_strict_under_our_scope(scope):
    cfg = {"type": "IterTimerHook", "bogus": 1}
    scope("detkit")
    with pytest.raises(TypeError, match="IterTimerHook has no argument 'bogus'"):
        mmengine_registry.HOOKS.build(cfg)
    assert type(mmengine_registry.MODELS.build({"type": "TestedLoss"})) is Loss


@pytest.mark.parametrize("name", [None, "mmengine"])
def test_root_build_is_strict_inside_our_builds(scope, name):
    if name:
        scope(name)

    class Wrapper:
        def __init__(self, loss: dict) -> None:
            self.loss = mmengine_registry.MODELS.build(loss)

    assert type(MODELS.build({"type": Wrapper, "loss": {"type": "TestedLoss"}}).loss) is Loss
    with pytest.raises(TypeError, match=r"^loss\.gama: Loss has no argument 'gama'; did you mean 'gamma'"):
        MODELS.build({"type": Wrapper, "loss": {"type": "TestedLoss", "gama": 1}})


def test_registry_of_another_project_inside_our_builds():
    theirs = Registry("model", parent=mmengine_registry.MODELS, scope="detkit_test_other")
    theirs.register_module("Theirs", module=Open)

    class Wrapper:
        def __init__(self, part: dict) -> None:
            self.part = theirs.build(part)

    try:
        assert type(MODELS.build({"type": Wrapper, "part": {"type": "Theirs", "must": 1}}).part) is Open
    finally:
        del mmengine_registry.MODELS._children["detkit_test_other"]


@pytest.mark.parametrize("name", [None, "mmengine"])
def test_root_build_stays_mmengines_otherwise(scope, name):
    if name:
        scope(name)
    with pytest.raises(KeyError, match="mmengine::model registry"):
        mmengine_registry.MODELS.build({"type": "TestedLoss"})
    with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
        mmengine_registry.HOOKS.build({"type": "IterTimerHook", "bogus": 1})


def test_no_root_build_warns_of_a_missing_child(scope):
    scope("detkit")
    for name in registry.REGISTRIES:
        root = getattr(mmengine_registry, name)
        with root.switch_scope_and_registry(None) as used:
            assert used is registry.REGISTRIES[name]


def test_schedulers_count_epochs_in_iterations():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    arguments = {"optimizer": optimizer, "epoch_length": 10}
    cfg = {"type": "MultiStepLR", "milestones": [2], "convert_to_iter_based": True}
    assert list(PARAM_SCHEDULERS.build(cfg, default_args=arguments).milestones) == [20]
    with pytest.raises(TypeError, match="MultiStepLR has no argument 'milestone'; did you mean 'milestones'"):
        PARAM_SCHEDULERS.build({"type": "MultiStepLR", "milestone": [2]}, default_args=arguments)
    with pytest.raises(ValueError, match="convert_to_iter_based needs by_epoch=True"):
        PARAM_SCHEDULERS.build(dict(cfg, by_epoch=False), default_args=arguments)


def test_hooks_are_found_in_mmengine():
    assert type(build({"type": "EmptyCacheHook"}, HOOKS)).__module__ == "mmengine.hooks.empty_cache_hook"


def test_importing_the_registry_does_not_import_torch():
    code = "import sys, detkit.registry, detkit.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
