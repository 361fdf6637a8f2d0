# CATANet for factor 2, from scratch. The released weights need overlap="published"; for own training, "mean" averages
# where windows overlap.
_base_ = ["../_base_/datasets/div2k.py", "../_base_/schedules/adam_catanet.py", "../_base_/sr_runtime.py"]
model = dict(
    type="visionattn.SuperResolver",
    scale={{_base_.scale}},
    net=dict(
        dim=40,
        qk_dim=36,
        mlp_dim=96,
        heads=4,
        centers=(16, 32, 64, 128, 16, 32, 64, 128),
        group_sizes=(256, 128, 64, 32, 256, 128, 64, 32),
        windows=(16, 20, 24, 28, 16, 20, 24, 28),
        overlap="published",
    ),
)
