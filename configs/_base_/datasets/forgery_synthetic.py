# Forgeries synthesized during training from the photographs in data/photos/train; evaluated on forgeries of other
# photographs, created by
#   visionattn forge data/photos/heldout --out data/forged/val --crop 256 --count 384 --quality 90
crop_size = (128, 128)  # small crops give more forgeries for the same number of pixels
meta_keys = ("img_path", "seg_map_path", "ori_shape", "img_shape", "sample_idx", "source", "kind", "forgery_steps")
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmseg.RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="visionattn.ForgeImage",
        donors=["train"],
        root="data/photos",
        probability=0.7,
        area=(0.04, 0.35),
        quality=(75, 100),
    ),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="visionattn.LoadForgeryMask"),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="visionattn.ForgeryDataset",
        layout="photos",
        data_root="data/photos",
        folders=["train"],
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="visionattn.ForgeryDataset", layout="pairs", data_root="data/forged/val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
