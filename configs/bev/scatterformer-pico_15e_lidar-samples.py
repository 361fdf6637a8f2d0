# A small ScatterFormer on simulated scans, from random weights on a CPU.
_base_ = [
    "../_base_/models/scatterformer_center.py",
    "../_base_/datasets/lidar_samples.py",
    "../_base_/schedules/onecycle_24e.py",
    "../_base_/bev_runtime.py",
]
model = dict(
    point_cloud_range=[-38.4, -38.4, -3.0, 38.4, 38.4, 1.0],
    voxel_size=[0.4, 0.4, 0.5],
    voxel_encoder=dict(in_channels=4),
    backbone=dict(model_name="scatterformer_pico"),
    neck=dict(in_channels=32, channels=48, num_units=1, blocks=(1, 1, 1)),
    bbox_head=dict(
        in_channels=48,
        shared_channels=32,
        decoding=dict(post_range=[-42.0, -42.0, -5.0, 42.0, 42.0, 3.0], rectify=0.5, nms_iou=0.2),
    ),
)
train_cfg = dict(max_epochs=15, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.004))
param_scheduler = [
    dict(
        type="OneCycleLR",
        eta_max=0.004,
        total_steps=15,
        pct_start=0.2,
        div_factor=10,
        final_div_factor=1e3,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
default_hooks = dict(checkpoint=dict(interval=5))
