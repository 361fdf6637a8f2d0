# TimeSformer without pose, the baseline of the two others.
_base_ = [
    "../../_base_/datasets/moving_figures.py",
    "../../_base_/schedules/adamw_figures.py",
    "../../_base_/default_runtime.py",
]
model = dict(
    type="visionattn.PoseRecognizer",
    backbone=dict(
        type="visionattn.VideoTransformer",
        model_name="timesformer_tiny_patch16_224",
        img_size=48,
        patch_size=8,
        embed_dim=64,
        depth=3,
        num_heads=4,
        num_frames=4,
        init_std=0.1,
    ),
    num_classes=4,
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=400, max_keep_ckpts=1, save_best="Top1", rule="greater"))
