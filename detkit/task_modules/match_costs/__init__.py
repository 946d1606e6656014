"""Match costs: what it costs to match a prediction with an object, the terms of Hungarian matching."""

from detkit.task_modules.match_costs.box_costs import BBoxL1Cost, IoUCost
from detkit.task_modules.match_costs.classification_costs import BinaryFocalLossCost, ClassificationCost, FocalLossCost
from detkit.task_modules.match_costs.mask_costs import CrossEntropyLossCost, DiceCost
from detkit.task_modules.match_costs.match_cost import MatchCost, costs_of_batch

__all__ = [
    "BBoxL1Cost",
    "BinaryFocalLossCost",
    "ClassificationCost",
    "CrossEntropyLossCost",
    "DiceCost",
    "FocalLossCost",
    "IoUCost",
    "MatchCost",
    "costs_of_batch",
]
