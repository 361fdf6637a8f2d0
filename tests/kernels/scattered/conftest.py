"""Poisoned memory for the tests of this folder."""

import pytest
import torch


@pytest.fixture
def poisoned_memory():
    """Fill memory that is not initialised with NaN, so that an output nobody wrote is seen."""
    settings = (
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
    )
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = settings[0]
    torch.use_deterministic_algorithms(settings[1])
