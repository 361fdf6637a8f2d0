# NFA-ViT (arXiv 2504.11922) with a correction of the published code, in which the noise branch gets no gradient.
model = dict(
    type="visionattn.NFAViTLocalizer",
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
    net=dict(),
)
