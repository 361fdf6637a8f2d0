# As forgery-net_dinat-pico_photographs, the model `forgery` of the package, with dinat_nano, maps of patches that occur
# twice in an image, and larger crops. 3,000 iterations with --amp --ema 0.002 take 50 minutes of one core.
_base_ = "./forgery-net_dinat-pico_synthetic.py"

model = dict(backbone=dict(model_name="dinat_nano"), matches=True)
crop_size = (192, 192)
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
    batch_size=4,
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
max_iters = 3000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=2e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
