# Cityscapes panoptic with 8 thing and 11 stuff classes, crops of 512 x 1024. mmdet has no such dataset, so this uses
# its COCO panoptic dataset with annotations created by `visionattn data cityscapes --out data/cityscapes`, things
# first.
data_root = "data/cityscapes/"
short_sides = [(4096, round(102.4 * step)) for step in range(5, 21)]  # longest and short side
thing_classes = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
stuff_classes = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation")
stuff_classes += ("terrain", "sky")
metainfo = dict(classes=thing_classes + stuff_classes, thing_classes=thing_classes, stuff_classes=stuff_classes)
train_pipeline = [
    dict(type="LoadImageFromFile", to_float32=True),
    dict(type="LoadPanopticAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomChoiceResize", scales=short_sides, keep_ratio=True),
    dict(type="RandomCrop", crop_size=(1024, 512), crop_type="absolute", recompute_bbox=True, allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True, keep_empty=False),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", to_float32=True),
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
    dict(type="LoadPanopticAnnotations"),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="CocoPanopticDataset",
        data_root=data_root,
        metainfo=metainfo,
        ann_file="panoptic/train.json",
        data_prefix=dict(img="panoptic/images/train/", seg="panoptic/train/"),
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
        type="CocoPanopticDataset",
        data_root=data_root,
        metainfo=metainfo,
        ann_file="panoptic/val.json",
        data_prefix=dict(img="panoptic/images/val/", seg="panoptic/val/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="CocoPanopticMetric", ann_file=data_root + "panoptic/val.json", seg_prefix=data_root + "panoptic/val/"),
    dict(type="CocoMetric", ann_file=data_root + "instances/val.json", metric=["bbox", "segm"]),
]
test_evaluator = val_evaluator
