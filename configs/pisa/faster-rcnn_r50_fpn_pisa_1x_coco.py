"""PISA on Faster R-CNN, ResNet-50 FPN, 12 epochs on COCO. https://arxiv.org/abs/1904.04821

    python tools/train.py configs/pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py

8 GPUs x 2 images. Not trained here yet; losses and state dict equal MMDetection's.
"""

_base_ = "../faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
model = dict(
    roi_head=dict(
        type="PISARoIHead",
        bbox_head=dict(loss_bbox=dict(_delete_=True, type="SmoothL1Loss", beta=1.0, loss_weight=1.0)),
    ),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=2000),
        rcnn=dict(
            # Negatives by how much they hurt, ...
            sampler=dict(type="ScoreHLRSampler", k=0.5, bias=0.0),
            # ... positives by how well they are localised, ...
            isr=dict(k=2, bias=0),
            # ... and boxes by how well they are classified.
            carl=dict(k=1, bias=0.2),
        ),
    ),
    test_cfg=dict(rpn=dict(nms_pre=2000, max_per_img=2000)),
)
