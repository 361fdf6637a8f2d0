# ScatterFormer on nuScenes as published (68.3 mAP and 72.4 NDS on the validation set); copy-paste augmentation is used
# in all but the last 3 epochs.
_base_ = [
    "../_base_/models/scatterformer_transfusion.py",
    "../_base_/datasets/nuscenes.py",
    "../_base_/schedules/onecycle_20e.py",
    "../_base_/bev_runtime.py",
]
custom_hooks = [dict(type="mmdet.PipelineSwitchHook", switch_epoch=17, switch_pipeline={{_base_.augment}})]
