"""Doing a training step again from its bundle: the same losses, and which image they came from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from detkit import config as configs
from detkit.engine.data.seeding import seed_everything
from detkit.engine.diagnosis.batch_contents import image_names
from detkit.engine.diagnosis.bundle import load_bundle
from detkit.engine.environment import select_device
from detkit.engine.run.train_step import train_step
from detkit.events import EventStorage
from detkit.registry import MODELS, building

__all__ = ["Replay", "replay"]

_ALONE = "Expected more than 1 value per channel"  # torch's error of a norm that gets a single value


@dataclass
class Replay:
    """What came of a step that was done again.

    Attributes:
        iteration: The step, as the count of iterations done with it.
        recorded: Its losses in the run.
        losses: Its losses now.
        module: The first module whose output was not finite, by its name; None where all were.
        images: For each image its path and the losses of the step with this image alone.
        backward: With ``anomaly``, the operation whose gradient is the first with a NaN, and where it was called.
    """

    iteration: int
    recorded: dict[str, float]
    losses: dict[str, float]
    module: str | None
    images: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    backward: str | None = None

    @property
    def identical(self) -> bool:
        """Whether every loss is that of the run to the bit."""
        return self.losses.keys() == self.recorded.keys() and all(
            value == self.recorded[name] or (math.isnan(value) and math.isnan(self.recorded[name]))
            for name, value in self.losses.items()
        )

    @property
    def bad_images(self) -> list[str]:
        """Paths of the images whose loss is not finite by themselves."""
        return [path for path, losses in self.images if not _finite(losses)]

    def __str__(self) -> str:
        lines = [f"iteration {self.iteration}: {_text(self.losses)}"]
        lines.append(
            "the losses are those of the run to the bit"
            if self.identical
            else f"the losses are not those of the run: {_text(self.recorded)}"
        )
        if self.module is not None:
            lines.append(f"first module whose output is not finite: {self.module}")
        lines += [f"  {'ok ' if _finite(losses) else 'BAD'}  {path}  {_text(losses)}" for path, losses in self.images]
        if self.images and not self.bad_images:
            lines.append("each image by itself gives a finite loss: it is the batch, or what the model carried over")
        if self.backward is not None:
            lines.append(self.backward)
        return "\n".join(lines)


def replay(path: str | Path, device: str | None = None, anomaly: bool = False) -> Replay:
    """Do a step again, with the weights, the data, the random numbers and the precision it had in its run.

    On the same kind of device the losses are the same to the bit, but for parts that several processes compute
    together, such as normalisers and synchronised batch norm: they see this process's images only. What the run had
    compiled is not compiled here.

    Args:
        path: A bundle; ``CheckInvalidLossHook`` writes them.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``; CUDA where there is one if None.
        anomaly: Also go backward, and name the operation whose gradient is the first with a NaN.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no bundle, or one without its batch.
    """
    bundle = load_bundle(path)
    if bundle["batch"] is None:
        raise ValueError(f"{path}: holds no batch, since its data could not be loaded again when it was written")
    where = select_device(device)
    with DefaultScope.overwrite_default_scope("detkit"), _precision(bundle["precision"]):
        step = _Step(bundle, where)
        losses, module, backward = step(bundle["batch"], anomaly)
        result = Replay(bundle["iteration"], bundle["losses"], losses, module, backward=backward)
        for image, one in _one_by_one(bundle["batch"]):
            result.images.append((image, step.alone(one)))
    return result


class _Step:
    """Does the forward pass of a bundle's step, each time from the same state."""

    def __init__(self, bundle: Mapping[str, Any], device: torch.device) -> None:
        cfg = configs.loads(bundle["cfg"])
        model = dict(cfg["model"])
        if cfg.get("data_preprocessor") is not None:
            model.setdefault("data_preprocessor", cfg["data_preprocessor"])
        with building("model", model):
            self.model: Any = revert_sync_batchnorm(MODELS.build(model))
        if bundle["precision"]["channels_last"]:
            self.model.to(memory_format=torch.channels_last)
        self.model.to(device).train()
        self.bundle = bundle
        hub = MessageHub.get_current_instance()
        for key, value in bundle["progress"].items():
            hub.update_info(key, value)

    def __call__(self, batch: Any, anomaly: bool = False) -> tuple[dict[str, float], str | None, str | None]:
        """Losses, the first module whose output is not finite, and what is to be said of the backward pass."""
        self.model.load_state_dict(self.bundle["weights"])
        seed_everything(self.bundle["seed"])
        parameter = next(self.model.parameters())
        wrapper = _Forward(parameter.device.type, self.bundle["precision"], anomaly)
        events = EventStorage(self.bundle["iteration"])
        events.seed = self.bundle["run_seed"]
        with events, _first_not_finite(self.model) as found, wrapper.detecting():
            outputs = train_step(self.model, batch, wrapper)
        self.model.zero_grad()
        return _numbers(outputs), next(iter(found), None), wrapper.backward

    def alone(self, batch: Any) -> dict[str, float]:
        """Losses of a batch of one image; where a norm needs more than one value, of the image twice."""
        try:
            return self(batch)[0]
        except ValueError as error:
            if _ALONE not in str(error):
                raise
            return self({name: [*values, *values] for name, values in batch.items()})[0]


class _Forward:
    """Stands in for the optimizer wrapper: the precision of a run, and no update.

    Args:
        device_type: Where the model is.
        precision: Of the bundle.
        anomaly: Whether to go backward and look for the first NaN.
    """

    def __init__(self, device_type: str, precision: Mapping[str, Any], anomaly: bool) -> None:
        self._device_type = device_type
        self._dtype = precision["autocast"] and getattr(torch, precision["autocast"])
        self._scale = precision["loss_scale"] or 1.0
        self._anomaly = anomaly
        self.backward: str | None = None

    def optim_context(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Autocast as in the run."""
        return torch.autocast(self._device_type, self._dtype) if self._dtype else nullcontext()

    def detecting(self) -> AbstractContextManager[Any]:
        """Around forward and backward."""
        return torch.autograd.set_detect_anomaly(True) if self._anomaly else nullcontext()

    def update_params(self, loss: Tensor) -> None:
        """Go backward, if asked to, and note the first operation that gives a NaN."""
        if not self._anomaly:
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                (loss * self._scale).backward()
            except RuntimeError as error:
                if "returned nan values" not in str(error):
                    raise
                where = "\n".join(str(warning.message).partition("\n (Triggered")[0] for warning in caught)
                self.backward = f"backward: {error}\n{where}".rstrip()
            else:
                self.backward = "backward: no gradient has a NaN"


@contextmanager
def _precision(settings: Mapping[str, Any]) -> Iterator[None]:
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )

    def set_to(matmul: str, tf32: bool, deterministic: bool, threads: int) -> None:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)

    names = ("matmul_precision", "cudnn_tf32", "deterministic", "num_threads")
    set_to(*(settings[name] for name in names))
    try:
        yield
    finally:
        set_to(*before)


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Collects, in the order of computation, the names of modules whose output is not finite."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(output)):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output.detach()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def _one_by_one(batch: Any) -> Iterator[tuple[str, Any]]:
    """Each image of a batch of inputs and data samples as a batch; none of a batch of another kind."""
    if not isinstance(batch, Mapping) or not {"inputs", "data_samples"} <= batch.keys():
        return
    count = len(batch["data_samples"])
    if any(not isinstance(values, (list, tuple, Tensor)) or len(values) != count for values in batch.values()):
        return
    for index, name_of_image in enumerate(image_names(batch)):
        yield name_of_image, {name: list(values[index : index + 1]) for name, values in batch.items()}


def _numbers(outputs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in outputs.items() if isinstance(value, (Tensor, int, float))}


def _finite(losses: Mapping[str, float]) -> bool:
    return all(math.isfinite(value) for name, value in losses.items() if "loss" in name)


def _text(losses: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.9g}" for name, value in losses.items() if "loss" in name)
