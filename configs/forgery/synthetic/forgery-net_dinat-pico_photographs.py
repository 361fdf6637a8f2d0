# The model `forgery` of the package: paired crops from 32 photographs under permissive licenses
# (benchmarks/open_photographs.py downloads them), two thirds of them with hard edges as in forgeries made by hand.
# The weights of the package are from 2,600 iterations with max_iters=2600, resumed with this schedule.
# Test data: visionattn forge data/photos/heldout --out data/forged/cut --crop 256 --count 384 --quality 90 --seed 1
#   --operations splice copy_move removal resample --feather 0 --colour-match 0
_base_ = "./forgery-net_dinat-pico_synthetic.py"

# copied regions are found by comparison of patches, without training; validation takes longer
model = dict(copies=True)
crop_size = (144, 144)
hard_edges = dict(
    type="visionattn.ForgeImage",
    donors=["train"],
    root="data/photos",
    operations=["splice", "copy_move", "removal", "resample"],
    feather=0.0,
    colour_match=0.0,
    paired=True,
    area=(0.03, 0.3),
    quality=(75, 100),
)
all_operations = dict(
    type="visionattn.ForgeImage",
    donors=["train"],
    root="data/photos",
    paired=True,
    area=(0.03, 0.3),
    quality=(75, 100),
)
train_dataloader = dict(
    batch_size=6,
    collate_fn=dict(type="visionattn.collate_pairs"),
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.RandomCrop", crop_size=crop_size),
            dict(type="RandomFlip", prob=0.5),
            dict(type="RandomChoice", transforms=[[hard_edges], [all_operations]], prob=[0.67, 0.33]),
            dict(type="visionattn.PackForgeryPair", meta_keys={{_base_.meta_keys}}),
        ]
    ),
)
val_dataloader = dict(dataset=dict(data_root="data/forged/cut"))
test_dataloader = val_dataloader
max_iters = 4200
train_cfg = dict(max_iters=max_iters, val_interval=1600)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=2e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
