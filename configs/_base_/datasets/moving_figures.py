# Which limb does the figure with keypoints swing: `visionattn data moving-figures --out data/moving-figures`.
data_root = "data/moving-figures/"
classes = ("left arm", "right arm", "left leg", "right leg")
patch_size = 8
train_pipeline = [  # no flips, since the classes distinguish left and right
    dict(type="visionattn.LoadClip", num_frames=4, rate=3, views="random"),
    dict(type="visionattn.PackClip", patch_size=patch_size, inflation=None),
]
test_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=4, rate=3),
    dict(type="visionattn.PackClip", patch_size=patch_size, inflation=None),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="visionattn.ActionDataset",
        data_root=data_root,
        ann_file="train.csv",
        data_prefix=dict(video="videos", points="poses"),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.ActionDataset",
        data_root=data_root,
        ann_file="val.csv",
        data_prefix=dict(video="videos", points="poses"),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.ActionDataset",
        data_root=data_root,
        ann_file="test.csv",
        data_prefix=dict(video="videos", points="poses"),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type="visionattn.ActionMetric")
test_evaluator = dict(type="visionattn.ActionMetric", per_class=True)
