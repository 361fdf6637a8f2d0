# The small ScatterFormer of scatterformer-pico_30e_lidar-samples.py with a small TransFusion head.
_base_ = "./scatterformer-pico_30e_lidar-samples.py"
model = dict(
    bbox_head=dict(
        _delete_=True,
        type="visionattn.TransFusionHead",
        in_channels=48,
        num_classes=3,
        hidden_channels=48,
        num_proposals=60,
        num_heads=4,
        ffn_channels=96,
        branch_channels=32,
        small_classes=(1, 2),  # pedestrian and cyclist
        query_radius=8,
        decoding=dict(
            score_threshold=0.05,
            post_range=[-28.0, -28.0, -5.0, 28.0, 28.0, 3.0],
            rectify=0.5,
            nms_iou=(1.0, 0.2, 0.2),
        ),
    ),
)
