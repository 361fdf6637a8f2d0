# Second part on easier forgeries: blobs with hard edges in original colors, pasted, removed or resampled; pairs as in
# forgery-net_dinat-pico_synthetic-pairs.py, in crops of 224 pixels. Two processes with 16 images per step take 1.8 s:
#   visionattn train forgery-net_dinat-pico_synthetic-cut --amp --ema 0.002 --devices 2 \
#     --cfg-options load_from=WORK_DIR_OF_THE_FIRST/iter_5500.pth
# The results in docs/forgery.md are from 2,300 steps of one process (label_weight 0.5, quality from 75), this config,
# and 430 more steps.
# Test data: visionattn forge data/photos/heldout --out data/forged/cut --crop 256 --count 384 --quality 90 --seed 1
#   --operations splice copy_move removal resample --shapes blob --feather 0 --colour-match 0
_base_ = "./forgery-net_dinat-pico_synthetic.py"

model = dict(loss=dict(label_weight=1.0))
crop_size = (224, 224)
train_dataloader = dict(
    batch_size=4,
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
                operations=["splice", "copy_move", "removal", "resample"],
                shapes=["blob"],
                feather=0.0,
                colour_match=0.0,
                paired=True,
                area=(0.02, 0.25),
                quality=(80, 100),
            ),
            dict(type="visionattn.PackForgeryPair", meta_keys={{_base_.meta_keys}}),
        ]
    ),
)
val_dataloader = dict(dataset=dict(data_root="data/forged/cut"))
test_dataloader = val_dataloader
max_iters = 3600
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_iters=max_iters, val_interval=1200)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=2e-5, by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50),
]
