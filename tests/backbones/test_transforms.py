"""Transforms of one reduced model of each architecture: `torch.func`, forward-mode AD, second derivatives, tracing."""

import pytest
import torch
from fixtures.reduced import REPRESENTATIVES, family, image, small
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from visionattn.errors import BackendError

SDPA = "_scaled_dot_product_flash_attention_for_cpu"
# They consist of timm's attention blocks; PyTorch's fused attention raises an error in forward mode.
FUSED = {"davit", "pose_vit", "timesformer", "scatterformer"}


pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.fixture(params=REPRESENTATIVES)
def case(request):
    """Name, model in float64, its parameters, and two images."""
    torch.manual_seed(0)
    model = small(request.param, num_classes=5).eval().double()
    side = 32 if family(request.param) == "scatterformer" else 64
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return request.param, model, parameters, image(request.param, side, batch=2).double()


def test_gradients_of_parameters_and_of_samples(case):
    _, model, parameters, x = case

    def loss(p, x):
        return functional_call(model, p, (x,)).square().mean()

    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    expected = torch.autograd.grad(loss(leaves, x), list(leaves.values()), materialize_grads=True, allow_unused=True)
    torch.testing.assert_close(list(grad(loss)(parameters, x).values()), list(expected))
    each = vmap(grad(lambda p, x: loss(p, x[None])), (None, 0))(parameters, x)
    for name, value in each.items():
        torch.testing.assert_close(value.mean(0), expected[list(parameters).index(name)])


def test_ensemble(case):
    name, model, _, x = case
    models = [model, small(name, num_classes=5).eval().double()]
    state = stack_module_state(models)
    with torch.no_grad():
        out = vmap(lambda p, b: functional_call(model, (p, b), (x,)))(*state)
        torch.testing.assert_close(out, torch.stack([one(x) for one in models]))


def test_forward_mode_is_correct_or_an_error(case):
    name, model, _, x = case
    direction = torch.randn_like(x)
    with torch.no_grad():
        expected = (model(x + 1e-6 * direction) - model(x - 1e-6 * direction)) / 2e-6
    if family(name) in FUSED:
        with pytest.raises(NotImplementedError, match=SDPA):
            jvp(model, (x,), (direction,))
        return
    tangents = [jvp(model, (x,), (direction,))[1]]
    with forward_ad.dual_level():
        tangents.append(forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent)
    for tangent in tangents:
        torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_second_derivatives_are_correct_or_an_error(case):
    name, model, _, x = case
    direction = torch.randn_like(x)

    def gradient(x, create_graph=False):
        x = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(model(x).square().mean(), x, create_graph=create_graph)[0]

    leaf = x.clone().requires_grad_()
    first = gradient(leaf, create_graph=True)
    if family(name) in FUSED | {"biformer"}:
        with pytest.raises(RuntimeError, match=f"{SDPA}_backward is not implemented"):
            torch.autograd.grad((first * direction).sum(), leaf)
        return
    (second,) = torch.autograd.grad((first * direction).sum(), leaf)
    expected = (gradient(x + 1e-5 * direction) - gradient(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_trace_of_another_batch_size(case):
    name, model, _, x = case
    with torch.no_grad():
        if family(name) == "scatterformer":
            with pytest.raises(BackendError, match="cannot be traced"):
                torch.jit.trace(model, (x,), check_trace=False)
            return
        traced = torch.jit.trace(model, (x,), check_trace=False)
        other = torch.randn(3, *x.shape[1:], dtype=x.dtype)
        torch.testing.assert_close(traced(other), model(other))
