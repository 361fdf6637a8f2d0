# Custom data: images and index masks, PNG files with the class index of each pixel (from 0; 255 is ignored).
#
#   visionattn train semantic-fpn_dinat-pico_masks_custom --cfg-options \
#       custom_data.root=/data/roads custom_data.classes=[road,car]
#
# uses /data/roads/images/train, images/val, masks/train and masks/val; `train_img`, `val_mask`, ... select others.
_base_ = [
    "../../_base_/models/semantic-fpn_small.py",
    "../../_base_/datasets/mask_folders.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/seg_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_pico", dilations=[[1, 6], [1, 3], [1, 2, 1, 2, 1, 2], [1, 1]]),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=200))
