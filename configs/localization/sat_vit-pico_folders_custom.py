# Custom data: spatial-aware tokens (Wu et al., ICCV 2023, arXiv 2303.10438) from image labels, with folders as for
# cam_dinat-pico_folders_custom.
#
#   visionattn train sat_vit-pico_folders_custom --cfg-options custom_data.root=/data/birds model.area=0.3
#
# `model.area` is the expected fraction of an image that the object covers. The transformer is small and trained from
# scratch; with a network or a file of weights, a pretrained one is better, as in sat_deit-small_30e_cub-224.
_base_ = [
    "../_base_/datasets/class_folders.py",
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
        embed_dim=96,
        depth=6,
        num_heads=3,
    ),
    num_classes=10,
    area=0.3,
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=1, save_best="Top1", rule="greater"))
