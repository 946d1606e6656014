"""One line for what a user can get wrong; nothing lost."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from engine.engine_toys import toy_config

from detkit.arguments import default_argument_parser
from detkit.engine.cli import reason, run_cli, run_processes


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            KeyError("model.backbnoe: unknown key; did you mean 'backbone'?"),
            "model.backbnoe: unknown key; did you mean 'backbone'?",
        ),
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "[Errno 2] No such file or directory: 'a.json'"),
        (FloatingPointError("the loss is not finite"), "the loss is not finite"),
        (ImportError("no module"), "no module"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_user_errors_are_one_line_and_status_1(capsys, error, line):
    with pytest.raises(SystemExit) as caught:
        run_cli(fail, error)
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == f"error: {line}"
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_traceback_on_request(capsys, monkeypatch):
    for show in (True, False):
        monkeypatch.setenv("DETKIT_TRACEBACK", "0" if show else "1")
        with pytest.raises(SystemExit):
            run_cli(fail, ValueError("wrong"), show_traceback=show)
        printed = capsys.readouterr().err
        assert "Traceback" in printed
        assert "error: wrong" in printed


def test_other_errors_propagate_and_ctrl_c_exits_130(capsys):
    with pytest.raises(AttributeError, match="ours"):
        run_cli(fail, AttributeError("ours"))
    with pytest.raises(SystemExit) as caught:
        run_cli(fail, KeyboardInterrupt())
    assert caught.value.code == 130


def test_what_the_function_returns_comes_back():
    assert run_cli(lambda a, b: a + b, 1, b=2) == 3


def test_a_machine_that_is_not_there_is_refused():
    args = default_argument_parser("").parse_args(["config.py", "--machine-rank", "3"])
    with pytest.raises(ValueError, match=r"machine_rank must be in \[0, 1\), got 3"):
        run_processes(lambda _: pytest.fail("was called"), args, lambda _: {})


@pytest.mark.parametrize(("kind", "quote"), [(ValueError, ""), (KeyError, "'"), (OSError, "")])
def test_an_error_from_a_loader_worker_is_reduced_to_its_own_message(kind, quote):
    """The message has the worker's whole traceback in it, here with another error on the way."""
    message = (
        f"Caught {kind.__name__} in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "a.py", line 1, in f\n'
        "KeyError: 'inner'\n\nDuring handling of the above exception, another exception occurred:\n\n"
        f"{kind.__name__}: {quote}images/4.jpg: the file is truncated{quote}\n"
    )
    assert reason(kind(message)).strip("'") == "images/4.jpg: the file is truncated"


def test_an_error_from_a_real_worker(make_runner, capsys):
    data = toy_config("")["train_dataloader"] | {"dataset": {"type": "ToyDataset", "fail_at": 4}, "num_workers": 1}
    runner = make_runner(train_dataloader=data)
    with pytest.raises(SystemExit):
        run_cli(runner.train)
    printed = capsys.readouterr().err
    assert "error: images/4.jpg: the file is truncated\n" in printed
    log = Path(runner.logger.log_file).read_text()
    assert "Traceback (most recent call last)" in log
    assert "Caught ValueError in DataLoader worker process 0" in log
    assert f"(traceback in {runner.logger.log_file})" in printed
    assert "Traceback" not in printed
    assert os.path.isabs(runner.logger.log_file)


def test_processes_are_started_by_one_only():
    args = argparse.Namespace(num_processes=2, num_machines=1, machine_rank=0, dist_url=None, launcher="slurm")
    with pytest.raises(ValueError, match="--launcher slurm says that the processes are started already"):
        run_processes(print, args, lambda args: {})
