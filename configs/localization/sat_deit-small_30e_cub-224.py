# SAT (Wu et al., ICCV 2023) on CUB: DeiT-S, 30 epochs, batch size 8 x 32.
_base_ = [
    "../_base_/datasets/wsol_cub.py",
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
    num_classes=200,
    area=0.25,
)
randomness = dict(seed=6)
