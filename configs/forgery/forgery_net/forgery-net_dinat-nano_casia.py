# Fine-tuning on half of CASIA v1, whose photographs were forged by people, and testing on the other half:
#   python benchmarks/casia.py FOLDER --out data/casia
#   visionattn train forgery-net_dinat-nano_casia --from RUN      a run of forgery-net_dinat-nano_photographs
# With the model of the package: --from forgery --cfg-options model.backbone.model_name=dinat_pico model.matches=False
# A plain segmentation head: model.noise=None model.noise_branch=None model.matches=False
_base_ = "../synthetic/forgery-net_dinat-pico_synthetic.py"

model = dict(backbone=dict(model_name="dinat_nano"), matches=True)
casia = dict(type="visionattn.ForgeryDataset", layout="mani", with_authentic=True)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        _delete_=True,
        data_root="data/casia/train",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="visionattn.LoadForgeryMask"),
            dict(type="mmseg.RandomCrop", crop_size=(224, 224)),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackSegInputs", meta_keys={{_base_.meta_keys}}),
        ],
        **casia,
    ),
)
val_dataloader = dict(batch_size=1, dataset=dict(data_root="data/casia/test", **casia))
test_dataloader = val_dataloader
max_iters = 600
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50),
]
# the last checkpoint is the result
default_hooks = dict(checkpoint=dict(interval=200, save_best=None))
