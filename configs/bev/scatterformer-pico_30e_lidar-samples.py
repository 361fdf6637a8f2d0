# A small ScatterFormer on simulated scans, trained from scratch on a CPU.
_base_ = [
    "../_base_/models/scatterformer_center.py",
    "../_base_/datasets/lidar_samples.py",
    "../_base_/schedules/onecycle_30e.py",
    "../_base_/bev_runtime.py",
]
model = dict(
    point_cloud_range=[-25.6, -25.6, -3.0, 25.6, 25.6, 1.0],
    voxel_size=[0.32, 0.32, 0.5],
    voxel_encoder=dict(in_channels=4),
    backbone=dict(model_name="scatterformer_pico"),
    neck=dict(in_channels=32, channels=48, num_units=1, blocks=(1, 1, 1)),
    bbox_head=dict(
        in_channels=48,
        shared_channels=32,
        decoding=dict(post_range=[-28.0, -28.0, -5.0, 28.0, 28.0, 3.0], rectify=0.5, nms_iou=0.2),
    ),
)
default_hooks = dict(checkpoint=dict(interval=5))
