# The NFA head on a backbone (arXiv 2504.11922): noise statistics, noise branch, noise-guided attention, fusion.
model = dict(
    type="visionattn.ForgeryLocalizer",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(type="visionattn.Backbone", pretrained=True, out_indices=(0, 1, 2, 3)),
    noise="statistics",
)
