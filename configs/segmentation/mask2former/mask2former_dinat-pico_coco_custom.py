# Custom data with masks: any folder with images and annotations. Classes are read from the training file.
#
#   visionattn train mask2former_dinat-pico_coco_custom --cfg-options custom_data.root=/data/cells
#
# The format of the folder is recognized (COCO, YOLO, Pascal VOC, LabelMe, CVAT); custom_data.train_ann and
# custom_data.val_ann name the annotation files of another layout.
_base_ = [
    "../../_base_/models/mask2former_dinat-pico_instance.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/default_runtime.py",
]

custom_data = dict(root="", train_ann="", val_ann="", train_img=None, val_img=None)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(384, 384), ratio_range=(0.6, 1.6), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(320, 320), recompute_bbox=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1), by_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion", brightness_delta=24, hue_delta=9),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(384, 384), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=4,
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
val_evaluator = dict(type="CocoMetric", metric=["bbox", "segm"])
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=5e-4))
