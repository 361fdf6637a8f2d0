# Fine-tuning on photographs forged by people: half of CASIA v1, tested on the other half, both made by
#   python benchmarks/casia.py FOLDER_OF_CASIA --out data/casia
#   visionattn train forgery-net_dinat-nano_casia --from RUN_OF_forgery-net_dinat-nano_photographs
_base_ = "./forgery-net_dinat-nano_photographs.py"

meta_keys = {{_base_.meta_keys}}
crop_size = (224, 224)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="visionattn.LoadForgeryMask"),
    dict(type="mmseg.RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs", meta_keys=meta_keys),
]
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="visionattn.ForgeryDataset",
        layout="mani",
        data_root="data/casia/train",
        with_authentic=True,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,  # of two sizes
    dataset=dict(layout="mani", data_root="data/casia/test", with_authentic=True),
)
test_dataloader = val_dataloader
max_iters = 1000
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50),
]
