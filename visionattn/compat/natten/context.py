"""Switches and queries of NATTEN. The switches change nothing here, and say so once; their values are remembered."""

import warnings

import torch

_SWITCHES: dict[str, object] = {}
_WARNED: set[str] = set()

__all__ = [
    "are_deterministic_algorithms_enabled",
    "disable_autotuner",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "force_flex_attention",
    "get_memory_usage_preference",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_fused_na",
    "has_gemm",
    "has_half",
    "has_tf32_gemm",
    "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward",
    "is_autotuner_enabled_for_forward",
    "is_fna_enabled",
    "is_fused_na_enabled",
    "is_gemm_na_enabled",
    "is_kv_parallelism_enabled",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "is_tf32_in_gemm_na_enabled",
    "is_tiled_na_enabled",
    "set_memory_usage_preference",
    "should_use_flex_attention",
    "use_autotuner",
    "use_deterministic_algorithms",
    "use_flex_attention",
    "use_fna",
    "use_fused_na",
    "use_gemm_na",
    "use_kv_parallelism_in_fused_na",
    "use_tf32_in_gemm_na",
    "use_tiled_na",
    "warn_once",
]


def warn_once(name: str, reason: str) -> None:
    """Warn that a function or argument has no effect, once per process."""
    if name not in _WARNED:
        _WARNED.add(name)
        warnings.warn(f"natten: `{name}` has no effect with the kernels of visionattn: {reason}", stacklevel=3)


def _switch(name: str, reason: str):
    def use(mode: bool = True, *args: object, **kwargs: object) -> bool:
        _SWITCHES[name] = bool(mode)
        if mode:
            warn_once(name, reason)
        return bool(mode)

    use.__name__ = use.__qualname__ = name
    use.__doc__ = f"Remember the value; no effect: {reason}."
    return use


def _is(name: str):
    def query() -> bool:
        """Return the value of the switch; False by default."""
        return bool(_SWITCHES.get(name, False))

    return query


_FUSED = "the fused and the separate operators always use the same kernels"
use_fused_na = use_fna = _switch("use_fused_na", _FUSED)
use_kv_parallelism_in_fused_na = _switch("use_kv_parallelism_in_fused_na", "results are always deterministic")
use_deterministic_algorithms = _switch("use_deterministic_algorithms", "results are always deterministic")
use_gemm_na = _switch("use_gemm_na", _FUSED)
use_tiled_na = _switch("use_tiled_na", _FUSED)
use_tf32_in_gemm_na = _switch("use_tf32_in_gemm_na", "call torch.set_float32_matmul_precision('high') instead")
is_fused_na_enabled = is_fna_enabled = _is("use_fused_na")
is_kv_parallelism_in_fused_na_enabled = is_kv_parallelism_enabled = _is("use_kv_parallelism_in_fused_na")
are_deterministic_algorithms_enabled = _is("use_deterministic_algorithms")
is_gemm_na_enabled = _is("use_gemm_na")
is_tiled_na_enabled = _is("use_tiled_na")
is_tf32_in_gemm_na_enabled = _is("use_tf32_in_gemm_na")
is_autotuner_enabled = is_autotuner_enabled_for_forward = _is("use_autotuner")
is_autotuner_enabled_for_backward = _is("use_autotuner")
should_use_flex_attention = _is("use_flex_attention")


def use_flex_attention(mode: bool = True, *args: object, **kwargs: object) -> None:
    """Remember the value; no effect."""
    _SWITCHES["use_flex_attention"] = bool(mode)
    warn_once("use_flex_attention", _FUSED)


force_flex_attention = use_flex_attention


def use_autotuner(forward_pass: bool | None = None, backward_pass: bool | None = None, **options: object) -> None:
    """Remember the value; no effect: set the environment variable ``VISIONATTN_AUTOTUNE`` to 1 instead."""
    _SWITCHES["use_autotuner"] = bool(forward_pass or backward_pass)
    warn_once("use_autotuner", "set the environment variable VISIONATTN_AUTOTUNE=1 instead")


def disable_autotuner() -> None:
    """Reset the value of `use_autotuner`."""
    _SWITCHES["use_autotuner"] = False


def set_memory_usage_preference(pref: str = "default") -> None:
    """Remember ``"default"``, ``"strict"`` or ``"unrestricted"``; no effect.

    Raises:
        ValueError: another value.
    """
    if pref not in ("default", "strict", "unrestricted"):
        raise ValueError(f"`pref` must be default, strict or unrestricted, got {pref!r}")
    _SWITCHES["memory"] = pref
    if pref != "default":
        warn_once("set_memory_usage_preference", "memory is always bounded")


def get_memory_usage_preference() -> str:
    """Return the value of `set_memory_usage_preference`."""
    return str(_SWITCHES.get("memory", "default"))


def is_memory_usage_default() -> bool:
    """Return True if the memory preference is ``"default"``."""
    return get_memory_usage_preference() == "default"


def is_memory_usage_strict() -> bool:
    """Return True if the memory preference is ``"strict"``."""
    return get_memory_usage_preference() == "strict"


def is_memory_usage_unrestricted() -> bool:
    """Return True if the memory preference is ``"unrestricted"``."""
    return get_memory_usage_preference() == "unrestricted"


def enable_tf32() -> bool:
    """Same as ``use_tf32_in_gemm_na(True)``."""
    return use_tf32_in_gemm_na(True)


def disable_tf32() -> bool:
    """Same as ``use_tf32_in_gemm_na(False)``."""
    return use_tf32_in_gemm_na(False)


def enable_gemm_na() -> bool:
    """Same as ``use_gemm_na(True)``."""
    return use_gemm_na(True)


def disable_gemm_na() -> bool:
    """Same as ``use_gemm_na(False)``."""
    return use_gemm_na(False)


def enable_tiled_na() -> bool:
    """Same as ``use_tiled_na(True)``."""
    return use_tiled_na(True)


def disable_tiled_na() -> bool:
    """Same as ``use_tiled_na(False)``."""
    return use_tiled_na(False)


def has_cuda() -> bool:
    """Return True if PyTorch has a CUDA device."""
    return torch.cuda.is_available()


def _on_capability(least: tuple[int, int]):
    def query(device_index: torch.device | str | int | None = None) -> bool:
        """Return True if there is a CUDA device of the compute capability that the kernels need."""
        return has_cuda() and torch.cuda.get_device_capability(device_index) >= least

    return query


has_half = has_gemm = has_fp32_gemm = has_fp64_gemm = _on_capability((7, 0))
has_bfloat = has_tf32_gemm = has_fna = has_fused_na = _on_capability((8, 0))
