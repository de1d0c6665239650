"""What ``train_fashion.py`` needs around its training: data, pictures, checkpoints, processes.

It belongs to the example; the library never imports it.
"""
