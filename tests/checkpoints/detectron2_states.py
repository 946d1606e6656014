"""Names and shapes of Detectron2's model zoo, by the rules of its modules; FrozenBatchNorm2d counts no batches."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]
_NORM = ("weight", "bias", "running_mean", "running_var")


def layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def conv_norm(name: str, *shape: int) -> Shapes:
    norm = {f"{name}.norm.{kind}": shape[:1] for kind in _NORM}
    return {**layer(name, *shape, bias=False), **norm}


def stage(prefix: str, number: int, blocks: int) -> Shapes:
    """Bottlenecks ``res<number>``."""
    width, out = 64 * 2 ** (number - 2), 256 * 2 ** (number - 2)
    shapes: Shapes = {}
    for block in range(blocks):
        before = (64 if number == 2 else out // 2) if block == 0 else out
        name = f"{prefix}res{number}.{block}"
        shapes |= conv_norm(f"{name}.conv1", width, before, 1, 1)
        shapes |= conv_norm(f"{name}.conv2", width, width, 3, 3) | conv_norm(f"{name}.conv3", out, width, 1, 1)
        if block == 0:
            shapes |= conv_norm(f"{name}.shortcut", out, before, 1, 1)
    return shapes


def trunk(prefix: str, last: int = 5) -> Shapes:
    """ResNet-50 up to ``res<last>``."""
    shapes = conv_norm(f"{prefix}stem.conv1", 64, 3, 7, 7)
    for number, blocks in zip(range(2, last + 1), (3, 4, 6, 3), strict=False):
        shapes |= stage(prefix, number, blocks)
    return shapes


def fpn(lowest: int) -> Shapes:
    shapes = trunk("backbone.bottom_up.")
    for level in range(lowest, 6):
        shapes |= layer(f"backbone.fpn_lateral{level}", 256, 64 * 2**level, 1, 1)
        shapes |= layer(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    return shapes


def rpn(channels: int, anchors: int) -> Shapes:
    head = "proposal_generator.rpn_head."
    return {
        **layer(f"{head}conv", channels, channels, 3, 3),
        **layer(f"{head}objectness_logits", anchors, channels, 1, 1),
        **layer(f"{head}anchor_deltas", 4 * anchors, channels, 1, 1),
    }


def box(stage: str = "", pooled: int = 256 * 7 * 7, boxes: int = 320, fcs: bool = True) -> Shapes:
    shapes: Shapes = {}
    if fcs:
        shapes |= layer(f"roi_heads.box_head.{stage}fc1", 1024, pooled)
        shapes |= layer(f"roi_heads.box_head.{stage}fc2", 1024, 1024)
    features = 1024 if fcs else pooled
    shapes |= layer(f"roi_heads.box_predictor.{stage}cls_score", 81, features)
    return shapes | layer(f"roi_heads.box_predictor.{stage}bbox_pred", boxes, features)


def mask() -> Shapes:
    shapes: Shapes = {}
    for number in range(1, 5):
        shapes |= layer(f"roi_heads.mask_head.mask_fcn{number}", 256, 256, 3, 3)
    shapes |= layer("roi_heads.mask_head.deconv", 256, 256, 2, 2)
    return shapes | layer("roi_heads.mask_head.predictor", 80, 256, 1, 1)


def retinanet() -> Shapes:
    shapes = fpn(3) | layer("backbone.top_block.p6", 256, 2048, 3, 3) | layer("backbone.top_block.p7", 256, 256, 3, 3)
    for tower in ("cls_subnet", "bbox_subnet"):
        for place in range(0, 8, 2):
            shapes |= layer(f"head.{tower}.{place}", 256, 256, 3, 3)
    return shapes | layer("head.cls_score", 720, 256, 3, 3) | layer("head.bbox_pred", 36, 256, 3, 3)


def cascade() -> Shapes:
    shapes = fpn(2) | rpn(256, 3) | mask()
    for number in range(3):
        shapes |= box(f"{number}.", boxes=4)
    return shapes


# MMDetection's config of the same detector -> Detectron2's names.
DETECTORS = {
    "rpn/rpn_r50_fpn_1x_coco.py": fpn(2) | rpn(256, 3),
    "fast_rcnn/fast-rcnn_r50-caffe_fpn_1x_coco.py": fpn(2) | box(),
    "faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py": fpn(2) | rpn(256, 3) | box(),
    "faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py": trunk("backbone.", 4)
    | rpn(1024, 15)
    | stage("roi_heads.", 5, 3)
    | box(pooled=2048, fcs=False),
    "faster_rcnn/faster-rcnn_r50-caffe-dc5_ms-3x_coco.py": trunk("backbone.") | rpn(2048, 15) | box(pooled=2048 * 49),
    "mask_rcnn/mask-rcnn_r50-caffe_fpn_ms-poly-3x_coco.py": fpn(2) | rpn(256, 3) | box() | mask(),
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_20e_coco.py": cascade(),
    "retinanet/retinanet_r50-caffe_fpn_1x_coco.py": retinanet(),
}
