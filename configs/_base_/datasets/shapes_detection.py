"""The embedded example data: 1000 training and 250 validation images that draw themselves on first use.

For your own COCO-format data set `data_root`, the files below it and `classes`, in a child config or by
`--cfg-options`; everything that follows from them changes along. See docs/train_on_your_data.md.
"""

dataset_type = "ShapesDataset"
data_root = "data/shapes/"
train_ann_file = "train/annotations.json"
train_images = "train/images/"
val_ann_file = "val/annotations.json"
val_images = "val/images/"
# Any order; labels follow it. A name that the file lacks is an error.
classes = ("disc", "triangle", "square", "star", "cross")

image_scale = (128, 128)
batch_size = 16
# Drawing a batch from these small files costs less than two processes in the way of the training.
num_workers = 0
metainfo = dict(classes=classes)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=image_scale, keep_ratio=True),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_scale, keep_ratio=True),
    # After Resize, so that ground truth stays in the frame of the original image.
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=train_ann_file,
        data_prefix=dict(img=train_images),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=val_ann_file,
        data_prefix=dict(img=val_images),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
# Without an ann_file of its own, the metric takes that of the dataset it evaluates.
val_evaluator = dict(type="CocoMetric", metric="bbox", classwise=True)
test_evaluator = val_evaluator
