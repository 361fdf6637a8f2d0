# CamVid (11 classes, 367 training frames of 480x360, resized to 320x240): `visionattn data camvid --out data/camvid`.
_base_ = [
    "../../_base_/models/semantic-fpn_small.py",
    "../../_base_/datasets/mask_folders.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/seg_runtime.py",
]
custom_data = dict(root="data/camvid")
model = dict(
    # the largest windows that fit the maps of a 192x256 crop, or those of the whole image on the third level
    backbone=dict(model_name="dinat_pico", dilations=[[1, 6], [1, 3], [1, 2, 1, 2, 1, 2], [1, 1]]),
    neck=dict(in_channels=[32, 64, 128, 256]),
    decode_head=dict(
        # inverse square roots of the class frequencies in the training pixels, normalized to a mean over pixels of 1
        loss_decode=dict(class_weight=[0.88, 0.75, 3.63, 0.64, 1.7, 1.15, 3.32, 3.39, 1.49, 4.5, 6.66]),
    ),
)
max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=100)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=30, end=max_iters, T_max=max_iters - 30),
]
# the last checkpoint is the result, since val is too small for model selection
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100, save_best=None))
