# Mask2Former for semantic segmentation with a narrow head, for small data and CPUs: fewer channels, layers, queries
# and points.
_base_ = "./mask2former_semantic.py"
width = 128
attention = dict(embed_dims=width, num_heads=4)
positions = dict(num_feats=width // 2)
model = dict(
    backbone=dict(model_name="dinat_pico", pretrained=None, dilations="auto"),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        feat_channels=width,
        out_channels=width,
        num_queries=50,
        train_cfg=dict(num_points=2048),
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
)
