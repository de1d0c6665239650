"""``python -m torch_softmax.benchmark`` measures the tables of the README on this machine.

Each time is compared with a floor: the bytes that the operator must move, at the speed of a copy
measured in the same run. PyTorch and, on a GPU, packages for the same problem are measured with the
same inputs, in a balanced order.
"""
