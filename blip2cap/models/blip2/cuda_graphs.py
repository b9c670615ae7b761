"""Decoding steps as CUDA graphs: a step of a few milliseconds is one launch instead of a thousand.

A graph has a fixed number of rows. One is captured for each number of rows when it first occurs; `cache_slots` rounds
the number of rows, so that there are few graphs.
"""

from __future__ import annotations

import torch

from blip2cap.models.blip2.cache import Cache
from blip2cap.models.blip2.decoders import Decoder


class GraphedDecoder:
    """A decoder whose steps are replayed."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.cache: Cache | None = None
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self.num_given, self.bytes_per_row, self.prefill = decoder.num_given, decoder.bytes_per_row, decoder.prefill
        self.warm_up: torch.cuda.Stream | None = None

    def new_cache(self, num_rows: int, num_prefix: int, max_new_tokens: int) -> Cache:
        """Allocate a cache, and release the graphs that were captured with the last one."""
        self.forget()
        return self.decoder.new_cache(num_rows, num_prefix, max_new_tokens)

    def forget(self) -> None:
        """Release the graphs and the cache whose addresses they hold."""
        self.graphs, self.cache = {}, None

    def step(self, ids_N: torch.Tensor, positions_N: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Run one token of each of the first N rows at its position; return the logits of the next token, [N, V].

        The next step overwrites the logits.
        """
        if cache is not self.cache:  # graphs hold the addresses of the cache that they were captured with
            self.graphs, self.cache = {}, cache
            self.ids_R, self.positions_R = ids_N.new_zeros(cache.num_rows), ids_N.new_zeros(cache.num_rows)
            self.pool = torch.cuda.graph_pool_handle()
        size = len(ids_N)
        self.ids_R[:size], self.positions_R[:size] = ids_N, positions_N
        if size not in self.graphs:
            self.graphs[size] = self._capture(size, cache)
        graph, logits_NV = self.graphs[size]
        graph.replay()
        return logits_NV

    def _capture(self, size: int, cache: Cache) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Record a step of `size` rows over the whole length of the cache."""

        def step() -> torch.Tensor:
            return self.decoder.step(self.ids_R[:size], self.positions_R[:size], cache, cache.length)

        # Run it once before, on a separate stream: libraries allocate memory in their first call, which a capture does
        # not allow. The replay writes the same values into the cache again.
        if self.warm_up is None:
            self.warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.warm_up):
            step()
        torch.cuda.current_stream().wait_stream(self.warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits_NV = step()
        return graph, logits_NV
