# BR-Gen (arXiv 2504.11922): data/brgen/{training,testing,validation}, each with Au/, Tp/ and Gt/. Forged and
# authentic images are balanced, resized to 512 and evaluated at their original size.
size = (512, 512)
meta_keys = ("img_path", "seg_map_path", "ori_shape", "img_shape", "sample_idx", "source", "kind")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="visionattn.LoadForgeryMask"),
    dict(type="visionattn.ForgeryAugment"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="visionattn.LoadForgeryMask"),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="visionattn.ForgeryDataset",
        layout="brgen",
        data_root="data/brgen/training",
        balanced=True,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.ForgeryDataset",
        layout="brgen",
        data_root="data/brgen/validation",
        balanced=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.ForgeryDataset",
        layout="brgen",
        data_root="data/brgen/testing",
        balanced=True,
        pipeline=test_pipeline,
    ),
)
