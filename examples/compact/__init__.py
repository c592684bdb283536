"""Compact examples: the recommenders of NVIDIA's texts, one file each, trained small on synthetic rows and served."""
