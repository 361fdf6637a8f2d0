# Folders of photographs, from which the low-resolution images are computed: data_root with train_folder and val_folder.
scale = 2
patch_size = 32
data_root = "data/photos/"
train_folder = "train"
val_folder = "heldout"
train_pipeline = [
    dict(type="visionattn.LoadPatchPair", patch_size=patch_size, cache_mb=512),
    dict(type="visionattn.RandomSymmetry"),
    dict(type="visionattn.PackSRInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="visionattn.LoadHighResolution"),
    dict(type="visionattn.PackSRInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="visionattn.SuperResolutionDataset",
        scale=scale,
        data_root=data_root,
        data_prefix=dict(gt=train_folder),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.SuperResolutionDataset",
        scale=scale,
        data_root=data_root,
        data_prefix=dict(gt=val_folder),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.SuperResolutionMetric", bicubic=True)
test_evaluator = val_evaluator
