"""Tests that need a CUDA device, beside those of the CPU tests that take one when there is one."""
