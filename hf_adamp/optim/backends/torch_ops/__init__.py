"""Steps in torch's own operations: on every device, in every precision, traced and differentiated.

`blocks` has what both ways share, and `foreach` and `single_tensor` differ in the arithmetic alone.
"""
