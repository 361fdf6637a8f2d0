_base_ = [
    "../../_base_/models/mask2former_instance.py",
    "../../_base_/datasets/cityscapes_instance_512x1024.py",
    "../../_base_/schedules/mask2former_90k.py",
    "../../_base_/iter_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_large_11x11.in22k", drop_path_rate=0.3, dilations="mask2former"),
    panoptic_head=dict(
        in_channels=[192, 384, 768, 1536],
        num_queries=200,
        num_things_classes=8,
        loss_cls=dict(class_weight=[1.0] * 8 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=8),
)
