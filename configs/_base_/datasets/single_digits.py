# Images with one digit each, trained with image labels: `visionattn data single-digits --out data/single-digits`.
data_root = "data/single-digits/"
classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64)),
    dict(type="PhotoMetricDistortion"),
    dict(type="visionattn.PackLocalizationInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64)),
    dict(type="visionattn.PackLocalizationInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="visionattn.LocalizationDataset",
        data_root=data_root,
        ann_file="metadata/train",
        data_prefix=dict(img_path="images"),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.LocalizationDataset",
        data_root=data_root,
        ann_file="metadata/val",
        data_prefix=dict(img_path="images", mask_path="masks"),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.LocalizationDataset",
        data_root=data_root,
        ann_file="metadata/test",  # metadata/test-masks evaluates masks instead of boxes
        data_prefix=dict(img_path="images", mask_path="masks"),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type="visionattn.LocalizationMetric", centre_from=data_root + "metadata/train")
test_evaluator = val_evaluator
