# DIV2K for training, a benchmark set for testing, both with their bicubic low-resolution images of MATLAB:
#   data/DIV2K/DIV2K_train_HR/0001.png, data/DIV2K/DIV2K_train_LR_bicubic/X2/0001x2.png
#   data/SR/Set5/HR/baby.png, data/SR/Set5/LR_bicubic/X2/babyx2.png; also Set14, B100, Urban100, Manga109
scale = 2
data_root = "data/DIV2K/"
test_root = "data/SR/Set5/"
train_pipeline = [
    dict(type="visionattn.LoadPatchPair", patch_size=64),
    dict(type="visionattn.RandomSymmetry"),
    dict(type="visionattn.PackSRInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="visionattn.LoadHighResolution"),
    dict(type="visionattn.PackSRInputs"),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="visionattn.SuperResolutionDataset",
        scale=scale,
        data_root=data_root,
        data_prefix=dict(img="DIV2K_train_LR_bicubic", gt="DIV2K_train_HR"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.SuperResolutionDataset",
        scale=scale,
        data_root=test_root,
        data_prefix=dict(img="LR_bicubic", gt="HR"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.SuperResolutionMetric")
test_evaluator = val_evaluator
