"""The ways that `benchmarks.single_core` compares: each is a module, and most run in a process of their own."""
