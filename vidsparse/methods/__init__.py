"""Sparse attention methods: one file each, found by ``base.available_methods``."""
