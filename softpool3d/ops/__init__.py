"""The operator.

functional.py     `soft_pool3d` and the other functions; modules.py: the same as layers
reference.py      the definition, in plain PyTorch; library.py: the compiled operators, and what torch asks of them
decomposition.py  the operator in terms of standard operators, for export
"""
