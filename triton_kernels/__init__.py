"""Raw Triton kernels: softmax, log-softmax and cross-entropy over the rows of a tensor.

They know nothing of PyTorch: they take pointers, sizes and strides, and import only Triton.
"""
