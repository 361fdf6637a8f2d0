_base_ = [
    "../../_base_/datasets/action_ntu60.py",
    "../../_base_/schedules/sgd_15e.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    type="visionattn.PoseRecognizer",
    backbone=dict(
        type="visionattn.VideoTransformer",
        model_name="paat_timesformer_base_patch16_224",
        num_frames=16,
        drop_path_rate=0.1,
        num_joints=25,
        pretrained=None,  # the checkpoint of TimeSformer 8x32 on Kinetics-400, from which the published models start
    ),
    num_classes=60,
    views="max",
)
default_hooks = dict(checkpoint=dict(save_best="Top1", rule="greater"))
