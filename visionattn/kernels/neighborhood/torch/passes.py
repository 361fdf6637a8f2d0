"""Loop structure of the PyTorch backend: passes over images and heads, divided into chunks of tiles.

Everything that depends only on shapes is computed here once and cached, so that the overhead of a call is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.tiles import choose_tile
from visionattn.kernels.neighborhood.torch.plan import PLANS, Plan, Rows, make_plan
from visionattn.kernels.workspace import Key

__all__ = ["Chunk", "Pass", "Source", "passes", "readable"]

CHUNK_SCORES = 1 << 19  # scores per chunk; a few megabytes fit into the caches of most processors
PASS_NUMBERS = 1 << 24  # size of the gathered results of one pass


def readable(x: Tensor) -> Tensor:
    """``x [B, *spatial, heads, d]``, copied if it cannot be read as a table of equal rows."""
    return x if Rows.of(x) else x.contiguous()


@dataclass(frozen=True)
class Source:
    """Location of the data of a pass in a tensor: rows of ``dim`` numbers, starting at element ``first``."""

    count: int
    dim: int
    first: int

    def table(self, x: Tensor) -> Tensor:
        """The memory of ``x`` as ``[count, dim]``."""
        return x.as_strided((self.count, self.dim), (self.dim, 1), x.storage_offset() + self.first)


@dataclass(frozen=True)
class Chunk:
    """A range of the tiles of a pass: rows to gather from each source, bias patterns to add, and buffers."""

    tiles: slice
    place: slice  # in [images * tiles * heads, ...]
    rows: tuple[Tensor, ...]
    patterns: Tensor
    gathered: tuple[Key, ...]
    scores: Key
    probability: Key


@dataclass(frozen=True, eq=False)
class Pass:
    """All tiles of some images and heads; ``shared`` are the key heads of these query heads."""

    plan: Plan
    images: slice
    heads: slice
    shared: slice
    repeat: int
    whole: bool
    exact: torch.dtype
    sources: tuple[Source, ...]
    chunks: tuple[Chunk, ...]

    @property
    def image_count(self) -> int:
        return self.images.stop - self.images.start

    @property
    def head_count(self) -> int:
        return self.heads.stop - self.heads.start

    @cached_property
    def nq(self) -> int:
        return self.plan.queries.shape[1]

    @cached_property
    def nk(self) -> int:
        return self.plan.keys.shape[1]

    @cached_property
    def results(self) -> Tensor:
        """Row of ``[images * tiles * heads * queries, d]`` of each image, token and head."""
        return self.plan.result_rows(self.image_count, self.head_count)

    def buffer(self, name: str, positions: int, dim: int, dtype: torch.dtype | None = None) -> Key:
        """Key of a buffer for all tiles, ``[images * tiles * heads, positions, dim]``."""
        count = self.image_count * self.plan.tiles * self.head_count
        return f"neighborhood {name}", (count, positions, dim), dtype or self.exact


def passes(queries: Sequence[Tensor], keys: Sequence[Tensor], problem: tuple, bias: bool) -> tuple[Pass, ...]:
    """Divide images and heads into groups whose gathered keys do not exceed `PASS_NUMBERS`, if possible.

    Args:
        queries: tensors ``[B, *spatial, heads, d]`` gathered for the queries of the tiles; the first is the query, in
            the dtype of the computation.
        keys: key and value, ``[B, *spatial, heads_kv, d]``, gathered for the halos.
        problem: (kernel, stride, dilation, causal), each per axis.
    """
    x = queries[0]
    layouts = tuple((*t.shape, *t.stride()) for t in (*queries, *keys))
    dtypes = tuple(t.dtype for t in (*queries, *keys))
    return _passes(problem, layouts, dtypes, len(queries), x.dim(), x.device, bias, CHUNK_SCORES, PASS_NUMBERS)


@lru_cache(maxsize=2 * PLANS)  # forward and backward read different tensors
def _passes(problem, layouts, dtypes, query_count, dims, device, bias, chunk_scores, pass_numbers) -> tuple[Pass, ...]:
    batch, *shape, heads, dim = layouts[0][:dims]
    exact = dtypes[0]
    shared_heads, width = layouts[-1][dims - 2], max(layout[dims - 1] for layout in layouts)
    repeat = heads // shared_heads
    if not batch:
        return ()
    tile, _ = choose_tile(tuple(shape), *problem, batch * heads, dim, bias)
    plan = make_plan(problem, tuple(shape), tile, device)
    one = plan.tiles * plan.keys.shape[1] * width * repeat
    step = min(shared_heads, max(pass_numbers // one, 1))
    images = min(batch, max(pass_numbers // (one * step), 1)) if step == shared_heads else 1
    result = []
    for image in range(0, batch, images):
        for head in range(0, shared_heads, step):
            some, shared = slice(image, min(image + images, batch)), slice(head, min(head + step, shared_heads))
            sources, specs = [], []
            for i, layout in enumerate(layouts):
                is_query = i < query_count
                rows = Rows.from_strides(layout[:dims], layout[dims:])
                chosen = slice(shared.start * repeat, shared.stop * repeat) if is_query else shared
                last = (some.stop - some.start - 1) * rows.image + (plan.tokens - 1) * rows.token
                last += (chosen.stop - chosen.start - 1) * rows.head
                d = layout[dims - 1]
                sources.append(Source(last + 1, d, (some.start * rows.image + chosen.start * rows.head) * d))
                specs.append(("queries" if is_query else "keys", rows, 1 if is_query else repeat, d, dtypes[i]))
            query_heads = slice(shared.start * repeat, shared.stop * repeat)
            whole = some == slice(0, batch) and shared == slice(0, shared_heads)
            chunks = _chunks(
                plan, tuple(specs), some.stop - some.start, query_heads.stop - query_heads.start, bias, exact,
                chunk_scores,
            )  # fmt: skip
            result.append(Pass(plan, some, query_heads, shared, repeat, whole, exact, tuple(sources), chunks))
    return tuple(result)


@lru_cache(maxsize=2 * PLANS)  # passes of equal size share their chunks
def _chunks(
    plan: Plan, specs: tuple, images: int, heads: int, biased: bool, exact: torch.dtype, limit: int
) -> tuple[Chunk, ...]:
    """Divide the tiles of some images and heads into chunks of equal size with at most ``limit`` scores."""
    total, nq, nk = images * plan.tiles, plan.queries.shape[1], plan.keys.shape[1]
    step = min(max(limit // (plan.pairs * heads), 1), total)
    step = -(-total // -(-total // step))
    rows = [plan.rows(which, layout, images, heads, repeat) for which, layout, repeat, *_ in specs]
    patterns = plan.pattern_rows(images, heads, biased)
    chunks = []
    for start in range(0, total, step):
        tiles = slice(start, min(start + step, total))
        n = (tiles.stop - tiles.start) * heads
        gathered = []
        for i, (which, _, _, d, dtype) in enumerate(specs):
            name, positions = f"neighborhood gathered {i}", nq if which == "queries" else nk
            shape = (n, positions, d)
            gathered.append((name, shape, dtype))
        chunks.append(
            Chunk(
                tiles,
                slice(tiles.start * heads, tiles.stop * heads),
                tuple(x[tiles].view(-1) for x in rows),
                patterns[tiles].reshape(-1),
                tuple(gathered),
                ("neighborhood scores", (n, nq, nk), exact),
                ("neighborhood probability", (n, nq, nk), exact),
            )
        )
    return tuple(chunks)
