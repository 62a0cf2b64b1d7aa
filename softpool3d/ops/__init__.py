"""The operator.

functional.py     `soft_pool3d` and its kin; modules.py: the same as layers
reference.py      the definition, in plain PyTorch; library.py: the compiled operators, and what torch asks of them
decomposition.py  the operator in those that every runtime has, for export
"""
