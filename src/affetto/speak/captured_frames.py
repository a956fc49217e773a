"""`Frames` on a GPU: few kernels, captured as CUDA graphs that are replayed frame by frame.

It does what `affetto.speak.torch_frames` does. Everything that changes from frame to frame (slot, frame number, last
codes) is in tensors on the device, so that a frame takes two replays and reading its codes. Graphs are bound to the
memory of their batch. That memory, a `Room`, is kept for later batches of the same weights and number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from affetto.speak.launches import attend, draw, embed, norm, project, swiglu
from affetto.speak.layers import Cache, Rotary, product
from affetto.speak.sites import Layer, Site
from affetto.speak.state import FRAMES_OF_A_ROOM, MOST_OPEN_ROOMS, SLOTS_OF_A_ROOM, SpeakingBatch
from affetto.speak.torch_frames import logits
from affetto.speak.weights import Arranged, Shape, SpeakingWeights


@dataclass(eq=False)
class Room:
    """Memory at fixed addresses for a batch of B rows, and the graphs that work in it."""

    weights: Arranged
    cache: Cache
    depth_cache: Cache
    rotary: Rotary
    depth_rotary: Rotary
    states_BD: Tensor
    codes_BK: Tensor
    uniform_BTK: Tensor
    starts_B: Tensor
    temperatures: tuple[Tensor, Tensor]
    """Of the first codebook and of the others, (B,) each."""
    top_k_B: Tensor
    slot: Tensor
    """The slot of the next position (1,)."""
    frame: Tensor
    """Number of the next frame (1,)."""
    places_K: Tensor
    """Positions of the depth decoder, from 0."""
    no_starts_B: Tensor
    graphs: dict[tuple[str, bool], torch.cuda.CUDAGraph | None] = field(default_factory=dict)
    """By the name of their work and whether draws have a top-k; None after its first run, which has no graph."""

    @classmethod
    def empty(cls, weights: SpeakingWeights, arranged: Arranged, num_rows: int, slots: int, num_frames: int) -> Room:
        """A new room, of zeros."""
        like, num_books, device = weights.norm_D, weights.num_codebooks, weights.device
        shape, depth_shape = weights.backbone_shape, weights.depth_shape

        def whole(*sizes: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        return cls(
            arranged,
            Cache.empty(len(arranged.backbone), num_rows, slots, shape, like),
            Cache.empty(len(arranged.depth), num_rows, num_books, depth_shape, like),
            Rotary(shape, slots, weights.dtype), Rotary(depth_shape, num_books, weights.dtype),
            like.new_zeros(num_rows, len(like)), whole(num_rows, num_books, dtype=torch.int64),
            whole(num_rows, num_frames, num_books, dtype=torch.float32), whole(num_rows),
            (whole(num_rows, dtype=torch.float32), whole(num_rows, dtype=torch.float32)),
            whole(num_rows), whole(1), whole(1),
            torch.arange(num_books, dtype=torch.int32, device=device), whole(num_rows),
        )  # fmt: skip

    def fits(self, arranged: Arranged, num_rows: int, slots: int, num_frames: int) -> bool:
        """Whether it has these weights and exactly these sizes."""
        own_rows, own_frames, _ = self.uniform_BTK.shape
        own_slots = self.cache.values_LNSD.shape[2]
        return self.weights is arranged and (own_rows, own_slots, own_frames) == (num_rows, slots, num_frames)


_FREE_ROOMS: WeakKeyDictionary[SpeakingWeights, list[Room]] = WeakKeyDictionary()


def enter(weights: SpeakingWeights, arranged: Arranged, num_rows: int, slots: int, num_frames: int) -> Room:
    """A free room for at least this many slots and frames; `leave` it when the batch is done."""
    slots = -(-slots // SLOTS_OF_A_ROOM) * SLOTS_OF_A_ROOM
    num_frames = -(-num_frames // FRAMES_OF_A_ROOM) * FRAMES_OF_A_ROOM
    rooms = _FREE_ROOMS.setdefault(weights, [])
    for place, room in enumerate(rooms):
        if room.fits(arranged, num_rows, slots, num_frames):
            return rooms.pop(place)
    return Room.empty(weights, arranged, num_rows, slots, num_frames)


def leave(weights: SpeakingWeights, room: Room) -> None:
    """Free a room for later batches. If there are too many, the one that has been free longest is dropped."""
    _FREE_ROOMS[weights] = [*_FREE_ROOMS.get(weights, []), room][-MOST_OPEN_ROOMS:]


class CapturedFrames:
    """`affetto.speak.state.Frames` by Triton's kernels; on a CPU, in Triton's interpreter, without graphs."""

    def __init__(self, weights: SpeakingWeights, batch: SpeakingBatch) -> None:
        assert batch.room is not None
        self.weights, self.batch, self.room = weights, batch, batch.room
        room, settings = self.room, batch.sampling
        self.is_single = len(batch.rows) == 1
        self.has_top_k = settings.max_top_k > 0
        room.uniform_BTK[:, : batch.uniform_BTK.shape[1]] = batch.uniform_BTK
        room.starts_B.zero_() if batch.starts_B is None else room.starts_B.copy_(batch.starts_B)
        for temperature_B, warmth in zip(room.temperatures, settings.warmths, strict=True):
            temperature_B.copy_(warmth.temperature_B)
        room.top_k_B.copy_(settings.top_k_B)
        room.slot.fill_(batch.slot)
        room.frame.zero_()

    def frame(self) -> Tensor:
        """See `Frames`."""
        self._run("frame", self._frame)
        return self.room.codes_BK

    def hear(self, codes_BK: Tensor) -> None:
        """See `Frames`."""
        assert codes_BK is self.room.codes_BK, "only the last frame can be heard"
        self._run("hear", self._hear)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        """Run `work`: the first time directly, which compiles its kernels, and then as a graph."""
        key = (name, self.has_top_k)
        graphs = self.room.graphs
        if self.weights.device.type != "cuda" or key not in graphs:
            work()
            graphs[key] = None
            return
        graph = graphs[key]
        if graph is None:
            graph = graphs[key] = _captured(work)
        graph.replay()

    def _frame(self) -> None:
        weights, room, shape = self.weights, self.room, self.weights.depth_shape
        projector, layers = room.weights.projector, room.weights.depth
        self._draw(0, self._logits(room.states_BD, weights.c0_head_DC))
        self._layers(self._product(room.states_BD, projector), layers, shape, 0)
        for k in range(1, weights.num_codebooks):
            table_VD, codes_B = weights.spoken_tables[k - 1], room.codes_BK[:, k - 1]
            if self.is_single:
                x_BD = project(table_VD, projector, row=codes_B)
            else:
                x_BD = product(table_VD.index_select(0, codes_B), projector)
            x_BD = self._layers(x_BD, layers, shape, k)
            self._draw(k, self._logits(x_BD, weights.heads_DC[k - 1], shape, weights.head_norm_D))
        room.frame.add_(1)

    def _hear(self) -> None:
        weights, room, shape = self.weights, self.room, self.weights.backbone_shape
        x_BD = embed(room.codes_BK, weights.heard_table, weights.vocab_size)
        x_BD = self._layers(x_BD, room.weights.backbone, shape)
        room.states_BD.copy_(norm(x_BD, shape.eps, weights.norm_D))
        room.slot.add_(1)

    def _layers(self, x_BD: Tensor, layers: Sequence[Layer], shape: Shape, place: int | None = None) -> Tensor:
        """Put one position of every row through the backbone, or through the depth decoder at `place`."""
        room = self.room
        cache, rotary, slot, starts_B = room.cache, room.rotary, room.slot, room.starts_B
        if place is not None:
            cache, rotary = room.depth_cache, room.depth_rotary
            slot, starts_B = room.places_K[place:], room.no_starts_B
        for layer, keys_NDS, values_NSD in zip(layers, cache.keys_LNDS, cache.values_LNSD, strict=True):
            if self.is_single:
                qkv_BX = project(x_BD, layer.qkv, shape.eps, layer.attention_norm_D, is_normed=True)
            else:
                qkv_BX = product(norm(x_BD, shape.eps, layer.attention_norm_D), layer.qkv)
            attended_BX = attend(qkv_BX, keys_NDS, values_NSD, shape, rotary, slot, starts_B)
            x_BD = self._product(attended_BX, layer.out, x_BD)
            if self.is_single:
                inner_BF = project(x_BD, layer.gate_up, shape.eps, layer.mlp_norm_D, is_normed=True, is_gated=True)
            else:
                inner_BF = swiglu(product(norm(x_BD, shape.eps, layer.mlp_norm_D), layer.gate_up))
            x_BD = self._product(inner_BF, layer.down, x_BD)
        return x_BD

    def _product(self, x_BI: Tensor, site: Site, added_BO: Tensor | None = None) -> Tensor:
        return project(x_BI, site, added_1O=added_BO) if self.is_single else product(x_BI, site, added_BO)

    def _logits(
        self, x_BD: Tensor, head_DC: Tensor, shape: Shape | None = None, norm_D: Tensor | None = None
    ) -> Tensor:
        """Logits (B, C) in float32; with a `shape` the rows are normed first."""
        eps, is_normed = (0.0, False) if shape is None else (shape.eps, True)
        if self.is_single:
            return project(x_BD, Site(head_DC), eps, norm_D, is_normed=is_normed, dtype=torch.float32)
        if is_normed:
            x_BD = norm(x_BD, eps, norm_D)
        if x_BD.device.type == "cuda" and x_BD.dtype == head_DC.dtype != torch.float32:
            return torch.mm(x_BD, head_DC, out_dtype=torch.float32)
        return logits(x_BD, head_DC)

    def _draw(self, book: int, logits_BC: Tensor) -> None:
        room = self.room
        top_k_B = room.top_k_B if self.has_top_k else None
        draw(logits_BC, room.codes_BK, book, room.uniform_BTK, room.frame, room.temperatures[book > 0], top_k_B)


def _captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """`work` as a graph; capturing doesn't run it."""
    graph = torch.cuda.CUDAGraph()
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Other threads may allocate memory meanwhile.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph
