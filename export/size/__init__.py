"""How much work a row is, counted from an exported repository: trees, multiplications, look-ups, tables.

`sizes_of` needs onnx and treelite; what it returns, and the table, do not.
"""
