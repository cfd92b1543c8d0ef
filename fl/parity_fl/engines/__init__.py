"""Kernels that come with extras, imported only when a model is large enough to need them."""

from parity_fl.engines.choice import LARGE_STEP, Kernel, large_kernel, torch_is_there

__all__ = ["LARGE_STEP", "Kernel", "large_kernel", "torch_is_there"]
