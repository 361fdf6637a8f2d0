# NW-UCLA; lines `ucla_rgb/view_k/NAME.mp4,ucla_skeletons/NAME_skeleton2d.json,label`. Clips, sizes and views as
# published. Flips keep left and right joints in their places, as published; joints="openpose" in FlipClip swaps them.
_base_ = "./action_ntu60.py"
data_root = "data/nucla/"
num_classes = 10
num_frames = 16
metainfo = dict(classes=tuple(str(n) for n in range(num_classes)))
train_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=4, views="random", kind="smarthome"),
    dict(type="visionattn.ResizeClip", short=(256, 320)),
    dict(type="visionattn.CropClip", size=224, where="random"),
    dict(type="visionattn.FlipClip", prob=0.5),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1),
]
val_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=4, views=1, kind="smarthome"),
    dict(type="visionattn.ResizeClip", short=256),
    dict(type="visionattn.CropClip", size=224),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1, targets=False),
]
test_pipeline = [
    dict(type="visionattn.LoadClip", num_frames=num_frames, rate=4, views=10, kind="smarthome"),
    dict(type="visionattn.ResizeClip", short=256),
    dict(type="visionattn.CropClip", size=224),
    dict(type="visionattn.PackClip", patch_size=16, inflation=1, targets=False),
]
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
del metainfo  # every name left here becomes a key of the config
