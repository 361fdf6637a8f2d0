# Second part: larger crops, half of them untouched, as the tests are, so that the label and its threshold fit them.
#   python tools/train.py THIS --amp --cfg-options load_from=WORK_DIR_OF_THE_FIRST/best_image_auc_iter_N.pth
_base_ = "./forgery-net_dinat-pico_synthetic.py"

crop_size = (256, 256)
train_dataloader = dict(
    batch_size=6,
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.RandomCrop", crop_size=crop_size),
            dict(type="RandomFlip", prob=0.5),
            dict(
                type="visionattn.ForgeImage",
                donors=["train"],
                root="data/photos",
                probability=0.5,
                area=(0.02, 0.25),
                quality=(70, 100),
            ),
            dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
        ]
    ),
)
max_iters = 1500
optim_wrapper = dict(optimizer=dict(lr=4e-4))
train_cfg = dict(max_iters=max_iters, val_interval=500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50),
]
