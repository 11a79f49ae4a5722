"""Networks that generate images, one a module. Each takes a code, float [B, D], and gives images float [B, C, H, W] in
[0, 1], and is built from D and the shape (C, H, W).

IDEAL's Table 6 compares three kinds at 64 x 64, a small, a medium and a large one: dcgan, stylegan and transformer. How
large they are here depends on the images, see `kdray.pools.generator.GeneratorSection.network`. They import torch, so
`kdray.generate.base` has their names.
"""
