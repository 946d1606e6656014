"""Which names a pickle may use: those of plain data, and harmless stand-ins for classes that frameworks leave behind.

Nothing else is looked up, so nothing else runs. The same table serves ``torch.load(weights_only=True)`` and plain
pickles. Stand-ins are made anew for each file: a file that tampers with them reaches no other.
"""

from __future__ import annotations

import codecs
import datetime
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["StructureUnpickler", "load_pickle", "only_data", "stand_ins_allowed"]

# numpy moved its private modules in 2.0; files name either.
_NUMPY_CORES = ("numpy.core", "numpy._core")
# The dtypes of numbers, strings and objects.
_DTYPE_CODE = re.compile(r"[?biufcSUO]\d*")
_lock = threading.Lock()


class _Foreign:
    """An object of another framework, of which only the attributes are kept."""

    def __new__(cls, *_args: Any) -> _Foreign:
        return super().__new__(cls)

    def __init__(self, *_args: Any) -> None:
        """Nothing is made of the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _HistoryBuffer(_Foreign):
    """mmengine's history of a logged number; its functions are left out."""


class _MessageHub(_Foreign):
    """mmengine's record of a run, where somebody saved it whole."""


class _Config(_Foreign):
    """A config of mmengine or mmcv, of which the values are kept: the first of its state."""

    def __setstate__(self, state: Any) -> None:
        self.state = state[0] if isinstance(state, tuple) and state else state


class _Namespace(_Foreign):
    """argparse's, in which DETR and its relatives keep their settings."""


def _config_dict(*values: Any) -> dict[Any, Any]:
    return dict(*values)


def _no_attribute(*_args: Any) -> None:
    """In place of ``getattr``, by which mmengine's buffers name their functions."""


def _path(*parts: str) -> str:
    return "/".join(parts)


def _moment(*parts: Any) -> str:
    """A date or a time of a day, or both, as text."""
    kind = datetime.date if len(parts) == 1 and len(parts[0]) == 4 else datetime.datetime
    return kind(*parts).isoformat()


def _duration(days: int = 0, seconds: int = 0, microseconds: int = 0) -> datetime.timedelta:
    return datetime.timedelta(days, seconds, microseconds)


def _zone(offset: Any, *_name: Any) -> datetime.timezone:
    return datetime.timezone(offset)


class _Dtype(_Foreign):
    """numpy's, by its code and byte order. The rest of what a file says of it numpy would believe: with a field of
    objects that its flags deny, bytes of the file become pointers.
    """

    def __init__(self, code: str = "", *_args: Any) -> None:
        if not isinstance(code, str) or _DTYPE_CODE.fullmatch(code) is None:
            raise pickle.UnpicklingError(f"numpy's dtype {code!r} is not plain data")
        self.is_object = code[0] == "O"
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_Foreign):
    """numpy's, made of its shape, dtype and bytes."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> Any:
    """An array of numbers or strings; lists for one of objects."""
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("a numpy array is written in an unknown way")
    if not dtype.is_object:
        raw = data.encode("latin1") if isinstance(data, str) else data  # the bytes of Python 2
        return np.ndarray(shape, dtype.dtype, bytearray(raw), order="F" if order == "F" else "C")
    objects = np.empty(len(data), dtype=object)
    for index, one in enumerate(data):
        objects[index] = one
    return objects.reshape(shape, order="F" if order == "F" else "C").tolist()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype) or dtype.is_object:
        raise pickle.UnpicklingError("a numpy scalar is written in an unknown way")
    return _array(data, dtype, (), "C").item()


def _encode(text: str, _encoding: str = "latin1") -> bytes:
    return codecs.latin_1_encode(text)[0]


def _stand_ins() -> dict[str, Any]:
    """Name in a pickle -> what it stands for."""
    table: dict[str, Any] = {
        "mmengine.logging.history_buffer.HistoryBuffer": _HistoryBuffer,
        "mmengine.logging.message_hub.MessageHub": _MessageHub,
        "mmengine.config.config.ConfigDict": _config_dict,
        "mmengine.config.config.Config": _Config,
        "mmcv.utils.config.ConfigDict": _config_dict,
        "mmcv.utils.config.Config": _Config,
        "addict.addict.Dict": _config_dict,
        "datetime.datetime": _moment,
        "datetime.date": _moment,
        "datetime.timedelta": _duration,
        "datetime.timezone": _zone,
        "mmengine.structures.instance_data.InstanceData": _Foreign,  # proposals are kept in it
        "argparse.Namespace": _Namespace,
        "collections.Counter": _config_dict,  # a class of Python, which a file could change for the whole process
        "builtins.getattr": _no_attribute,
        "numpy.ndarray": _Array,
        "numpy.dtype": _Dtype,
        "_codecs.encode": _encode,
        **{f"pathlib.{name}": _path for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")},
    }
    for core in _NUMPY_CORES:
        table[f"{core}.multiarray._reconstruct"] = _Array
        table[f"{core}.multiarray.scalar"] = _scalar
        table[f"{core}.numeric._frombuffer"] = _array
    return {name: _copy_of(value, name) for name, value in table.items()}


def _copy_of(value: Any, name: str) -> Any:
    module, _dot, own = name.rpartition(".")
    names = {"__module__": module, "__qualname__": own}
    if isinstance(value, type):
        return type(own, (value,), names)

    def stand_in(*args: Any) -> Any:
        return value(*args)

    stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, own, own
    return stand_in


def _plain_types() -> dict[str, Any]:
    kinds = (OrderedDict, set, frozenset, bytes, bytearray, complex)  # protocol 2 names bytes where they are empty
    return {f"{kind.__module__}.{kind.__name__}": kind for kind in kinds}


@contextmanager
def stand_ins_allowed() -> Iterator[None]:
    """Within, ``torch.load(weights_only=True)`` knows the names of this file beside its own."""
    with _lock:  # torch's list is the process's
        before = list(torch.serialization.get_safe_globals())
        torch.serialization.add_safe_globals([*_stand_ins().values(), *_plain_types().values()])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


class _DataUnpickler(pickle.Unpickler):
    """Knows the names of this file only."""

    def __init__(self, file: IO[bytes]) -> None:
        # latin1 is how Python 3 reads the arrays in pickles of Python 2, which Caffe2's are
        super().__init__(file, encoding="latin1")
        self._names = {**_stand_ins(), **_plain_types()}

    def find_class(self, module: str, name: str) -> Any:
        """Look ``module.name`` up in the table."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's, which protocol 2 keeps
        if full not in self._names:
            raise pickle.UnpicklingError(f"GLOBAL {full} is not plain data")
        return self._names[full]


class _Blank:
    """In place of a tensor, and of whatever it is made of."""

    def __call__(self, *_args: Any) -> _Blank:
        return self

    def __setstate__(self, state: Any) -> None:
        """Nothing of it is kept."""


class StructureUnpickler(_DataUnpickler):
    """Reads what is around the tensors in a file of ``torch.save``; tensors are left out."""

    def find_class(self, module: str, name: str) -> Any:
        """Names of torch stand for nothing."""
        return _Blank() if module.partition(".")[0] == "torch" else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """A tensor's memory."""
        return _Blank()


def load_pickle(file: IO[bytes]) -> Any:
    """Read a plain pickle.

    Raises:
        pickle.UnpicklingError: It names something that is not plain data.
    """
    return only_data(_DataUnpickler(file).load())


def only_data(value: Any) -> Any:
    """Turn numpy's arrays into tensors, and stand-ins into what they hold; in place."""
    if isinstance(value, (Tensor, str, int, float)):
        return value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = only_data(item)
        return value
    if isinstance(value, list):
        value[:] = [only_data(item) for item in value]
        return value
    if type(value) is tuple:
        return tuple(only_data(item) for item in value)
    return _only_data_of_objects(value)


def _only_data_of_objects(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            return value.tolist()
        # torch knows native byte order and writable memory only; uint16 and wider since 2.3
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if isinstance(value, _Array):
        return only_data(value.value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.timezone):
        return str(value)
    if isinstance(value, _Foreign):
        state = getattr(value, "state", None)
        kept = state if isinstance(state, Mapping) else {}
        return only_data({key: item for key, item in kept.items() if "statistics_methods" not in str(key)})
    return value
