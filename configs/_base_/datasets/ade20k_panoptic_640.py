# ADE20K panoptic with 100 thing and 50 stuff classes, crops of 640 pixels. data/ade20k as explained by `visionattn data
# ade20k`, with the ade20k_panoptic_{train,val}.json and folders of maps of mmdet's ade20k2coco.py.
data_root = "data/ade20k/ADEChallengeData2016/"
short_sides = [(2560, 64 * step) for step in range(5, 21)]  # longest and short side
train_pipeline = [
    dict(type="LoadImageFromFile", to_float32=True),
    dict(type="LoadPanopticAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomChoiceResize", scales=short_sides, keep_ratio=True),
    dict(type="RandomCrop", crop_size=(640, 640), crop_type="absolute", recompute_bbox=True, allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True, keep_empty=False),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", to_float32=True),
    dict(type="Resize", scale=(2560, 640), keep_ratio=True),
    dict(type="LoadPanopticAnnotations"),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="ADE20KPanopticDataset",
        data_root=data_root,
        ann_file="ade20k_panoptic_train.json",
        data_prefix=dict(img="images/training/", seg="ade20k_panoptic_train/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20KPanopticDataset",
        data_root=data_root,
        ann_file="ade20k_panoptic_val.json",
        data_prefix=dict(img="images/validation/", seg="ade20k_panoptic_val/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoPanopticMetric",
    ann_file=data_root + "ade20k_panoptic_val.json",
    seg_prefix=data_root + "ade20k_panoptic_val/",
)
test_evaluator = val_evaluator
