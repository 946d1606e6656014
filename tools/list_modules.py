"""Write docs/modules.md: every loss and task module with the config that builds it, read from the registries.

python tools/list_modules.py
python tools/list_modules.py --check   # fails where the page is not what the registries say
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "modules.md"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the page of all losses and task modules.")
    parser.add_argument("--out", default=str(PAGE), help="the page (default: docs/modules.md of this checkout)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_args(arguments)


class Group(NamedTuple):
    """A section of the page: its heading, where its classes are, what is said first, whose arguments are listed."""

    title: str
    package: str
    lead: str
    method: str = ""


GROUPS = (
    Group(
        "Losses",
        "detkit.losses",
        "For a head's `loss_cls`, `loss_bbox` and the like. Most are called as "
        "`loss(pred, target, weight=None, avg_factor=None, reduction_override=None)`; the arguments that must be given "
        "are listed by name. Not for configs, hence plain functions of `detkit.losses`: `accuracy`, and PISA's "
        "`isr_p` and `carl_loss`.",
        "forward",
    ),
    Group(
        "Assigners",
        "detkit.task_modules.assigners",
        "For `train_cfg.assigner`. `assign` takes one image, and the arguments that are listed; `assign_batch` takes a "
        "batch of padded ground truth. [Pictures of what each marks positive](assigners.md).",
        "assign",
    ),
    Group(
        "Samplers",
        "detkit.task_modules.samplers",
        "For `train_cfg.sampler`: `sample(assign_result, pred_instances, gt_instances, **kwargs)` of one image, "
        "`sample_batch` of a batch.",
    ),
    Group(
        "Box coders",
        "detkit.task_modules.coders",
        "For a head's `bbox_coder`: `encode(bboxes, gt_bboxes)` and `decode(bboxes, pred_bboxes)`, over any leading "
        "dimensions.",
    ),
    Group(
        "Prior generators",
        "detkit.task_modules.prior_generators",
        "For a head's `anchor_generator` or `prior_generator`: `grid_priors(featmap_sizes, dtype, device)` and "
        "`num_base_priors`.",
    ),
    Group(
        "IoU calculators",
        "detkit.task_modules.iou_calculators",
        'For an assigner\'s `iou_calculator`: `calculator(bboxes1, bboxes2, mode="iou", is_aligned=False)`.',
    ),
    Group(
        "Match costs",
        "detkit.task_modules.match_costs",
        "For `match_costs` of HungarianAssigner: `cost(pred_instances, gt_instances, img_meta)` gives costs (A, G).",
    ),
)

# A sensible value where there is no default, or where the default alone builds nothing; `Class.argument` goes first.
EXAMPLES: dict[str, Any] = {
    "BucketingBBoxCoder.num_buckets": 14,
    "BucketingBBoxCoder.scale_factor": 1.7,
    "SSDAnchorGenerator.strides": [8, 16, 32, 64, 100, 300],
    "LegacySSDAnchorGenerator.strides": [8, 16, 32, 64, 100, 300],
    "SSDAnchorGenerator.ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
    "LegacySSDAnchorGenerator.ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
    "LegacySSDAnchorGenerator.basesize_ratio_range": (0.15, 0.9),
    "TorchvisionAnchorGenerator.strides": [8, 16],
    "TorchvisionAnchorGenerator.sizes": [[32], [64]],
    "TorchvisionPointGenerator.strides": [8, 16],
    "YOLOAnchorGenerator.strides": [32, 16, 8],
    "YOLOAnchorGenerator.base_sizes": [
        [(116, 90), (156, 198), (373, 326)],
        [(30, 61), (62, 45), (59, 119)],
        [(10, 13), (16, 30), (33, 23)],
    ],
    "ATSSAssigner.topk": 9,
    "FoveaAssigner.scale_ranges": [(8, 32), (16, 64), (32, 128), (64, 256), (128, 512)],
    "FCOSAssigner.regress_ranges": [(-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)],
    "TaskAlignedAssigner.topk": 13,
    "TopkHungarianAssigner.topk": 8,
    "HungarianAssigner.match_costs": [
        {"type": "ClassificationCost", "weight": 1.0},
        {"type": "BBoxL1Cost", "weight": 5.0},
        {"type": "IoUCost", "weight": 2.0},
    ],
    "pos_sampler": {"type": "InstanceBalancedPosSampler"},
    "neg_sampler": {"type": "IoUBalancedNegSampler"},
    "num": 512,
    "num_classes": 80,
    "pos_fraction": 0.25,
    "pos_iou_thr": 0.5,
    "neg_iou_thr": 0.4,
    "pos_ignore_thr": 0.15,
    "neg_ignore_thr": 0.7,
    "pos_scale": 0.2,
    "neg_scale": 0.2,
    "strides": [8, 16, 32, 64, 128],
    "ratios": [0.5, 1.0, 2.0],
    "scales": [8],
}
# Inputs of losses whose function, for the sake of the paper, takes something else than the loss.
INPUTS = {
    "DiceLoss": {
        "pred": "Logits (N, ...), or with ``activate=False`` probabilities.",
        "target": "Masks (N, ...) in [0, 1].",
    },
}
# What no config states, for the head that builds the module hands itself over.
GIVEN_BY_HEAD = "context"
# Column up to which the comments of a snippet are aligned; the last column of a line.
WIDTH = 120


def page() -> str:
    """The whole page."""
    parts = [
        "# Losses and task modules",
        "Written by `python tools/list_modules.py` from the registries and docstrings; edit those. In a snippet every "
        "value is the default, unless its comment says otherwise. "
        "Letters and units are those of the [conventions](conventions.md).",
    ]
    members = [(group, registered(group)) for group in GROUPS]
    for group, classes in members:
        links = ", ".join(f"[{name}](#{_anchor(name)})" for name in classes)
        parts.append(f"[{group.title}](#{_anchor(group.title)}): {links}")
    for group, classes in members:
        parts += [f"## {group.title}", group.lead]
        for name, cls in classes.items():
            parts += entry(name, cls, group)
    return "\n\n".join(parts) + "\n"


def registered(group: Group) -> dict[str, type]:
    """The registered classes of detkit that belong to a group, by name."""
    from detkit.registry import MODELS, TASK_UTILS

    found = {}
    for registry in (MODELS, TASK_UTILS):
        registry.import_from_location()
        for name, cls in registry.module_dict.items():
            if f"{cls.__module__}.".startswith(f"{group.package}."):
                found[name] = cls
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def entry(name: str, cls: type, group: Group) -> Iterator[str]:
    """The paragraphs about one class."""
    path = Path(inspect.getfile(cls)).relative_to(ROOT).as_posix()
    yield f"### {name}"
    yield f"{_markdown(_paragraphs(cls)[0])} [{Path(path).name}](../{path})"
    source = sources(cls)
    if source:
        yield f"Source: {_markdown(source)}"
    given = INPUTS.get(name) or (inputs(cls, group.method) if group.method else {})
    if given:
        yield "\n".join(f"- `{argument}`: {_markdown(text)}" for argument, text in given.items())
    yield f"```python\n{snippet(name, cls)}\n```"


def inputs(cls: type, method: str) -> dict[str, str]:
    """What the arguments without default of ``method`` are, by the most particular docstring that says so."""
    function = getattr(cls, method, None)
    # An inherited forward says what all losses have in common; the function of the loss's name says more.
    candidates = [function if method in vars(cls) else None, _function_of(cls), function, getattr(cls, "loss", None)]
    for candidate in candidates:
        described = _arguments(candidate)
        parameters = inspect.signature(candidate).parameters.values() if described else []
        needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        found = {argument: described[argument] for argument in needed if argument in described}
        if found:
            return found
    return {}


def snippet(name: str, cls: type) -> str:
    """The config of ``cls``: each argument with its default or an example, and what the docstring says of it."""
    described = {k: v for level in reversed(cls.__mro__) if level.__doc__ for k, v in _arguments(level).items()}
    lines = [("dict(", ""), (f'    type="{name}",', "")]
    for argument, parameter in inspect.signature(cls).parameters.items():
        text = _plain(described.get(argument, ""))
        if argument == GIVEN_BY_HEAD:
            lines.append((f"    # {argument} is given by the head", text))
            continue
        value, note = _value(name, argument, parameter)
        lines.append((f"    {argument}={_code(value, 4)},", f"{note}{text}"))
    if len(lines) == 2:
        return f'dict(type="{name}")'
    lines.append((")", ""))
    return "\n".join(_commented(code, text) for code, text in lines)


def _value(name: str, argument: str, parameter: inspect.Parameter) -> tuple[Any, str]:
    """What the snippet says, and what it says about that."""
    default = parameter.default
    example = EXAMPLES.get(f"{name}.{argument}", EXAMPLES.get(argument, default))
    if default is parameter.empty:
        if example is parameter.empty:
            raise ValueError(f"{name} needs {argument!r}; give an example of it in EXAMPLES of tools/list_modules.py")
        return example, "Required. "
    # A number of classes has a default that is real (LVIS), or -1, which stands for none.
    if default is not None and default != -1:
        return default, ""
    return (example, f"Default {default}. ") if example != default else (default, "")


def _code(value: Any, indent: int) -> str:
    """``value`` as a config says it."""
    if isinstance(value, dict):
        return "dict(" + ", ".join(f"{key}={_code(item, indent)}" for key, item in value.items()) + ")"
    if isinstance(value, (list, tuple)):
        items = [_code(item, indent + 4) for item in value]
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ")")
        if any(isinstance(item, (dict, list)) for item in value) and sum(map(len, items)) > 60:
            inner = "".join(f"\n{' ' * (indent + 4)}{item}," for item in items)
            return f"{opening}{inner}\n{' ' * indent}{closing}"
        return opening + ", ".join(items) + closing
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _commented(code: str, text: str) -> str:
    """A line with its comment, which goes before it where there is no room behind."""
    if not text:
        return code
    if "\n" not in code and len(code) + len(text) + 4 <= WIDTH:
        return f"{code}  # {text}"
    comment = " " * (len(code) - len(code.lstrip())) + "# "
    return textwrap.fill(text, WIDTH, initial_indent=comment, subsequent_indent=comment) + f"\n{code}"


def sources(cls: type) -> str:
    """The paragraph with a link in the docstring of the file, or else of the function or class."""
    module = sys.modules[cls.__module__]
    for owner in (module, _function_of(cls), cls):
        linked = [text for text in _paragraphs(owner) if "https://" in text] if owner is not None else []
        if linked:
            return " ".join(linked)
    return ""


def _function_of(cls: type) -> Callable[..., Any] | None:
    """The function of the class's name in its file: ``giou_loss`` of ``GIoULoss``."""
    functions = inspect.getmembers(sys.modules[cls.__module__], inspect.isfunction)
    return next((f for name, f in functions if name.replace("_", "") == cls.__name__.lower()), None)


def _paragraphs(owner: Any) -> list[str]:
    """The docstring up to its first section, in lines of one paragraph each."""
    text = re.split(r"^(?:Args|Attributes|Returns|Raises):$", inspect.getdoc(owner) or "", flags=re.M)[0]
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def _arguments(owner: Any) -> dict[str, str]:
    """The section Args of a docstring, by name."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", inspect.getdoc(owner) or "", flags=re.M)
    items = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", flags=re.M)
    return {name: " ".join(text.split()) for name, text in items}


def _plain(text: str) -> str:
    """A docstring's text as a comment has it."""
    return re.sub(r"``(.*?)``", r"\1", re.sub(r":\w+:`(.*?)`", r"\1", text))


def _markdown(text: str) -> str:
    text = re.sub(r"``(.*?)``", r"`\1`", re.sub(r":\w+:`(.*?)`", r"`\1`", text))
    return re.sub(r"https://arxiv\.org/abs/([\d.]+\d)", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _anchor(title: str) -> str:
    """Where a heading is on its page, as GitHub has it."""
    return title.lower().replace(" ", "-")


def list_modules(args: argparse.Namespace) -> None:
    text, path = page(), Path(args.out)
    if not args.check:
        path.write_text(text, encoding="utf-8")
        print(path)
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path} is not what the registries say; run python tools/list_modules.py")


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(ROOT))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(list_modules, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
