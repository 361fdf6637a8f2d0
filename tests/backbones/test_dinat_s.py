"""DiNAT_s against the published models."""

import pytest
import timm

from visionattn.backbones.dinat_s import DiNATS

PARAMETERS = {
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_published_classifier(parity):
    fixture = parity.read("dinat/dinat_full_dinat_s_tiny.pt")
    model = timm.create_model("dinat_s_tiny")
    model.load_state_dict(parity.weights(fixture))
    parity.check(fixture, model)


@pytest.mark.parametrize("case", ["base", "odd"])
def test_published_small_configuration(parity, case):
    """In ``odd``, stem and merging have to pad."""
    fixture = parity.read(f"dinat/dinats_tinycfg_{case}.pt")
    model = DiNATS(**fixture["meta"]["cfg"])
    model.load_state_dict(parity.weights(fixture))
    parity.check(fixture, model)


def test_published_schedules():
    def dilations(name, **kwargs):
        model = timm.create_model(name, device="meta", **kwargs)
        return [[block.attn.dilation[0] for block in level.blocks] for level in model.layers]

    assert dilations("dinat_s_tiny") == [[1, 8], [1, 4], [1, 2] * 3, [1, 1]]
    assert dilations("dinat_s_tiny", dilations="detection") == [[1, 28], [1, 14], [1, 3, 1, 5, 1, 7], [1, 3]]
    assert dilations("dinat_s_large.in22k_ft_in1k_384") == [[1, 13], [1, 6], [1, 3] * 9, [1, 1]]
