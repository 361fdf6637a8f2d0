# Fine-grained recognition with dual cross-attention (Zhu et al., CVPR 2022) on your own data: image labels, from
# folders with one subfolder of images per class, as for cam_dinat-pico_folders_custom.
#
#   visionattn train dcal_vit-pico_folders_custom --cfg-options custom_data.root=/data/birds
#
# The transformer is small and trained from scratch. With a network or a file of weights, a pretrained one is better:
# model.backbone.model_name=deit_small_patch16_224.fb_in1k model.backbone.pretrained=True, without the three sizes.
_base_ = [
    "../_base_/datasets/class_folders.py",
    "../_base_/schedules/adamw_iters.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="visionattn.DCAL",
    data_preprocessor=dict(
        type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type="visionattn.VisionTransformer",
        model_name="vit_tiny_patch16_224",
        embed_dim=96,
        depth=6,
        num_heads=3,
        drop_path_rate=0.1,
    ),
    num_classes=10,
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=1, save_best="Top1", rule="greater"))
