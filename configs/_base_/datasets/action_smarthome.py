# Toyota Smarthome, cross-subject; {train,val,test}.csv have lines `mp4/NAME.mp4,skeletonv12/NAME_pose3d.json,label`.
# Clips, sizes and views as published. Flips keep left and right joints in their places, as published;
# joints="smarthome" in FlipClip exchanges them.
data_root = "data/smarthome/"
num_classes = 31
num_frames = 8
train_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=32, views="random", kind="smarthome"),
    dict(type="visionattn.ResizeClip", short=(256, 320)),
    dict(type="visionattn.CropClip", size=224, where="random"),
    dict(type="visionattn.FlipClip", prob=0.5),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1),
]
val_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=32, views=1, kind="smarthome"),
    dict(type="visionattn.ResizeClip", short=256),
    dict(type="visionattn.CropClip", size=224),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1, targets=False),
]
test_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=32, views=10, kind="smarthome"),
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
