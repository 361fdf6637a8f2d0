_base_ = [
    "../../_base_/models/mask2former_instance.py",
    "../../_base_/datasets/coco_instance_lsj.py",
    "../../_base_/schedules/mask2former_100e.py",
    "../../_base_/iter_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_large_11x11.in22k", drop_path_rate=0.3, dilations="mask2former"),
    panoptic_head=dict(
        in_channels=[192, 384, 768, 1536],
        num_queries=200,
    ),
)
