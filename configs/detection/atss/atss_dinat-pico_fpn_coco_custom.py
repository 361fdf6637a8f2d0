# Custom data: any folder with images and annotations. Classes are read from the training file.
#
#   visionattn train atss_dinat-pico_fpn_coco_custom --cfg-options custom_data.root=/data/cells
#
# `visionattn train --data FOLDER` starts from it and chooses the size of the images and the anchors.
#
# The format of the folder is recognized (COCO, YOLO, Pascal VOC, LabelMe, CVAT); custom_data.train_ann and
# custom_data.val_ann name the annotation files of another layout.
_base_ = [
    "../../_base_/models/atss_dinat-pico_fpn.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/default_runtime.py",
]

custom_data = dict(root="", train_ann="", val_ann="", train_img=None, val_img=None)

scale = (320, 240)
smaller = (scale[0] * 9 // 10, scale[1] * 9 // 10)
larger = (scale[0] * 11 // 10, scale[1] * 11 // 10)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomChoiceResize", scales=[smaller, scale, larger], keep_ratio=True),
    dict(type="RandomFlip", prob=[0.3, 0.2], direction=["horizontal", "vertical"]),
    dict(type="PhotoMetricDistortion", brightness_delta=24, hue_delta=9),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="CocoDataset",
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric="bbox")
test_evaluator = val_evaluator
