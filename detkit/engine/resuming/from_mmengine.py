"""Runs of mmengine, and so of MMDetection 3.x, that detkit goes on with.

Their files lack the place in the data and the random numbers, and number the optimizer's state by the parameters of the
whole model, while groups with equal settings are one here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn

from detkit.checkpoints import class_names
from detkit.checkpoints.origins import with_own_names
from detkit.engine.parallel.inner_model import inner_model

__all__ = ["SECTIONS", "as_own", "is_from_mmengine"]

# What a file must have to go on from.
SECTIONS = ("meta", "state_dict", "optimizer", "param_schedulers", "message_hub")
# Choices of the machine, not of the run.
_KERNELS = ("params", "fused", "foreach", "capturable", "differentiable", "maximize")


def is_from_mmengine(checkpoint: Mapping[str, Any]) -> bool:
    """Whether mmengine's Runner wrote it; detkit's files have a format."""
    meta = checkpoint.get("meta")
    return isinstance(meta, Mapping) and "format" not in meta and isinstance(meta.get("iter"), int)


def as_own(runner: Any, checkpoint: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The checkpoint as detkit writes it.

    Args:
        runner: The run, with its model, optimizer and schedulers built.
        checkpoint: The content of the file.
        path: The file, for messages.

    Raises:
        ValueError: The data or the optimizer of the run are not those that the file was written with.
    """
    meta = checkpoint["meta"]
    own = inner_model(runner.model).state_dict()
    state = with_own_names(checkpoint["state_dict"], checkpoint, own)[0]
    groups = _Groups(runner, checkpoint, state, path)
    averaged = checkpoint.get("ema_state_dict")
    runner.logger.warning("%s was written by mmengine, which keeps no random numbers: from here on they are new", path)
    return {
        **checkpoint,
        "meta": {**meta, "label_map": {"classes": class_names(checkpoint)}},
        "state_dict": state,
        "optimizer": groups.optimizer(),
        "param_schedulers": [groups.scheduler(one) for one in checkpoint["param_schedulers"]],
        "message_hub": {},
        "rng": None,
        "position": _position(runner, meta, path),
        "hooks": {} if averaged is None else {"EMAHook": {"steps": int(averaged["steps"])}},
    }


class _Groups:
    """Parameters of the run beside the groups of the file.

    Raises:
        ValueError: They cannot be told apart.
    """

    def __init__(self, runner: Any, checkpoint: Mapping[str, Any], state: Mapping[str, Any], path: str) -> None:
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError(f"{path}: written by mmengine; a run with several optimizers cannot go on from it")
        self._path = path
        self._saved = checkpoint["optimizer"]
        self._optimizer = runner.optim_wrapper.optimizer
        ordered = _parameters(inner_model(runner.model), state)
        # Parameter -> its group and its number in the file.
        groups = self._saved["param_groups"]
        numbers = [(group, number) for group in groups for number in group["params"]]
        if len(numbers) != len(ordered):  # rules for parameters leave out what is frozen, since mmengine 0.8
            ordered = [parameter for parameter in ordered if parameter.requires_grad]
        if len(numbers) != len(ordered):
            raise ValueError(
                f"{path}: its optimizer has {len(numbers)} parameters, the model {len(ordered)}; {self._remedy}"
            )
        if len(groups) > 1 and len(groups) < len(numbers):
            raise ValueError(
                f"{path}: a constructor of its own has put its {len(numbers)} parameters into {len(groups)} groups, in "
                f"an order that the file does not tell; {self._remedy}"
            )
        by_number = {number: group for group, number in numbers}
        self._group = {parameter: by_number[number] for number, parameter in enumerate(ordered)}
        self._state = {parameter: self._saved["state"].get(number, {}) for number, parameter in enumerate(ordered)}
        self._check_shapes()

    @property
    def _remedy(self) -> str:
        return f"start a new run from its weights with --cfg-options load_from={self._path}"

    def _check_shapes(self) -> None:
        for parameter, state in self._state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"{self._path}: its optimizer has its parameters in another order: {name} of a parameter "
                        f"{tuple(parameter.shape)} would be {tuple(value.shape)}; {self._remedy}"
                    )

    def _source(self, parameters: Sequence[nn.Parameter]) -> Mapping[str, Any]:
        """The settings in the file that all ``parameters`` have."""
        known = [one for one in parameters if one in self._group] or list(self._group)[:1]  # all of them frozen
        first, *others = ({**self._group[one], "params": None} for one in known)
        if any(other != first for other in others):
            raise ValueError(
                f"{self._path}: parameters that have the same settings in optim_wrapper had different ones; give the "
                f"paramwise_cfg that the run was started with, or {self._remedy}"
            )
        return first

    def optimizer(self) -> dict[str, Any]:
        """State of the wrapped optimizer, in its own groups."""
        own = self._optimizer.state_dict()
        groups, state = [], {}
        for group, saved in zip(self._optimizer.param_groups, own["param_groups"], strict=True):
            source = self._source(group["params"])
            values = {key: source[key] for key in source if key not in _KERNELS}
            groups.append({**saved, **values, "params": saved["params"]})
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                if self._state.get(parameter):
                    state[number] = dict(self._state[parameter])
        rest = {key: value for key, value in self._saved.items() if key not in ("state", "param_groups")}
        return {**rest, "state": state, "param_groups": groups}

    def scheduler(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """State of a scheduler; what it keeps for each group is as often there as the run has groups."""
        count = len(self._saved["param_groups"])
        order = {id(group): index for index, group in enumerate(self._saved["param_groups"])}
        places = [
            next((order[id(self._group[one])] for one in group["params"] if one in self._group), 0)
            for group in self._optimizer.param_groups
        ]
        # Behind those of the groups, newer files have one of the settings that rules start from.
        per_group = [key for key in ("base_values", "_last_value") if len(saved.get(key) or ()) >= count]
        return {
            **saved,
            **{key: [*(saved[key][place] for place in places), *saved[key][count:]] for key in per_group},
        }


def _parameters(model: nn.Module, state: Mapping[str, Any]) -> list[nn.Parameter]:
    """Those of the model in the order in which the file's model had them, shared ones once."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return list(dict.fromkeys(known[name] for name in state if name in known))


def _position(runner: Any, meta: Mapping[str, Any], path: str) -> dict[str, int]:
    """Where the run is in its data; a validation that belongs there is done again."""
    length = len(runner.train_dataloader)
    done, sampler = meta["iter"], getattr(runner.train_dataloader.batch_sampler, "sampler", None)
    if isinstance(sampler, InfiniteSampler):
        epoch, batch = 0, done
    elif runner.train_loop.max_epochs > 1 or meta.get("epoch"):
        epoch = meta["epoch"]
        batch = done - epoch * length
        if not 0 <= batch < length:
            raise ValueError(
                f"{path}: {done} iterations in {epoch} epochs; a pass over the data has {length} iterations now; a run "
                "is resumed with the dataset, the batch size and the number of processes it was started with"
            )
    else:
        epoch, batch = divmod(done, length)
    return {"epoch": epoch, "batch": batch, "batches": length, "validated": 0}
