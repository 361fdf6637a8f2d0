"""Global attention with a relative position bias."""

import pytest
import torch

from visionattn.layers import GlobalAttentionRpb, NeighborhoodAttention2d


def test_equals_neighborhood_attention_over_the_whole_map():
    """The same layer as one whose kernel is the map, from the same weights; gradients too."""
    torch.manual_seed(0)
    layer = GlobalAttentionRpb(8, 2, (7, 5), qk_scale=0.4).double()
    torch.nn.init.normal_(layer.rpb)
    whole = NeighborhoodAttention2d(8, 2, (7, 5), qk_scale=0.4).double()
    whole.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "relative_position_index"})
    x = torch.randn(2, 7, 5, 8, dtype=torch.double)
    weight = torch.randn_like(x)
    for module in (layer, whole):
        (module(x) * weight).sum().backward()
    torch.testing.assert_close(layer(x), whole(x))
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad)


def test_index_of_the_published_files():
    layer = GlobalAttentionRpb(4, 1, (2, 3))
    assert layer.relative_position_index.shape == (6, 6)
    assert layer.relative_position_index.dtype == torch.int64
    # Query (0, 0) and key (1, 2): one row down, two columns right of the middle of a 3 x 5 table.
    assert layer.relative_position_index[0, 5] == 2 * 5 + 4
    assert layer.relative_position_index.diagonal().unique().tolist() == [1 * 5 + 2]


def test_dropout_only_in_training():
    torch.manual_seed(0)
    layer = GlobalAttentionRpb(8, 2, (4, 4), attn_drop=0.5)
    x = torch.randn(1, 4, 4, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_bad_arguments():
    with pytest.raises(ValueError, match="multiple of `num_heads`=2, got 9"):
        GlobalAttentionRpb(9, 2, (4, 4))
    with pytest.raises(ValueError, match=r"must have the height and width \(4, 4\), got \(4, 5\)"):
        GlobalAttentionRpb(8, 2, (4, 4))(torch.zeros(1, 4, 5, 8))
