"""Token aggregation and local region attention of CATANet.

Liu et al., "CATANet: Efficient Content-Aware Token Aggregation for Lightweight Image Super-Resolution"
(arXiv 2503.06896, sections 3.2 and 3.3). All maps are ``[batch, channels, height, width]`` outside of the modules and
channels-last inside of them; memory in the format `torch.channels_last` avoids copies. Parameters have the names of the
published models.
"""

from visionattn.layers.token_aggregation.aggregation import (
    TokenAggregationBlock,
    grouped_attention,
    reversed_extension,
)
from visionattn.layers.token_aggregation.local import LocalRegionAttention
from visionattn.layers.token_aggregation.parts import ConvFFN

__all__ = ["ConvFFN", "LocalRegionAttention", "TokenAggregationBlock", "grouped_attention", "reversed_extension"]
