"""``python -m torch_softmax.benchmark``: the tables of the README, as measured on this machine.

Every time stands beside a floor: the bytes that the operator must move, at the speed of a copy that
was measured in the same run. PyTorch and, on a GPU, the packages that solve the same problem are
measured with the same inputs, in an order in which none is favoured.
"""
