"""The folder Triton's Python stubs start in, and so look for modules first: see tristage.py in it."""
