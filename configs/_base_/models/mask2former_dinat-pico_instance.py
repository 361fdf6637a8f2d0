# Mask2Former for instance segmentation with a narrow head, for small data and CPUs: fewer channels, layers, queries,
# points.
_base_ = "./mask2former_panoptic.py"
width = 128
attention = dict(embed_dims=width, num_heads=4)
positions = dict(num_feats=width // 2)
model = dict(
    data_preprocessor=dict(pad_seg=False),
    backbone=dict(model_name="dinat_pico", pretrained=None, dilations="auto"),
    panoptic_head=dict(
        in_channels=[32, 64, 128, 256],
        feat_channels=width,
        out_channels=width,
        num_stuff_classes=0,
        num_queries=60,
        loss_cls=dict(class_weight=[1.0] * 80 + [0.1]),
        pixel_decoder=dict(
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=dict(embed_dims=width, feedforward_channels=512)),
            ),
            positional_encoding=positions,
        ),
        positional_encoding=positions,
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=width, feedforward_channels=512),
            ),
        ),
    ),
    panoptic_fusion_head=dict(num_stuff_classes=0),
    train_cfg=dict(num_points=2048),
    test_cfg=dict(panoptic_on=False, max_per_image=60),
)
