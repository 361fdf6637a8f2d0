# ScatterFormer on nuScenes with a center head and velocity instead of the TransFusion head of the authors, so the
# published results do not apply. Copy-paste augmentation is used in all but the last 3 epochs.
_base_ = [
    "../_base_/models/scatterformer_center.py",
    "../_base_/datasets/nuscenes.py",
    "../_base_/schedules/onecycle_20e.py",
    "../_base_/bev_runtime.py",
]
model = dict(
    point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
    voxel_size=[0.3, 0.3, 0.2],
    backbone=dict(model_name="scatterformer_nuscenes"),
    bbox_head=dict(
        num_classes=10,
        velocity=True,
        class_groups=[[0], [1, 2], [3, 4], [5], [6, 7], [8, 9]],
        loss=dict(code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]),
        decoding=dict(
            post_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            rectify=0.5,
            nms_iou=0.2,
        ),
    ),
)
custom_hooks = [dict(type="mmdet.PipelineSwitchHook", switch_epoch=17, switch_pipeline={{_base_.augment}})]
