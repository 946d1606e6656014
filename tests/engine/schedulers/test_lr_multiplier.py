"""Learning rates step by step: Detectron2's values (``tests/test_scheduler.py`` there, and by running it).

A list of rates has the one before the first step, then the one after each step.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.engine_toys import toy_config
from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR, MultiStepLR
from reference import cases
from torch import nn

from detkit.engine import OptimWrapper
from detkit.engine.schedulers import LRMultiplier, Multiplier, build_schedulers
from detkit.registry import PARAM_SCHEDULERS, building


def sgd(lr: Any = 5.0, groups: int = 1) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=lr, momentum=0.9)


def rates(steps: int, *configs: dict[str, Any], lr: float = 5.0) -> list[float]:
    optimizer = sgd(lr)
    schedulers = build_schedulers(list(configs), optimizer, max_epochs=None, max_iters=steps, epoch_length=1)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def warmup(curve: dict[str, Any], **options: Any) -> dict[str, Any]:
    whole = {"type": "WarmupMultiplier", "multiplier": curve, "warmup_factor": 0.001, "warmup_iters": 5, **options}
    return {"type": "LRMultiplier", "multiplier": whole}


MULTI_STEP = {"type": "MultiStepMultiplier", "milestones": [10, 15, 20], "gamma": 0.1}
COSINE = {"type": "CosineMultiplier"}
LINE = [0.005, 1.004, 2.003, 3.002, 4.001]


def test_multi_step_after_a_warmup():
    expected = LINE + [5.0] * 5 + [0.5] * 5 + [0.05] * 5 + [0.005] * 11
    assert rates(30, warmup(MULTI_STEP)) == pytest.approx(expected, rel=1e-9)
    own_name = {"type": "WarmupMultiStepLR", "milestones": [10, 15, 20], "warmup_iters": 5}
    assert rates(30, own_name) == pytest.approx(expected, rel=1e-9)


def test_cosine_after_a_warmup():
    found = rates(30, warmup(COSINE))
    assert found[0] == 0.005
    assert found[:7] == pytest.approx([0.005, 0.93701, 1.86903, 2.80104, 3.73305, 4.66506, 4.52254], abs=5e-6)
    cosine = [2.5 * (1 + math.cos(math.pi * step / 30)) for step in range(31)]
    assert found[5:] == pytest.approx(cosine[5:], abs=5e-8)
    assert all(abs(one - two) > 0.1 for one, two in zip(found[:5], cosine[:5], strict=True))
    assert found[29:] == pytest.approx([0.0137, 0.0], abs=5e-5)
    assert rates(30, {"type": "WarmupCosineLR", "warmup_iters": 5}) == found


@pytest.mark.parametrize("end", [0.0, 0.5])
def test_the_ends_of_a_cosine(end):
    found = rates(100, warmup({**COSINE, "end": end / 5}, warmup_iters=10, warmup_factor=0.1))
    assert (found[0], found[-1]) == pytest.approx((0.5, end), abs=5e-8)
    alias = {"type": "WarmupCosineLR", "eta_min_ratio": end / 5, "warmup_iters": 10, "warmup_factor": 0.1}
    assert rates(100, alias) == found


def test_fixed_gamma_in_what_the_warmup_leaves():
    """Detectron2 raises an IndexError at the last of these, before the final model is saved."""
    curve = {"type": "StepWithFixedGamma", "num_decays": 4}
    found = rates(30, warmup(curve, rescale_interval=True))
    levels = [5.0] * 5 + [0.5] * 5 + [0.05] * 5 + [0.005] * 5 + [0.0005] * 5
    assert found == pytest.approx([*LINE, *levels, 0.0005], rel=1e-9)
    alias = {"type": "WarmupStepWithFixedGammaLR", "num_decays": 4, "warmup_iters": 5, "rescale_interval": True}
    assert rates(30, alias) == found


def test_cosine_in_what_the_warmup_leaves():
    found = rates(30, warmup(COSINE, rescale_interval=True))
    expected = {5: 5.0, 6: 4.98029, 10: 4.52254, 20: 1.72746, 29: 0.01971, 30: 0.0}
    assert {step: found[step] for step in expected} == pytest.approx(expected, abs=5e-6)
    assert found[:5] == pytest.approx(LINE)  # up to the cosine's start, which follows


def test_milestones_in_what_the_warmup_leaves():
    curve = {"type": "MultiStepMultiplier", "milestones": [10]}
    assert rates(30, warmup(curve, rescale_interval=True)) == pytest.approx([*LINE, *[5.0] * 10, *[0.5] * 16])


def test_constant_warmup():
    curve = {"type": "MultiStepMultiplier", "milestones": [20]}
    found = rates(30, warmup(curve, warmup_method="constant"))
    assert found == pytest.approx([0.005] * 5 + [5.0] * 15 + [0.5] * 11)


def test_a_warmup_longer_than_the_run():
    curve = {"type": "ConstantMultiplier"}
    linear = rates(10, warmup(curve, warmup_iters=100), lr=0.1)
    assert linear == pytest.approx([0.0001 + 0.00999 * step for step in range(11)])
    constant = rates(10, warmup(curve, warmup_iters=100, warmup_method="constant"), lr=0.1)
    assert constant == pytest.approx([0.0001] * 10 + [0.1])


def test_no_warmup():
    for method in ("linear", "constant"):
        assert rates(10, warmup(COSINE, warmup_iters=0, warmup_method=method))[0] == 5.0


@pytest.mark.parametrize("milestone", [30, 31])
def test_a_milestone_at_or_after_the_end_is_dropped(milestone, capfd):
    found = rates(30, {"type": "LRMultiplier", "multiplier": {**MULTI_STEP, "milestones": [10, milestone]}})
    assert found == pytest.approx([5.0] * 10 + [0.5] * 21)
    assert f"[{milestone}] are at or after the end of the run" in "".join(capfd.readouterr())


def chain(end: int) -> list[dict[str, Any]]:
    line = {"type": "LinearLR", "start_factor": 0.001, "begin": 0, "end": end, "by_epoch": False}
    return [line, {"type": "MultiStepLR", "milestones": [10, 15, 20], "by_epoch": False}]


def test_against_chains_of_mmengine():
    """LinearLR reaches its target one step before its ``end``."""
    assert rates(30, *chain(6))[:30] == pytest.approx(rates(30, warmup(MULTI_STEP))[:30], abs=9e-15)
    early = rates(30, *chain(5))
    assert early[:5] == pytest.approx([0.005, 1.25375, 2.5025, 3.75125, 5.0])
    # Detectron2's deprecated WarmupCosineLR is a product of both, as the chain is; a warm-up into the cosine is not.
    line = chain(6)[0]
    cosine = {"type": "CosineAnnealingLR", "T_max": 30, "by_epoch": False}
    found = rates(30, line, cosine)[:30]
    factors = [0.001 + 0.999 * min(step / 5, 1) for step in range(30)]
    old = [5 * f * 0.5 * (1 + math.cos(math.pi * step / 30)) for step, f in enumerate(factors)]
    assert found == pytest.approx(old, abs=1e-13)
    new = rates(30, warmup(COSINE))[:30]
    assert max(abs(one - two) for one, two in zip(found, new, strict=True)) == pytest.approx(0.1275, abs=5e-5)


@pytest.mark.parametrize("case", cases("optim/learning_rates"))
def test_schedules_of_mmdetections_configs(case):
    inputs, schedulers = case["inputs"], case["config"]["schedulers"]
    optimizer = sgd(inputs["base_lr"], groups=2)
    optimizer.param_groups[1]["lr"] *= inputs["second_group"]
    length = inputs["iters_per_epoch"]
    limits = {"max_epochs": inputs["iters"] // length, "max_iters": inputs["iters"], "epoch_length": length}
    if "error" in case:
        with pytest.raises(ValueError):  # noqa: PT011  mmengine's own words
            build_schedulers(schedulers, optimizer, **limits)
        return
    built = build_schedulers(schedulers, optimizer, **limits)
    found = []
    for step in range(1, inputs["iters"] + 1):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        for scheduler in built:
            if not scheduler.by_epoch or step % length == 0:
                scheduler.step()
    expected = torch.as_tensor(case["outputs"]["lr"], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-6, atol=1e-9)


def test_each_group_keeps_its_share():
    optimizer = sgd(5.0, groups=2)
    optimizer.param_groups[1]["lr"] = 0.5
    scheduler = LRMultiplier(optimizer, {"type": "LinearMultiplier"}, end=10)
    scheduler.step()
    assert scheduler.get_last_value() == pytest.approx([4.5, 0.45])
    assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_value()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="has 2 base values for 3 parameter groups"):
        scheduler.step()


def test_a_rate_that_is_a_tensor_is_written_in_place():
    rate = torch.tensor(5.0)
    optimizer = sgd(rate)
    scheduler = LRMultiplier(optimizer, {"type": "LinearMultiplier"}, end=10)
    for _ in range(3):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(3.5)


def test_the_base_rate_of_several_groups_follows():
    optimizer = sgd(5.0, groups=2)
    optimizer.param_groups[0]["lr"] = 0.5
    wrapper = OptimWrapper(optimizer)
    LRMultiplier(wrapper, {"type": "LinearMultiplier"}, end=10).step()
    assert wrapper.get_lr()["base_lr"] == pytest.approx([4.5])


def test_another_number_than_the_learning_rate():
    optimizer = sgd()
    curve = {"type": "LRMultiplier", "multiplier": {"type": "LinearMultiplier"}, "param_name": "momentum"}
    (scheduler,) = build_schedulers(curve, optimizer, max_epochs=None, max_iters=10, epoch_length=1)
    scheduler.step()
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["lr"]) == (pytest.approx(0.81), 5.0)
    with pytest.raises(KeyError, match=r"param_scheduler\.param_name: parameter groups have no 'momentm', but \['mome"):
        build_schedulers(curve | {"param_name": "momentm"}, optimizer, max_epochs=1, max_iters=10, epoch_length=1)


def test_a_window_and_what_follows_it():
    first = {"type": "LRMultiplier", "multiplier": {"type": "LinearMultiplier", "end": 0.5}, "end": 4}
    # From where the curve ended: half of it for three steps.
    later = {"type": "ConstantLR", "factor": 0.5, "begin": 4, "end": 8, "by_epoch": False}
    assert rates(9, first, later) == pytest.approx([5, 4.375, 3.75, 3.125, 1.25, 1.25, 1.25, 2.5, 2.5, 2.5])
    second = {"type": "LRMultiplier", "multiplier": {"type": "LinearMultiplier", "start": 0.5}, "begin": 4, "end": 8}
    assert rates(9, first, second) == pytest.approx([5, 4.375, 3.75, 3.125, 2.5, 1.875, 1.25, 0.625, 0, 0])
    # Another schedule first: before its window nothing is set.
    early = {"type": "ConstantLR", "factor": 0.5, "begin": 0, "end": 4, "by_epoch": False}
    assert rates(5, early, second) == pytest.approx([2.5, 2.5, 2.5, 5.0, 2.5, 1.875])


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([{"type": "LinearLR", "start_factor": 0.1, "end": 3, "by_epoch": False}], "in steps 0 to 3"),
        ([{"type": "MultiStepLR", "milestones": [1], "by_epoch": True}], r"\(MultiStepLR\) in steps 0 to 10"),
        (
            [{"type": "LRMultiplier", "multiplier": COSINE, "begin": 5}],
            r"\.0: LRMultiplier .* in steps 5 to 10, .* in steps 0 to 10",
        ),
    ],
)
def test_two_schedules_of_one_value_at_one_time_are_refused(others, message):
    with pytest.raises(ValueError, match=message):
        build_schedulers(
            [*others, {"type": "LRMultiplier", "multiplier": COSINE}],
            sgd(),
            max_epochs=2,
            max_iters=10,
            epoch_length=5,
        )


def test_the_order_of_schedules_that_meet():
    one = {"type": "LRMultiplier", "multiplier": COSINE, "end": 4}
    two = {"type": "LRMultiplier", "multiplier": COSINE, "begin": 4}
    with pytest.raises(ValueError, match="or let the later one begin where the other ends and stand behind it"):
        rates(10, two, one)
    momentum = {"type": "CosineAnnealingMomentum", "T_max": 10, "by_epoch": False}
    rates(10, one, momentum, two)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (COSINE, r"param_scheduler\.0\.type: CosineMultiplier is a curve; write dict\(type='LRMultiplier', multip"),
        (warmup({**MULTI_STEP, "gama": 1}), r"param_scheduler\.0\.multiplier\.multiplier\.gama: MultiStepMultiplier"),
        (warmup({"type": "CosinMultiplier"}), r"param_scheduler\.0\.multiplier\.multiplier\.type: 'CosinMultiplier'"),
        (warmup({**MULTI_STEP, "milestones": [3, 2]}), r"param_scheduler\.0\.multiplier\.multiplier\.milestones: pos"),
        (warmup(COSINE, warmup_iters=-1), r"param_scheduler\.0\.multiplier\.warmup_iters: 0 or more steps"),
        ({"type": "LRMultiplier", "multiplier": {"type": "StepLR", "step_size": 3}}, "StepLR"),
        ({"type": "LRMultiplier", "multiplier": COSINE, "begin": -1}, r"param_scheduler\.0\.begin: .* got -1"),
        ({"type": "LRMultiplier", "multiplier": COSINE, "end": 1.5}, r"param_scheduler\.0\.end: a step, .* got 1\.5"),
        ({"type": "LRMultiplier", "multiplier": COSINE, "begin": 40}, r"param_scheduler\.0\.end: a step after begin=4"),
        ({"type": "WarmupCosineLR", "eta_min_ratio": 2}, r"param_scheduler\.0\.eta_min_ratio: a number in \[0, 1\]"),
        ({"type": "LRMultiplier", "multiplier": COSINE, "convert_to_iter_based": True, "by_epoch": True}, "8 / 12"),
        ({"type": "QuadraticWarmupLR", "begin": 5, "end": 5}, "end should be larger than begin"),
        ("CosineMultiplier", r"param_scheduler\.0: a config dict or a scheduler was expected, got 'CosineMul"),
    ],
)
def test_errors_name_their_config_path(cfg, message):
    with pytest.raises((KeyError, TypeError, ValueError), match=message):
        rates(30, cfg)


def test_the_length_must_be_known():
    with pytest.raises(ValueError, match=r"LRMultiplier\.end: the number of steps must be known; .* end=max_iters"):
        LRMultiplier(sgd(), COSINE)
    with building("param_scheduler", {}), pytest.raises(ValueError, match=r"param_scheduler.*\.end: must be set"):
        PARAM_SCHEDULERS.build({"type": "QuadraticWarmupLR", "optimizer": sgd()})


def test_epochs_may_be_counted_too():
    cfg = {"type": "LRMultiplier", "multiplier": {**MULTI_STEP, "milestones": [2]}, "by_epoch": True}
    (scheduler,) = build_schedulers(cfg, sgd(), max_epochs=3, max_iters=30, epoch_length=10)
    assert (scheduler.by_epoch, scheduler.end) == (True, 3)
    found = []
    for _ in range(3):
        found += scheduler.get_last_value()
        scheduler.step()
    assert found == pytest.approx([5.0, 5.0, 0.5])


def test_the_runs_length_is_handed_over(make_runner):
    runner = make_runner(
        train_cfg={"by_epoch": False, "max_iters": 6, "val_interval": 6},
        param_scheduler=[{"type": "LRMultiplier", "multiplier": COSINE}, {"type": "ConstantMomentum", "end": 2}],
        default_hooks=toy_config("")["default_hooks"] | {"checkpoint": None},
    )
    runner.train()
    assert runner.param_schedulers[0].end == 6
    assert runner.param_schedulers[0].last_step == 6
    assert runner.optim_wrapper.get_lr()["lr"] == pytest.approx([0.0], abs=1e-12)


def test_a_step_is_cheap():
    """1.3 us of processor time where this was written; mmengine's LinearLR and CosineAnnealingLR took 4.7 together."""
    curve = warmup(COSINE, warmup_iters=1000)["multiplier"]
    scheduler = LRMultiplier(OptimWrapper(sgd(groups=2)), curve, end=10_000)
    best = math.inf
    for _ in range(20):
        start = time.process_time()
        for _ in range(200):
            scheduler.step()
        best = min(best, (time.process_time() - start) / 200)
    assert best < 8e-6


def test_a_curve_of_ones_own():
    @PARAM_SCHEDULERS.register_module()
    class Quarter(Multiplier):
        def __init__(self, after: float) -> None:
            self.after = after

        def value(self, done: float) -> float:
            return 0.25 if done >= self.after else 1.0

    try:
        found = rates(10, warmup({"type": "Quarter", "after": 0.5}, warmup_iters=2))
        assert found == pytest.approx([0.005, 2.5025, 5, 5, 5] + [1.25] * 6)
    finally:
        del PARAM_SCHEDULERS._module_dict["Quarter"]
    by_path = {"type": "LRMultiplier", "multiplier": {"type": f"{__name__}.Half"}}
    assert rates(2, by_path) == [2.5] * 3


class Half(Multiplier):
    def value(self, done: float) -> float:
        return 0.5


def test_names_of_mmengine_stay_what_they_are():
    for cls in (CosineAnnealingLR, LinearLR, MultiStepLR):
        assert PARAM_SCHEDULERS.get(cls.__name__) is cls


def test_the_page_of_schedules():
    """Its snippets run, and its table names every curve."""
    page = (Path(__file__).parents[3] / "docs" / "schedules.md").read_text()
    schedule, curve = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names: dict[str, Any] = {}
    exec(schedule + curve, names)
    try:
        (scheduler,) = build_schedulers(names["param_scheduler"], sgd(), max_iters=90_000, epoch_length=1)
        for step, rate in ((0, 0.005), (1000, 5.0), (60_000, 0.5), (80_000, 0.05)):
            scheduler.load_state_dict({"base_values": [5.0], "last_step": step})
            assert scheduler.get_last_value() == pytest.approx([rate])
        found = rates(4, {"type": "LRMultiplier", "multiplier": {"type": "Triangle"}})
        assert found == pytest.approx([0.0, 2.5, 5.0, 2.5, 0.0])
    finally:
        PARAM_SCHEDULERS._module_dict.pop("Triangle", None)
    curves = {name for name, cls in PARAM_SCHEDULERS.module_dict.items() if issubclass(cls, Multiplier)}
    assert curves == set(re.findall(r"^\| `(\w+)\(", page, flags=re.M))
