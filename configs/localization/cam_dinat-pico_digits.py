# Class activation maps (Zhou et al., CVPR 2016) of a small DiNAT truncated at stride 8, trained from scratch.
_base_ = [
    "../_base_/datasets/single_digits.py",
    "../_base_/schedules/adamw_iters.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="visionattn.CAM",
    data_preprocessor=dict(
        type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(type="visionattn.Backbone", model_name="dinat_pico", out_indices=(1,)),
    num_classes=10,
)
max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=300)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=300, max_keep_ckpts=1, save_best="Top1", rule="greater"))
