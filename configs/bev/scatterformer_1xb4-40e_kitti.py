# ScatterFormer on KITTI with the usual classes and range, on one GPU. The authors have no results on KITTI.
_base_ = [
    "../_base_/models/scatterformer_center.py",
    "../_base_/datasets/kitti.py",
    "../_base_/schedules/onecycle_24e.py",
    "../_base_/bev_runtime.py",
]
model = dict(
    point_cloud_range=[0.0, -39.68, -3.0, 69.12, 39.68, 1.0],
    voxel_size=[0.32, 0.32, 0.125],
    voxel_encoder=dict(in_channels=4),
    bbox_head=dict(
        decoding=dict(post_range=[-5.0, -45.0, -5.0, 75.0, 45.0, 5.0], rectify=0.5, nms_iou=(0.5, 0.3, 0.3)),
    ),
)
train_cfg = dict(max_epochs=40, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=0.003))
steps = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(
        type="OneCycleLR", eta_max=0.003, total_steps=40, pct_start=0.1, div_factor=100, final_div_factor=1e4, **steps
    ),
    dict(type="CosineAnnealingMomentum", eta_min=0.85, begin=0, end=4, T_max=4, **steps),
    dict(type="CosineAnnealingMomentum", eta_min=0.95, begin=4, end=40, T_max=36, **steps),
]
custom_hooks = [dict(type="mmdet.PipelineSwitchHook", switch_epoch=36, switch_pipeline={{_base_.augment}})]
