# ScatterFormer (arXiv 2401.00912) with a cascade of dense encoder-decoders and a TransFusion head (arXiv 2203.11496),
# for the geometry and the classes of nuScenes.
model = dict(
    type="visionattn.BEVDetector",
    point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
    voxel_size=[0.3, 0.3, 0.2],
    x_right=True,  # the authors trained in the axes of the sensor,
    data_preprocessor=dict(intensity_max=255.0),  # with its intensities
    voxel_encoder=dict(type="visionattn.VoxelEncoder", in_channels=5),
    backbone=dict(type="visionattn.SparseBackbone", model_name="scatterformer_nuscenes"),
    neck=dict(type="visionattn.CascadeDED", in_channels=128, channels=128, num_units=4),
    bbox_head=dict(
        type="visionattn.TransFusionHead",
        in_channels=128,
        num_classes=10,
        num_proposals=200,
        small_classes=(8, 9),  # pedestrian and traffic cone
        query_radius=20,
        velocity=True,
        loss=dict(code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]),
        decoding=dict(
            score_threshold=0.0,
            post_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            rectify=0.5,
            # Proposals of the other classes are peaks of the heatmap and need no suppression.
            nms_iou=(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.175, 0.175),
            nms_pre=1000,
            max_boxes=100,
        ),
    ),
)
