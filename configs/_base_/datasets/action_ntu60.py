# NTU RGB+D 60, cross-subject; lines `rgb/NAME_rgb.avi,skeletons/NAME.skeleton,label`.
# Clips, sizes and views as published. Flips keep left and right joints in their places, as published;
# joints="ntu" in FlipClip swaps them.
data_root = "data/ntu60/"
num_classes = 60
num_frames = 16
train_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=4, views="random", kind="ntu"),
    dict(type="visionattn.ResizeClip", short=(256, 320)),
    dict(type="visionattn.CropClip", size=224, where="random"),
    dict(type="visionattn.FlipClip", prob=0.5),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1),
]
val_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=4, views=1, kind="ntu"),
    dict(type="visionattn.ResizeClip", short=256),
    dict(type="visionattn.CropClip", size=224),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1, targets=False),
]
test_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=4, views=10, kind="ntu"),
    dict(type="visionattn.ResizeClip", short=256),
    dict(type="visionattn.CropClip", size=224),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1, targets=False),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="visionattn.ActionDataset",
        data_root=data_root,
        ann_file="train.csv",
        metainfo=dict(classes=tuple(str(n) for n in range(num_classes))),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.ActionDataset",
        data_root=data_root,
        ann_file="val.csv",
        metainfo=dict(classes=tuple(str(n) for n in range(num_classes))),
        test_mode=True,
        pipeline=val_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.ActionDataset",
        data_root=data_root,
        ann_file="test.csv",
        metainfo=dict(classes=tuple(str(n) for n in range(num_classes))),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type="visionattn.ActionMetric")
test_evaluator = val_evaluator
