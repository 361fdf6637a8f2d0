# Custom data with masks: any folder with images and annotations (polygons or RLE), up to 500 objects per image.
#
#   visionattn train mask-rcnn_dinat-pico_fpn_coco_custom --cfg-options custom_data.root=/data/cells
#
# `visionattn train --data FOLDER` starts from it and chooses the size of the images and the anchors.
#
# The format of the folder is recognized (COCO, YOLO, Pascal VOC, LabelMe, CVAT); custom_data.train_ann and
# custom_data.val_ann name the annotation files of another layout.
_base_ = [
    "../../_base_/models/mask-rcnn_dinat-pico_fpn.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/default_runtime.py",
]

optim_wrapper = dict(optimizer=dict(lr=1.2e-3))
custom_data = dict(root="", train_ann="", val_ann="", train_img=None, val_img=None)

scale = (1024, 512)
crop_size = (320, 320)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="AutoContrast", prob=1.0),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="visionattn.RandomScaleCrop", scale=scale, ratio_range=(0.6, 1.5), crop_size=crop_size),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(2, 2)),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="visionattn.RandomTranspose", prob=0.5),
    dict(type="PhotoMetricDistortion", brightness_delta=24, hue_delta=9),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="AutoContrast", prob=1.0),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="CocoDataset",
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.CocoMetric", metric=["bbox", "segm"], proposal_nums=(100, 300, 1000))
test_evaluator = val_evaluator
