# Class activation maps (Zhou et al., CVPR 2016) of a narrow ResNet truncated at stride 8, trained from scratch in
# minutes on one CPU core.
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
    backbone=dict(
        type="visionattn.Backbone",
        model_name="resnet10t",
        out_indices=(2,),
        channels=(24, 64, 96, 128),
        stem_width=12,
    ),
    num_classes=10,
    box_threshold=0.62,  # maximizes MaxBoxAcc on val
)
max_iters = 3000
train_cfg = dict(max_iters=max_iters, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000, max_keep_ckpts=1, save_best="Top1", rule="greater"))
