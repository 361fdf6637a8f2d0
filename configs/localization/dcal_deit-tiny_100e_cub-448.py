# Dual cross-attention (Zhu et al., CVPR 2022) on CUB: DeiT-T, images resized to 550, crops of 448, Adam with a learning
# rate of 5e-4 / 512 x 16 and a weight decay of 0.05, cosine, 100 epochs, batch size 16. The rate of stochastic depth is
# not published.
_base_ = [
    "../_base_/datasets/wsol_cub.py",
    "../_base_/epoch_runtime.py",
]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(550, 550)),
    dict(type="RandomCrop", crop_size=(448, 448)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="visionattn.PackLocalizationInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(448, 448)),
    dict(type="visionattn.PackLocalizationInputs"),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
model = dict(
    type="visionattn.DCAL",
    data_preprocessor=dict(
        type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type="visionattn.VisionTransformer",
        model_name="deit_tiny_patch16_224.fb_in1k",
        pretrained=True,
        img_size=448,
        drop_path_rate=0.1,
    ),
    num_classes=200,
    share=0.1,
)
max_epochs = 100
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=5e-4 / 512 * 16, weight_decay=0.05))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, T_max=max_epochs, convert_to_iter_based=True)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
