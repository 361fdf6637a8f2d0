# ScatterFormer (arXiv 2401.00912) with a cascade of dense encoder-decoders and a center head with an IoU branch, for
# the geometry of Waymo.
model = dict(
    type="visionattn.BEVDetector",
    point_cloud_range=[-76.8, -76.8, -2.0, 76.8, 76.8, 4.0],
    voxel_size=[0.32, 0.32, 0.1875],
    voxel_encoder=dict(type="visionattn.VoxelEncoder", in_channels=5),
    backbone=dict(type="visionattn.SparseBackbone", model_name="scatterformer_waymo"),
    neck=dict(type="visionattn.CascadeDED", in_channels=128, channels=128, num_units=4),
    bbox_head=dict(
        type="visionattn.CenterHead",
        in_channels=128,
        num_classes=3,
        decoding=dict(
            score_threshold=0.1,
            post_range=[-80.0, -80.0, -10.0, 80.0, 80.0, 10.0],
            rectify=(0.68, 0.71, 0.65),
            nms_iou=(0.75, 0.6, 0.55),
        ),
    ),
)
