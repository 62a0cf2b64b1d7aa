"""The operator.

functional.py     `soft_pool3d` and the other functions; modules.py: the same as layers
library.py        the compiled operators, and what torch asks of them
fallback.py       plain PyTorch, where no library is compiled; reference.py: the definition, for tests
decomposition.py  the operator in terms of standard operators, for export
"""
