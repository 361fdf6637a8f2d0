# Blood cells (BCCD, 3 classes, 205 training images of 640x480): `visionattn data bccd --out data/bccd`.
_base_ = "./atss_dinat-pico_fpn_coco_custom.py"

custom_data = dict(
    root="data/bccd",
    train_ann="instances_train.json",
    val_ann="instances_val.json",
    train_img="images/train",
    val_img="images/val",
)
max_iters = 2000
train_cfg = dict(max_iters=max_iters, val_interval=500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
