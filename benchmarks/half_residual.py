"""How far model.half_residual takes a training step from float32's, beside half-precision products alone.

    python benchmarks/half_residual.py [clips]       (4; it prints the table at the end of this file)

One pre-training step's losses and gradients of the base model (12 blocks, 224 px, 4 frames, synthetic batch, open
gates) on a CPU, in float32, and in bf16 with tokens between layers in float32 and in bf16. A GPU rounds its products at
other places, to the same 8 bits. fp16 takes a CPU hours; tests/test_half_residual.py measures it on a small model.
"""
import dataclasses
import sys

import torch
from train_step import Trainer, configured, synthetic_batch

from egokit.model.precision import autocast

WAYS = [("fp32", False), ("bf16", False), ("bf16", True)]


def step(trainer: Trainer, batch: dict, precision: str, half: bool) -> tuple[dict, dict]:
    """Return the loss terms and the gradients of one step."""
    model = trainer.model.train()
    model.compute_as(dataclasses.replace(model.config, half_residual=half))
    with autocast(model.device, precision):
        terms = trainer.task.loss(model, batch, 0)
    sum(terms.values()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: term.item() for name, term in terms.items()}, grads


def main(clips: int) -> None:
    trainer = Trainer(configured(checkpointing="full"), torch.device("cpu"))
    batch = synthetic_batch(clips, trainer.model.config)
    print(f"base model, {clips} clips; differences from float32, losses relative, gradients in norm")
    print(f"{'products':10} {'tokens':10} {'egonce':>9} {'mlm':>9} {'itm':>9} {'gradients':>10} {'cosine':>9}")
    exact, exact_grads = None, {}
    for precision, half in WAYS:
        terms, grads = step(trainer, batch, precision, half)
        if exact is None:
            exact, exact_grads = terms, grads
        dot, norm, exact_norm, distance = (sum(values).item() for values in zip(*(
            ((a * b).sum().double(), a.square().sum().double(), b.square().sum().double(),
             (a - b).square().sum().double()) for a, b in ((grads[name], exact_grads[name]) for name in exact_grads)),
            strict=True))
        losses = " ".join(f"{abs(terms[name] / exact[name] - 1):9.1e}" for name in ("egonce", "mlm", "itm"))
        print(f"{precision:10} {'half' if half else 'float32':10} {losses} {(distance / exact_norm) ** 0.5:10.2e} "
              f"{dot / (norm * exact_norm) ** 0.5:9.5f}", flush=True)


if __name__ == "__main__":
    main(int((sys.argv[1:] or [4])[0]))

# Printed on a machine of 2 cores (AMD EPYC), torch 2.15.0:
#
# base model, 2 clips; differences from float32, losses relative, gradients in norm
# products   tokens        egonce       mlm       itm  gradients    cosine
# fp32       float32      0.0e+00   0.0e+00   0.0e+00   0.00e+00   1.00000
# bf16       float32      4.3e-04   6.3e-05   1.1e-03   2.97e-02   0.99956
# bf16       half         1.4e-03   1.7e-04   2.8e-04   3.36e-02   0.99943
