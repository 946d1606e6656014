"""Lines of the terminal, and the values that ``custom_cfg`` adds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from detkit.engine import LogProcessor
from detkit.events import EventStorage, History

VALUES = {
    "loss": 0.81234567,
    "loss_cls": 0.5,
    "loss_bbox": 0.3,
    "lr": 0.02,
    "time": 0.25,
    "data_time": 0.01,
    "hook_time": 0.02,
    "memory": 1234.4,
    "acc": 97.5,
    "loss_scale": 65536.0,
    "[metric]bn_stat": 1.5,
}


def test_a_line_has_everything_that_was_noted():
    line = LogProcessor().values(VALUES, 83.4)
    assert line == (
        "loss 0.8123 (cls 0.5 bbox 0.3)  lr 0.02  eta 0:01:23  time 0.25  data_time 0.01  memory 1234  "
        "acc 97.5  loss_scale 6.554e+04  [metric]bn_stat 1.5"
    )
    assert LogProcessor(num_digits=2).values({"loss": 0.8123}, None) == "loss 0.81"
    assert LogProcessor().values({"acc": 1.0}, None) == "acc 1"


def test_eta_is_there_if_it_is_known_and_metrics_in_any_case():
    """Detectron2's checks: with and without a maximum of iterations; a scalar named [metric]bn_stat in both."""
    with_eta, without = (LogProcessor().values(VALUES, eta) for eta in (18.0, None))
    assert "eta 0:00:18" in with_eta
    assert "eta" not in without
    assert "[metric]bn_stat 1.5" in with_eta
    assert "[metric]bn_stat 1.5" in without


def test_the_terminal_shows_medians_where_it_may():
    smoothed, latest = History(), History(smoothing=False)
    for history in (smoothed, latest):
        history.extend([1.0, 2.0, 100.0, 3.0], [1, 2, 3, 4])
    assert LogProcessor(window_size=3).smoothed("loss", smoothed) == 3.0
    assert LogProcessor(window_size=1000).smoothed("loss", smoothed) == 2.5
    assert LogProcessor(window_size=3).smoothed("lr", latest) == 3.0
    assert LogProcessor(window_size=1000, mean_pattern=".*(loss|time).*").smoothed("acc", smoothed) == 3.0
    assert LogProcessor(window_size=1000, mean_pattern=".*(loss|time).*").smoothed("data_time", smoothed) == 2.5


def test_custom_values():
    events = EventStorage(length=4)
    for step, value in enumerate([10.0, 1.0, 5.0, 3.0, 4.0]):
        events.put_scalar("loss", value, step=step)
    entries = [
        {"data_src": "loss", "method_name": "median", "window_size": 3},
        {"data_src": "loss", "log_name": "worst", "method_name": "max", "window_size": "epoch"},
        {"data_src": "loss", "log_name": "best", "method_name": "min", "window_size": 3},
        {"data_src": "loss", "log_name": "all", "window_size": "global"},
        {"data_src": "loss", "log_name": "now", "method_name": "current"},
        {"data_src": "loss", "log_name": "mean"},
    ]
    custom = LogProcessor(window_size=2, custom_cfg=entries).custom(events, in_epoch=4)
    assert custom == {"loss": 4.0, "worst": 5.0, "best": 3.0, "all": 4.6, "now": 4.0, "mean": 3.5}
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        LogProcessor(custom_cfg=[{"data_src": "los"}]).custom(events, 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window_size": 0}, "window_size must be at least 1, got 0"),
        ({"num_digits": 0}, "num_digits must be at least 1, got 0"),
        ({"custom_cfg": [{"method_name": "mean"}]}, r"custom_cfg\.0\.data_src is missing"),
        ({"custom_cfg": [{"data_src": "a", "method_name": "mode"}]}, r"custom_cfg\.0\.method_name must be one of"),
        ({"custom_cfg": [{"data_src": "a", "window_size": "run"}]}, "positive, 'epoch' or 'global', got 'run'"),
        ({"custom_cfg": [{"data_src": "a", "window_size": "global", "method_name": "max"}]}, "only the mean is kept"),
        ({"custom_cfg": [{"data_src": "a"}, {"data_src": "a"}]}, "gives a name twice"),
    ],
)
def test_what_cannot_be_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        LogProcessor(**options)


def test_unknown_keys_are_refused():
    with pytest.raises(KeyError, match=r"custom_cfg\.0\.data_source"):
        LogProcessor(custom_cfg=[{"data_source": "loss"}])


def test_a_config_of_mmdetection_is_taken(make_runner):
    runner = make_runner(log_processor={"type": "LogProcessor", "window_size": 50, "by_epoch": True})
    assert type(runner.log_processor) is LogProcessor
    assert runner.log_processor.window_size == 50
    assert make_runner("other").log_processor.window_size == 10
    with pytest.raises((KeyError, TypeError), match=r"log_processor.*window_sizes"):
        make_runner("wrong", log_processor={"window_sizes": 50})


def test_another_kind_of_processor_is_refused_at_once(make_runner):
    runner = make_runner()
    with pytest.raises(TypeError, match=r"log_processor: a detkit\.engine\.LogProcessor.*SimpleNamespace"):
        runner.build_log_processor(SimpleNamespace())
