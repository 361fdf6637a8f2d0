# ScatterFormer on Waymo; copy-paste augmentation is used in all but the last 4 epochs.
_base_ = [
    "../_base_/models/scatterformer_center.py",
    "../_base_/datasets/waymo_folder.py",
    "../_base_/schedules/onecycle_24e.py",
    "../_base_/bev_runtime.py",
]
model = dict(data_preprocessor=dict(tanh_columns=(3, 4)))
custom_hooks = [dict(type="mmdet.PipelineSwitchHook", switch_epoch=20, switch_pipeline={{_base_.augment}})]
