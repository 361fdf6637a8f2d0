# SAT (Wu et al., ICCV 2023) on a small vision transformer with 8-pixel patches, trained from scratch.
_base_ = [
    "../_base_/datasets/single_digits.py",
    "../_base_/schedules/adamw_iters.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="visionattn.SAT",
    data_preprocessor=dict(
        type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type="visionattn.VisionTransformer",
        model_name="vit_tiny_patch16_224",
        img_size=64,
        patch_size=8,
        embed_dim=96,
        depth=6,
        num_heads=3,
    ),
    num_classes=10,
    area=0.15,  # slightly more than the mean relative area of the boxes
)
max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=1, save_best="Top1", rule="greater"))
