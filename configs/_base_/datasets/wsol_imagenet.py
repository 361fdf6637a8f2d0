# ImageNet with ImageNetV2 for validation (`visionattn data wsol` explains what to put into data/ILSVRC).
data_root = "data/ILSVRC/"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 256)),
    dict(type="RandomCrop", crop_size=(224, 224)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="visionattn.PackLocalizationInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(224, 224)),
    dict(type="visionattn.PackLocalizationInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="visionattn.LocalizationDataset",
        data_root=data_root,
        ann_file="metadata/train",
        data_prefix=dict(img_path="images"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.LocalizationDataset",
        data_root=data_root,
        ann_file="metadata/val",
        data_prefix=dict(img_path="images"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.LocalizationDataset",
        data_root=data_root,
        ann_file="metadata/test",
        data_prefix=dict(img_path="images"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = [
    dict(type="visionattn.LocalizationMetric"),
    dict(type="visionattn.SATLocalizationMetric", resize=224),  # at the fixed threshold of 0.4, without cropping
]
test_evaluator = val_evaluator
