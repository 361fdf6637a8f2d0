"""Compare the NAT and DiNAT of transformers, on the drop-in for NATTEN, with ours; print the errors as JSON.

Run in a process of its own: transformers looks for NATTEN when it is imported.
"""

import json

import timm
import torch

import visionattn  # noqa: F401  registers the models
from visionattn.backbones import load_official
from visionattn.compat import natten

assert natten.install()
import transformers  # noqa: E402
from transformers import DinatBackbone, DinatConfig, DinatForImageClassification, DinatModel  # noqa: E402

SMALL = dict(embed_dim=16, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], mlp_ratio=3.0)
DILATIONS = [[3], [1, 2], [1, 2], [1]]
OURS = dict(embed_dim=16, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8), mlp_ratio=3.0, num_classes=7, drop_path_rate=0.0)
SETTINGS = dict(num_labels=7, drop_path_rate=0.0)


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter a random value, also those that are initialised to zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def differences(theirs: torch.nn.Module, ours: torch.nn.Module, x: torch.Tensor, run) -> dict[str, float]:
    """Largest errors in float64 of outputs and of the gradients of image and parameters, relative to the largest value.

    Also the error of the outputs in float32.
    """
    report = load_official(ours, theirs.state_dict())
    with torch.no_grad():
        pairs = list(zip(run(theirs, x), run(ours, x), strict=True))
    single = max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)
    theirs, ours = theirs.double(), ours.double()
    x = x.double().requires_grad_()
    results = []
    for model in (theirs, ours):
        outputs = run(model, x)
        weights = torch.Generator().manual_seed(1)
        loss = sum((out * torch.randn(out.shape, generator=weights).to(out)).sum() for out in outputs)
        model.zero_grad()
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        loss.backward()
        results.append((*outputs, gradient))
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True)]
    # The gradients of the parameters under our names, by the same conversion.
    converted = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    parameters = dict(ours.named_parameters())
    twin = {name: torch.zeros_like(p) for name, p in parameters.items()}
    inner = getattr(ours, "model", ours)
    for name, tensor in inner.convert_official(converted).state_dict.items():
        full = name if name in twin else f"model.{name}"
        twin[full] = tensor
    gradients = max(
        ((twin[name] - p.grad).abs().max() / p.grad.abs().max()).item()
        for name, p in parameters.items()
        if p.grad is not None
    )
    exact = {"outputs": max(errors[:-1]), "image": errors[-1], "parameters": gradients}
    return {"exact": exact, "float32": single, "loaded": len(report.loaded)}


def logits(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = model(x)
    return [getattr(out, "logits", out)]


def maps(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    out = model(x)
    return list(getattr(out, "feature_maps", out))


torch.manual_seed(0)
results: dict[str, object] = {"version": transformers.__version__, "repaired": natten.repair_transformers()}
assert not natten.repair_transformers()
image = torch.randn(2, 3, 104, 136)  # maps of odd sizes, the last ones smaller than the window

config = DinatConfig(**SMALL, **SETTINGS, dilations=DILATIONS)
theirs = randomized(DinatForImageClassification(config)).eval()
ours = timm.create_model("dinat_mini", **OURS, dilations=DILATIONS).eval()
results["DinatForImageClassification"] = differences(theirs, ours, image, logits)

config = DinatConfig(**SMALL, **SETTINGS, dilations=DILATIONS, layer_scale_init_value=0.5)
theirs = randomized(DinatForImageClassification(config)).eval()
ours = timm.create_model("dinat_mini", **OURS, dilations=DILATIONS, layer_scale=0.1).eval()
results["layer scale"] = differences(theirs, ours, image, logits)

config = DinatConfig(**SMALL, **SETTINGS, dilations=DILATIONS, out_features=[f"stage{i}" for i in (1, 2, 3, 4)])
theirs = randomized(DinatBackbone(config)).eval()
ours = timm.create_model("dinat_mini", **OURS, dilations=DILATIONS, features_only=True, out_norms=(0, 1, 2, 3)).eval()
results["DinatBackbone"] = differences(theirs, ours, image, maps)

try:
    from transformers import NatConfig, NatForImageClassification
except ImportError:
    pass  # removed in transformers 5
else:
    theirs = randomized(NatForImageClassification(NatConfig(**SMALL, **SETTINGS))).eval()
    ours = timm.create_model("nat_mini", **OURS).eval()
    results["NatForImageClassification"] = differences(theirs, ours, image, logits)

model = DinatModel(DinatConfig(**SMALL, dilations=DILATIONS, attention_probs_dropout_prob=0.5)).train()
model(image).last_hidden_state.sum().backward()
results["dropout"] = all(p.grad is not None for p in model.encoder.parameters())
attentions = model.eval()(image, output_attentions=True).attentions
results["attentions"] = [list(x.shape) for x in attentions]
print(json.dumps(results))
