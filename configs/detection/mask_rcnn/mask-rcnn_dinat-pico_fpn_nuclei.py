# Cell nuclei (Data Science Bowl 2018, 466 training images of mixed stains): `visionattn data nuclei --out data/nuclei`.
_base_ = "./mask-rcnn_dinat-pico_fpn_coco_custom.py"

custom_data = dict(
    root="data/nuclei",
    train_ann="instances_train.json",
    val_ann="instances_val.json",
    train_img="images/train",
    val_img="images/val",
)
max_iters = 8000
train_cfg = dict(max_iters=max_iters, val_interval=2000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
