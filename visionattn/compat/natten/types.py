"""Type aliases of NATTEN."""

from torch import Tensor

__all__ = [
    "CausalArg1DType",
    "CausalArg1DTypeOrDed",
    "CausalArg2DType",
    "CausalArg2DTypeOrDed",
    "CausalArg3DType",
    "CausalArg3DTypeOrDed",
    "CausalArgType",
    "CausalArgTypeOrDed",
    "Dimension1DType",
    "Dimension1DTypeOrDed",
    "Dimension2DType",
    "Dimension2DTypeOrDed",
    "Dimension3DType",
    "Dimension3DTypeOrDed",
    "DimensionType",
    "DimensionTypeOrDed",
    "NoneType",
    "Tensor",
]

NoneType = type(None)
Dimension1DType, Dimension2DType, Dimension3DType = tuple[int], tuple[int, int], tuple[int, int, int]
CausalArg1DType, CausalArg2DType, CausalArg3DType = tuple[bool], tuple[bool, bool], tuple[bool, bool, bool]
DimensionType = Dimension1DType | Dimension2DType | Dimension3DType
CausalArgType = CausalArg1DType | CausalArg2DType | CausalArg3DType
Dimension1DTypeOrDed, Dimension2DTypeOrDed, Dimension3DTypeOrDed = (
    int | kind for kind in (Dimension1DType, Dimension2DType, Dimension3DType)
)
CausalArg1DTypeOrDed, CausalArg2DTypeOrDed, CausalArg3DTypeOrDed = (
    bool | kind for kind in (CausalArg1DType, CausalArg2DType, CausalArg3DType)
)
DimensionTypeOrDed = int | DimensionType
CausalArgTypeOrDed = bool | CausalArgType
