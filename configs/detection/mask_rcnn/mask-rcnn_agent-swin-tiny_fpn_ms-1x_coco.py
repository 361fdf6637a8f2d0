# Agent-Swin (arXiv 2312.08874): agent attention over the whole map in the first three stages, with more agents than
# the classifier has. The published schedule starts from the authors' ImageNet weights, to be saved as `pretrained`.
# With pretrained=True it starts from those of Swin, of which the projections are kept.
_base_ = [
    "../../_base_/models/mask-rcnn_fpn.py",
    "../../_base_/datasets/coco_instance_ms.py",
    "../../_base_/schedules/adamw_1x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="swin_tiny_patch4_window7_224.ms_in1k",
        pretrained="data/agent_swin_t_max_acc.pth",
        drop_path_rate=0.1,
        strict_img_size=False,
        out_norm=True,
        plugins=[dict(type="agent", where="layers.[0-2].*", agent_num=[9, 16, 49, 49], agent_shape=[9, 12, 14, 7])],
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
# Position biases have no weight decay, as norms.
biases = ["relative_position_bias_table", "an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias"]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={bias: dict(decay_mult=0.0) for bias in biases}))
