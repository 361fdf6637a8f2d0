# Custom data: image labels, from folders with one subfolder of images per class.
#
#   visionattn train cam_dinat-pico_folders_custom --cfg-options \
#       custom_data.root=/data/birds
#
# uses /data/birds/train/CLASS and val/CLASS. Boxes are optional and only used for evaluation: lines
# `CLASS/IMAGE,x0,y0,x1,y1` in val/boxes.csv, or in the file `custom_data.val_boxes`.
_base_ = [
    "../_base_/datasets/class_folders.py",
    "../_base_/schedules/adamw_iters.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="visionattn.CAM",
    data_preprocessor=dict(
        type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(type="visionattn.Backbone", model_name="dinat_pico", out_indices=(2,)),
    num_classes=10,
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=1, save_best="Top1", rule="greater"))
