"""Two profiles: few examples, always the same ones, for the suite; many new ones with ``VISIONATTN_FUZZ_EXAMPLES=N``.

What a long run finds is mended, and its example stays in the file of the test as an ``@example``.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "attacks")]  # mutations; annotation_loaders, image_loaders

settings.register_profile(
    "suite",
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
if examples := os.environ.get("VISIONATTN_FUZZ_EXAMPLES"):
    settings.register_profile(
        "long", max_examples=int(examples), deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
    )
settings.load_profile("long" if examples else "suite")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of a module's examples, each of which overwrites the last one's."""
    return tmp_path_factory.mktemp("place")
