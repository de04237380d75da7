"""Benchmarks, each a command: ``python -m sb3_hybrid_grpo.benchmark.speed``."""
