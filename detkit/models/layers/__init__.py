"""Layers that several backbones, necks and heads are made of."""

from detkit.models.layers.channel_attention import ChannelAttention
from detkit.models.layers.conv_norm import ConvNormShortcut, conv_norm
from detkit.models.layers.conv_style import ConvStyle
from detkit.models.layers.convolve_together import convolve_together
from detkit.models.layers.csp_layer import CSPBlock, CSPLayer, cspnext_block, darknet_block
from detkit.models.layers.freezing import freeze, hold_statistics
from detkit.models.layers.generalized_attention import GeneralizedAttention
from detkit.models.layers.l2_norm import L2Norm
from detkit.models.layers.predictors import NormedConv2d, NormedLinear, linear_predictor
from detkit.models.layers.spp import SPPBottleneck

__all__ = [
    "CSPBlock",
    "CSPLayer",
    "ChannelAttention",
    "ConvNormShortcut",
    "ConvStyle",
    "GeneralizedAttention",
    "L2Norm",
    "NormedConv2d",
    "NormedLinear",
    "SPPBottleneck",
    "conv_norm",
    "convolve_together",
    "cspnext_block",
    "darknet_block",
    "freeze",
    "hold_statistics",
    "linear_predictor",
]
