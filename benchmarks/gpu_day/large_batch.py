"""The stage `large_batch`: one rank's part of EgoNCE and of the draw of hard negatives among hundreds of ranks."""
from __future__ import annotations

import torch
from gpu_day.common import DEVICE, REHEARSAL, check, clock, forget, peak_gib
from one_rank import draw_now, loss_now, playing, rows_of


def large_batch() -> None:
    """Measure rank 0's EgoNCE with its gradient, and its draw; what other ranks would send is drawn on the device."""
    for samples, ranks in ((64, 8),) if REHEARSAL else ((256, 8), (2048, 64), (16384, 512)):
        rows = 2 * samples
        counts = [rows // ranks] * ranks
        with playing(ranks, rows):
            text, video, *classes = (x.detach().to(DEVICE) for x in rows_of(counts[0]))
            inputs = (text.requires_grad_(), video.requires_grad_(), *classes, counts)
            forget()
            before = torch.cuda.memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
            loss_ms = clock(lambda inputs=inputs: loss_now(*inputs), 3, 1)
            gib = peak_gib() - before
            parts = loss_now(*inputs)
            draw_ms = clock(lambda parts=parts: draw_now(*parts), 5, 2)
            check("One rank's part of a large batch", gib < 1.5, samples=samples, ranks=ranks, rows=rows,
                  egonce_ms=loss_ms, gib=gib, draw_ms=draw_ms)
