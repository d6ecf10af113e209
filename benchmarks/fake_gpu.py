"""Runs egokit as on "cuda:0" without a GPU, to check devices and to count costs.

There are two ways, each a context manager.

`without_values()`: tensors have shapes, types and devices, but no values (PyTorch's FakeTensorMode). Nothing is
computed, so a whole training step of the full-size model takes seconds. An operation whose tensors lie on different
devices raises an error, as on a GPU. What depends on values is assumed: see `NoValues`.

`on_the_cpu()`: tensors have values and are computed on the CPU, but say "cuda:0" (a tensor subclass). An operation that
a GPU refuses, because its tensors lie on different devices, raises an error. Whole runs on tiny data work like this.

No kernel of a GPU runs in either way, so they say nothing about its speed, its rounding or its allocator.
"""
from computed_on_cpu import on_the_cpu
from fake_cuda import GPU, aten
from no_values import NoValues, without_values

__all__ = ["GPU", "NoValues", "aten", "on_the_cpu", "without_values"]
