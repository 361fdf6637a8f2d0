# Class activation maps (Zhou et al., CVPR 2016) of the last stage; the schedule is not published.
_base_ = [
    "../_base_/datasets/wsol_openimages.py",
    "../_base_/schedules/adamw_sat.py",
    "../_base_/epoch_runtime.py",
]

model = dict(
    type="visionattn.CAM",
    data_preprocessor=dict(
        type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type="visionattn.Backbone",
        model_name="dinat_mini.in1k",
        out_indices=(3,),
        pretrained=True,
        drop_path_rate=0.1,
    ),
    num_classes=100,
)
