"""Small classifiers for 28x28 and 32x32 images, one network or family a module: students and local teachers.

Each builder takes the image shape (C, H, W) and the number of classes K; see `kdray.models.base.Builder`. A module
imports torch when a network is built, so that configs are read without it.
"""
