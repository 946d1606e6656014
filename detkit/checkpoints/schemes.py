"""Where weights come from: a file, a URL, torchvision, OpenMMLab's and Detectron2's zoos, and what users register.

mmengine opens what an ``init_cfg`` or a URL names with ``weights_only=False`` (or, for local files, with torch's
default, which is False before torch 2.6): a file could run code. Its loaders are replaced, for every caller.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from detkit.checkpoints.broadcast import from_rank0
from detkit.checkpoints.formats import load_checkpoint_file
from detkit.signature import nearest

__all__ = ["open_checkpoint", "register_scheme"]

Resolver = Callable[[str], "str | os.PathLike[str]"]
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
# These publish files whose names end in the start of their SHA-256.
_HASHED = ("https://download.openmmlab.com/", "https://download.pytorch.org/")
_WEB = ("http://", "https://")
_resolvers: dict[str, Resolver] = {}


def register_scheme(prefix: str, resolve: Resolver, force: bool = False) -> None:
    """Let names of weights begin with ``prefix``, in configs and on the command line.

    Args:
        prefix: Such as ``catalog://``.
        resolve: Gets what follows the prefix, and gives a path, or a name with another scheme. The file is then read
            as every other, without running code from it.
        force: Whether to replace a scheme that is there.

    Raises:
        ValueError: ``prefix`` does not end in ``://``.
        KeyError: It is registered already.
    """
    if not re.fullmatch(r"[\w+.-]+://", prefix):
        raise ValueError(f"the prefix of a scheme looks like 'catalog://', got {prefix!r}")
    if prefix in _resolvers and not force:
        raise KeyError(f"{prefix} is registered already; pass force=True to replace it")
    _resolvers[prefix] = resolve
    CheckpointLoader.register_scheme(prefixes=prefix, loader=load_from_detkit, force=True)


def open_checkpoint(
    source: str | os.PathLike[str], map_location: Any = "cpu", broadcast_from_rank0: bool = False
) -> dict[str, Any]:
    """Read a checkpoint from a file, a URL or what else has a scheme (``torchvision://``, ``open-mmlab://`` …).

    Args:
        source: Path or name. ``?matching_heuristics=True`` at its end lets names in the model end with those in the
            file, see :func:`detkit.checkpoints.load_weights`.
        map_location: Device of the tensors, as for ``torch.load``.
        broadcast_from_rank0: Whether the first process alone reads and tells the others; all must call.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown scheme or query, or what :func:`load_checkpoint_file` refuses.
    """
    if broadcast_from_rank0:
        return from_rank0(lambda: open_checkpoint(source, map_location))
    name, heuristics = _without_query(os.fspath(source))
    content = _open(name, map_location)
    return {**content, "matching_heuristics": True} if heuristics else content


def _without_query(name: str) -> tuple[str, bool]:
    place, mark, query = name.partition("?")
    if not mark or ("://" not in name and Path(name).expanduser().is_file()):
        return name, False
    values = dict(parse_qsl(query, keep_blank_values=True))
    wanted = values.pop("matching_heuristics", "False")
    if wanted not in ("True", "False"):
        raise ValueError(f"{name}: matching_heuristics is True or False, got {wanted!r}")
    if name.startswith(_WEB):  # the rest is for the server
        rest = "&".join(part for part in query.split("&") if part and not part.startswith("matching_heuristics="))
        return f"{place}?{rest}" if rest else place, wanted == "True"
    if values:
        raise ValueError(f"{name}: unknown query {', '.join(values)}; only 'matching_heuristics=True' is known")
    return place, wanted == "True"


def _open(name: str, map_location: Any) -> dict[str, Any]:
    prefix = re.match(r"[\w+.-]+://", name)
    if prefix is None:
        return load_checkpoint_file(name, map_location)
    if prefix[0] in _resolvers:
        target = os.fspath(_resolvers[prefix[0]](name.removeprefix(prefix[0])))
        content = _open(target, map_location)
        return _backbone_of(content, name) if prefix[0] == "mmcls://" else content
    loader = CheckpointLoader._get_checkpoint_loader(name)
    if loader not in (None, load_from_detkit, _refuse):  # registered with mmengine, by the user
        return loader(name, map_location)
    return _refuse(name)


def load_from_detkit(filename: str, map_location: Any = "cpu", **_: Any) -> dict[str, Any]:
    return open_checkpoint(filename, map_location or "cpu")


def _refuse(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
    scheme = filename.partition(":")[0]
    close = " or ".join(nearest(f"{scheme}://", _resolvers))
    raise ValueError(
        f"{filename}: weights are not fetched from {scheme}:; download the file and give its path, or use {close}"
    )


def _backbone_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Classifiers of MMClassification keep what a detector can use under ``backbone``."""
    state = content["state_dict"]
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if not backbone:
        raise ValueError(f"{name}: the file has no 'backbone.' weights")
    return {"state_dict": backbone}


def _download(url: str) -> Path:
    """The file of a URL, downloaded once; whole or not at all."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if not url.startswith(_HASHED):  # torch.hub would take another server's file of the same name for this one
        file = file.parent / f"{zlib.crc32(url.encode()):08x}" / file.name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", file.name) if url.startswith(_HASHED) else None
        torch.hub.download_url_to_file(url, str(file), digest[1] if digest else None, progress=False)
    return file


def _torchvision(name: str) -> str:
    """The first version published, which MMDetection trains from; ``resnet50.IMAGENET1K_V2`` names another.

    Of detectors, it is what the builder of this name has: ``fasterrcnn_resnet50_fpn_v2`` has weights of its own.
    """
    from torchvision.models import get_model_weights

    model, _dot, version = name.partition(".")
    try:
        weights = get_model_weights(model)
        return weights[version or next(iter(weights.__members__))].url
    except (ValueError, KeyError) as error:
        raise ValueError(f"torchvision has no weights 'torchvision://{name}'") from error


def _openmmlab(name: str) -> str:
    known = mmengine_checkpoint.get_external_models()
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in known:
        raise ValueError(f"open-mmlab:// has no {name!r}; did you mean {' or '.join(nearest(name, known, count=3))}?")
    target = known[name]
    return target if target.startswith(_WEB) else str(Path(mmengine_checkpoint._get_mmengine_home(), target))


def _mmcls(name: str) -> str:
    known = mmengine_checkpoint.get_mmcls_models()
    if name not in known:
        raise ValueError(f"mmcls:// has no {name!r}; did you mean {' or '.join(nearest(name, known, count=3))}?")
    return known[name]


for _prefix in _WEB:
    register_scheme(_prefix, lambda rest, prefix=_prefix: _download(prefix + rest))  # type: ignore[misc]
for _prefix in ("torchvision://", "modelzoo://"):
    register_scheme(_prefix, _torchvision)
for _prefix in ("open-mmlab://", "openmmlab://"):
    register_scheme(_prefix, _openmmlab)
register_scheme("mmcls://", _mmcls)
register_scheme("detectron2://", lambda rest: _DETECTRON2 + rest)
CheckpointLoader.register_scheme(prefixes="", loader=load_from_detkit, force=True)
for _prefix in set(CheckpointLoader._schemes) - {"", *_resolvers}:
    CheckpointLoader.register_scheme(prefixes=_prefix, loader=_refuse, force=True)
