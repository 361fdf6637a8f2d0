"""The steps of MMSyncBN, composed for one rank and for two halves of a batch, against torch's batch norm."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops import sync_bn

EPS, MOMENTUM = 1e-5, 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("ranks", [1, 2])
def test_matches_batch_norm(ranks, dtype):
    generator = torch.Generator().manual_seed(2)
    input = (torch.randn(4, 3, 10, generator=generator) * 2 + 1).to(dtype)
    weight, bias = torch.rand(3, generator=generator), torch.rand(3, generator=generator)
    grad_output = torch.randn(4, 3, 10, generator=generator).to(dtype)

    leaf, leaf_weight, leaf_bias = (t.clone().float().requires_grad_() for t in (input, weight, bias))
    wanted_mean, wanted_var = torch.full((3,), 0.5), torch.full((3,), 2.0)
    expected = F.batch_norm(leaf, wanted_mean, wanted_var, leaf_weight, leaf_bias, True, MOMENTUM, EPS)
    grads = torch.autograd.grad(expected, (leaf, leaf_weight, leaf_bias), grad_output.float())

    parts, grad_parts = input.chunk(ranks), grad_output.chunk(ranks)
    means = [torch.empty(3) for _ in parts]
    for part, mean in zip(parts, means, strict=True):
        sync_bn.sync_bn_forward_mean(part, mean)
    mean = sum(means) / ranks
    variances = [torch.empty(3) for _ in parts]
    for part, var in zip(parts, variances, strict=True):
        sync_bn.sync_bn_forward_var(part, mean, var)
    var = sum(variances) / ranks
    outputs, norms, params, std = [], [], [], torch.empty(3)
    for part, grad_part in zip(parts, grad_parts, strict=True):
        running_mean, running_var = torch.full((3,), 0.5), torch.full((3,), 2.0)
        norm, output = torch.empty_like(part, dtype=torch.float), torch.empty_like(part)
        sync_bn.sync_bn_forward_output(
            part, mean, var, weight, bias, running_mean, running_var, norm, std, output,
            eps=EPS, momentum=torch.tensor([MOMENTUM]), group_size=ranks,
        )  # fmt: skip
        torch.testing.assert_close(running_mean, wanted_mean)
        torch.testing.assert_close(running_var, wanted_var)
        outputs.append(output)
        norms.append(norm)
        params.append((torch.empty(3), torch.empty(3)))
        sync_bn.sync_bn_backward_param(grad_part, norm, *params[-1])
    torch.testing.assert_close(torch.cat(outputs), expected.detach().to(dtype))

    grad_weight, grad_bias = (sum(p) for p in zip(*params, strict=True))
    torch.testing.assert_close(grad_weight, grads[1])
    torch.testing.assert_close(grad_bias, grads[2])
    grad_inputs = []
    for grad_part, norm in zip(grad_parts, norms, strict=True):
        grad_inputs.append(torch.empty_like(grad_part))
        sync_bn.sync_bn_backward_data(
            grad_part, weight, grad_weight / ranks, grad_bias / ranks, norm, std, grad_inputs[-1]
        )
    torch.testing.assert_close(torch.cat(grad_inputs), grads[0].to(dtype), rtol=1e-3, atol=1e-5)


def test_without_affine_part_and_running_statistics():
    input, mean, var = torch.randn(2, 3, 5), torch.zeros(3), torch.ones(3)
    norm, std, output = torch.empty_like(input), torch.empty(3), torch.empty_like(input)
    sync_bn.sync_bn_forward_output(
        input, mean, var, None, None, None, None, norm, std, output, eps=3.0, momentum=0.1, group_size=1
    )
    torch.testing.assert_close(output, input / 2)
