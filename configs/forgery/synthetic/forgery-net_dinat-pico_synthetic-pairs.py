# Second part: each forgery is paired with its unmodified crop, in crops of 192 pixels, so that the label depends on the
# manipulation instead of the content. Two processes with 24 images per step take 1.3 s; the results in docs/forgery.md
# are from 516 such steps and 2,084 of one process:
#   visionattn train forgery-net_dinat-pico_synthetic-pairs --amp --ema 0.002 --devices 2 \
#     --cfg-options load_from=WORK_DIR_OF_THE_FIRST/iter_5500.pth
_base_ = "./forgery-net_dinat-pico_synthetic.py"

crop_size = (192, 192)
train_dataloader = dict(
    batch_size=6,
    collate_fn=dict(type="visionattn.collate_pairs"),
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.RandomCrop", crop_size=crop_size),
            dict(type="RandomFlip", prob=0.5),
            dict(
                type="visionattn.ForgeImage",
                donors=["train"],
                root="data/photos",
                paired=True,
                area=(0.02, 0.3),
                quality=(75, 100),
            ),
            dict(type="visionattn.PackForgeryPair", meta_keys={{_base_.meta_keys}}),
        ]
    ),
)
max_iters = 2600
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_iters=max_iters, val_interval=650)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=2e-5, by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50),
]
