"""Curves by hand and against fvcore's values (``tests/param_scheduler_test.py`` there); borders; what is refused."""

from __future__ import annotations

import math

import pytest

from detkit.engine.schedulers import (
    CompositeMultiplier,
    ConstantMultiplier,
    CosineMultiplier,
    ExpMultiplier,
    LinearMultiplier,
    Multiplier,
    MultiStepMultiplier,
    PolyMultiplier,
    StepMultiplier,
    StepWithFixedGamma,
    WarmupMultiplier,
)


def values(curve: Multiplier, steps: int) -> list[float]:
    """The curve at the start of each of ``steps`` steps."""
    curve = curve.over(steps)
    return [curve(step / steps) for step in range(steps)]


def test_cosine():
    expected = [0.1, 0.0976, 0.0905, 0.0794, 0.0655, 0.05, 0.0345, 0.0206, 0.0095, 0.0024]
    assert values(CosineMultiplier(0.1, 0.0), 10) == pytest.approx(expected, abs=5e-5)
    # from the other end it is a warm-up
    rising = [CosineMultiplier(0.0, 0.1)(step / 10) for step in range(10, 0, -1)]
    assert rising == pytest.approx(expected, abs=5e-5)


def test_exponential():
    expected = [2, 1.5887, 1.2619, 1.0024, 0.7962, 0.6325, 0.5024, 0.3991, 0.3170, 0.2518]
    assert values(ExpMultiplier(0.1, start=2.0), 10) == pytest.approx(expected, abs=5e-5)


def test_linear_and_poly():
    rising = [k / 100 for k in range(10)]
    assert values(LinearMultiplier(0.0, 0.1), 10) == pytest.approx(rising, abs=1e-12)
    falling = [0.1 - k / 100 for k in range(10)]
    assert values(PolyMultiplier(1.0, start=0.1), 10) == pytest.approx(falling, abs=1e-12)
    assert PolyMultiplier(2.0)(0.5) == 0.25  # a half, squared
    assert (LinearMultiplier()(0.0), LinearMultiplier()(0.25), LinearMultiplier()(1.0)) == (1.0, 0.75, 0.0)


def test_equal_parts():
    four = [0.1, 0.01, 0.001, 0.0001]
    assert values(StepMultiplier(four), 12) == [one for one in four for _ in range(3)]
    assert values(StepWithFixedGamma(3, 0.1), 12) == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001] * 3)


MULTI = [0.1, 0.01, 0.001, 0.0001]


def test_multi_step_with_values():
    expected = [0.1] * 4 + [0.01] * 2 + [0.001] * 2 + [0.0001] * 4
    assert values(MultiStepMultiplier([4, 6, 8], values=MULTI), 12) == expected
    assert values(MultiStepMultiplier([4, 6, 8], values=MULTI, num_updates=12), 12) == expected
    assert values(MultiStepMultiplier(values=MULTI), 12) == [one for one in MULTI for _ in range(3)]
    # three ways to say the same thing
    three = [1.0, 0.5, 0.25]
    ways = [
        MultiStepMultiplier([30, 60], values=three, num_updates=90),
        MultiStepMultiplier(values=three, num_updates=90),
        MultiStepMultiplier([30, 60, 90], values=three),
    ]
    expected = [1.0] * 30 + [0.5] * 30 + [0.25] * 30
    assert [values(way, 90) for way in ways] == [expected] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": [4, 6, 12], "values": MULTI, "num_updates": 12}, r"milestones: \[12\] are not inside"),
        ({"milestones": [6, 4, 8], "values": MULTI, "num_updates": 12}, r"in increasing order .*, got \[6, 4, 8\]"),
        ({"milestones": [4, 4, 8], "values": MULTI, "num_updates": 12}, r"in increasing order .*, got \[4, 4, 8\]"),
        ({"milestones": [0, 4, 8], "values": MULTI, "num_updates": 12}, r"in increasing order .*, got \[0, 4, 8\]"),
        ({"milestones": [4, 6], "values": MULTI, "num_updates": 12}, "4 values have 3 milestones .*, got 2"),
        ({"values": MULTI, "num_updates": -1}, "at least one step per value was expected, got -1 steps"),
        ({"values": [], "num_updates": 12}, r"at least one value was expected, got \[\]"),
        ({}, "neither milestones nor values are given"),
        ({"milestones": [0.5, 1.0]}, r"fractions of the run \(float below 1\).*, got \[0.5, 1.0\]"),
        ({"milestones": [0.5, 8]}, r"positive steps \(int\) or fractions .*, got \[0.5, 8\]"),
    ],
)
def test_multi_step_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MultiStepMultiplier(**options)


@pytest.mark.parametrize("milestone", [12, 13])
def test_a_milestone_at_or_after_the_end_is_dropped(milestone, capfd):
    """Detectron2 refuses the one at the end and drops the one after it."""
    curve = MultiStepMultiplier([4, milestone]).over(12)
    assert [curve(step / 12) for step in range(13)] == pytest.approx([1.0] * 4 + [0.1] * 9)
    assert f"milestones: [{milestone}] are at or after the end of the run of 12 steps" in "".join(capfd.readouterr())


def test_milestones_as_fractions():
    assert values(MultiStepMultiplier([8 / 12, 11 / 12], 0.5), 120) == [1.0] * 80 + [0.5] * 30 + [0.25] * 10


def test_every_milestone_of_a_long_run_is_met_to_the_step():
    """With fvcore's tolerance alone, the third of these would come a step early."""
    for steps, milestone in ((90_000, 60_000), (7, 3), (10_000_000, 6_000_000)):
        curve = MultiStepMultiplier([milestone]).over(steps)
        assert (curve((milestone - 1) / steps), curve(milestone / steps)) == (1.0, 0.1)


def test_the_length_must_be_known():
    with pytest.raises(ValueError, match=r"its length is not known; give num_updates, or call over\(steps\)"):
        MultiStepMultiplier([4])(0.5)
    with pytest.raises(ValueError, match=r"its length is not known; give warmup_length, or call over\(steps\)"):
        WarmupMultiplier(ConstantMultiplier(), warmup_iters=5)(0.5)


CONSTANTS = [ConstantMultiplier(one) for one in (0.1, 0.2, 0.3, 0.4)]


def test_composite():
    expected = [0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.4, 0.4, 0.4]
    assert values(CompositeMultiplier(CONSTANTS, [0.2, 0.4, 0.1, 0.3]), 10) == expected
    two = [LinearMultiplier(0.0, 0.5), LinearMultiplier(0.5, 1.0)]
    line = [k / 10 for k in range(10)]
    assert values(CompositeMultiplier(two, [0.5, 0.5]), 10) == pytest.approx(line, abs=1e-12)
    # a fixed part is cut out of the whole curve
    fixed = CompositeMultiplier([ConstantMultiplier(7), LinearMultiplier(0, 1)], [0.5, 0.5], ["rescaled", "fixed"])
    assert values(fixed, 10) == pytest.approx([7] * 5 + line[5:])
    assert CompositeMultiplier(two, [0.7, 0.2999])(1.0) == pytest.approx(1.0)


def test_composite_gives_its_parts_their_steps():
    curve = CompositeMultiplier([ConstantMultiplier(), MultiStepMultiplier([2])], [0.5, 0.5])
    assert values(curve, 10) == pytest.approx([1.0] * 7 + [0.1] * 3)
    curve = CompositeMultiplier([ConstantMultiplier(), MultiStepMultiplier([7])], [0.5, 0.5], "fixed")
    assert values(curve, 10) == pytest.approx([1.0] * 7 + [0.1] * 3)


@pytest.mark.parametrize(
    ("lengths", "scaling", "message"),
    [
        ([0.2, 0.4, 0.1, 0.2], "rescaled", r"fractions that sum to 1 were expected, got \[0.2, 0.4, 0.1, 0.2\]"),
        ([1.2, -0.4, 0.1, 0.1], "rescaled", "fractions that sum to 1 were expected"),
        ([0.5, 0.5], "rescaled", "got 4 multipliers, 2 lengths"),
        ([0.2, 0.4, 0.1, 0.3], "scaled", "'rescaled' or 'fixed' was expected, got 'scaled'"),
        ([0.2, 0.4, 0.1, 0.3], ["fixed"], "4 multipliers, 4 lengths and 1 interval_scaling"),
    ],
)
def test_composite_refuses(lengths, scaling, message):
    with pytest.raises(ValueError, match=message):
        CompositeMultiplier(CONSTANTS, lengths, scaling)


@pytest.mark.parametrize(
    "curve",
    [
        ConstantMultiplier(0.3),
        StepMultiplier([0.9, 0.3]),
        StepWithFixedGamma(1, 1 / 3, start=0.9),
        MultiStepMultiplier([4], values=[0.9, 0.3], num_updates=12),
        LinearMultiplier(end=0.3),
        CosineMultiplier(end=0.3),
        CompositeMultiplier([ConstantMultiplier(), LinearMultiplier(end=0.3)], [0.5, 0.5]),
        WarmupMultiplier(ConstantMultiplier(0.3), warmup_length=1.0, rescale_interval=True),
    ],
)
def test_the_end_is_part_of_every_curve(curve):
    """fvcore raises an IndexError or a RuntimeError at 1 for some of these, in a run's last iteration."""
    assert curve(1.0) == pytest.approx(0.3)
    assert curve(1.5) == pytest.approx(0.3)
    assert curve(-0.5) == curve(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_iters": 5, "warmup_method": "cubic"}, "'linear' or 'constant' was expected, got 'cubic'"),
        ({"warmup_iters": 5, "warmup_factor": -1}, "warmup_factor: 0 or more was expected, got -1"),
        ({}, "either warmup_iters or warmup_length must be given"),
        ({"warmup_iters": 5, "warmup_length": 0.5}, "either warmup_iters or warmup_length must be given"),
        ({"warmup_iters": -5}, "got warmup_iters=-5"),
        ({"warmup_length": 1.5}, "warmup_length=1.5"),
    ],
)
def test_warmup_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        WarmupMultiplier(ConstantMultiplier(), **options)


def test_other_refusals():
    with pytest.raises(ValueError, match="power: a positive exponent was expected, got 0"):
        PolyMultiplier(0)
    with pytest.raises(ValueError, match="decay: a positive ratio was expected, got 0"):
        ExpMultiplier(0)
    with pytest.raises(ValueError, match="num_decays: 0 or more was expected, got -1"):
        StepWithFixedGamma(-1)
    with pytest.raises(TypeError, match=r"a multiplier was expected, .* got 0\.5"):
        WarmupMultiplier(0.5, warmup_iters=3)


def test_the_multiplier_of_coco_1x():
    """90,000 iterations, warm-up over 1,000, drops at 60,000 and 80,000."""
    curve = WarmupMultiplier(MultiStepMultiplier([60_000, 80_000]), 0.001, 1000).over(90_000)
    expected = {0: 0.001, 1: 0.001999, 500: 0.5005, 999: 0.999001, 1000: 1.0, 59_999: 1.0}
    expected |= {60_000: 0.1, 79_999: 0.1, 80_000: 0.01, 90_000: 0.01}
    assert {step: curve(step / 90_000) for step in expected} == pytest.approx(expected, rel=1e-12)


def test_a_warmup_meets_its_curve_without_a_jump():
    curve = WarmupMultiplier(CosineMultiplier(), 0.1, 10).over(100)
    before, after = curve(0.1 - 2e-6), curve(0.1)
    assert after == 0.5 * (1 + math.cos(math.pi * 0.1))
    assert before == pytest.approx(after, abs=1e-4)
