# SAT (Wu et al., ICCV 2023) on ImageNet: DeiT-S, 5 epochs, batch size 4 x 128.
_base_ = [
    "../_base_/datasets/wsol_imagenet.py",
    "../_base_/schedules/adamw_sat.py",
    "../_base_/epoch_runtime.py",
]

model = dict(
    type="visionattn.SAT",
    data_preprocessor=dict(
        type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type="visionattn.VisionTransformer",
        model_name="deit_small_patch16_224.fb_in1k",
        pretrained=True,
        drop_path_rate=0.1,
    ),
    num_classes=1000,
    area=0.35,
)
train_dataloader = dict(batch_size=128)
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=1.5e-5))
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, T_max=max_epochs, convert_to_iter_based=True)
]
auto_scale_lr = dict(base_batch_size=512)
randomness = dict(seed=6)
