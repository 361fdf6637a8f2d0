# Agent attention (arXiv 2312.08874) over the whole maps of timm's PVT v2-b2.
# The schedule is that of Agent-PVT-S.
# The published models are based on PVT v1, which timm does not have, and start from their own ImageNet weights; this
# one starts from those of PVT v2, of which the projections are kept.
_base_ = [
    "../../_base_/models/retinanet_fpn.py",
    "../../_base_/datasets/coco_detection.py",
    "../../_base_/schedules/adamw_1x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="pvt_v2_b2.in1k",
        drop_path_rate=0.1,
        plugins=[dict(type="agent", agent_num=[9, 16, 49, 49], agent_shape=[12, 16, 28, 28])],
    ),
    neck=dict(in_channels=[128, 320, 512]),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4), paramwise_cfg=None
)  # published: weight decay for all parameters
